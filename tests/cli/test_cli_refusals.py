"""What the commands refuse: one line on standard error, exit code 2, no run folder."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from graphkit import files
from graphkit.registry import DATASETS
from graphkit.run import Run

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096"]
ONE_EPOCH = [*SMALL, "--train.epochs", "1", "--device", "cpu"]

Call = Callable[..., Any]


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def refusals() -> Iterator[Any]:
    def case(name: str, argv: list[str], hint: str) -> Any:
        return pytest.param(argv, hint, id=name)

    train = ["train", "ncn", "--dataset", "digits"]
    yield case("unknown command", ["trains"], "unknown command 'trains'; did you mean 'train'?")
    yield case("no model", ["train"], "the model comes first")
    yield case("unknown model", ["train", "nnc"], "unknown model 'nnc'; did you mean 'ncn")
    yield case(
        "unknown data set",
        ["train", "ncn", "--dataset", "coraa"],
        "unknown data set 'coraa'; did you mean 'cora'?",
    )
    yield case(
        "unknown option", [*train, "--model.hiden_channels", "8"], "did you mean '--model.hidden_channels'?"
    )
    yield case("stray word", ["train", "ncn", "digits"], "digits")
    yield case("wrong type", [*train, "--model.hidden_channels", "many"], "model.hidden_channels")
    yield case("missing value", [*train, "--model.hidden_channels"], "hidden_channels")
    yield case("wrong choice", [*train, "--model.conv", "gat"], "'puregcn'")
    yield case("out of range in the model", [*train, "--model.dropout", "1.5"], "dropout is 1.5")
    yield case("out of range in training", [*train, "--train.epochs", "0"], "train.epochs is 0")
    yield case("out of range in the data", [*train, "--data.k", "0"], "k is 0; it must lie between 1 and")
    yield case("negative width", [*train, "--model.hidden_channels", "-4"], "hidden_channels is -4")
    yield case("unknown group", [*train, "--optim.group_lr.decoder", "0.1"], "decoder")
    yield case("seed out of range", [*train, "--seed", "-1"], "seed is -1; it must be from 0 to 4294967295")
    yield case("seed that is no number", [*train, "--seed", "one"], "one")
    yield case("no seeds", [*train, "--seeds", "0"], "--seeds is '0'")
    yield case("seed listed twice", [*train, "--seeds", "1,1"], "--seeds is '1,1'")
    yield case("seeds that are no numbers", [*train, "--seeds", "a-b"], "--seeds is 'a-b'; it must be")
    yield case("unknown device", [*train, "--device", "abacus"], "device 'abacus' can't be used here")
    yield case("fp16 without a GPU", [*train, "--device", "cpu", "--train.precision", "fp16"], "use bf16")
    yield case(
        "missing file", [*train, "--config", "nowhere.yaml"], "can't read configuration file nowhere.yaml"
    )
    yield case("resume of nothing", ["train", "--resume", "runs/none"], "none is no run folder")
    yield case("evaluation of nothing", ["evaluate", "runs/none"], "none is no run folder")
    yield case("evaluation without a run", ["evaluate"], "RUN")
    yield case("prediction of nothing", ["predict", "runs/none", "--source", "1"], "none is no run folder")
    yield case("unknown recipe", ["reproduce", "ncn/coar"], "no recipe 'ncn/coar'; did you mean 'ncn/cora'?")
    yield case("unknown name to show", ["show", "ncnn"], "nothing is called 'ncnn'; did you mean 'ncn'?")
    yield case("unknown task", [*train, "--task-name", "node"], "task 'node' was asked for")
    yield case(
        "file of the custom data set missing",
        ["train", "ncn", "--dataset", "custom", "--data.edges", "friends.csv"],
        "there is no file friends.csv",
    )


@pytest.mark.parametrize(("argv", "hint"), list(refusals()))
def test_bad_input_ends_with_one_line_and_leaves_no_run(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*argv)
    assert done.code == 2
    assert hint in done.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        pytest.param("model: {hidden_channels: [", "mine.yaml is no valid YAML", id="bad YAML"),
        pytest.param("", "must hold a mapping", id="empty"),
        pytest.param("- model", "must hold a mapping", id="list"),
        pytest.param("modell: {}", "unknown key 'modell'; did you mean 'model'?", id="unknown section"),
        pytest.param("model: 3", "'model' must be a mapping", id="section without keys"),
        pytest.param(
            "model: {hiden_channels: 8}",
            "mine.yaml: unknown key 'model.hiden_channels'; did you mean 'model.hidden_channels'?",
            id="unknown key",
        ),
        pytest.param("model: {hidden_channels: wide}", "model.hidden_channels", id="wrong type"),
        pytest.param("optim: {lr: -1.0}", "optim.lr is -1.0; it must be at least 0", id="out of range"),
        pytest.param("seed: one", "seed", id="seed that is no number"),
        pytest.param("seed:", "seed", id="seed without a value"),
        pytest.param("model_name: [ncn]", "model", id="model name that is no name"),
    ],
)
def test_bad_configuration_file_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    model = [] if "model_name" in text else ["ncn"]
    done = call("train", *model, "--dataset", "digits", "--config", "mine.yaml")
    assert done.code == 2
    assert hint in done.complaint
    assert not Path("runs").exists()


def test_model_and_data_set_of_different_tasks_are_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = DATASETS.get("digits")
    monkeypatch.setitem(DATASETS._entries, "digits", type(entry)("digits", entry.target, ("node",), ""))
    done = call("train", "ncn", "--dataset", "digits", "--runs", tmp_path / "runs")
    assert done.code == 2
    assert "model 'ncn' is for link prediction; data set 'digits' serves node" in done.complaint
    assert not (tmp_path / "runs").exists()


def test_missing_data_offline_says_which_file_goes_where(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise files.urllib.error.URLError("no network")

    monkeypatch.setattr(files.urllib.request, "urlopen", offline)
    root = tmp_path / "data"
    done = call("train", "ncn", "--dataset", "cora", "--data-root", root, "--runs", tmp_path / "runs")
    assert done.code == 2
    assert "no network" in done.complaint
    assert f"put the file at {root}" in done.complaint
    assert not (tmp_path / "runs").exists()


def test_file_in_place_of_the_runs_folder_is_refused(call: Call, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    done = call("train", "ncn", *ONE_EPOCH, "--runs", tmp_path / "runs")
    assert done.code == 2
    assert "can't make a run folder in" in done.complaint
    assert (tmp_path / "runs").read_text() == "in the way"


def test_full_disk_ends_with_one_line(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Run, result: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / "x"))

    monkeypatch.setattr(Run, "write_result", full)
    done = call("train", "cn", "--dataset", "digits", "--data.k", 3, "--runs", tmp_path)
    assert done.code == 2
    assert done.complaint.endswith("/x: No space left on device")


def test_other_errors_of_the_system_are_not_hidden(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: Run, result: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    monkeypatch.setattr(Run, "write_result", missing)
    with pytest.raises(FileNotFoundError):
        call("train", "cn", "--dataset", "digits", "--data.k", 3, "--runs", tmp_path)


def test_more_epochs_for_a_finished_run_are_refused(call: Call, trained: Path) -> None:
    before = config_of(trained)
    done = call("train", "--resume", trained, "--train.epochs", 2)
    assert done.code == 2
    assert "is finished after 1 epochs" in done.complaint
    assert config_of(trained) == before


def test_run_in_use_is_refused(call: Call, trained: Path) -> None:
    with Run.open(trained).lock():
        done = call("train", "--resume", trained)
    assert done.code == 2
    assert f"run {trained} is in use by process" in done.complaint


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model.hidden_channels", "16"], ("model.hidden_channels", "8", "16")),
        (["--optim.lr=0.5"], ("optim.lr", "0.003", "0.5")),
        (["--seed", "9"], ("seed", "0", "9")),
        (["--dataset", "cora"], ("dataset_name", "'digits'", "'cora'")),
    ],
)
def test_resume_with_a_contradicting_flag_names_both_values(
    call: Call, trained: Path, flags: list[str], named: tuple[str, ...]
) -> None:
    before = config_of(trained)
    done = call("train", "--resume", trained, *flags)
    assert done.code == 2
    assert all(word in done.complaint for word in named)
    assert config_of(trained) == before


def test_resume_of_a_finished_run_changes_nothing(call: Call, trained: Path) -> None:
    before = {
        path: path.read_bytes() for path in trained.iterdir() if path.suffix in (".json", ".jsonl", ".yaml")
    }
    assert call("train", "--resume", trained, "--model.hidden_channels", 8).code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_debug_shows_the_traceback_before_the_line(call: Call) -> None:
    done = call("train", "nnc", "--debug")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.strip().splitlines()[-1].startswith("graphkit: unknown model 'nnc'")
