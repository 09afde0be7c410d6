"""Work-arounds: ogb comes in without a thread or a look-up, and its files can be read but not run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch_geometric.data import Data, HeteroData

from graphkit.compat import import_ogb, ogb_safe_globals
from graphkit.errors import UserError

QUIET = """
import os, socket, sys, threading

def refuse(*args, **kwargs):
    raise AssertionError("network at import")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
started = []
start = threading.Thread.start
threading.Thread.start = lambda self: (started.append(self.name), start(self))
from graphkit.compat import import_ogb
assert "ogb" not in sys.modules
module = import_ogb("ogb.linkproppred")
import ogb.version
assert module.__name__ == "ogb.linkproppred"
assert ogb.version.check_outdated is None
assert not started, started
assert threading.active_count() == 1
assert "outdated" not in sys.modules
assert "OUTDATED_IGNORE" not in os.environ
import_ogb("ogb.nodeproppred")
"""


def test_ogb_comes_in_quietly() -> None:
    env = {name: value for name, value in os.environ.items() if name != "OUTDATED_IGNORE"}
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ogbx", "torch"])
def test_only_ogb(name: str) -> None:
    with pytest.raises(ValueError, match="must be ogb"):
        import_ogb(name)


def test_without_ogb(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "ogb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(UserError, match="pip install 'ogb"):
        import_ogb()


def stored(value: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_ogb_files_load_within_the_block_only() -> None:
    graph = Data(x=torch.randn(3, 2), edge_index=torch.tensor([[0, 1], [1, 2]]), num_nodes=3)
    hetero = HeteroData()
    hetero["paper"].x = torch.randn(3, 2)
    hetero["paper", "cites", "paper"].edge_index = torch.tensor([[0, 1], [1, 2]])
    split = {
        "edge": np.arange(6).reshape(3, 2),
        "weight": np.ones(3, np.float32),
        "flag": np.array([True]),
        "head_type": ["a", "b"],
        "count": np.int64(3),
    }
    for value in ((graph, None), (hetero, None), split):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(stored(value))
        with ogb_safe_globals():
            assert type(torch.load(stored(value))) is type(value)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(stored(value))


def test_old_numpy_names_load() -> None:
    value = {"edge": np.arange(6).reshape(3, 2), "count": np.float64(3)}
    new = stored(value).getvalue()
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(new)) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"cnumpy._core.multiarray\n" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    out.seek(0)
    with ogb_safe_globals():
        loaded = torch.load(out)
    assert loaded["edge"].tolist() == value["edge"].tolist()


class Payload:
    ran = False

    def __reduce__(self) -> tuple[object, ...]:
        return (setattr, (Payload, "ran", True))


def test_nothing_else_loads() -> None:
    with ogb_safe_globals(), pytest.raises(pickle.UnpicklingError):
        torch.load(stored({"edge": np.arange(3), "bad": Payload()}))
    assert not Payload.ran
