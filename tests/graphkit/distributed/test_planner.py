"""The plan of a table says what it takes and what it sends, and picks by that."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.planner import Expected, choose_plan, expecting, format_plans, plan_tables, resolve
from graphkit.distributed.tensor_train import PartitionedTTEmbedding
from graphkit.nn.embedding import DenseEmbedding, EmbeddingConfig, TTEmbedding, make_embedding

N, D, B = 4000, 16, 300


def plans(world: int = 2, rows: int = N, **options: Any) -> dict[str, Any]:
    return {plan.name: plan for plan in plan_tables(rows, D, world, B, **options)}


def batch(rank: int) -> torch.Tensor:
    """B distinct ids."""
    return torch.randperm(N, generator=torch.Generator().manual_seed(rank))[:B]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("kind", ["dense", "tensor_train"])
def test_the_bytes_of_a_step_are_those_counted(world: int, kind: Any, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        config = EmbeddingConfig(kind=kind, partitioned=True, rank=4)
        ours: Any = make_embedding(config, N, D)
        for _ in range(3):
            ours(batch(rank)).sum().backward()
        seen = ours.traffic
        counts = torch.tensor([seen.sent / 3, seen.local, seen.distinct], dtype=torch.float64)
        if world > 1:
            torch.distributed.all_reduce(counts)
        sent, local, distinct = counts.tolist()
        name = "dense, partitioned" if kind == "dense" else "tensor train, partitioned"
        exact = plans(world, local_share=local / distinct, rank=4)[name]
        assert exact.sent == pytest.approx(sent / world, abs=1)
        assert plans(world, rank=4)[name].sent == pytest.approx(sent / world, rel=0.1)

    on_ranks(world, work)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_values_on_a_rank_are_those_stored(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        expected = plans(world, rank=4)
        made = {
            "dense": DenseEmbedding(N, D),
            "dense, partitioned": PartitionedEmbedding(N, D),
            "tensor train": TTEmbedding(N, D, rank=4),
            "tensor train, partitioned": PartitionedTTEmbedding(N, D, rank=4),
        }
        for name, module in made.items():
            stored = sum(p.numel() for p in module.parameters())
            if rank == 0:  # the fullest
                assert expected[name].values == stored, name
            assert expected[name].table == 4 * expected[name].values

    on_ranks(world, work)


def test_state_of_the_optimizer_counts() -> None:
    whole = N * D * 4
    found = plans(2, optimizer="adam", row_rule="rowwise_adagrad")
    assert found["dense"].state == 2 * whole
    assert found["dense, partitioned"].state == N * 4 // 2
    assert found["dense, sparse gradients"].state == N * 4
    assert found["dense"].memory == 4 * whole
    assert plans(2, optimizer="sgd")["dense"].memory == 2 * whole
    assert plans(2, row_rule="adagrad")["dense, partitioned"].state == whole // 2
    assert plans(2)["dense, partitioned"].state == whole


def test_one_process_sends_nothing() -> None:
    assert all(plan.sent == 0 for plan in plans(1).values())


def test_full_rows_are_taken_as_long_as_they_fit_and_those_that_send_least() -> None:
    found = plan_tables(1_000_000, 64, 4, 20_000)
    by_name = {plan.name: plan for plan in found}
    assert choose_plan(found, 1e12).name == "dense, partitioned"  # an all-reduce of the table is dear
    assert choose_plan(found, by_name["dense, partitioned"].memory).name == "dense, partitioned"
    assert choose_plan(found, by_name["dense, partitioned"].memory - 1).name == "tensor train"
    assert choose_plan(found, 0).name == "tensor train"
    assert choose_plan(plan_tables(1_000_000, 64, 1, 20_000), 1e12).name == "dense"
    assert choose_plan(plan_tables(100, 4, 4, 20_000), 1e12).name == "dense"


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "adamax"}, {"row_rule": "adamax"}, {"num_rows": 0}, {"world": 0}, {"rows_per_step": -1}],
)
def test_what_cannot_be_planned_is_refused(options: Any) -> None:
    sizes = {"num_rows": 5, "width": 4, "world": 2, "rows_per_step": 3}
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        plan_tables(**{**sizes, **options})


def test_plans_are_printed_as_a_table() -> None:
    found = plan_tables(1_000_000, 64, 2, 20_000)
    lines = format_plans(found, found[2]).splitlines()
    assert len(lines) == 2 + len(found)
    assert [column in lines[0] for column in ("on a rank", "optimizer", "sent a step")] == [True] * 3
    assert lines[4].startswith("-> dense, partitioned")
    assert " 128 " in lines[4]


@pytest.mark.parametrize(
    ("memory_gb", "world", "kind"),
    [
        (1.0, 1, DenseEmbedding),
        (1e-4, 1, TTEmbedding),
        (1.0, 2, PartitionedEmbedding),
        (1e-4, 2, TTEmbedding),
    ],
)
def test_auto_makes_what_the_plan_says(memory_gb: float, world: int, kind: Any, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        # ranks that see different memory agree nevertheless
        config = EmbeddingConfig(kind="auto", memory_gb=memory_gb if rank == 0 else 1.0, rank=2)
        made = make_embedding(config, 100_000, D)
        assert type(made) is kind
        assert made.config.kind == made.kind
        assert make_embedding(EmbeddingConfig(kind="auto"), 10, 2).embedding_dim == 2

    on_ranks(world, work)


def test_the_plan_is_logged_before_a_partitioned_table_is_made(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graphkit"):
        assert resolve(EmbeddingConfig(partitioned=True), N, D) == EmbeddingConfig(partitioned=True)
        assert caplog.text == ""  # it may be made to be looked at
        with expecting(Expected(lambda: B, "adam", "rowwise_adagrad")):
            resolve(EmbeddingConfig(partitioned=True), N, D)
    assert "table of 4000 x 16 on 1 ranks, 300 rows looked up in a step:" in caplog.text


def test_the_plan_is_for_the_steps_that_the_task_takes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "graphkit"), expecting(Expected(lambda: None, "sgd", "same")):
        resolve(EmbeddingConfig(partitioned=True), N, D)
    assert f"{N} rows looked up in a step" in caplog.text
