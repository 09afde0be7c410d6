"""Signals, the time limit, and numbers that aren't finite."""

import json
import os
import signal
import threading

import pytest
import torch

from graphkit.run import Run
from graphkit.tasks.base import Loss
from graphkit.testing import TinyModel, TinyTask, tiny_config
from graphkit.train import NonFiniteError, Stopped, Trainer, replay
from graphkit.train.checkpoint import CheckpointStore
from graphkit.train.guard import SignalGuard


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 128 + signal.SIGUSR1)]
)
def test_signal_finishes_the_step_and_saves(name, code, tmp_path):
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    config = tiny_config()
    run = Run.create(tmp_path, config)

    def hook(epoch, step):
        if (epoch, step) == (1, 1):
            os.kill(os.getpid(), getattr(signal, name))

    trainer = Trainer(TinyModel(), TinyTask(on_batch=hook), config, run)
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    assert stopped.value.code == code
    assert name in str(stopped.value)
    state = CheckpointStore(run.checkpoints).load().state["state"]
    assert (state["epoch"], state["step"]) == (1, 2)
    assert before == {s: signal.getsignal(s) for s in before}


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_exits_at_once(second, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    child = os.fork()
    if child == 0:
        try:
            with SignalGuard():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), second)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + second


def test_torchrun_repeats_a_signal(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with SignalGuard() as guard:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            guard.check()
    assert stopped.value.code == 130


def test_uncaught_stop_ends_a_script_with_its_code():
    child = os.fork()
    if child == 0:
        try:
            raise Stopped(143, "SIGTERM")
        except SystemExit as stop:
            os._exit(stop.code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_other_threads_leave_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with SignalGuard():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_max_minutes(tmp_path):
    config = tiny_config(epochs=1000, max_minutes=0.002, checkpoint_every=1000)
    run = Run.create(tmp_path, config)
    with pytest.raises(Stopped) as stopped:
        Trainer(TinyModel(), TinyTask(), config, run).fit()
    assert stopped.value.code == 75
    assert CheckpointStore(run.checkpoints).load() is not None


class BadTask(TinyTask):
    """The loss or a gradient goes wrong at epoch 1, step 1."""

    def __init__(self, kind):
        super().__init__(on_batch=self._see)
        self.kind, self.position = kind, None

    def _see(self, epoch, step):
        self.position = (epoch, step)

    def loss(self, model, batch):
        loss = super().loss(model, batch)
        if self.position != (1, 1):
            return loss
        if self.kind in ("nan", "inf"):
            return Loss(loss.total + float(self.kind), loss.divisor)
        zero = (model.head.weight * 0).sum()  # the root of 0 has an infinite slope
        return Loss(loss.total + zero.abs().sqrt(), loss.divisor)


@pytest.mark.filterwarnings("ignore:Error detected in")
@pytest.mark.parametrize("kind", ["nan", "inf", "gradient"])
def test_non_finite_changes_nothing_and_leaves_evidence(kind, tmp_path):
    config = tiny_config(checkpoint_every=1, optim={"clip_norm": 1.0})
    run = Run.create(tmp_path, config)
    torch.manual_seed(0)
    trainer = Trainer(TinyModel(), BadTask(kind), config, run)
    weights = {}
    real = BadTask._see

    def see(epoch, step):
        real(trainer.task, epoch, step)
        weights.update({n: p.detach().clone() for n, p in trainer.model.named_parameters()})

    trainer.task.on_batch = see
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 1.*--replay .*failures/step-4") as error:
        trainer.fit()
    assert all(torch.equal(weights[n], p) for n, p in trainer.model.named_parameters())
    record = json.loads((error.value.folder / "step.json").read_text())
    assert (record["epoch"], record["step"], record["seed"]) == (1, 1, 0)
    assert record["config"] == json.loads(json.dumps(config.to_dict()))
    assert record["non_finite"] == ("gradient" if kind == "gradient" else "loss")
    if kind == "gradient":
        assert record["gradients"] == ["head.weight"]

    other = Trainer(TinyModel(), BadTask(kind), config)
    found = replay(other, record["epoch"], record["step"], error.value.folder / "model.safetensors")
    assert found["non_finite"] == record["gradients"]
    assert str(found["loss"]) == str(record["loss"])
    if kind == "gradient":
        with pytest.raises(RuntimeError, match="returned nan values"):
            replay(other, 1, 1, anomaly=True)
    assert CheckpointStore(run.checkpoints).load().state["state"]["epoch"] == 1


def test_non_finite_without_a_run():
    with pytest.raises(NonFiniteError, match="no parameter was changed"):
        Trainer(TinyModel(), BadTask("nan"), tiny_config()).fit()


class Scaler:
    """Stands in for torch's CUDA loss scaler and overflows at chosen steps."""

    def __init__(self, overflows):
        self.overflows, self.updates = overflows, 0

    def scale(self, loss):
        return loss

    def unscale_(self, optimizer):
        if self.updates in self.overflows:
            optimizer.param_groups[0]["params"][0].grad.fill_(float("inf"))

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        self.updates += 1

    def state_dict(self):
        return {"scale": 2.0}


def test_overflows_of_fp16_are_skipped_and_counted():
    trainer = Trainer(TinyModel(), TinyTask(), tiny_config(epochs=2))
    trainer.scaler = Scaler({1, 3})
    result = trainer.fit()
    assert result.skipped_steps == 2
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_endless_overflow_is_an_error():
    trainer = Trainer(TinyModel(), TinyTask(), tiny_config(epochs=50))
    trainer.scaler = Scaler(range(1000))
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        trainer.fit()
    assert trainer.state.skipped == 31


def test_dump_that_cannot_be_written_does_not_hide_the_reason(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphkit.train.guard.dump_step", full)
    run = Run.create(tmp_path, tiny_config())
    model = TinyModel()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss is not finite .* no dump in .*No space left") as error:
        Trainer(model, TinyTask(), tiny_config(), run).fit()
    assert error.value.folder is None
