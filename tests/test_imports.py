"""Nothing happens at import: no network, no thread, no heavy dependency before it is needed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import graphkit

# Run first in a fresh interpreter. Sockets and threads are refused, except the threads that other packages
# (numba, torch) keep for themselves: those aren't Python's.
WATCH = """
import socket, sys, threading

def refuse(*args, **kwargs):
    raise AssertionError(f"at import: {args}")

socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = refuse
threading.Thread.start = refuse
"""


def run(code: str, cwd: Path) -> str:
    """Runs code after WATCH in a new interpreter and returns what it printed."""
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_graphkit_is_light(tmp_path: Path) -> None:
    heavy = {"torch", "torch_geometric", "ogb", "numba", "numpy"}
    assert run(f"import graphkit; print({heavy} & {{*sys.modules}})", tmp_path) == "set()\n"


def test_the_rest_imports_quietly(root: Path, tmp_path: Path) -> None:
    names = ["graphkit.models", "graphkit.datasets"]
    for folder, package in (("models", names[0]), ("datasets", names[1]), ("graphkit", "graphkit")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] not in ("__init__", "__main__"):
                names.append(".".join((package, *parts)))
    code = (
        f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
        "print('ogb' in sys.modules, threading.active_count())"
    )
    assert run(code, tmp_path) == "False 1\n"


def test_lazy_names() -> None:
    assert {"load", "load_dataset", "__version__"} <= {*dir(graphkit)}
    from graphkit.data import load_dataset

    assert graphkit.load_dataset is load_dataset
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        graphkit.lod  # noqa: B018


def test_tests_have_no_network(network_attempts: list[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        socket.create_connection(server.getsockname(), timeout=5).close()
    assert not network_attempts

    with pytest.raises(BaseException, match="may not use the network"):
        urllib.request.urlopen("http://graphkit.invalid/")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        pytest.raises(BaseException, match="may not use the network"),
    ):
        client.connect(("192.0.2.1", 80))
    assert len(network_attempts) == 2
    network_attempts.clear()
