"""Optimizers update rows where they live, and the result is that of one process with the whole table."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphkit.config import OptimConfig
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.ranks import all_sum
from graphkit.distributed.tensor_train import PartitionedTTEmbedding
from graphkit.train.optim import build_optimizer, gradient_norms, scale_gradients

WORLDS = [1, 2, 3]
N, D = 13, 4
RULES = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


class Model(nn.Module):
    """A table and a head."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(D, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids)).square().sum()


def partitioned(assignment: Any = "blocks") -> Model:
    torch.manual_seed(0)
    return Model(PartitionedEmbedding(N, D, assignment=assignment, std=1.0)).double()


def whole(model: Model) -> Model:
    """Returns the model with one table."""
    other = Model(nn.Embedding(N, D, sparse=True)).double()
    other.head.load_state_dict(model.head.state_dict())
    other.table.weight.data.copy_(model.table.to_dense())
    return other


def requests(step: int, world: int) -> list[Tensor]:
    """What each rank looks up in a step: uneven, repeated, and nothing now and then."""
    draw = torch.Generator().manual_seed(step)
    sizes = torch.randint(0, 9, (world,), generator=draw).tolist()
    return [torch.randint(0, N, (size if step % 3 else size // 5,), generator=draw) for size in sizes]


def torchs_own(rule: str, table: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """The optimizer of sparse gradients that torch has for a rule."""
    if rule == "adam":
        return torch.optim.SparseAdam(table, lr=lr, eps=1e-14)
    return torch.optim.SGD(table, lr=lr) if rule == "sgd" else torch.optim.Adagrad(table, lr=lr)


def reference_step(model: Model, optimizers: list[Any], state: Tensor, rule: str, lr: float) -> None:
    """One step by torch's own optimizers; row-wise Adagrad as its formula has it."""
    if rule == "rowwise_adagrad":
        grad = model.table.weight.grad.to_dense()
        state += grad.square().mean(1)
        model.table.weight.data -= lr * grad / (state.sqrt() + 1e-8).unsqueeze(1)
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("world", WORLDS)
def test_steps_are_those_of_one_process(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for rule in RULES:
            for assignment in ("blocks", "hash"):
                ours = partitioned(assignment)
                theirs = whole(ours)
                config = OptimConfig(name="adamw", lr=0.1, weight_decay=0.2, rows=rule)
                optimizer = build_optimizer(ours, config)
                table, lr = [theirs.table.weight], 0.1
                head = torch.optim.AdamW(theirs.head.parameters(), lr=lr, weight_decay=0.2)
                optimizers = [head] if rule == "rowwise_adagrad" else [head, torchs_own(rule, table, lr)]
                state = torch.zeros(N, dtype=torch.float64)
                if rule == "adam":  # the epsilons of both stand in different places
                    optimizer.param_groups[0]["eps"] = head.param_groups[0]["eps"] = 1e-14
                for step in range(5):
                    ids = requests(step, world)
                    optimizer.zero_grad()
                    theirs.zero_grad()
                    ours(ids[rank]).backward()
                    sum(theirs(i) for i in ids).backward()
                    for parameter in ours.head.parameters():
                        parameter.grad = all_sum(parameter.grad)
                    norms = gradient_norms(optimizer)
                    grads = [p.grad.to_dense() for p in theirs.parameters()]
                    assert float(norms) == pytest.approx(
                        float(torch.nn.utils.get_total_norm(grads)), rel=1e-6
                    )
                    optimizer.step()
                    reference_step(theirs, optimizers, state, rule, lr)
                    torch.testing.assert_close(
                        ours.table.to_dense(), theirs.table.weight.detach(), rtol=1e-10, atol=1e-10
                    )
                torch.testing.assert_close(ours.head.weight, theirs.head.weight, rtol=1e-10, atol=1e-10)

    on_ranks(world, work)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_by_default_rows_follow_the_rest_of_the_model(name: Any, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        models = [partitioned(), partitioned()]
        rules = ("same", name)
        optimizers = [
            build_optimizer(m, OptimConfig(name=name, rows=r)) for m, r in zip(models, rules, strict=True)
        ]
        for step in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                optimizer.zero_grad()
                model(requests(step, world)[rank]).backward()
                optimizer.step()
        for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(ours, theirs)

    on_ranks(2, work)


@pytest.mark.parametrize("rule", RULES)
def test_state_has_a_row_for_each_row_of_the_table(rule: Any, on_ranks: Any) -> None:
    shapes = {"sgd": {}, "adagrad": {"step": 0, "sum": 2}, "rowwise_adagrad": {"step": 0, "sum": 1}}
    shapes["adam"] = {"step": 0, "exp_avg": 2, "exp_avg_sq": 2}

    def work(rank: int, world: int) -> None:
        model = partitioned()
        optimizer = build_optimizer(model, OptimConfig(rows=rule))
        model(torch.tensor([0])).backward()  # rows of rank 0 alone
        optimizer.step()
        state = optimizer.state[model.table.table]
        assert {name: value.dim() for name, value in state.items()} == shapes[rule]
        for value in state.values():
            assert value.dim() == 0 or value.size(0) == model.table.table.size(0)

    on_ranks(3, work)


def test_clipping_takes_the_norm_of_all_ranks_rows(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        model = partitioned()
        config = OptimConfig(name="sgd", rows="sgd", clip_norm=0.1, group_lr={"table": 0.5})
        optimizer = build_optimizer(model, config)
        model(torch.tensor([rank, 5, 9])).backward()
        for parameter in model.head.parameters():
            parameter.grad = all_sum(parameter.grad)
        norms = gradient_norms(optimizer).tolist()
        squares = all_sum(model.table.table.grad.to_dense().square().sum())
        assert norms[1] == pytest.approx(math.sqrt(float(squares)), rel=1e-6)
        before = model.table.table.grad.to_dense()
        assert scale_gradients(optimizer, norms, config) == pytest.approx(math.hypot(*norms))
        after = model.table.table.grad.to_dense()
        torch.testing.assert_close(after, before * (0.1 / (math.hypot(*norms) + 1e-6)))

    on_ranks(2, work)


def test_a_nan_in_rows_of_one_rank_is_seen_by_all(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        model = partitioned()
        optimizer = build_optimizer(model, OptimConfig(name="sgd"))
        loss = model.table(torch.tensor([0])).sum()  # lives on rank 0
        (loss * (float("nan") if rank == 2 else 1.0)).backward()
        assert gradient_norms(optimizer).isnan().all()

    on_ranks(3, work)


def test_gradients_of_several_batches_add_up(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        once, twice = partitioned(), partitioned()
        parts = [torch.tensor([1, 1, 7]), torch.tensor([], dtype=torch.int64), torch.tensor([7, 12])]
        for part in parts:
            twice.table(part).square().sum().backward()
        once.table(torch.cat(parts)).square().sum().backward()
        optimizers = [build_optimizer(model, OptimConfig(lr=0.1)) for model in (once, twice)]
        for model, optimizer in zip((once, twice), optimizers, strict=True):
            gradient_norms(optimizer)
            optimizer.step()
            assert model.table.table.grad.is_coalesced()
        torch.testing.assert_close(once.table.table, twice.table.table)

    on_ranks(2, work)


def test_a_dense_gradient_of_a_table_follows_the_rule_of_rows() -> None:
    for rule in RULES:
        sparse, dense = partitioned(), partitioned()
        optimizers = [build_optimizer(m, OptimConfig(rows=rule, lr=0.1)) for m in (sparse, dense)]
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            sparse.table(torch.arange(N)).square().sum().backward()
            dense.table().square().sum().backward()
            assert not dense.table.table.grad.is_sparse
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(sparse.table.table, dense.table.table)


# --- Tensor trains -----------------------------------------------------------------------------------------


def trains(**options: Any) -> PartitionedTTEmbedding:
    torch.manual_seed(0)
    made = PartitionedTTEmbedding(N, D, blocks=4, rank=2, num_cores=2, **options).double()
    if options.get("assignment") == "partition":
        draw = torch.Generator().manual_seed(1)
        made.set_order(torch.randperm(math.prod(made.row_factors), generator=draw)[:N])
    return made


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("assignment", ["blocks", "hash", "partition"])
def test_blocks_of_trains_are_the_same_on_any_number_of_ranks(
    world: int, assignment: Any, on_ranks: Any
) -> None:
    alone = trains(assignment=assignment)
    table = alone.to_dense()
    for step in range(3):
        sum(alone(i).pow(3).sum() for i in requests(step, world)).backward()

    def work(rank: int, world: int) -> None:
        ours = trains(assignment=assignment)
        assert torch.equal(ours.to_dense(), table)
        for step in range(3):
            ids = requests(step, world)[rank]
            rows = ours(ids)
            torch.testing.assert_close(rows, table[ids], rtol=1e-12, atol=1e-12)
            rows.pow(3).sum().backward()
        for core, whole in zip(ours.cores, alone.cores, strict=True):
            part = slice(core.rows.start, core.rows.start + core.size(0))
            assert (core.partitioned, core.rows.total) == (True, 4)
            torch.testing.assert_close(core.grad, whole.grad[part], rtol=1e-10, atol=1e-12)

    on_ranks(world, work)


def test_rows_of_a_block_are_those_of_its_own_train() -> None:
    ours = trains()
    slots = ours.shape.capacity
    for node in range(N):
        first, second = (core[node // slots] for core in ours.cores)
        left = first[node % slots // second.size(0)].squeeze(0)  # [q_1, r]
        right = second[node % slots % second.size(0)].squeeze(-1)  # [r, q_2]
        torch.testing.assert_close(ours(torch.tensor(node)), (left @ right).flatten())


@pytest.mark.parametrize("world", WORLDS)
def test_the_whole_table_of_trains_is_differentiable(world: int, on_ranks: Any) -> None:
    alone = trains(assignment="hash")
    (world * alone(torch.arange(N)).pow(3).sum()).backward()

    def work(rank: int, world: int) -> None:
        ours = trains(assignment="hash")
        ours().pow(3).sum().backward()
        for core, whole in zip(ours.cores, alone.cores, strict=True):
            part = slice(core.rows.start, core.rows.start + core.size(0))
            torch.testing.assert_close(core.grad, whole.grad[part], rtol=1e-10, atol=1e-12)

    on_ranks(world, work)


def test_trains_start_with_orthonormal_columns_or_the_wanted_deviation() -> None:
    torch.manual_seed(0)
    made = PartitionedTTEmbedding(8 * 64, 8, blocks=8, rank=4, row_factors=[4, 4, 4])
    table = made.to_dense()
    torch.testing.assert_close(table.t() @ table, torch.eye(8), atol=1e-5, rtol=0)
    wide = PartitionedTTEmbedding(8 * 64, 8, blocks=8, rank=4, row_factors=[4, 4, 4], std=0.3)
    assert float(wide.to_dense().std()) == pytest.approx(0.3, rel=0.05)
    blocks = made.to_dense().view(8, 64, 8)
    assert not torch.allclose(blocks[0], blocks[1])


def test_trains_take_in_a_table_of_their_kind() -> None:
    ours = trains(assignment="partition")
    table = ours.to_dense()
    fresh = PartitionedTTEmbedding(N, D, blocks=4, row_factors=[2, 2], rank=4, column_factors=[2, 2]).double()
    fresh.set_order(torch.arange(N).flip(0))
    fresh.set_table_(table)
    torch.testing.assert_close(fresh.to_dense(), table, atol=1e-8, rtol=1e-8)
    assert fresh.num_parameters == sum(core.numel() for core in fresh.cores)


@pytest.mark.parametrize("options", [{"blocks": 0}, {"std": -1.0}, {"init": "zeros"}, {"engine": "fast"}])
def test_bad_options_of_trains_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        PartitionedTTEmbedding(N, D, **options)


def test_a_step_of_partitioned_trains_is_that_of_one_process(on_ranks: Any) -> None:
    alone = Model(trains())
    torch.manual_seed(5)
    alone.head.reset_parameters()
    alone.double()
    start = {k: v.clone() for k, v in alone.head.state_dict().items()}
    optimizer = build_optimizer(alone, OptimConfig(lr=0.1))
    for step in range(3):
        optimizer.zero_grad()
        sum(alone(i) for i in requests(step, 3)).backward()
        optimizer.step()
    table = alone.table.to_dense()

    def work(rank: int, world: int) -> None:
        ours = Model(trains()).double()
        ours.head.load_state_dict(start)
        optimizer = build_optimizer(ours, OptimConfig(lr=0.1))
        for step in range(3):
            optimizer.zero_grad()
            ours(requests(step, 3)[rank]).backward()
            for parameter in ours.head.parameters():
                parameter.grad = all_sum(parameter.grad)
            gradient_norms(optimizer)
            optimizer.step()
        torch.testing.assert_close(ours.table.to_dense(), table, rtol=1e-9, atol=1e-10)

    on_ranks(3, work)
