"""A table spread over ranks gives what one nn.Embedding gives: rows, gradients, whole tables."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphkit.distributed.embedding import PartitionedEmbedding, slot_factor
from graphkit.errors import UserError
from graphkit.nn.embedding import EmbeddingConfig, fit_to_graph, make_embedding
from graphkit.nn.embedding.partition_range import RowRange, range_of

WORLDS = [1, 2, 3]
ASSIGNMENTS = ["blocks", "hash", "partition"]
N, D = 23, 5

# What each of three ranks looks up; fewer ranks take the first of them.
REQUESTS: dict[str, list[list[int]]] = {
    "duplicates, within a rank and between ranks": [[3, 3, 22, 0], [3, 0, 0, 9, 9, 9], [22, 3]],
    "uneven numbers": [[1], [5, 6, 7, 8, 9, 10, 11], [2, 4]],
    "a rank that asks for nothing": [[], [4, 4, 20], [1]],
    "nobody asks for anything": [[], [], []],
    "all ids live on the first rank": [[0, 1, 2], [2, 1], [0]],
    "all ids live on the last rank": [[22, 21], [22], [20, 20]],
    "every id": [list(range(N)), list(range(N))[::-1], list(range(0, N, 2))],
}


def table(
    assignment: Any = "blocks", rows: int = N, dtype: torch.dtype = torch.float64
) -> PartitionedEmbedding:
    torch.manual_seed(0)
    made = PartitionedEmbedding(rows, D, assignment=assignment).to(dtype)
    if assignment == "partition":
        made.set_order(torch.randperm(rows, generator=torch.Generator().manual_seed(1)))
    return made


def here(embedding: PartitionedEmbedding, by_id: Tensor) -> Tensor:
    """Returns what of a tensor by id belongs to this rank, by slot."""
    slots = embedding.slots_of(torch.arange(by_id.size(0)))
    by_slot = torch.empty_like(by_id)
    by_slot[slots] = by_id
    first = embedding.table.rows.start
    return by_slot[first : first + embedding.table.size(0)]


def scale(rank: int, count: int) -> Tensor:
    draw = torch.Generator().manual_seed(10 + rank)
    return torch.randn(count, D, dtype=torch.float64, generator=draw)


@pytest.mark.parametrize("world", WORLDS)
def test_rows_and_gradients_are_those_of_one_table(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for assignment, requests in itertools.product(ASSIGNMENTS, REQUESTS.values()):
            ours = table(assignment)
            whole = ours.to_dense()
            ids = [torch.tensor(request, dtype=torch.int64) for request in requests[:world]]
            ours.zero_grad()
            rows = ours(ids[rank])
            assert torch.equal(rows, whole[ids[rank]])
            (rows * scale(rank, len(ids[rank]))).sum().backward()
            theirs = whole.clone().requires_grad_()
            sum((theirs[i] * scale(r, len(i))).sum() for r, i in enumerate(ids)).backward()
            grad = ours.table.grad
            assert grad.is_sparse
            torch.testing.assert_close(grad.to_dense(), here(ours, theirs.grad), rtol=1e-12, atol=1e-12)
            owners = ours.ranks_of(ids[rank])
            assert torch.equal(owners == rank, torch.isin(ids[rank], here(ours, torch.arange(N))))
            looked_up = here(ours, torch.bincount(torch.cat(ids), minlength=N)).nonzero().squeeze(1)
            assert torch.equal(grad._indices()[0], looked_up)  # ascending, each once, and no other

    on_ranks(world, work)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_there_may_be_fewer_rows_than_ranks(rows: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table(rows=rows)
        assert ours.table.size(0) == range_of(rows, rank, world)[1]
        ids = torch.tensor([rows - 1, 0, 0])
        out = ours(ids)
        assert torch.equal(out, ours.to_dense()[ids])
        out.sum().backward()
        counts = torch.bincount(ids, minlength=rows).double() * world
        assert torch.equal(ours.table.grad.to_dense(), here(ours, counts.unsqueeze(1).expand(-1, D)))

    on_ranks(3, work)


@pytest.mark.parametrize("world", WORLDS)
def test_the_start_does_not_hang_on_the_ranks(world: int, on_ranks: Any) -> None:
    alone = {assignment: table(assignment).to_dense() for assignment in ASSIGNMENTS}

    def work(rank: int, world: int) -> None:
        for assignment in ASSIGNMENTS:
            assert torch.equal(table(assignment).to_dense(), alone[assignment])

    on_ranks(world, work)


def test_a_long_table_starts_the_same_on_ranks_and_like_a_gaussian(on_ranks: Any) -> None:
    def made() -> PartitionedEmbedding:
        torch.manual_seed(3)
        return PartitionedEmbedding(150_001, 2, std=0.5)

    alone = made().to_dense()
    assert float(alone.std()) == pytest.approx(0.5, rel=0.01)
    assert alone.unique().numel() > 0.99 * alone.numel()

    def work(rank: int, world: int) -> None:
        assert torch.equal(made().table, here(made(), alone))

    on_ranks(3, work)


@pytest.mark.parametrize("world", WORLDS)
def test_the_whole_table_is_differentiable(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for assignment in ASSIGNMENTS:
            ours = table(assignment)
            whole = ours()
            assert whole.shape == (N, D)
            assert torch.equal(whole, ours(torch.arange(N)))
            assert torch.equal(ours.rows(3, 9), whole[3:9])
            (whole * scale(rank, N)).sum().backward()
            expected = sum(scale(r, N) for r in range(world))
            torch.testing.assert_close(ours.table.grad, here(ours, expected), rtol=1e-12, atol=1e-12)

    on_ranks(world, work)


@pytest.mark.parametrize("world", WORLDS)
def test_a_request_may_be_sent_ahead(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours, plain = table("hash"), table("hash")
        batches = [
            torch.randint(N, (3, 4), generator=torch.Generator().manual_seed(s + rank)) for s in (1, 7, 9)
        ]
        ours.prefetch(batches[0])
        for step, ids in enumerate(batches):
            if step + 1 < len(batches):
                ours.prefetch(batches[step + 1])
            rows, others = ours(ids), plain(ids)
            assert torch.equal(rows, others)
            rows.square().sum().backward()
            others.square().sum().backward()
            with torch.no_grad():  # rows are fetched at the look-up: the step before has moved them
                for embedding in (ours, plain):
                    embedding.table -= embedding.table.grad.to_dense()
                    embedding.table.grad = None
        assert torch.equal(ours.table, plain.table)
        assert ours.traffic == plain.traffic

    on_ranks(world, work)


@pytest.mark.parametrize("world", WORLDS)
def test_ids_written_to_since_are_asked_for_anew(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table()
        ids = torch.tensor([1, 2, 3])
        ours.prefetch(ids)
        ids += 1
        assert torch.equal(ours(ids), ours.to_dense()[2:5])
        for _ in range(9):  # never looked up
            ours.prefetch(ids.clone())
        assert torch.equal(ours(ids), ours.to_dense()[2:5])

    on_ranks(world, work)


def test_ranks_that_look_up_something_else_than_they_sent_ahead_stay_in_step(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table()
        whole = ours.to_dense()
        batches = [torch.tensor([rank, step, 20 - step]) for step in range(6)]
        for step, ids in enumerate(batches):
            if step + 1 < len(batches):
                ours.prefetch(batches[step + 1])
            if step % 3 == 0 and rank == 1:
                ids = ids + 1  # not what it asked for
            assert torch.equal(ours(ids), whole[ids])

    on_ranks(3, work)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("world", WORLDS)
def test_an_id_out_of_range_is_heard_of_on_all_ranks(world: int, ahead: bool, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table("partition")
        for bad in (N, -1):
            ids = torch.tensor([0, bad if rank == world - 1 else 1])
            if ahead:
                ours.prefetch(ids)
            with pytest.raises(IndexError, match="the table has rows 0 to 22"):
                ours(ids)
        assert torch.equal(ours(torch.tensor(4)), ours.to_dense()[4])  # and all go on together

    on_ranks(world, work)


def test_ids_are_integers() -> None:
    with pytest.raises(TypeError, match="they must be integers"):
        table()(torch.ones(2))
    with pytest.raises(TypeError, match="they must be integers"):
        table().prefetch(torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize("world", WORLDS)
def test_bytes_are_counted(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table(dtype=torch.float32)
        ids = [torch.tensor(r, dtype=torch.int64) for r in REQUESTS["uneven numbers"][:world]]
        owner = [i.unique() // -(-N // world) for i in ids]
        coming = int((owner[rank] != rank).sum())
        going = sum(int((owner[r] == rank).sum()) for r in range(world) if r != rank)
        for _ in range(2):
            ours(ids[rank]).sum().backward()
        seen = ours.traffic
        assert (seen.lookups, seen.ids, seen.distinct) == (2, 2 * len(ids[rank]), 2 * len(ids[rank].unique()))
        assert seen.local_share == pytest.approx(float((owner[rank] == rank).double().mean()))
        counts = 8 * (world - 1)
        assert seen.ids_sent == 2 * (counts + 4 * coming)
        assert seen.ids_received == 2 * (counts + 4 * going)
        assert seen.rows_sent == seen.gradients_received == 2 * going * D * 4
        assert seen.rows_received == seen.gradients_sent == 2 * coming * D * 4
        assert seen.sent == seen.ids_sent + seen.rows_sent + seen.gradients_sent
        with torch.no_grad():
            ours(ids[rank])
        assert seen.gradients_sent == 2 * coming * D * 4
        seen.reset()
        assert seen.sent == seen.received == seen.lookups == 0
        assert seen.local_share == 1

    on_ranks(world, work)


# --- Slots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 97, 1000, 65_536])
def test_hashed_slots_are_a_permutation(rows: int) -> None:
    embedding = PartitionedEmbedding(rows, 1, assignment="hash")
    slots = embedding.slots_of(torch.arange(rows))
    assert torch.equal(slots.sort().values, torch.arange(rows))


def test_hashed_slots_spread_any_run_of_ids_evenly() -> None:
    embedding = PartitionedEmbedding(100_000, 1, assignment="hash")
    for start, step in ((0, 1), (70_000, 1), (5, 7), (0, 16)):
        ids = start + step * torch.arange(2000)
        owners = embedding.slots_of(ids) // 25_000
        counts = torch.bincount(owners, minlength=4)
        assert int(counts.max() - counts.min()) < 100


def test_hashed_slots_of_huge_tables_do_not_overflow() -> None:
    for rows in (2**31 + 11, 10**10):
        factor = slot_factor(rows)
        ids = [0, 1, rows // 2, rows - 1]
        slots = torch.tensor(ids) * factor % rows
        assert slots.tolist() == [i * factor % rows for i in ids]


def test_an_order_becomes_slots_without_gaps() -> None:
    embedding = PartitionedEmbedding(5, 2, assignment="partition")
    assert embedding.row_factors == (5, 1)
    wide = PartitionedEmbedding(130, 2, assignment="partition")
    assert wide.row_factors == (64, 3)
    order = torch.randperm(64 * 3)[:130]
    wide.set_order(order)
    assert torch.equal(wide.position.long(), order.argsort().argsort())


@pytest.mark.parametrize("assignment", ["blocks", "hash"])
def test_only_a_partition_takes_an_order(assignment: Any) -> None:
    with pytest.raises(ValueError, match="takes no order"):
        table(assignment).set_order(torch.arange(N))


def test_a_partition_of_the_graph_keeps_look_ups_local(on_ranks: Any) -> None:
    pytest.importorskip("pymetis")
    # Two rings with their ids in turns.
    ring = torch.arange(0, 200, 2)
    edges = torch.stack([torch.cat([ring, ring + 1]), torch.cat([ring.roll(1), ring.roll(1) + 1])])

    def work(rank: int, world: int) -> None:
        shares = {}
        for assignment in ASSIGNMENTS:
            config = EmbeddingConfig(partitioned=True, assignment=assignment)
            model = nn.ModuleDict({"rows": make_embedding(config, 200, 3)})
            fit_to_graph(model, edges, 200)
            embedding = model["rows"]
            mine = embedding.slots_of(torch.arange(200)) // embedding.block == rank
            seeds = mine.nonzero().squeeze(1)
            neighbours = edges[1][torch.isin(edges[0], seeds)]
            embedding(torch.cat([seeds, neighbours]))
            shares[assignment] = embedding.traffic.local_share
        assert shares["partition"] >= 0.98
        assert shares["hash"] < 0.7

    on_ranks(2, work)


# --- State -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_parameters_say_which_rows_they_hold(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = table()
        expected = RowRange(N, min(N, rank * -(-N // world)))
        for module in (ours, copy.deepcopy(ours), ours.float(), nn.Sequential(copy.deepcopy(ours))[0]):
            (parameter,) = module.parameters()
            assert parameter.partitioned is True
            assert parameter.rows == expected
        ours.load_state_dict({"table": torch.zeros(ours.table.shape)}, assign=True)
        assert ours.table.rows == expected
        assert ours.num_parameters == N * D
        assert ours.compression_ratio == 1
        assert "slots" in repr(ours)

    on_ranks(world, work)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_slots_saved_on_some_ranks_load_on_others(
    before: int, after: int, on_ranks: Any, tmp_path: Any
) -> None:
    def save(rank: int, world: int) -> None:
        for assignment in ASSIGNMENTS:
            ours = table(assignment)
            saved = [ours.table.rows.start, ours.state_dict(), ours.to_dense()]
            torch.save(saved, tmp_path / f"{assignment}{rank}")

    def load(rank: int, world: int) -> None:
        for assignment in ASSIGNMENTS:
            parts = [torch.load(tmp_path / f"{assignment}{r}") for r in range(before)]
            slots = torch.empty(N, D, dtype=torch.float64)
            for start, state, _ in parts:
                slots[start : start + state["table"].size(0)] = state["table"]
            ours = PartitionedEmbedding(N, D, assignment=assignment).double()
            start = ours.table.rows.start
            rows = slots[start : start + ours.table.size(0)]
            ours.load_state_dict({**parts[0][1], "table": rows})
            assert torch.equal(ours.to_dense(), parts[0][2])

    on_ranks(before, save)
    on_ranks(after, load)


@pytest.mark.parametrize("world", WORLDS)
def test_a_table_is_taken_in_by_id(world: int, on_ranks: Any) -> None:
    rows = torch.randn(N, D, dtype=torch.float64)

    def work(rank: int, world: int) -> None:
        for assignment in ASSIGNMENTS:
            ours = table(assignment)
            ours.set_table_(rows)
            assert torch.equal(ours.to_dense(), rows)
        assert torch.equal(PartitionedEmbedding.from_dense(rows).to_dense(), rows)

    on_ranks(world, work)


def test_a_table_on_the_meta_device_costs_nothing() -> None:
    with torch.device("meta"):
        made = PartitionedEmbedding(10**9, 64)
    assert made.table.shape == (10**9, 64)
    assert made.table.is_meta


# --- The factory -------------------------------------------------------------------------------------------


def test_the_factory_makes_partitioned_tables() -> None:
    made = make_embedding(EmbeddingConfig(partitioned=True, assignment="hash", std=0.3), N, D)
    assert type(made) is PartitionedEmbedding
    assert (made.kind, made.assignment, made.std) == ("dense", "hash", 0.3)
    assert made.config.partitioned
    assert F.embedding(torch.tensor([1]), made.weight()).shape == (1, D)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "hash", "partitioned": True}, ValueError, "goes with kind dense or tensor_train, not hash"),
        ({"engine": "all_to_all"}, ValueError, "engine all_to_all goes with embedding.partitioned true"),
        ({"assignment": "chance", "partitioned": True}, ValueError, "must be blocks, hash or partition"),
        (
            {"kind": "tensor_train", "partitioned": True, "engine": "torchrec"},
            UserError,
            "has full tables only",
        ),
        ({"partitioned": True, "std": 0.0}, ValueError, "std is 0.0; it must be positive"),
    ],
)
def test_options_that_contradict_are_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make_embedding(EmbeddingConfig(**options), N, D)


def test_a_table_made_before_the_process_group_is_refused(on_ranks: Any) -> None:
    early = table()

    def work(rank: int, world: int) -> None:
        with pytest.raises(RuntimeError, match="make it after the process group"):
            early(torch.tensor([1]))

    on_ranks(2, work)


def test_an_empty_look_up_before_another_in_one_step() -> None:
    table = PartitionedEmbedding(13, 8)
    for ids in (torch.arange(0), torch.arange(3)):
        table(ids).sum().backward()
    grad = table.table.grad.coalesce()
    assert grad.indices().tolist() == [[0, 1, 2]]
    assert bool((grad.values() == 1).all())
