"""Work-arounds for other packages, each with the issue that it is for. Nothing is imported or changed before
a function here is called.

- ogb 1.3.6 looks up its newest version on the network, in a thread, when it is imported (ogb#461, ogb#47):
  :func:`import_ogb`.
- ogb 1.3.6 calls ``torch.load`` on pickled graphs and splits, which torch >= 2.6 refuses unless every class
  in them is named (ogb#494): :func:`ogb_safe_globals`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from graphkit.errors import UserError

__all__ = ["import_ogb", "ogb_safe_globals"]

_import_lock = threading.RLock()


def import_ogb(module: str = "ogb") -> types.ModuleType:
    """Imports ogb, or one of its modules, without its version check: no thread, no network.

    ``ogb.version`` starts a thread that asks the package index through the package ``outdated``, without a
    timeout (ogb#461, ogb#47). It does without where ``outdated`` lacks what it wants, so an empty module
    stands in for that while ogb is imported, and for no longer.

    Args:
        module: ``"ogb"``, ``"ogb.linkproppred"``, ...

    Raises:
        UserError: If ogb isn't installed.
        RuntimeError: If the import left a thread behind in spite of all this.
    """
    if module != "ogb" and not module.startswith("ogb."):
        raise ValueError(f"module is '{module}'; it must be ogb or one of its modules")
    with _import_lock:
        if "ogb.version" in sys.modules:  # its check is past, or was prevented
            return importlib.import_module(module)
        threads = set(threading.enumerate())
        with _without_version_check():
            try:
                imported = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != "ogb":
                    raise
                raise UserError("this needs the package ogb: pip install 'ogb>=1.3.6'") from error
        left = [thread.name for thread in set(threading.enumerate()) - threads]
        if left:
            raise RuntimeError(f"importing {module} started threads: {', '.join(left)}")
        return imported


@contextlib.contextmanager
def _without_version_check() -> Iterator[None]:
    """Puts an empty ``outdated`` in place, and afterwards everything as it was."""
    real = sys.modules.get("outdated")
    variable = os.environ.get("OUTDATED_IGNORE")
    sys.modules["outdated"] = types.ModuleType("outdated")
    try:
        yield
    finally:
        if real is None:
            del sys.modules["outdated"]
        else:
            sys.modules["outdated"] = real
        if variable is None:
            os.environ.pop("OUTDATED_IGNORE", None)
        else:
            os.environ["OUTDATED_IGNORE"] = variable


_NUMPY_CODES = ("?", "i1", "u1", "i2", "i4", "i8", "f2", "f4", "f8", "U1", "S1")


def _ogb_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Lists what ogb's files for PyG consist of: PyG's containers, and numpy arrays by old and new names."""
    import numpy as np
    from torch_geometric.data import Data, HeteroData, storage
    from torch_geometric.data import data as pyg

    rebuild = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    assert callable(rebuild)
    assert callable(scalar)
    names: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        Data,
        HeteroData,
        pyg.DataEdgeAttr,
        pyg.DataTensorAttr,
        storage.BaseStorage,
        storage.NodeStorage,
        storage.EdgeStorage,
        storage.GlobalStorage,
        np.ndarray,
        np.dtype,
    ]
    for package in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        names += [(rebuild, f"{package}.multiarray._reconstruct"), (scalar, f"{package}.multiarray.scalar")]
    return names + list(dict.fromkeys(type(np.dtype(code)) for code in _NUMPY_CODES))


@contextlib.contextmanager
def ogb_safe_globals() -> Iterator[None]:
    """Lets ``torch.load`` read ogb's processed graphs and splits within a ``with`` block (ogb#494).

    torch >= 2.6 loads with ``weights_only=True``, which builds named classes only; ogb 1.3.6 names none. The
    complete list is named here, containers and arrays alone, so a file still can't run anything. Convert what
    was read with :func:`graphkit.data.cached` and don't unpickle it again.
    """
    import torch

    with torch.serialization.safe_globals(_ogb_globals()):
        yield
