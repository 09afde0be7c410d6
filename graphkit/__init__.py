"""graphkit: a model zoo for graph learning on PyTorch Geometric."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphkit.data import load_dataset
    from graphkit.inference import load

__all__ = ["__version__", "load", "load_dataset"]

__version__ = "0.1.0"

# In a checkout graphkit.models and graphkit.datasets are folders beside this one. An installation maps them
# (setup.cfg, package_dir); where it can't, because the checkout itself is on sys.path, they are found here.
_here = os.path.dirname(os.path.abspath(__file__))
_root = os.path.dirname(_here)
if os.path.isfile(os.path.join(_root, "setup.cfg")) and not os.path.isdir(os.path.join(_here, "models")):
    __path__.append(_root)

# Read on first use, so that `import graphkit` needs neither torch nor PyTorch Geometric.
_LAZY = {"load": "graphkit.inference", "load_dataset": "graphkit.data"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'graphkit' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
