"""What the tests of the commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from graphkit.cli import main

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096"]
ONE_EPOCH = [*SMALL, "--train.epochs", "1", "--device", "cpu"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("graphkit: ")
        assert "Traceback" not in self.out + self.err
        return lines[0]


Call = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and equal weights need equally many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ncn on digits, for tests that only look at it."""
    runs = tmp_path_factory.mktemp("trained")
    assert main(["train", "ncn", *ONE_EPOCH, "--runs", str(runs)]) == 0
    (config,) = runs.glob("*/*/config.yaml")
    return config.parent
