"""Tables of the engine ``torchrec`` in checkpoints and whole runs: those of the other engine."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from graphkit.config import OptimConfig, RunConfig, TrainConfig
from graphkit.data import Benchmark, DataSpec
from graphkit.distributed import torchrec_shard
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.torchrec import TorchRecEmbedding
from graphkit.evaluation import GraphEvaluator
from graphkit.experiment import build_model
from graphkit.registry import TASKS
from graphkit.run import Run
from graphkit.testing import tiny_graph
from graphkit.train import Trainer
from graphkit.train.guard import NonFiniteError, Stopped
from graphkit.train.optim import build_optimizer, gradient_norms
from graphkit.train.sharded import Shard, load_rows, save_rows

N, D = 13, 8
RULES = ["sgd", "adagrad", "rowwise_adagrad"]
SHARDINGS = ["row_wise", "column_wise", "table_wise"]

missing = [name for name in ("torchrec", "fbgemm_gpu") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"without {' and '.join(missing)}")


@pytest.fixture(autouse=True)
def imported_once() -> None:
    """Imports TorchRec before ranks are forked."""
    torchrec_shard.import_torchrec()


def made(sharding: Any = "row_wise") -> TorchRecEmbedding:
    torch.manual_seed(0)
    return TorchRecEmbedding(N, D, sharding=sharding, std=1.0)


def requests(step: int, world: int) -> list[Tensor]:
    """What each rank looks up in a step: uneven, repeated, and nothing now and then."""
    draw = torch.Generator().manual_seed(step)
    sizes = torch.randint(0, 12, (world,), generator=draw).tolist()
    return [torch.randint(0, N, (size if step % 3 else size // 6,), generator=draw) for size in sizes]


def trained(table: PartitionedEmbedding, rule: Any, steps: range, state: Any = None) -> Any:
    """Trains a few steps and returns the optimizer."""
    optimizer = build_optimizer(table, OptimConfig(rows=rule, lr=0.1))
    if state is not None:
        optimizer.load_state_dict(state)
    for step in steps:
        optimizer.zero_grad()
        table(requests(step, table.world)[table.rank]).square().sum().backward()
        gradient_norms(optimizer)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("rule", RULES)
def test_states_go_from_one_engine_to_the_other(rule: Any, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        torch.manual_seed(0)
        through = PartitionedEmbedding(N, D, std=1.0)
        trained(through, rule, range(6))
        engines = (TorchRecEmbedding, PartitionedEmbedding)
        for first, second in (engines, engines[::-1]):
            torch.manual_seed(0)
            before = first(N, D, std=1.0)
            state = trained(before, rule, range(3)).state_dict()
            after = second(N, D)
            after.load_state_dict(before.state_dict())
            trained(after, rule, range(3, 6), state)
            torch.testing.assert_close(after.to_dense(), through.to_dense(), rtol=1e-5, atol=1e-6)

    on_ranks(2, work)


def test_saved_rows_load_with_any_sharding_and_engine(tmp_path: Path, on_ranks: Any) -> None:
    def table(rank: int, world: int, sharding: str) -> PartitionedEmbedding:
        torch.manual_seed(rank)
        return PartitionedEmbedding(N, D) if sharding == "all_to_all" else made(sharding)

    def save(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            ours = made(sharding)
            trained(ours, "sgd", range(2))
            assert (ours.table.partitioned, ours.table.rows) == (True, ours.range)
            assert list(ours.state_dict()) == ["table"]
            save_rows(tmp_path / sharding, {"table": Shard(ours.state_dict()["table"], ours.table.rows)})

    def load(rank: int, world: int) -> None:
        for source in SHARDINGS:
            for sharding in ["all_to_all", *SHARDINGS] if world == 2 else ["all_to_all", "row_wise"]:
                ours = table(rank, world, sharding)
                state = ours.state_dict()
                load_rows(tmp_path / source, {"table": Shard(state["table"], ours.table.rows)})
                ours.load_state_dict(state)
                torch.testing.assert_close(ours(torch.arange(N)), expected)

    on_ranks(2, save)
    torch.manual_seed(0)
    alone = PartitionedEmbedding(N, D, std=1.0)
    optimizer = build_optimizer(alone, OptimConfig(rows="sgd", lr=0.1))
    for step in range(2):
        optimizer.zero_grad()
        sum(alone(i).square().sum() for i in requests(step, 2)).backward()
        optimizer.step()
    expected = alone.to_dense()
    on_ranks(1, load)
    on_ranks(2, load)
    on_ranks(3, load)


def test_a_model_that_moves_takes_its_rows_along(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        trained(ours, "adagrad", range(2))
        table = ours.to_dense()
        ours.double().float()
        assert torch.equal(ours(torch.arange(N)), table)
        trained(ours, "sgd", range(1, 2))
        assert torch.equal(ours(torch.arange(N)), ours.to_dense())
        assert not torch.equal(ours.to_dense(), table)

    on_ranks(2, work)


# --- Whole runs --------------------------------------------------------------------------------------------

NODES = 31


def benchmark() -> Benchmark:
    data = tiny_graph(NODES, 60)
    del data.x
    index = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    splits = {"train": {"index": index[:13]}, "valid": {"index": index[13:20]}, "test": {"index": index[20:]}}
    spec = DataSpec(num_nodes=NODES, num_classes=3)
    return Benchmark(
        "tiny", "node", data, splits, spec, "accuracy", True, GraphEvaluator("classes", "accuracy")
    )


def config(engine: str, sharding: str = "row_wise") -> RunConfig:
    table = {"partitioned": True, "dim": 24, "engine": engine, "sharding": sharding, "std": 0.5}
    return RunConfig(
        model_name="sage",
        dataset_name="tiny",
        task_name="node",
        seed=3,
        model={"hidden_channels": 6, "num_layers": 2, "dropout": 0.0, "norm": "layer", "embedding": table},
        optim=OptimConfig(
            name="sgd",
            lr=0.05,
            rows="adagrad" if sharding == "row_wise" else "same",
            clip_norm=1.0,
            schedule="cosine",
        ),
        train=TrainConfig(epochs=3, batch_size=4, eval_batch_size=3),
    )


def trainer(given: RunConfig, run: Run | None, at: tuple[int, int] = (-1, -1), act: Any = None) -> Trainer:
    """Returns a trainer that calls ``act`` with itself and the loss of a step."""
    bench = benchmark()
    model = build_model(given, bench.spec)
    task = TASKS.get("node").target(bench, 3, 4, 3, "cpu", fanouts=[2, 2])
    task.prepare(model)
    ours = Trainer(model, task, given, run)
    real = task.loss

    def loss(model: Any, batch: Any) -> Any:
        found = real(model, batch)
        return act(ours, found) if (ours.state.epoch, ours.state.step) == at else found

    task.loss = loss
    return ours


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_run_is_stopped_goes_on_elsewhere_and_ends_as_with_the_other_engine(
    sharding: str, tmp_path: Path, on_ranks: Any
) -> None:
    alone = trainer(config("all_to_all", sharding), None)
    result = alone.fit()
    table: Any = alone.model.embedding
    expected = table.to_dense()
    given = config("torchrec", sharding)
    run = Run.create(tmp_path, given)

    def stop(rank: int, world: int) -> None:
        def act(ours: Trainer, loss: Any) -> Any:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        with pytest.raises(Stopped):
            trainer(given, run, (1, 2), act).fit()

    def go_on(rank: int, world: int) -> None:
        again = trainer(given, run)
        found = again.fit()
        assert again.state.updates == alone.state.updates
        table: Any = again.model.embedding
        torch.testing.assert_close(table.to_dense(), expected, rtol=1e-4, atol=1e-5)
        assert found.test == pytest.approx(result.test, abs=1e-6)

    on_ranks(2, stop)
    on_ranks(3, go_on)


def test_a_loss_that_is_not_finite_leaves_the_table_alone(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        before = {}

        def act(ours: Trainer, loss: Any) -> Any:
            table: Any = ours.model.embedding
            before["table"] = table.table.detach().clone()
            return loss._replace(total=loss.total * float("inf")) if rank == 1 else loss

        ours = trainer(config("torchrec"), None, (1, 1), act)
        with pytest.raises(NonFiniteError):
            ours.fit()
        table: Any = ours.model.embedding
        assert torch.equal(table.table, before["table"])

    on_ranks(2, work)
