"""A run that is stopped anywhere and resumed equals one that wasn't."""

import os
import signal
import time

import pytest
import torch

from graphkit.errors import UserError
from graphkit.run import Run
from graphkit.testing import TinyModel, TinyTask, tiny_benchmark, tiny_config
from graphkit.train import Stopped, Trainer, read_checkpoint
from graphkit.train.checkpoint import CheckpointStore
from graphkit.train.snapshot import take_snapshot

OPTIM = {"schedule": "cosine", "warmup_epochs": 1.5, "clip_norm": 1.0, "group_lr": {"encoder": 0.02}}
CONFIG = tiny_config(optim=OPTIM, epochs=4, checkpoint_every=2, patience=3, accumulate=2)
STEPS = 3


def make(folder, config=CONFIG, **hooks):
    torch.manual_seed(config.seed)
    run = Run.open(folder) if folder.joinpath("config.yaml").exists() else None
    if run is None:
        folder.mkdir(exist_ok=True)
        made = Run.create(folder / "root", config)
        made.folder.rename(folder / "run")
        run = Run(folder / "run", config)
    task = TinyTask(seed=config.seed, batch_size=config.train.batch_size, **hooks)
    return Trainer(TinyModel(), task, config, run, log_steps=1)


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def at_step(n):
    calls = []

    def hook(epoch, step):
        calls.append((epoch, step))
        if len(calls) == n + 1:
            stop()

    return hook


def log_lines(run):
    """The log without its times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics]


def final(run):
    names = CheckpointStore(run.checkpoints).names()
    return read_checkpoint(run.checkpoints / names[-1])


def assert_equal_trees(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal_trees(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal_trees(x, y)
    else:
        assert a == b or (a != a and b != b)


TIMES = ("seconds", "epoch_seconds", "train_seconds", "eval_seconds", "log_bytes")


def assert_same_run(run, reference):
    mine, other = final(run), final(reference)
    assert_equal_trees(dict(mine.model), dict(other.model))
    assert_equal_trees(mine.optimizer, other.optimizer)
    assert_equal_trees(dict(mine.best), dict(other.best))
    assert_equal_trees(mine.state["generators"], other.state["generators"])
    position, expected = dict(mine.state["state"]), dict(other.state["state"])
    assert len(position["train_seconds"]) == len(expected["train_seconds"])
    for key in TIMES:
        position.pop(key)
        expected.pop(key)
    assert position == expected
    assert log_lines(run) == log_lines(reference)
    for key in ("valid", "test", "best_epoch", "epochs", "stopped_early"):
        assert run.result[key] == reference.result[key], key


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.set_num_threads(1)
    trainer = make(tmp_path_factory.mktemp("reference"))
    trainer.fit()
    return trainer.run


def test_reference_log_has_each_step_once(reference):
    steps = [line["step"] for line in reference.metrics if line["split"] == "step"]
    assert steps == list(range(1, 4 * STEPS + 1))
    assert [line["epoch"] for line in reference.metrics if line["split"] == "valid"] == [1, 2, 3, 4]


@pytest.mark.parametrize("n", range(4 * STEPS))
def test_stop_at_every_step(n, tmp_path, reference):
    trainer = make(tmp_path, on_batch=at_step(n))
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    assert stopped.value.code == 143
    assert final(trainer.run).state["state"]["updates"] == n + 1  # the step is finished, then saved
    again = make(trainer.run.folder)
    again.fit()
    assert_same_run(trainer.run, reference)


@pytest.mark.parametrize("n", range(4 * STEPS))
def test_crash_at_every_step(n, tmp_path, reference):
    """No checkpoint is written at the crash: the run goes back to the last one and the log with it."""

    def crash(epoch, step):
        if epoch * STEPS + step == n:
            raise RuntimeError("power cut")

    trainer = make(tmp_path, on_batch=crash)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit()
    again = make(trainer.run.folder)
    again.fit()
    assert_same_run(trainer.run, reference)


@pytest.mark.parametrize("n", range(6))
def test_stop_during_evaluation(n, tmp_path, reference):
    """Evaluations 4 and 5 are the final ones, of validation and test."""
    calls = []

    def hook(split, metrics):
        calls.append(split)
        if len(calls) == n + 1:
            stop()

    trainer = make(tmp_path, on_evaluate=hook)
    with pytest.raises(Stopped):
        trainer.fit()
    assert trainer.run.result is None
    assert len(calls) == n + 1, "the evaluation is interrupted, not completed"
    again = make(trainer.run.folder)
    again.fit()
    assert_same_run(trainer.run, reference)


def test_stop_before_the_first_step(tmp_path, reference, monkeypatch):
    trainer = make(tmp_path)
    train = Trainer._train

    def stop_first(self, guard):
        stop()
        train(self, guard)

    monkeypatch.setattr(Trainer, "_train", stop_first)
    with pytest.raises(Stopped):
        trainer.fit()
    monkeypatch.undo()
    assert CheckpointStore(trainer.run.checkpoints).names() == ["step-00000000"]
    make(trainer.run.folder).fit()
    assert_same_run(trainer.run, reference)


def test_three_restarts(tmp_path, reference):
    folder = tmp_path
    for n in (1, 2, 4):
        trainer = make(folder, on_batch=at_step(n))
        with pytest.raises(Stopped):
            trainer.fit()
        folder = trainer.run.folder
    make(folder).fit()
    assert_same_run(trainer.run, reference)


def test_killed_again_and_again(tmp_path, reference):
    """SIGKILL after a growing time, which lands in steps, evaluations and saves alike."""
    folder = make(tmp_path).run.folder
    exits = []
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            make(folder, on_batch=lambda epoch, step: time.sleep(0.002)).fit()
            os._exit(0)
        time.sleep(0.01 + 0.01 * attempt)
        os.kill(child, signal.SIGKILL)
        exits.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert -signal.SIGKILL in exits
    make(folder).fit()
    assert_same_run(Run.open(folder), reference)


def test_finished_run_is_left_alone(tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2))
    first = trainer.fit()
    before = {p: p.stat().st_mtime_ns for p in trainer.run.folder.rglob("*") if p.name != "run.lock"}

    def never(*args):
        raise AssertionError("a finished run does nothing")

    again = make(trainer.run.folder, tiny_config(epochs=2), on_batch=never, on_evaluate=never)
    assert again.fit() == first
    assert before == {p: p.stat().st_mtime_ns for p in trainer.run.folder.rglob("*") if p.name != "run.lock"}


@pytest.mark.parametrize("epochs", [1, 4])
def test_finished_run_cannot_be_prolonged(epochs, tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2))
    first = trainer.fit()
    stored = (trainer.run.folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=rf"finished after 2 epochs, .* become {epochs}: start a new run"):
        make(trainer.run.folder, tiny_config(epochs=epochs)).fit()
    again = make(trainer.run.folder, tiny_config(epochs=2, keep=5, max_minutes=9.0))  # nothing to go on with
    assert again.fit() == first
    assert (trainer.run.folder / "config.yaml").read_bytes() == stored


def test_finished_run_that_an_earlier_version_began_to_prolong(tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2))
    trainer.fit()
    text = (trainer.run.folder / "config.yaml").read_text()
    (trainer.run.folder / "config.yaml").write_text(text.replace("epochs: 2", "epochs: 4"))
    with pytest.raises(UserError, match=r"finished after 2 epochs, .* was looked at: start a new run"):
        make(trainer.run.folder, tiny_config(epochs=4)).fit()


def test_stopped_run_can_be_prolonged(tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2), on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    longer = make(trainer.run.folder, tiny_config(epochs=4))
    assert longer.fit().epochs == 4
    whole = make(tmp_path / "whole", tiny_config(epochs=4))
    whole.fit()
    assert_equal_trees(dict(final(trainer.run).model), dict(final(whole.run).model))
    assert log_lines(trainer.run) == log_lines(whole.run)


def test_a_prolonged_run_stopped_again_remembers_its_length(tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2), on_batch=at_step(1))
    with pytest.raises(Stopped):
        trainer.fit()
    with pytest.raises(Stopped):
        make(trainer.run.folder, tiny_config(epochs=4), on_batch=at_step(1)).fit()
    stored = Run.open(trainer.run.folder).config
    assert stored.train.epochs == 4
    assert make(trainer.run.folder, stored).fit().epochs == 4


def test_changed_steps_are_refused(tmp_path):
    trainer = make(tmp_path, on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    other = Trainer(TinyModel(), TinyTask(batch_size=4), CONFIG, trainer.run)
    with pytest.raises(ValueError, match="3 steps an epoch, now it is 6"):
        other.fit()


def print_of(value):
    benchmark = tiny_benchmark()
    vars(benchmark)["fingerprint"] = value
    return benchmark


def test_changed_data_is_refused(tmp_path):
    trainer = make(tmp_path, benchmark=print_of("aaaa"), on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    assert final(trainer.run).state["fingerprint"] == "aaaa"
    with pytest.raises(UserError, match=r"trained on other data: .*'tiny' was aaaa and is bbbb") as error:
        make(trainer.run.folder, benchmark=print_of("bbbb")).fit()
    assert "\n" not in str(error.value)
    assert make(trainer.run.folder, benchmark=print_of("aaaa")).fit().data["fingerprint"] == "aaaa"
    assert trainer.run.result["data"]["fingerprint"] == "aaaa"


@pytest.mark.parametrize(("before", "now"), [(None, "bbbb"), ("aaaa", None)])
def test_checkpoint_or_data_without_a_fingerprint(before, now, tmp_path):
    trainer = make(tmp_path, benchmark=print_of(before), on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    assert make(trainer.run.folder, benchmark=print_of(now)).fit().epochs == 4


def test_checkpoint_of_an_earlier_version_has_no_fingerprint(tmp_path, monkeypatch):
    def older(trainer):
        snapshot = take_snapshot(trainer)
        del snapshot.state["fingerprint"]
        return snapshot

    monkeypatch.setattr("graphkit.train.loop.take_snapshot", older)
    trainer = make(tmp_path, on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    monkeypatch.undo()
    assert make(trainer.run.folder).fit().epochs == 4


def test_a_run_in_use_is_refused(tmp_path):
    trainer = make(tmp_path)
    with trainer.run.lock(), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        make(trainer.run.folder).fit()


def test_early_stopping_survives_a_stop(tmp_path):
    def worse(split, metrics):
        worse.calls += 1
        return {**metrics, "r2": 1.0 / worse.calls}

    worse.calls = 0
    config = tiny_config(epochs=20, patience=3)
    trainer = make(tmp_path, config, on_evaluate=worse, on_batch=at_step(8))
    with pytest.raises(Stopped):
        trainer.fit()
    result = make(trainer.run.folder, config, on_evaluate=worse).fit()
    assert result.stopped_early
    assert (result.epochs, result.best_epoch) == (4, 1)


def test_resume_refuses_another_configuration(tmp_path):
    trainer = make(tmp_path, tiny_config(epochs=2))
    trainer.fit()
    with pytest.raises(ValueError, match=r"optim\.lr is 0\.01 in .* and can't become 0\.5"):
        make(trainer.run.folder, tiny_config(epochs=2, optim={"lr": 0.5})).fit()


def test_resume_refuses_another_model(tmp_path):
    trainer = make(tmp_path, on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    other = Trainer(TinyModel(hidden=4), TinyTask(), CONFIG, trainer.run)
    with pytest.raises(ValueError, match="of another model"):
        other.fit()


def test_lost_log_lines_are_reported(tmp_path, caplog):
    trainer = make(tmp_path, on_batch=at_step(4))
    with pytest.raises(Stopped):
        trainer.fit()
    trainer.run.metrics_path.write_text('{"epoch": 1}\n{"cut')
    make(trainer.run.folder).fit()
    assert "lines were lost" in caplog.text
    assert trainer.run.metrics[0] == {"epoch": 1}
