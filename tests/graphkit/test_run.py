"""Run folders: names, configuration, lock, result."""

import os
import re
import signal
import time

import pytest

from graphkit.config import RunConfig
from graphkit.errors import UserError
from graphkit.run import Run
from graphkit.testing import tiny_config


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path, tiny_config(seed=3))


def test_create_and_open(run, tmp_path):
    assert re.fullmatch(r"tiny-tiny/\d{8}-\d{6}-3(\.\d+)?", run.name)
    again = Run.open(run.folder)
    assert again.config == run.config
    assert again.config.hash() == run.config.hash()
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "place.json"]


def test_values_that_yaml_spells_oddly(tmp_path):
    config = RunConfig(
        model_name="a/b c",
        dataset_name="d",
        task_name="link",
        model={"eps": 1e-5, "kind": "no", "sizes": [1, 2], "none": None, "flag": True, "inner": {"x": 1.0}},
        optim=tiny_config(optim={"lr": 1e-7, "group_lr": {"encoder": 3e-4}}).optim,
    )
    run = Run.create(tmp_path, config)
    assert run.folder.parent.name == "a_b_c-d"
    assert Run.open(run.folder).config == config


def test_names_are_unique(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *a: "20300101-000000")
    names = [Run.create(tmp_path, tiny_config()).folder.name for _ in range(3)]
    assert names == ["20300101-000000-0", "20300101-000000-0.1", "20300101-000000-0.2"]


def test_open_takes_the_newest(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="graphkit")
    for stamp in ("20300101-000000", "20310101-000000", "20290101-000000"):
        monkeypatch.setattr(time, "strftime", lambda *a, stamp=stamp: stamp)
        Run.create(tmp_path, tiny_config())
    assert Run.open(tmp_path / "tiny-tiny").folder.name == "20310101-000000-0"
    assert "3 run(s); taking the newest" in caplog.text


def test_open_refuses(tmp_path, run):
    with pytest.raises(UserError, match="doesn't exist"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no config\.yaml"):
        Run.open(tmp_path / "empty")
    for text in ("a: [", "- 1", "", "model_name: x", "unknown: 1", "\x00"):
        (run.folder / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"can't read the run's configuration") as error:
            Run.open(run.folder)
        assert "\n" not in str(error.value)


def test_check_same(run):
    run.check_same(tiny_config(seed=3))
    run.check_same(
        tiny_config(seed=3, epochs=9, max_minutes=1.0, checkpoint_every=2, checkpoint_steps=5, keep=4)
    )
    with pytest.raises(UserError, match=r"train\.batch_size is 8 in .* and can't become 16"):
        run.check_same(tiny_config(seed=3, batch_size=16))
    with pytest.raises(UserError, match=r"seed is 3 in .* and can't become 4"):
        run.check_same(tiny_config(seed=4))
    with pytest.raises(
        UserError, match=r"optim\.group_lr.head.* is 'absent' in .* and can't become 0\.1|group_lr"
    ):
        run.check_same(tiny_config(seed=3, optim={"group_lr": {"head": 0.1}}))


def test_lock_names_the_holder_and_outlives_nobody(run):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        with Run.open(run.folder).lock():
            os.write(told, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(UserError, match=f"in use by process {child}"), run.lock():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with run.lock():
        pass


def test_lock_passes_errors_on(run):
    with pytest.raises(UserError, match="mine"), run.lock():
        raise UserError("mine")
    with run.lock(), pytest.raises(UserError, match=f"in use by process {os.getpid()}"), run.lock():
        pass


def test_metrics_and_result(run):
    assert run.metrics == []
    assert run.result is None
    run.metrics_path.write_text('{"epoch": 1}\n{"epo')
    assert run.metrics == [{"epoch": 1}]
    run.write_result({"valid": {"mrr": 0.5}, "command": ("a", "b")})
    assert run.result == {"valid": {"mrr": 0.5}, "command": ["a", "b"]}
    (run.folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"can't read .*result\.json"):
        _ = run.result


def test_place_of_the_data(run, tmp_path, monkeypatch):
    assert run.data_root is None
    monkeypatch.chdir(tmp_path)
    placed = Run.create(tmp_path, run.config, data_root="data")
    assert Run.open(placed.folder).data_root == tmp_path / "data"
    assert Run.open(placed.folder).config.hash() == run.config.hash()
    (placed.folder / "place.json").write_text("[]")
    with pytest.raises(UserError, match=r"can't read .*place\.json"):
        _ = placed.data_root


def test_empty_run_is_discarded(tmp_path):
    first = Run.create(tmp_path, tiny_config(), data_root="data")
    second = Run.create(tmp_path, tiny_config())
    with second.lock():
        assert not second.discard_if_empty()  # in use
    second.metrics_path.touch()
    (second.checkpoints / ".tmp-step-00000000-1").mkdir(parents=True)
    (second.folder / "tensorboard").mkdir()
    assert second.discard_if_empty()
    assert not second.folder.exists()
    assert first.folder.exists()
    assert first.discard_if_empty()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "part", ["checkpoints/step-00000000/", "failures/step-3/", "metrics.jsonl", "result.json", "notes.txt"]
)
def test_run_with_anything_in_it_is_kept(part, run):
    path = run.folder / part
    if part.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.write_text("{}\n")
    assert not run.discard_if_empty()
    assert path.exists()


def test_unwritable_root(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't make a run folder"):
        Run.create(tmp_path / "file", tiny_config())
