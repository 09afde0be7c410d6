"""The engine ``torchrec`` gives the rows, gradients and steps of one process with the whole table."""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphkit.config import OptimConfig
from graphkit.distributed import torchrec_shard
from graphkit.distributed.embedding import PartitionedEmbedding
from graphkit.distributed.torchrec import TorchRecEmbedding
from graphkit.errors import UserError
from graphkit.nn.embedding.config import EmbeddingConfig
from graphkit.nn.embedding.elsewhere import without_tables
from graphkit.nn.embedding.factory import make_embedding
from graphkit.train.optim import build_optimizer, gradient_norms, scale_gradients, set_lr

N, D = 13, 8
RULES = ["sgd", "adagrad", "rowwise_adagrad"]
SHARDINGS = ["row_wise", "column_wise", "table_wise"]

missing = [name for name in ("torchrec", "fbgemm_gpu") if importlib.util.find_spec(name) is None]
installed = pytest.mark.skipif(bool(missing), reason=f"without {' and '.join(missing)}")


@pytest.fixture(autouse=True)
def imported_once() -> None:
    """Imports TorchRec before ranks are forked."""
    if not missing:
        torchrec_shard.import_torchrec()


def made(sharding: Any = "row_wise", rows: int = N, **options: Any) -> TorchRecEmbedding:
    torch.manual_seed(0)
    return TorchRecEmbedding(rows, D, sharding=sharding, std=1.0, **options)


def like(ours: PartitionedEmbedding) -> nn.Embedding:
    """Returns one table with the same rows."""
    return nn.Embedding.from_pretrained(ours.to_dense(), freeze=False)


def requests(step: int, world: int, rows: int = N) -> list[Tensor]:
    """What each rank looks up in a step: uneven, repeated, and nothing now and then."""
    draw = torch.Generator().manual_seed(step)
    sizes = torch.randint(0, 12, (world,), generator=draw).tolist()
    return [torch.randint(0, rows, (size if step % 3 else size // 6,), generator=draw) for size in sizes]


def own_part(ours: TorchRecEmbedding, whole: Tensor) -> Tensor:
    """Returns what this rank holds of a table by id."""
    if ours.sharding == "row_wise":
        return whole[ours.range.start : ours.range.start + ours.local_units]
    first = sum(ours._widths()[: ours.rank])
    return whole[:, first : first + ours.table.size(1)]


# --- Look-ups ----------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("world", [2, 3])
def test_rows_and_summed_gradients_are_those_of_one_process(world: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS if world == 2 else ["row_wise", "table_wise"]:
            ours = made(sharding)
            theirs = like(ours)
            for step in range(4):
                ids = requests(step, world)
                ours.zero_grad()
                theirs.zero_grad()
                rows = ours(ids[rank])
                assert torch.equal(rows, theirs(ids[rank]))
                rows.pow(3).sum().backward()
                sum(theirs(i).pow(3).sum() for i in ids).backward()
                assert ours.table.grad.is_sparse
                grad = own_part(ours, theirs.weight.grad)
                torch.testing.assert_close(ours.table.grad.to_dense(), grad, rtol=1e-5, atol=1e-5)

    on_ranks(world, work)


@installed
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_rows_than_ranks_and_ranks_without_rows(rows: int, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made(rows=rows)
        theirs = like(ours)
        optimizer = build_optimizer(ours, OptimConfig(rows="adagrad", lr=0.1))
        other = torch.optim.Adagrad(theirs.parameters(), lr=0.1)
        for step in range(3):
            ids = requests(step, world, rows)
            optimizer.zero_grad()
            other.zero_grad()
            ours(ids[rank]).square().sum().backward()
            sum(theirs(i).square().sum() for i in ids).backward()
            gradient_norms(optimizer)
            optimizer.step()
            other.step()
            torch.testing.assert_close(ours.to_dense(), theirs.weight.detach(), rtol=1e-5, atol=1e-6)

    on_ranks(3, work)


@installed
def test_requests_of_all_shapes_and_all_for_one_rank(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            ours = made(sharding)
            table = ours.to_dense()
            for ids in (
                torch.tensor([[1, 2, 1], [0, 0, 12]], dtype=torch.int32),
                torch.tensor(3),
                torch.tensor([0, 1, 0]),
                torch.tensor([], dtype=torch.int64).reshape(0, 2),
            ):
                assert torch.equal(ours(ids), table[ids.long()])
            assert torch.equal(ours.rows(2, 9), table[2:9])
            with torch.no_grad():
                assert not ours(torch.tensor([1])).requires_grad

    on_ranks(2, work)


@installed
def test_assignments_keep_ids(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for assignment in ("hash", "partition"):
            ours, theirs = made(assignment=assignment), PartitionedEmbedding(N, D, assignment=assignment)
            if assignment == "partition":
                order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
                ours.set_order(order)
                theirs.set_order(order)
            theirs.set_table_(ours.to_dense())
            ids = requests(1, world)[rank]
            assert torch.equal(ours(ids), theirs(ids))

    on_ranks(2, work)


@installed
def test_an_id_that_does_not_exist_is_told_by_all_ranks(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        for bad in (-1, N):
            with pytest.raises(IndexError, match=r"rank 1 looked up .* the table has rows 0 to 12"):
                ours(torch.tensor([1, bad] if rank == 1 else [1]))
        with pytest.raises(TypeError, match="must be integers"):
            ours(torch.tensor([1.0]))
        assert torch.equal(ours(torch.tensor([2])), ours.to_dense()[[2]])

    on_ranks(2, work)


@installed
def test_the_whole_table_is_differentiable(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            ours = made(sharding)
            theirs = like(ours)
            assert torch.equal(ours(), theirs.weight)
            (ours().square().sum() * (rank + 1)).backward()
            (theirs.weight.square().sum() * 3).backward()
            torch.testing.assert_close(ours.table.grad, own_part(ours, theirs.weight.grad))
            table = torch.randn(N, D, generator=torch.Generator().manual_seed(2))
            ours.set_table_(table)
            assert torch.equal(ours.to_dense(), table)
            assert ours.num_parameters == N * D

    on_ranks(2, work)


@installed
def test_it_starts_like_the_other_engine(on_ranks: Any) -> None:
    torch.manual_seed(0)
    start = PartitionedEmbedding(N, D, std=1.0).to_dense()

    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            ours = made(sharding)
            assert torch.equal(ours.to_dense(), start)
            ours(torch.tensor([1]))
            torch.manual_seed(0)
            ours.set_table_(torch.zeros(N, D))
            ours.reset_parameters()
            assert torch.equal(ours(torch.arange(N)), start)

    on_ranks(2, work)


@installed
def test_bytes_of_look_ups_are_counted(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding, width in (("row_wise", D), ("column_wise", D // 2), ("table_wise", D)):
            ours = made(sharding)
            ids = torch.tensor([0, 1, 1] if rank == 0 else [0, 0, 7, 8, 9])
            ours(ids).sum().backward()
            count = ours.traffic
            from_1 = {"row_wise": 0, "column_wise": 2, "table_wise": 0}[sharding]
            from_0 = {"row_wise": 1, "column_wise": 4, "table_wise": 4}[sharding]
            coming, going = (from_1, from_0) if rank == 0 else (from_0, from_1)
            assert (count.rows_received, count.rows_sent) == (coming * width * 4, going * width * 4)
            assert (count.ids_sent, count.ids_received) == (8 + 8 * coming, 8 + 8 * going)
            assert (count.gradients_sent, count.gradients_received) == (count.rows_received, count.rows_sent)

    on_ranks(2, work)


# --- Steps -------------------------------------------------------------------------------------------------


def reference(rule: str, table: nn.Embedding, lr: float, state: Tensor) -> None:
    """One step by the formula."""
    grad = table.weight.grad
    if rule == "adagrad":
        state += grad.square()
        grad = grad / (state.sqrt() + 1e-10)
    elif rule == "rowwise_adagrad":
        state += grad.square().mean(1, keepdim=True)
        grad = grad / (state.sqrt() + 1e-8)
    table.weight.data -= lr * grad


@installed
@pytest.mark.parametrize("rule", RULES)
def test_fused_steps_are_those_of_one_process(rule: Any, on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS if rule == "sgd" else ["row_wise"]:
            ours = made(sharding)
            theirs, state = like(ours), torch.zeros(N, D)
            optimizer = build_optimizer(ours, OptimConfig(rows=rule, lr=0.1, clip_norm=5.0))
            for step in range(5):
                lr = set_lr(optimizer, 1 / (step + 1))["default"]
                ids = requests(step, world)
                optimizer.zero_grad()
                theirs.zero_grad()
                for half in range(2):  # two backward passes, one step
                    ours(ids[rank][half::2]).pow(3).sum().backward()
                sum(theirs(i).pow(3).sum() for i in ids).backward()
                norms = gradient_norms(optimizer).tolist()
                total = nn.utils.clip_grad_norm_(theirs.parameters(), 5.0)
                assert norms[0] == pytest.approx(float(total), rel=1e-5)
                scale_gradients(optimizer, norms, OptimConfig(clip_norm=5.0))
                optimizer.step()
                reference(rule, theirs, lr, state)
                torch.testing.assert_close(ours.to_dense(), theirs.weight.detach(), rtol=1e-5, atol=1e-5)

    on_ranks(2, work)


@installed
def test_fbgemm_does_the_update_in_its_own_memory(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        optimizer = build_optimizer(ours, OptimConfig(rows="rowwise_adagrad", lr=0.1))
        ours(torch.arange(N)).sum().backward()
        optimizer.step()
        kernel = ours._engine.kernel
        assert kernel.optimizer.name == "EXACT_ROWWISE_ADAGRAD"
        assert kernel.split_embedding_weights()[0].data_ptr() == ours.table.data_ptr()
        total = optimizer.state[ours.table]["sum"]
        assert kernel.split_optimizer_states()[0][0].data_ptr() == total.data_ptr()
        torch.testing.assert_close(total, torch.full((ours.local_units,), float(world**2)))
        assert ours.table.grad is None

    on_ranks(2, work)


@installed
def test_a_gradient_of_the_whole_table_follows_the_rule(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        theirs, state = like(ours), torch.zeros(N, D)
        optimizer = build_optimizer(ours, OptimConfig(rows="adagrad", lr=0.1))
        ours().square().sum().backward()
        (theirs.weight.square().sum() * world).backward()
        optimizer.step()
        reference("adagrad", theirs, 0.1, state)
        torch.testing.assert_close(ours.to_dense(), theirs.weight.detach())

    on_ranks(2, work)


@installed
def test_a_nan_on_one_rank_is_seen_by_all_before_anything_changes(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            ours = made(sharding)
            before = ours.to_dense()
            optimizer = build_optimizer(ours, OptimConfig(name="sgd", lr=0.1))
            loss = ours(torch.tensor([0])).sum()  # lives on rank 0
            (loss * (float("nan") if rank == 1 else 1.0)).backward()
            assert gradient_norms(optimizer).isnan().all()
            optimizer.zero_grad()
            assert torch.equal(ours.to_dense(), before)

    on_ranks(2, work)


@installed
def test_updates_that_do_not_exist_are_refused_in_one_line(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        cases = [
            (
                made(),
                "adam",
                "optim.rows adam isn't among .* sgd, adagrad, rowwise_adagrad; engine all_to_all",
            ),
            (
                made("column_wise"),
                "adagrad",
                "column_wise is updated by sgd alone; row_wise takes adagrad",
            ),
            (made().double(), "sgd", "tables of float32, and this one is torch.float64"),
        ]
        for ours, rule, message in cases:
            before = ours.to_dense()
            optimizer = build_optimizer(ours, OptimConfig(rows=rule))

            def step(ours: Any = ours, optimizer: Any = optimizer) -> None:
                ours(torch.tensor([1])).sum().backward()
                optimizer.step()

            with pytest.raises(UserError, match=message) as error:
                step()
            assert "\n" not in str(error.value)
            assert torch.equal(ours.to_dense(), before)

    on_ranks(2, work)


@installed
def test_the_rule_may_be_chosen_before_the_first_look_up(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        with pytest.raises(UserError, match=r"rows adam isn't among"):
            ours.use_rule("adam")
        ours.use_rule("adagrad")
        ours(torch.tensor([rank])).sum().backward()
        first = ours._engine
        build_optimizer(ours, OptimConfig(rows="adagrad")).step()
        assert ours._engine is first

    on_ranks(2, work)


@installed
def test_a_table_without_room_is_refused_by_the_planner(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        group = torch.distributed.new_group()
        with pytest.raises(UserError, match="no room on 2 ranks, row_wise"):
            torchrec_shard.shard_table(10**12, 64, "row_wise", "sgd", torch.device("cpu"), group, [64, 64])

    on_ranks(2, work)


@installed
def test_torchs_own_optimizers_find_an_ordinary_parameter(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        ours = made()
        theirs = like(ours)
        optimizers = [torch.optim.SparseAdam(ours.parameters()), torch.optim.Adam(theirs.parameters())]
        ours(torch.arange(N)).square().sum().backward()
        (theirs.weight.square().sum() * world).backward()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours(torch.arange(N)), theirs.weight.detach(), rtol=1e-5, atol=1e-5)

    on_ranks(2, work)


# --- The factory -------------------------------------------------------------------------------------------


@installed
def test_the_factory_makes_it(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding in SHARDINGS:
            config = EmbeddingConfig(partitioned=True, engine="torchrec", sharding=sharding)  # type: ignore[arg-type]
            ours = make_embedding(config, N, D)
            assert type(ours) is TorchRecEmbedding
            assert ours.sharding == sharding
            assert sharding in repr(ours)

    on_ranks(2, work)


@installed
def test_one_process_needs_no_group() -> None:
    ours = made("column_wise")
    theirs = like(ours)
    optimizer = build_optimizer(ours, OptimConfig(rows="adam"))
    ours(torch.tensor([1, 1])).sum().backward()
    optimizer.step()
    assert not torch.equal(ours.to_dense(), theirs.weight)
    assert torch.equal(ours(torch.tensor([1, 1])), ours.to_dense()[[1, 1]])


def test_without_torchrec_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = EmbeddingConfig(partitioned=True, engine="torchrec")
    with pytest.raises(UserError, match=re.escape("torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0")) as error:
        make_embedding(config, N, D)
    assert "\n" not in str(error.value)


def test_a_finished_run_opens_without_torchrec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with without_tables():
        ours = make_embedding(EmbeddingConfig(partitioned=True, engine="torchrec"), N, D)
    ours.load_state_dict({"table": torch.ones(N, D)}, assign=True)
    assert torch.equal(ours(torch.tensor([1])), torch.ones(1, D))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharding": "grid"}, "sharding is 'grid'; it must be one of row_wise, column_wise, table_wise"),
        (
            {"sharding": "column_wise", "assignment": "hash"},
            "assignment is 'hash'; with sharding column_wise",
        ),
    ],
)
def test_bad_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TorchRecEmbedding(N, D, **options)


def test_widths_that_fbgemm_does_not_have_are_refused(on_ranks: Any) -> None:
    def work(rank: int, world: int) -> None:
        for sharding, multiple in (("row_wise", 4), ("column_wise", 8)):
            with pytest.raises(ValueError, match=f"embedding_dim is 6; .* a multiple of {multiple}"):
                TorchRecEmbedding(N, 6, sharding=sharding)  # type: ignore[arg-type]

    on_ranks(2, work)
