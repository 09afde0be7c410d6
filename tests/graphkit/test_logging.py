"""JSON lines, progress, TensorBoard, the logger."""

import io
import json
import logging
import math

import pytest
import torch

from graphkit.errors import UserError
from graphkit.logging import MetricsLog, Progress, RunLogger, configure, configured, duration
from graphkit.run import Run
from graphkit.testing import TinyModel, TinyTask, tiny_config
from graphkit.train import Trainer


def test_lines_are_appended_and_taken_back(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    assert log.position() == 0
    log.write({"epoch": 1, "loss": 0.1})
    position = log.position()
    log.write({"epoch": 2, "loss": math.nan, "worst": math.inf})
    log.close()
    again = MetricsLog(tmp_path / "m.jsonl")
    assert [json.loads(line) for line in again.path.read_text().splitlines()] == [
        {"epoch": 1, "loss": 0.1},
        {"epoch": 2, "loss": "nan", "worst": "inf"},
    ]
    again.rewind(position)
    assert again.position() == position
    again.write({"epoch": 2})
    again.close()
    assert again.path.read_text().splitlines()[1] == '{"epoch": 2}'


def test_unwritable_log(tmp_path):
    with pytest.raises(UserError, match="can't write"):
        MetricsLog(tmp_path / "no" / "m.jsonl").write({})


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_terminal_has_one_moving_line():
    stream = Terminal()
    progress = Progress(4, 3, stream=stream)
    for done in range(1, 13):
        progress.step(done, 0.5)
        if done % 3 == 0:
            progress.valid = f"mrr 0.{done}"
            progress.epoch(done // 3, done)
    progress.close()
    text = stream.getvalue()
    assert "\n" not in text.strip("\n\r ")
    assert "epoch 2/4" in text
    assert "loss 0.5" in text
    assert "mrr 0.9" in text


@pytest.mark.parametrize("epochs", [5, 100, 1000])
def test_plain_lines_are_few(epochs, caplog):
    caplog.set_level("INFO", logger="graphkit")
    progress = Progress(epochs, 3, stream=io.StringIO())
    for epoch in range(1, epochs + 1):
        progress.step(epoch * 3, 0.25)
        progress.epoch(epoch, epoch * 3)
    lines = [record.getMessage() for record in caplog.records]
    assert 5 <= len(lines) <= 21
    assert lines[-1].startswith(f"epoch {epochs}/{epochs} · loss 0.25")
    assert lines[-1].endswith("0:00 left")


def test_plain_lines_after_half_a_minute(caplog, monkeypatch):
    caplog.set_level("INFO", logger="graphkit")
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress = Progress(1000, 10, stream=io.StringIO())
    clock[0] = 31.0
    progress.epoch(1, 10)
    clock[0] = 100.0
    progress.step(15, 1.0)
    assert [r.getMessage().split(" · ")[0] for r in caplog.records] == ["epoch 1/1000", "epoch 2, step 5/10"]
    assert "8:36:09 left" in caplog.records[0].getMessage()


def test_duration():
    assert [duration(s) for s in (-1, 7, 750, 11100)] == ["0:00", "0:07", "12:30", "3:05:00"]


@pytest.fixture
def restored():
    logger = logging.getLogger("graphkit")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_configure(restored, monkeypatch):
    stream = io.StringIO()
    configure(stream=stream)
    configure(stream=stream)
    restored.info("once")
    assert stream.getvalue() == "once\n"
    monkeypatch.setattr("graphkit.logging.rank_and_world", lambda: (1, 2))
    configure(stream=stream)
    restored.info("not shown")
    restored.warning("shown")
    assert stream.getvalue() == "once\n[rank 1] shown\n"
    terminal = Terminal()
    configure(stream=terminal)
    restored.warning("past the bar")
    assert "past the bar" in terminal.getvalue()


def test_rank_is_asked_for_when_a_message_comes(restored, monkeypatch):
    stream = io.StringIO()
    configure(stream=stream)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("RANK", "2")
    restored.info("not shown")
    restored.warning("torchrun's word before there is a group")
    monkeypatch.setattr("graphkit.logging.rank_and_world", lambda: (0, 4))
    restored.info("the group's word")
    assert stream.getvalue() == "[rank 2] torchrun's word before there is a group\nthe group's word\n"


def test_configured_leaves_no_trace(restored, capsys):
    before = restored.handlers[:], restored.level, restored.propagate
    with configured():
        restored.info("shown")
        logging.getLogger("another package").info("not shown")
    restored.info("not shown")
    assert (restored.handlers, restored.level, restored.propagate) == before
    assert capsys.readouterr().err == "shown\n"


def test_run_leaves_complete_lines(tmp_path):
    config = tiny_config(optim={"group_lr": {"head": 0.1}})
    run = Run.create(tmp_path, config)
    Trainer(TinyModel(), TinyTask(), config, run, RunLogger(run, progress=False), log_steps=5).fit()
    lines = run.metrics
    assert [(x["split"], x["epoch"], x["step"]) for x in lines if x["split"] == "step"] == [
        ("step", 2, 5),
        ("step", 4, 10),
    ]
    for line in lines:
        assert line["seconds"] >= 0
        if line["split"] == "train":
            assert {"epoch", "step", "loss", "lr/default", "lr/head"} <= line.keys()
        if line["split"] == "valid":
            assert {"epoch", "step", "mse", "r2"} <= line.keys()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    config = tiny_config()
    run = Run.create(tmp_path, config)
    torch.set_num_threads(1)
    Trainer(TinyModel(), TinyTask(), config, run, RunLogger(run, tensorboard=True)).fit()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert {"train/loss", "valid/r2"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("valid/r2")] == [3, 6, 9, 12]
