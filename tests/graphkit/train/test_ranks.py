"""Two processes compute what one computes; they agree on stops and on bad numbers."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from graphkit.run import Run
from graphkit.tasks.base import Loss
from graphkit.testing import TinyTask, on_ranks, tiny_benchmark, tiny_config
from graphkit.train import NonFiniteError, Stopped, Trainer, load_best
from graphkit.train.checkpoint import CheckpointStore


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.idle = nn.Linear(2, 2)  # never used

    def forward(self, x):
        return self.layers(x)


def trainer(run, config, **hooks):
    torch.manual_seed(0)
    return Trainer(Plain(), TinyTask(tiny_benchmark(examples=23), batch_size=8, **hooks), config, run)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_equal_one_process(world, tmp_path):
    config = tiny_config(optim={"name": "sgd", "lr": 0.1, "clip_norm": 0.5})
    alone = trainer(None, config)
    result = alone.fit()
    run = Run.create(tmp_path, config)
    assert on_ranks(world, lambda rank: trainer(run, config).fit(), tmp_path) == [0] * world
    weights = load_best(run.checkpoints)
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(weights[name], value, atol=1e-6), name
    assert run.result["valid"]["r2"] == pytest.approx(result.valid["r2"], abs=1e-5)
    assert [line["epoch"] for line in run.metrics if line["split"] == "train"] == [1, 2, 3, 4]


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path):
    config = tiny_config()
    run = Run.create(tmp_path, config)

    def work(rank):
        def hook(epoch, step):
            if rank == 1 and (epoch, step) == (1, 0):
                os.kill(os.getpid(), signal.SIGTERM)

        again = trainer(run, config, on_batch=hook)
        try:
            again.fit()
        except Stopped as stop:
            (tmp_path / f"stop{rank}").write_text(json.dumps([stop.code, again.state.updates]))

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert {(tmp_path / f"stop{rank}").read_text() for rank in (0, 1)} == {"[143, 4]"}
    assert CheckpointStore(run.checkpoints).names() == ["step-00000004"]
    assert on_ranks(2, lambda rank: trainer(run, config).fit(), tmp_path) == [0, 0]
    assert run.result["epochs"] == 4


def test_nan_on_one_rank_stops_all(tmp_path):
    config = tiny_config()
    run = Run.create(tmp_path, config)

    def work(rank):
        again = trainer(run, config)
        real = again.task.loss

        def loss(model, batch):
            part = real(model, batch)
            bad = rank == 1 and again.state.updates == 2
            return Loss(part.total * float("nan"), part.divisor) if bad else part

        again.task.loss = loss
        with pytest.raises(NonFiniteError, match="loss is not finite at epoch 0, step 2"):
            again.fit()
        assert all(torch.isfinite(p).all() for p in again.model.parameters())

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert (run.failures / "step-2" / "step.json").is_file()


class Dropping(Plain):
    def __init__(self):
        super().__init__()
        self.layers.append(nn.Dropout(0.5))


def test_shares_of_a_batch_drop_the_same_whichever_rank_computes_them(tmp_path):
    def trained(accumulate):
        torch.manual_seed(0)
        task = TinyTask(tiny_benchmark(examples=23), batch_size=8)
        own = Trainer(Dropping(), task, tiny_config(accumulate=accumulate))
        own.fit()
        return own.model.state_dict()

    def work(rank):
        if rank == 0:
            torch.save(trained(1), tmp_path / "weights.pt")
        else:
            trained(1)

    assert on_ranks(2, work, tmp_path) == [0, 0]
    together = torch.load(tmp_path / "weights.pt")
    for name, value in trained(2).items():
        assert torch.allclose(together[name], value, atol=1e-6), name
