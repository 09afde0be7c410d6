"""The commands: what they print, leave behind and refuse."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

import graphkit.commands.reproduce as reproduce_command
from graphkit import files
from graphkit.cli import main
from graphkit.errors import UserError
from graphkit.recipes import Recipe
from graphkit.registry import DATASETS, MODELS
from graphkit.run import Run
from graphkit.train.checkpoint import load_best

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096"]
ONE_EPOCH = [*SMALL, "--train.epochs", "1", "--device", "cpu"]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("graphkit: ")
        assert "Traceback" not in self.out + self.err
        return lines[0]


Call = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process."""

    def run(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ncn on digits, for tests that only look at it."""
    runs = tmp_path_factory.mktemp("trained")
    assert main(["train", "ncn", *ONE_EPOCH, "--runs", str(runs)]) == 0
    return only_run(runs)


def run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("*/*/config.yaml"))]


def only_run(runs: Path) -> Path:
    (folder,) = run_folders(runs)
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


def outcome_of(folder: Path) -> dict[str, Any]:
    """The part of a result that doesn't depend on time and place."""
    result = json.loads((folder / "result.json").read_text())
    return {key: result[key] for key in ("valid", "test", "best_epoch", "epochs", "parameters", "seed")}


# --- train -------------------------------------------------------------------------------------------------


def test_train_leaves_a_complete_run(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--runs", tmp_path)
    assert done.code == 0
    folder = only_run(tmp_path)
    assert folder.parent.name == "ncn-digits"
    result = json.loads((folder / "result.json").read_text())
    assert 0 <= result["test"]["hits@100"] <= 1
    assert (result["model"], result["dataset"], result["seed"]) == ("ncn", "digits", 0)
    splits = [json.loads(line)["split"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert splits == ["train", "valid"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert config_of(folder)["model"]["hidden_channels"] == 8
    assert str(folder) in done.out
    assert f"test hits@100 {result['test']['hits@100']:.4f}" in done.out


def test_train_prints_the_complete_configuration_it_stores(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--runs", tmp_path)
    printed = yaml.safe_load(done.out[: done.out.index("ncn on digits")])
    assert printed == config_of(only_run(tmp_path))


def test_model_without_parameters_is_only_evaluated(call: Call, tmp_path: Path) -> None:
    done = call("train", "cn", "--dataset", "digits", "--data.k", 3, "--runs", tmp_path)
    assert done.code == 0
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert (result["parameters"], result["best_epoch"], result["epochs"]) == (0, None, 0)


def test_several_seeds_end_with_mean_and_deviation(call: Call, tmp_path: Path) -> None:
    done = call("train", "ncn", *ONE_EPOCH, "--seeds", 2, "--runs", tmp_path)
    assert done.code == 0
    results = [json.loads((folder / "result.json").read_text()) for folder in run_folders(tmp_path)]
    assert sorted(result["seed"] for result in results) == [0, 1]
    values = torch.tensor([result["test"]["hits@100"] for result in results], dtype=torch.float64)
    row = next(line for line in done.out.splitlines() if line.startswith("hits@100"))
    mean, deviation = re.findall(r"([\d.]+) ± ([\d.]+)", row)[1]
    assert float(mean) == pytest.approx(float(values.mean()), abs=0.01)
    assert float(deviation) == pytest.approx(float(values.std()), rel=0.1)


def test_one_seed_gives_the_same_weights_and_another_others(call: Call, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert call("train", "ncn", *ONE_EPOCH, "--seed", seed, "--runs", tmp_path / name).code == 0
    first, same, other = (load_best(only_run(tmp_path / name) / "checkpoints") for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_flags_win_over_the_file_the_file_over_the_recipe_the_recipe_over_defaults(
    call: Call, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {hidden_channels: 8, predictor_dropout: 0.2}\ndata: {k: 3}\n"
        "optim: {lr: 5e-4}\ntrain: {epochs: 7}\n"
    )
    done = call(
        *("train", "ncn", "--dataset", "digits", "--config", file),
        *("--train.epochs", 1, "--model.hidden_channels", 4, "--runs", tmp_path / "runs"),
    )
    assert done.code == 0
    config = config_of(only_run(tmp_path / "runs"))
    assert config["train"]["epochs"] == 1  # flag over file
    assert config["model"]["hidden_channels"] == 4  # flag over file over recipe
    assert config["model"]["predictor_dropout"] == 0.2  # file over recipe
    assert config["optim"]["lr"] == 5e-4
    assert config["model"]["node_mlp"] is True  # recipe over default
    assert config["model"]["beta"] == 1.0  # default


def test_stored_configuration_of_a_run_is_a_configuration_file(call: Call, tmp_path: Path, trained: Path) -> None:
    done = call("train", "--config", trained / "config.yaml", "--runs", tmp_path)
    assert done.code == 0
    assert config_of(only_run(tmp_path)) == config_of(trained)
    assert outcome_of(only_run(tmp_path)) == outcome_of(trained)


# --- what is refused ---------------------------------------------------------------------------------------


def refusals() -> Iterator[Any]:
    def case(name: str, argv: list[str], hint: str) -> Any:
        return pytest.param(argv, hint, id=name)

    train = ["train", "ncn", "--dataset", "digits"]
    yield case("unknown command", ["trian"], "unknown command 'trian'; did you mean 'train'?")
    yield case("no model", ["train"], "name a model first")
    yield case("unknown model", ["train", "nnc"], "unknown model 'nnc'; did you mean 'ncn")
    yield case(
        "unknown data set", ["train", "ncn", "--dataset", "coar"], "unknown data set 'coar'; did you mean 'cora'?"
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
    yield case("missing file", [*train, "--config", "nowhere.yaml"], "can't read configuration file nowhere.yaml")
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


@pytest.mark.parametrize(("argv", "hint"), refusals())
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
        pytest.param("modle: {}", "unknown key 'modle'; did you mean 'model'?", id="unknown section"),
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
    before = {path: path.read_bytes() for path in trained.iterdir() if path.suffix in (".json", ".jsonl", ".yaml")}
    assert call("train", "--resume", trained, "--model.hidden_channels", 8).code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_debug_shows_the_traceback_before_the_line(call: Call) -> None:
    done = call("train", "nnc", "--debug")
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.err
    assert done.err.strip().splitlines()[-1].startswith("graphkit: unknown model 'nnc'")


# --- evaluate and predict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluate_gives_the_metrics_of_the_result_exactly(call: Call, trained: Path, split: str) -> None:
    done = call("evaluate", trained, "--split", split, "--device", "cpu")
    assert done.code == 0
    printed = json.loads(done.out)
    stored = json.loads((trained / "result.json").read_text())[split]
    assert {key: printed[key] for key in stored} == stored
    assert printed["split"] == split


def test_evaluate_says_when_metrics_differ_from_the_result(call: Call, trained: Path) -> None:
    path = trained / "result.json"
    text = path.read_text()
    try:
        changed = json.loads(text)
        changed["test"]["hits@100"] += 0.01
        path.write_text(json.dumps(changed))
        done = call("evaluate", trained, "--device", "cpu")
    finally:
        path.write_text(text)
    assert done.code == 1
    assert "differ from the run's result.json" in done.out + done.err


def test_evaluate_of_the_training_split_is_refused(call: Call, trained: Path) -> None:
    done = call("evaluate", trained, "--split", "train")
    assert done.code == 2
    assert "no negatives for its training split" in done.complaint


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_predict_lists_the_likeliest_new_neighbours(call: Call, trained: Path) -> None:
    done = call("predict", trained, "--source", 17, "--top", 6)
    rows = rows_of(done.out)
    logits = [float(row["logit"]) for row in rows]
    assert done.code == 0
    assert [row["source"] for row in rows] == ["17"] * 6
    assert logits == sorted(logits, reverse=True)
    benchmark = DATASETS.create("digits", k=3)
    known = {17}
    for split in benchmark.splits.values():
        for i, j in split["pos_edge_label_index"].t().tolist():
            known |= {i, j} if 17 in (i, j) else set()
    assert known.isdisjoint(int(row["target"]) for row in rows)
    for row, logit in zip(rows, logits, strict=True):
        assert float(row["probability"]) == pytest.approx(float(torch.tensor(logit).sigmoid()), abs=1e-5)


@pytest.mark.parametrize("text", ["source,target\n1,2\n3,4\n", "1,2\n3,4\n", "1\t2\n\n3\t4", "1, 2\n 3,4\n"])
def test_predict_scores_the_pairs_of_a_file(call: Call, trained: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    done = call("predict", trained, "--pairs", tmp_path / "pairs.csv")
    assert done.code == 0
    assert [(row["source"], row["target"]) for row in rows_of(done.out)] == [("1", "2"), ("3", "4")]


def test_predict_writes_a_file_on_request(call: Call, trained: Path, tmp_path: Path) -> None:
    printed = call("predict", trained, "--source", 3, "--top", 2).out
    done = call("predict", trained, "--source", 3, "--top", 2, "--out", tmp_path / "new" / "links.csv")
    assert done.code == 0
    assert "2 rows written to" in done.out
    assert (tmp_path / "new" / "links.csv").read_text() == printed


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1,2\n3\n", "pairs.csv, line 2: two nodes expected"),
        ("source,target\n1,x\n", "pairs.csv, line 2: 'x' is no node id"),
        ("1,2\n--5,3\n", "pairs.csv, line 2: '--5' is no node id"),
        ("1,2\n²,3\n", "pairs.csv, line 2: '²' is no node id"),
        ("1,2\n5,1797\n", "ids 0 to 1796"),
        ("1,2\n-1,4\n", "ids 0 to 1796"),
    ],
)
def test_bad_pairs_are_refused_with_their_place(
    call: Call, trained: Path, tmp_path: Path, text: str, hint: str
) -> None:
    (tmp_path / "pairs.csv").write_text(text)
    done = call("predict", trained, "--pairs", tmp_path / "pairs.csv")
    assert done.code == 2
    assert hint in done.complaint


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        ([], "either --source NODE or --pairs FILE"),
        (["--source", "1", "--pairs", "x.csv"], "either --source NODE or --pairs FILE"),
        (["--source", "1", "--top", "0"], "--top is 0; it must be at least 1"),
        (["--source", "99999"], "source is 99999; the graph has ids 0 to 1796"),
        (["--source", "one"], "'one' is no node id"),
        (["--source", ""], "is no node id"),
        (["--pairs", "nowhere.csv"], "can't read nowhere.csv"),
    ],
)
def test_bad_request_for_a_prediction_is_refused(call: Call, trained: Path, flags: list[str], hint: str) -> None:
    done = call("predict", trained, *flags)
    assert done.code == 2
    assert hint in done.complaint


def test_own_graph_is_trained_and_predicted_by_node_name(call: Call, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(30)] + ['Smith, "Jo"']
    edges = [(names[i], names[(i * k + 1) % 31]) for i in range(31) for k in (1, 2, 3, 5)]
    with open(tmp_path / "friends.csv", "w", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *edges])
    own = ["--dataset", "custom", "--data.edges", tmp_path / "friends.csv", "--data-root", tmp_path / "data"]
    flags = ["--model.hidden_channels", 8, "--train.epochs", 1, "--runs", tmp_path / "runs"]
    assert call("train", "ncn", *own, *flags).code == 0
    run = only_run(tmp_path / "runs")
    done = call("predict", run, "--source", 'Smith, "Jo"', "--top", 3, "--data-root", tmp_path / "data")
    assert done.code == 0
    rows = rows_of(done.out)
    assert [row["source"] for row in rows] == ['Smith, "Jo"'] * 3
    assert {row["target"] for row in rows} <= set(names[:30])
    done = call("predict", run, "--source", "nobody", "--data-root", tmp_path / "data")
    assert "the graph has no node 'nobody'" in done.complaint


# --- list, show and help -----------------------------------------------------------------------------------


def test_list_shows_every_model_data_set_and_recipe(call: Call) -> None:
    done = call("list")
    assert done.code == 0
    for name in (*MODELS.names(), *DATASETS.names(), "ncnc/cora"):
        assert re.search(rf"^{re.escape(name)} ", done.out, re.MULTILINE), name


def test_list_takes_a_pattern(call: Call) -> None:
    first_words = [line.split()[0] for line in call("list", "ncn*").out.splitlines() if line.strip()]
    assert {"ncn", "ncnc", "ncnc/cora"} <= set(first_words)
    assert {"gae", "cora", "gae/cora"}.isdisjoint(first_words)


def test_show_describes_a_model(call: Call) -> None:
    done = call("show", "ncnc")
    assert done.code == 0
    for text in ("arXiv:2302.00890", "graphkit.models.ncnc.NCNC", "hidden_channels", "256", "ncnc/cora"):
        assert text in done.out
    table = done.out[done.out.index("parameter  ") :]
    assert not re.search(r"^in_channels ", table, re.MULTILINE)


def test_show_describes_a_data_set_and_prints_a_recipe(call: Call) -> None:
    assert "digits" in call("show", "digits").out
    assert yaml.safe_load(call("show", "ncnc/cora").out)["expected"]["metric"] == "hits@100"


def test_help_of_a_model_documents_its_own_parameters(call: Call) -> None:
    text = " ".join(call("train", "ncnc", "--help").out.split())
    assert "--model.ceiling" in text
    assert "may exceed 1." in text
    assert "--train.epochs" in text
    assert "--resume RUN" in text
    assert "--model.ceiling" not in call("train", "ncn", "--help").out


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "reproduce", "list", "show"])
def test_every_command_has_help(call: Call, capsys: pytest.CaptureFixture[str], command: str) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_bare_command_prints_its_usage(call: Call) -> None:
    assert call().code == 2
    assert call("--help").code == 0
    assert re.fullmatch(r"graphkit \d+\.\d+\S*\n", call("--version").out)


# --- reproduce ---------------------------------------------------------------------------------------------

TINY = {
    "model": {"hidden_channels": 8},
    "data": {"k": 3},
    "train": {"epochs": 2, "batch_size": 4096, "checkpoint_every": 1},
}


@pytest.fixture
def tiny_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two short runs in place of all others; returns its file."""
    paper = {"mean": 1.0, "std": 0.5, "seeds": 2, "source": "nowhere"}
    expected = {"metric": "hits@100", "paper": paper}
    recipe = Recipe("ncn", "digits", TINY, seeds=2, expected=expected)
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump({**TINY, "seeds": 2, "expected": expected}, sort_keys=False))
    monkeypatch.setattr("graphkit.parsing.find_recipe", lambda model, dataset: recipe)
    monkeypatch.setattr(reproduce_command, "matching_recipes", lambda patterns: [recipe])
    monkeypatch.setattr(reproduce_command, "recipe_file", lambda recipe: path)
    return path


def test_reproduce_compares_with_the_published_figure(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    before = tiny_recipe.read_text()
    done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--device", "cpu")
    assert done.code == 0
    assert len(run_folders(tmp_path / "runs")) == 2
    assert "1.00 ± 0.50" in done.out
    assert re.search(r"\b(above|equal)\b", done.out)
    assert tiny_recipe.read_text() == before


def test_reproduce_uses_finished_runs_and_continues_stopped_ones(
    call: Call, tmp_path: Path, tiny_recipe: Path
) -> None:
    again = ["reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--device", "cpu"]
    first = call(*again).out.splitlines()[-1]
    folders = run_folders(tmp_path / "runs")
    stopped, finished = folders
    (stopped / "result.json").unlink()
    stored = (finished / "result.json").stat().st_mtime_ns
    done = call(*again)
    assert done.out.splitlines()[-1] == first
    assert run_folders(tmp_path / "runs") == folders
    assert (stopped / "result.json").exists()
    assert (finished / "result.json").stat().st_mtime_ns == stored


def test_reproduce_records_its_result_in_the_recipe(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    for _ in range(2):  # the second time replaces what the first wrote
        done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--record", "--device", "cpu")
        assert done.code == 0
    content = yaml.safe_load(tiny_recipe.read_text())
    ours = content["expected"]["ours"]
    results = [json.loads((folder / "result.json").read_text()) for folder in run_folders(tmp_path / "runs")]
    assert ours["seeds"] == [0, 1]
    assert sorted(ours["per_seed"]) == sorted(round(100 * r["test"]["hits@100"], 2) for r in results)
    assert "reproduce.py ncn/digits" in ours["command"]
    assert content["expected"]["paper"]["mean"] == 1.0
    assert {key: content[key] for key in TINY} == TINY
    assert tiny_recipe.read_text().count("ours:") == 1


def test_reproduce_fails_where_the_result_falls_short(call: Call, tmp_path: Path, tiny_recipe: Path) -> None:
    recipe = reproduce_command.matching_recipes([])[0]
    recipe.expected["paper"]["mean"] = 120.0
    done = call("reproduce", "ncn/digits", "--runs", tmp_path / "runs", "--seeds", "1", "--device", "cpu")
    assert done.code == 1
    assert "below" in done.out


# --- real processes ----------------------------------------------------------------------------------------


def start(root: Path, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(root / "scripts" / "train.py"), *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_script_ends_a_bad_input_with_exit_code_2(root: Path, tmp_path: Path) -> None:
    process = start(root, "nnc", "--runs", tmp_path / "runs")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "unknown model 'nnc'" in Outcome(2, out, err).complaint


def test_run_that_is_stopped_by_a_signal_resumes_to_the_same_weights(
    call: Call, root: Path, tmp_path: Path
) -> None:
    flags = ["ncn", *SMALL, "--train.epochs", 40, "--train.batch_size", 512, "--device", "cpu"]
    process = start(root, *flags, "--runs", tmp_path / "stopped")
    log: list[Path] = []
    while process.poll() is None and not (log and log[0].stat().st_size > 0):
        log = list(tmp_path.glob("stopped/*/*/metrics.jsonl"))
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "--resume" in err
    folder = only_run(tmp_path / "stopped")
    assert not (folder / "result.json").exists()

    process = start(root, "--resume", folder)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    process = start(root, *flags, "--runs", tmp_path / "whole")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    whole = only_run(tmp_path / "whole")
    assert outcome_of(folder) == outcome_of(whole)
    ours, theirs = load_best(folder / "checkpoints"), load_best(whole / "checkpoints")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    positions = [(line["split"], line["epoch"], line["step"]) for line in steps]
    assert len(positions) == len(set(positions))


def test_user_error_is_a_value_error_for_library_users() -> None:
    assert issubclass(UserError, ValueError)
