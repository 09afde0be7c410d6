"""What all tests share: where data lies, fixed seeds, and no network."""

from __future__ import annotations

import ipaddress
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# Tiny tensors gain nothing from threads, which wait for each other on a busy machine.
torch.set_num_threads(1)
# Nothing is asserted about time, and in CI the examples are the same in every run.
hypothesis.settings.register_profile(
    "graphkit", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("graphkit")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data; tests that need it are skipped where there is none."""
    folder = os.environ.get("GRAPHKIT_TEST_DATA")
    if not folder:
        pytest.skip("needs real data: set GRAPHKIT_TEST_DATA to its folder")
    if not Path(folder).is_dir():
        pytest.fail(f"GRAPHKIT_TEST_DATA is '{folder}', which is no folder")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of arrays from the reference implementations."""
    folder = os.environ.get("GRAPHKIT_GOLDEN")
    if folder:
        if not Path(folder).is_dir():
            pytest.fail(f"GRAPHKIT_GOLDEN is '{folder}', which is no folder")
        return Path(folder).resolve()
    beside = ROOT.parent / "shared" / "golden"
    return beside if beside.is_dir() else ROOT / "tests" / "golden"


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


class NetworkUse(BaseException):
    """A test reached for the network; no `except Exception` or `except OSError` may swallow that."""


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name in ("localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def _guarded_sockets() -> Iterator[list[str]]:
    """Lets sockets of this process reach this machine only, and lists the other attempts."""
    attempts: list[str] = []

    def refuse(target: object) -> None:
        attempts.append(str(target))
        raise NetworkUse(f"tests may not use the network; this one tried {target}")

    def guarded(name: str, plain: Any) -> Any:
        def method(self: socket.socket, *args: Any) -> Any:
            address = args[-1]  # of connect, connect_ex and sendto alike
            if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
                refuse(address)
            return plain(self, *args)

        return method

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_local(host):
            refuse(host)
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, guarded(name, getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield attempts


@pytest.fixture(autouse=True)
def network_attempts(_guarded_sockets: list[str]) -> Iterator[list[str]]:
    """What this test tried to reach. It fails if anything is left here, even where its code hid the error."""
    _guarded_sockets.clear()
    yield _guarded_sockets
    if _guarded_sockets:
        pytest.fail(f"this test reached for the network: {', '.join(_guarded_sockets)}")
