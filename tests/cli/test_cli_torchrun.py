"""The command line under torchrun: one set of words, one run, and what becomes of it when a rank dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphkit.run import Run
from graphkit.train import load_best

ROOT = Path(__file__).parents[2]
TRAIN = [
    *("ncn", "--dataset", "digits", "--device", "cpu", "--model.hidden_channels", "8", "--data.k", "3"),
    *("--train.batch_size", "512", "--train.epochs", "3", "--train.checkpoint_steps", "2"),
]
LIMIT = 200.0  # seconds; a job that hangs is ended

JOB = """
import sys
import torch
from graphkit.distributed.launch import process_group
from graphkit.distributed.ranks import any_true
from graphkit.environment import rank_and_world

with process_group(2.0):
    if rank_and_world()[0] == 1:
        raise ZeroDivisionError("rank 1 has no luck")
    any_true(False, torch.device("cpu"))
"""


def torchrun(*argv: object, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.2", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        job.terminate()
        out, err = job.communicate()
        pytest.fail(f"the job hangs\n{out}\n{err}")
    return job.returncode, out, err


def workers(job: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of a job's ranks, as far as they have started."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == job.pid:
                pairs = (entry / "environ").read_bytes().split(b"\0")
                found[int(dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)[b"RANK"])] = int(
                    entry.name
                )
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return found


def until(condition: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if job.poll() is not None or time.monotonic() > end:
            pytest.fail(f"it never came to that\n{job.communicate()}")
        time.sleep(0.01)


def train(runs: Path, root: Path, *more: object, restarts: int = 0) -> subprocess.Popen[str]:
    return torchrun("scripts/train.py", *TRAIN, *more, "--runs", runs, "--data-root", root, restarts=restarts)


def only_run(runs: Path) -> Run:
    (folder,) = runs.glob("*/*")
    return Run.open(folder)


def log_without_times(run: Run) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "time")} for line in run.metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, str]:
    """The folder of the data, an uninterrupted run on two ranks, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    code, out, err = ended(train(folder / "runs", folder / "data"))
    assert code == 0, err
    return folder / "data", only_run(folder / "runs"), out


def test_two_ranks_make_one_run_and_say_all_once(whole: tuple[Path, Run, str]) -> None:
    _, run, out = whole
    assert sum("ncn on digits, seed 0" in line for line in out.splitlines()) == 1
    assert run.result is not None
    assert [line["epoch"] for line in run.metrics if line["split"] == "train"] == [1, 2, 3]


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint_only(
    whole: tuple[Path, Run, str], tmp_path: Path
) -> None:
    data, expected, _ = whole
    job = train(tmp_path / "runs", data, restarts=1)
    after = random.randint(1, 4)
    until(lambda: len(list(tmp_path.glob("runs/*/*/checkpoints/step-*"))) >= min(after, 2), job)
    os.kill(workers(job)[1], signal.SIGKILL)
    code, _, err = ended(job)
    assert code == 0, err
    assert "resuming at epoch" in err
    run = only_run(tmp_path / "runs")
    assert log_without_times(run) == log_without_times(expected)
    best, wanted = load_best(run.checkpoints), load_best(expected.checkpoints)
    assert all(torch.equal(best[name], value) for name, value in wanted.items())


def test_a_bad_input_is_told_once(tmp_path: Path) -> None:
    job = train(tmp_path, tmp_path, "--model.hidden_channels", "-3")
    code, _, err = ended(job)
    assert code != 0
    assert sum(line.startswith("graphkit: ") for line in err.splitlines()) == 1, err
    assert list(tmp_path.glob("*/*/config.yaml")) == []


def test_the_first_traceback_is_that_of_the_rank_that_failed(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(JOB)
    code, _, err = ended(torchrun(script))
    assert code != 0
    boom, lost = err.find("ZeroDivisionError: rank 1 has no luck"), err.find("another rank ended")
    assert boom >= 0, err
    assert lost < 0 or boom < lost, err


def test_sigterm_to_one_rank_saves_one_step_on_all(whole: tuple[Path, Run, str], tmp_path: Path) -> None:
    data, expected, _ = whole
    job = train(tmp_path / "runs", data)
    until(lambda: bool(list(tmp_path.glob("runs/*/*/checkpoints/step-*"))), job)
    os.kill(workers(job)[1], signal.SIGTERM)
    code, _, err = ended(job)
    assert code != 0
    assert "resume with --resume" in err, err
    run = only_run(tmp_path / "runs")
    assert run.result is None
    again = torchrun("scripts/train.py", "--resume", run.folder, "--data-root", data, "--device", "cpu")
    code, _, err = ended(again)
    assert code == 0, err
    assert log_without_times(run) == log_without_times(expected)
    assert json.loads((run.folder / "result.json").read_text())["test"] == expected.result["test"]
