"""Checkpoints are complete or absent, damage is noticed, and nothing in them is executed."""

import errno
import json
import os
import pickle
import shutil
import signal

import pytest
import torch
from torch import nn

from graphkit.errors import UserError
from graphkit.run import Run
from graphkit.testing import TinyModel, TinyTask, tiny_config
from graphkit.train import Trainer, checkpoint, load_best, read_checkpoint
from graphkit.train.checkpoint import CheckpointStore, DamagedError, Snapshot
from graphkit.train.manifest import manifest_text
from graphkit.train.tensors import load_tensors, pack, save_tensors, unpack

FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
    "state.json",
    "config.json",
    "best.safetensors",
    "MANIFEST.json",
)
POINTS = (
    *(f"after {name}" for name in FILES),
    *(f"before flush of {name}" for name in FILES),
    "before rename",
    "after rename",
    "between pointers",
    "before prune",
)


def snapshot(value: float) -> Snapshot:
    tensor = torch.full((3,), value)
    return Snapshot(
        model={"w": tensor},
        optimizer={"state": {0: {"step": tensor[0]}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        state={"value": value},
        config={"seed": 0},
        best={"w": tensor + 1},
    )


@pytest.fixture
def store(tmp_path):
    """Checkpoints at steps 1 and 2."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    store.save(snapshot(1.0), 1)
    store.save(snapshot(2.0), 2)
    return store


def test_round_trip(store):
    loaded = store.load()
    assert torch.equal(loaded.model["w"], torch.full((3,), 2.0))
    assert torch.equal(loaded.best["w"], torch.full((3,), 3.0))
    assert loaded.optimizer["state"][0]["step"] == 2.0
    assert loaded.optimizer["param_groups"] == [{"betas": (0.9, 0.999)}]
    assert loaded.config == {"seed": 0}
    assert (store.folder / "last").read_text() == "step-00000002\n"
    assert (store.folder / "best").read_text() == "step-00000002/best.safetensors\n"
    assert torch.equal(load_best(store.folder)["w"], torch.full((3,), 3.0))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip first", "flip middle", "flip last", "cut", "empty", "missing"])
def test_damage_is_named_and_the_previous_one_used(name, damage, store, caplog):
    path = store.folder / "step-00000002" / name
    data = bytearray(path.read_bytes())
    where = {"flip first": 0, "flip middle": len(data) // 2, "flip last": -1}.get(damage)
    if where is not None:
        data[where] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(DamagedError, match=name):
        read_checkpoint(path.parent)
    assert store.load().state["value"] == 1.0
    assert str(path) in caplog.text


def test_additional_and_unreadable_files(store, monkeypatch):
    folder = store.folder / "step-00000002"
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(DamagedError, match=r"extra\.bin doesn't belong"):
        read_checkpoint(folder)
    (folder / "extra.bin").unlink()
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()
    with pytest.raises(DamagedError, match=r"state\.json can't be read"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", [".DS_Store", "._model.safetensors", ".nfs000000001"])
def test_hidden_files_are_no_damage(name, store):
    (store.folder / "step-00000002" / name).write_bytes(b"x")
    assert store.load(repair=True).state["value"] == 2.0
    assert store.names() == ["step-00000001", "step-00000002"]


def test_none_and_all_damaged(store, tmp_path):
    assert CheckpointStore(tmp_path / "nowhere").load() is None
    for name in store.names():
        (store.folder / name / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint .* is intact: .*state\.json.*state\.json"):
        store.load()
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_best(tmp_path / "nowhere")


def test_damaged_ones_are_set_aside(store):
    (store.folder / "step-00000002" / "state.json").write_text("{}")
    store.load(repair=True)
    assert store.names() == ["step-00000001"]
    assert (store.folder / "damaged-step-00000002").is_dir()


def test_newer_format_is_refused(store, monkeypatch):
    monkeypatch.setattr(checkpoint, "PLAIN_FORMAT", 3)
    store.save(snapshot(3.0), 3)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 3, this graphkit reads up to 2"):
        store.load()


@pytest.mark.parametrize("content", ["", "step-99999999\n", "../../etc\n"])
def test_pointer_to_nothing(content, store):
    (store.folder / "last").write_text(content)
    assert store.load().state["value"] == 2.0
    (store.folder / "last").unlink()
    assert store.load().state["value"] == 2.0


@pytest.mark.parametrize("point", POINTS)
def test_failure_at_each_point_of_a_save(point, store, monkeypatch):
    class Crash(BaseException):
        pass

    reached = []

    def fail(name):
        reached.append(name)
        if name == point:
            raise Crash

    monkeypatch.setattr(checkpoint, "fault_point", fail)
    with pytest.raises(Crash):
        store.save(snapshot(3.0), 3)
    monkeypatch.undo()
    published = reached.count("after rename") == 1
    fresh = CheckpointStore(store.folder, keep=2)
    assert fresh.load().state["value"] == (3.0 if published else 2.0)
    fresh.save(snapshot(4.0), 4)
    assert fresh.load().state["value"] == 4.0
    assert len(fresh.names()) == 2
    assert not list(store.folder.glob(".tmp-*"))


@pytest.mark.parametrize("point", ["after optimizer.safetensors", "before rename", "after rename"])
def test_process_killed_during_a_save(point, store):
    child = os.fork()
    if child == 0:
        checkpoint.fault_point = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
        store.save(snapshot(3.0), 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert store.load().state["value"] == (3.0 if point == "after rename" else 2.0)


@pytest.mark.parametrize("victim", ["model.safetensors", "MANIFEST.json", "last"])
def test_disk_full(victim, store, monkeypatch):
    real = os.fsync

    def full(descriptor):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            name = ""
        if victim in os.path.basename(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        store.save(snapshot(3.0), 3)
    monkeypatch.undo()
    assert store.load().state["value"] == (3.0 if victim == "last" else 2.0)
    assert not list(store.folder.glob(".tmp-*"))


def test_disk_full_stops_the_run_and_a_later_one_continues(tmp_path, monkeypatch):
    config = tiny_config(epochs=4, checkpoint_every=1)
    run = Run.create(tmp_path, config)
    task = TinyTask()
    torch.manual_seed(0)
    trainer = Trainer(TinyModel(), task, config, run)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(epoch, step):
        if epoch == 2:
            monkeypatch.setattr(checkpoint, "write_flushed", full)

    task.on_batch = fill
    with pytest.raises(UserError, match=r"can't write checkpoint .*step-00000009: .*No space left"):
        trainer.fit()
    monkeypatch.undo()
    assert CheckpointStore(run.checkpoints).load().state["state"]["epoch"] == 2
    torch.manual_seed(0)
    assert Trainer(TinyModel(), TinyTask(), config, run).fit().epochs == 4


def test_keep_policy(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    store.save(snapshot(1.0), 1)
    store.load()
    for step in range(2, 7):
        store.save(snapshot(float(step)), step)
    assert store.names() == ["step-00000001", "step-00000004", "step-00000005", "step-00000006"]
    assert store.in_use == "step-00000001"


def test_failed_deletion_does_not_stop(store, monkeypatch, caplog):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    store.save(snapshot(3.0), 3)
    assert "could not be deleted" in caplog.text
    assert store.load().state["value"] == 3.0


def test_one_step_saved_twice(store):
    path = store.save(snapshot(2.5), 2)
    assert path.name == "step-00000002.1"
    assert store.load().state["value"] == 2.5


def test_numeric_order(tmp_path):
    store = CheckpointStore(tmp_path, keep=20)
    for step in (99_999_999, 100_000_000, 5):
        store.save(snapshot(float(step)), step)
    for _ in range(10):
        store.save(snapshot(7.0), 5)
    names = store.names()
    assert names[:2] == ["step-00000005", "step-00000005.1"]
    assert names[9:11] == ["step-00000005.9", "step-00000005.10"]
    assert names[-1] == "step-100000000"


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_pickles_are_never_loaded(store):
    folder = store.folder / "step-00000002"
    payload = pickle.dumps(Payload())
    (folder / "model.pt").write_bytes(payload)
    assert store.load().state["value"] == 1.0
    (folder / "model.pt").unlink()
    (folder / "model.safetensors").write_bytes(payload)
    assert store.load().state["value"] == 1.0
    # Even with a manifest that vouches for it:
    from graphkit.files import sha256

    manifest = folder / "MANIFEST.json"
    listing = json.loads(manifest.read_text())["files"]
    listing["model.safetensors"] = {"sha256": sha256(folder / "model.safetensors"), "size": len(payload)}
    manifest.write_text(manifest_text(listing))
    assert store.load().state["value"] == 1.0


def test_no_pickle_is_written(store, monkeypatch):
    for path in store.folder.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith(b"\x80"), path
            assert b"PK\x03\x04" not in path.read_bytes()[:4]


def test_tied_overlapping_and_strided_tensors(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "transposed": base.t(),
        "row": base[1],
        "strided": base[:, ::2],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "half": base.to(torch.bfloat16),
        "complex": torch.complex(base, base),
        "mask": base > 3,
        "expanded": torch.ones(1).expand(4),
    }
    save_tensors(tmp_path / "t", tensors)
    loaded = load_tensors(tmp_path / "t")
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value), name
        assert loaded[name].dtype == value.dtype
    assert loaded["tied"] is loaded["base"]
    assert (tmp_path / "t").stat().st_size < 3000


def test_tied_modules(tmp_path):
    model = TinyModel()
    save_tensors(tmp_path / "m", model.state_dict())
    other = TinyModel()
    other.load_state_dict(load_tensors(tmp_path / "m"))
    assert other.tied.weight is other.middle.weight
    assert torch.equal(other.tied.weight, model.middle.weight)


def test_refused_contents(tmp_path):
    with pytest.raises(UserError, match="dense ones only"):
        save_tensors(tmp_path / "s", {"a": torch.eye(2).to_sparse()})
    with pytest.raises(UserError, match="'state/a' is a Linear"):
        pack({"a": nn.Linear(1, 1)}, {}, "state")
    (tmp_path / "bad").write_bytes(b"garbage")
    with pytest.raises(UserError, match="can't read tensors"):
        load_tensors(tmp_path / "bad")
    with pytest.raises(UserError, match="can't read tensors"):
        load_tensors(tmp_path / "absent")


def test_pack_keeps_structure():
    tensors = {}
    value = {0: {"a": torch.ones(2), "b": None}, "c": [1, (2.5, True)], "d": float("inf")}
    tree = json.loads(json.dumps(pack(value, tensors, "s")))
    back = unpack(tree, tensors)
    assert torch.equal(back[0].pop("a"), torch.ones(2))
    assert back == {0: {"b": None}, "c": [1, (2.5, True)], "d": float("inf")}


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_resume_after_damage_equals_an_unbroken_run(name, tmp_path):
    config = tiny_config(epochs=4, checkpoint_every=1, optim={"name": name})

    def fit(run):
        torch.manual_seed(0)
        trainer = Trainer(TinyModel(), TinyTask(), config, run)
        return trainer.fit(), trainer.model.state_dict()

    run = Run.create(tmp_path, config)
    whole, weights = fit(run)
    newest = CheckpointStore(run.checkpoints).names()[-1]
    path = run.checkpoints / newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 64
    path.write_bytes(data)
    (run.folder / "result.json").unlink()
    again, same = fit(run)
    assert (again.valid, again.test, again.best_epoch) == (whole.valid, whole.test, whole.best_epoch)
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert newest in CheckpointStore(run.checkpoints).names()


def test_loading_needs_no_pickle(store, monkeypatch):

    monkeypatch.setattr(pickle, "loads", lambda *a: pytest.fail("pickle.loads was called"))
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("torch.load was called"))
    assert store.load() is not None
