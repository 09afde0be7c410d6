"""Partitioned tables are saved by all ranks and reload on any number of them, or on none."""

import errno
import os
import pickle
import signal
from types import SimpleNamespace

import pytest
import safetensors
import torch
from torch import nn

from graphkit import testing
from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import range_of
from graphkit.testing import tiny_config
from graphkit.train import checkpoint, load_best, row_engine
from graphkit.train.checkpoint import CheckpointStore, open_best
from graphkit.train.snapshot import put_back, take_snapshot
from graphkit.train.state import TrainState

WIDTH = 3


class Model(nn.Module):
    """A table of which each rank has its block, and a layer that all have."""

    def __init__(self, total, rank=0, world=1, partitioned=True):
        super().__init__()
        rows, count = range_of(total, rank, world)
        self.table = nn.Parameter(torch.zeros(count, WIDTH))
        if partitioned:
            self.table.partitioned, self.table.rows = True, rows
        self.layer = nn.Linear(WIDTH, 1)
        self.register_buffer("position", torch.arange(total))
        self.start = rows.start if partitioned else 0


def on_ranks(world, work, folder):
    """Runs ``work(rank, world)`` on so many ranks, alone in this process; returns their exit codes."""
    if world == 1:
        work(0, 1)
        return [0]
    return testing.on_ranks(world, lambda rank: work(rank, world), folder, seconds=30)


def trainer_of(model, optimizer):
    """Returns what :func:`take_snapshot` and :func:`put_back` look at of a trainer."""
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        state=TrainState(),
        steps=3,
        scaler=None,
        config=tiny_config(),
        fingerprint=None,
        best={},
        run=None,
    )


def optimizer_of(name, model):
    kinds = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[name](model.parameters(), lr=0.1)


def step(model, optimizer, seed):
    """A step whose gradient of a row depends on the row alone."""
    total = len(model.position)
    whole = torch.randn(total, WIDTH, generator=torch.Generator().manual_seed(seed))
    model.table.grad = whole[model.start : model.start + len(model.table)].clone()
    for number, parameter in enumerate(model.layer.parameters()):
        parameter.grad = torch.full_like(parameter, seed + number + 1.0)
    optimizer.step()


def trained(total, rank, world, name, *, best_is_model=False):
    model = Model(total, rank, world)
    with torch.no_grad():
        whole = torch.arange(total * WIDTH, dtype=torch.float32).reshape(total, WIDTH)
        model.table.copy_(whole[model.start : model.start + len(model.table)])
        model.layer.weight.fill_(0.5)
        model.layer.bias.fill_(0.25)
    trainer = trainer_of(model, optimizer_of(name, model))
    step(model, trainer.optimizer, 1)
    trainer.best = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.state.best_updates, trainer.state.updates = 1, 1
    if not best_is_model:
        step(model, trainer.optimizer, 2)
        trainer.state.updates = 2
    return trainer


def saved_by(world, folder, total=7, name="adam", **options):
    """Has ranks train and save; returns the store."""

    def work(rank, world):
        trainer = trained(total, rank, world, name, **options)
        CheckpointStore(folder / "checkpoints").save(take_snapshot(trainer), trainer.state.updates)

    assert on_ranks(world, work, folder) == [0] * world
    return CheckpointStore(folder / "checkpoints")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("adam", 2, 1),
        ("adam", 1, 2),
        ("adam", 2, 3),
        ("adam", 3, 2),
        ("sgd", 2, 1),
        ("momentum", 2, 3),
        ("adagrad", 1, 2),
    ],
)
def test_rows_and_their_state_reload_at_any_number_of_ranks(name, before, after, tmp_path):
    saved_by(before, tmp_path, name=name)
    expected = trained(7, 0, 1, name)
    step(expected.model, expected.optimizer, 3)

    def work(rank, world):
        model = Model(7, rank, world)
        trainer = trainer_of(model, optimizer_of(name, model))
        put_back(trainer, CheckpointStore(tmp_path / "checkpoints").load(together=True))
        own = slice(model.start, model.start + len(model.table))
        assert torch.equal(trainer.best["table"], expected.best["table"][own])
        assert torch.equal(trainer.best["layer.weight"], expected.best["layer.weight"])
        assert trainer.best["table"].data_ptr() != model.table.data_ptr() or not len(model.table)
        step(model, trainer.optimizer, 3)
        assert torch.equal(model.table, expected.model.table[own])
        assert torch.equal(model.layer.weight, expected.model.layer.weight)
        assert trainer.state == TrainState(best_updates=1, updates=2)

    assert on_ranks(after, work, tmp_path) == [0] * after


@pytest.mark.parametrize(("total", "before", "after"), [(1, 3, 2), (4, 3, 1), (2, 1, 3)])
def test_ranks_without_rows(total, before, after, tmp_path):
    saved_by(before, tmp_path, total)
    expected = trained(total, 0, 1, "adam")

    def work(rank, world):
        model = Model(total, rank, world)
        trainer = trainer_of(model, optimizer_of("adam", model))
        put_back(trainer, CheckpointStore(tmp_path / "checkpoints").load(together=True))
        own = slice(model.start, model.start + len(model.table))
        assert torch.equal(model.table, expected.model.table[own])
        whole = expected.optimizer.state[expected.model.table]
        for key, value in trainer.optimizer.state[model.table].items():
            assert torch.equal(value, whole[key][own] if whole[key].dim() else whole[key]), key

    assert on_ranks(after, work, tmp_path) == [0] * after


@pytest.mark.parametrize("best_is_model", [False, True])
def test_files_of_a_checkpoint(best_is_model, tmp_path):
    store = saved_by(2, tmp_path, best_is_model=best_is_model)
    (name,) = store.names()
    folder = store.folder / name
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}
    groups = ["model.rows", "optimizer.rows"] + ([] if best_is_model else ["best.rows"])
    rows = {f"{group}/rows-0000{rank}.safetensors" for group in groups for rank in (1, 2)}
    plain = {"model.safetensors", "optimizer.safetensors", *([] if best_is_model else ["best.safetensors"])}
    assert found == rows | plain
    assert not list(folder.rglob(".metadata"))
    for path in folder.rglob("*"):
        assert path.is_dir() or path.read_bytes()[:1] != b"\x80", path  # no pickle
    with safetensors.safe_open(folder / "model.safetensors", framework="pt") as file:
        assert "table" not in file.keys()  # noqa: SIM118


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_stock_distributed_checkpoints_read_the_files(tmp_path):
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    store = saved_by(2, tmp_path)
    state = {"table": torch.zeros(7, WIDTH)}
    folder = store.folder / store.names()[0] / "model.rows"
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert torch.equal(state["table"], trained(7, 0, 1, "adam").model.table)


def test_a_table_may_become_partitioned_and_whole_again(tmp_path):
    store = saved_by(1, tmp_path)
    expected = trained(7, 0, 1, "adam").model.table
    plain = Model(7, partitioned=False)
    trainer = trainer_of(plain, optimizer_of("adam", plain))
    put_back(trainer, store.load())
    assert torch.equal(plain.table, expected)
    store.save(take_snapshot(trainer), 5)
    assert not (store.folder / "step-00000005" / "model.rows").exists()

    def work(rank, world):
        model = Model(7, rank, world)
        again = trainer_of(model, optimizer_of("adam", model))
        put_back(again, CheckpointStore(store.folder).load(together=True))
        own = slice(model.start, model.start + len(model.table))
        assert torch.equal(model.table, expected[own])
        assert again.optimizer.state[model.table]["exp_avg"].shape == model.table.shape

    assert on_ranks(2, work, tmp_path) == [0, 0]


def test_best_weights_are_mapped_and_come_in_one_piece(tmp_path):
    store = saved_by(2, tmp_path)
    best = open_best(store.folder)
    assert best.tensors.keys() == {"layer.weight", "layer.bias", "position"}
    table = best.rows["table"]
    expected = trained(7, 0, 1, "adam").best
    assert (table.shape, table.dtype, len(table.parts)) == ((7, WIDTH), torch.float32, 2)
    for start in range(8):
        for stop in range(start, 8):
            assert torch.equal(table.read(start, stop), expected["table"][start:stop]), (start, stop)
    inside = table.read(1, 3)
    inside += 1  # of the mapping, not of the file
    assert torch.equal(open_best(store.folder).rows["table"].read(0, 7), expected["table"])
    whole = load_best(store.folder)
    assert all(torch.equal(whole[key], expected[key]) for key in expected)


def test_the_best_need_no_state_of_the_optimizer(tmp_path):
    store = saved_by(2, tmp_path)
    (store.folder / store.names()[0] / "optimizer.rows" / "rows-00002.safetensors").write_bytes(b"")
    assert load_best(store.folder)["table"].shape == (7, WIDTH)
    with pytest.raises(UserError, match=r"rows-00002\.safetensors has 0 bytes"):
        store.load()


def two_checkpoints(folder):
    """Returns a store of checkpoints at steps 1 and 2 by two ranks."""
    saved_by(2, folder, best_is_model=True)
    return saved_by(2, folder)


@pytest.mark.parametrize("group", ["model.rows", "optimizer.rows", "best.rows"])
@pytest.mark.parametrize("damage", ["flip first", "flip last", "cut", "missing"])
def test_damage_is_named_and_the_previous_one_used(group, damage, tmp_path, caplog):
    store = CheckpointStore(tmp_path)
    for updates in (1, 2):
        store.save(take_snapshot(trained(7, 0, 1, "adam", best_is_model=updates == 1)), updates)
    path = store.folder / "step-00000002" / group / "rows-00001.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    else:
        data[9 if damage == "flip first" else -1] ^= 1
        path.write_bytes(data)
    assert store.load().state["state"]["updates"] == 1
    assert str(path) in caplog.text


def test_ranks_agree_on_the_checkpoint_that_is_good_for_all(tmp_path):
    store = two_checkpoints(tmp_path)
    assert store.names() == ["step-00000001", "step-00000002"]
    path = store.folder / "step-00000002" / "model.rows" / "rows-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    def work(rank, world):
        own = CheckpointStore(store.folder)
        assert own.load(repair=True, together=True).state["state"]["updates"] == 1
        assert own.in_use == "step-00000001"

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert store.names() == ["step-00000001"]
    assert (store.folder / "damaged-step-00000002").is_dir()


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("where", ["rows", "rest"])
def test_a_rank_that_can_not_write_makes_all_fail(victim, where, tmp_path):
    store = saved_by(2, tmp_path, best_is_model=True)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def work(rank, world):
        trainer = trained(7, rank, world, "adam")
        if rank == victim and where == "rows":
            row_engine.safetensors.torch.save_file = full
        if where == "rest":
            checkpoint.write_flushed = full
        with pytest.raises(UserError, match=r"can't write checkpoint .*step-00000002.*No space left"):
            CheckpointStore(store.folder).save(take_snapshot(trainer), 2)

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert store.names() == ["step-00000001"]
    assert not list(store.folder.glob(".tmp-*"))
    saved_by(2, tmp_path)
    assert store.names() == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("victim", "point"),
    [(0, "after model.rows"), (1, "after model.rows"), (0, "after best.rows"), (0, "after state.json")],
)
def test_a_rank_killed_during_a_save_leaves_the_previous_one(victim, point, tmp_path):
    store = saved_by(2, tmp_path, best_is_model=True)

    def work(rank, world):
        trainer = trained(7, rank, world, "adam")
        if rank == victim:
            checkpoint.fault_point = lambda name: (
                os.kill(os.getpid(), signal.SIGKILL) if name == point else None
            )
        with pytest.raises(RuntimeError):
            CheckpointStore(store.folder).save(take_snapshot(trainer), 2)
        os._exit(7)

    codes = on_ranks(2, work, tmp_path)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 7
    assert store.names() == ["step-00000001"]
    assert store.load().state["state"]["updates"] == 1


def test_another_shape_is_refused(tmp_path):
    store = saved_by(1, tmp_path)
    model = Model(8)
    with pytest.raises(UserError, match=r"of another model: 'table' has shape \[7, 3\]; it must be \[8, 3\]"):
        put_back(trainer_of(model, optimizer_of("adam", model)), store.load())
    other = nn.Linear(2, 1)
    with pytest.raises(UserError, match="of another model: it has a table 'table'"):
        put_back(trainer_of(other, torch.optim.Adam(other.parameters())), store.load())


def test_alone_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **options):
        pytest.fail("pickle was used")

    for module, names in ((pickle, ("dumps", "loads", "dump", "load")), (torch, ("save", "load"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    trainer = trained(7, 0, 1, "adam")
    store = CheckpointStore(tmp_path)
    store.save(take_snapshot(trainer), 2)
    put_back(trainer, store.load())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_state_that_can_not_be_saved_on_one_rank_makes_all_fail(victim, tmp_path):
    def work(rank, world):
        trainer = trained(7, rank, world, "adam")
        snapshot = take_snapshot(trainer)
        if rank == victim:
            snapshot.optimizer["odd"] = object()
        with pytest.raises(UserError, match="state '/odd' is a object"):
            CheckpointStore(tmp_path / "checkpoints").save(snapshot, 2)

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert CheckpointStore(tmp_path / "checkpoints").names() == []


def test_a_mistake_on_the_first_rank_ends_the_others_too(tmp_path):
    def work(rank, world):
        snapshot = take_snapshot(trained(7, rank, world, "adam"))
        snapshot.config["odd"] = 1
        if rank == 0:
            checkpoint.entry_of = lambda data: {}["nothing"]
        kind, text = (UserError, "rank 0 failed with KeyError") if rank else (KeyError, "nothing")
        with pytest.raises(kind, match=text):
            CheckpointStore(tmp_path / "checkpoints").save(snapshot, 2)

    assert on_ranks(2, work, tmp_path) == [0, 0]
    assert not list((tmp_path / "checkpoints").glob("*step*"))
