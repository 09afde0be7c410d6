"""What the commands do with a finished run and tell about the zoo."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from graphkit.cli import main
from graphkit.registry import DATASETS, MODELS

SMALL = ["--dataset", "digits", "--model.hidden_channels", "8", "--data.k", "3", "--train.batch_size", "4096"]
ONE_EPOCH = [*SMALL, "--train.epochs", "1", "--device", "cpu"]

Call = Callable[..., Any]


def run_folders(runs: Path) -> list[Path]:
    return [path.parent for path in sorted(runs.glob("*/*/config.yaml"))]


def only_run(runs: Path) -> Path:
    (folder,) = run_folders(runs)
    return folder


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


@pytest.mark.parametrize(("factor", "code"), [(1 + 1e-6, 0), (1 + 1e-3, 1)])
def test_evaluate_names_the_metric_that_differs(
    call: Call, trained: Path, tmp_path: Path, factor: float, code: int
) -> None:
    run = shutil.copytree(trained, tmp_path / "ncn-digits" / "copy")
    result = json.loads((run / "result.json").read_text())
    result["test"]["hits@100"] *= factor
    (run / "result.json").write_text(json.dumps(result))
    done = call("evaluate", run, "--device", "cpu")
    assert done.code == code
    assert json.loads(done.out)["split"] == "test"
    if code:
        assert "result.json: hits@100 is " in done.complaint
        assert "mrr" not in done.complaint


def test_evaluate_of_an_unknown_split_is_refused(call: Call, trained: Path) -> None:
    done = call("evaluate", trained, "--split", "tset")
    assert done.code == 2
    assert "digits can't be evaluated on split 'tset'; take valid or test" in done.complaint


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


@pytest.mark.parametrize(
    "text", ["source,target\n1,2\n3,4\n", "1,2\n3,4\n", "1\t2\n\n3\t4", "1, 2\n 3,4\n", "1 2\n3 4\n"]
)
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
        ("1,2\n3,,4\n", "pairs.csv, line 2: two nodes expected, got 3 columns"),
        ("l,2\n3,4\n", "pairs.csv, line 1: 'l' is no node id"),
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
def test_bad_request_for_a_prediction_is_refused(
    call: Call, trained: Path, flags: list[str], hint: str
) -> None:
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
    for text, code, hint in (
        ("source,target\nn1,n2\n", 0, ""),
        ("n1 n2\n", 0, ""),
        ("n1x,n2\nn1,n2\n", 2, "pairs.csv, line 1: the graph has no node 'n1x'"),
        ("n1,,n2\n", 2, "pairs.csv, line 1: two nodes expected"),
    ):
        (tmp_path / "pairs.csv").write_text(text)
        done = call("predict", run, "--pairs", tmp_path / "pairs.csv", "--data-root", tmp_path / "data")
        assert (done.code, hint in done.err) == (code, True)
        assert code == 2 or [row["target"] for row in rows_of(done.out)] == ["n2"]
    with open(tmp_path / "friends.csv", "a") as file:
        file.write("n0,n9\n")
    done = call("predict", run, "--source", "n1")
    assert done.code == 2
    assert "data set 'custom' is no longer what" in done.complaint


def test_predict_saves_in_the_run_on_request(call: Call, trained: Path) -> None:
    printed = call("predict", trained, "--source", 3, "--top", 2).out
    saved = [call("predict", trained, "--source", 3, "--top", 2, "--save") for _ in range(2)]
    files = sorted((trained / "predictions").glob("*.csv"))
    assert [done.code for done in saved] == [0, 0]
    assert [file.read_text() for file in files] == [printed, printed]
    assert f"2 rows written to {files[0]}" in "".join(done.out for done in saved)
    assert "not allowed with" in call("predict", trained, "--source", 3, "--save", "--out", "x").complaint


def test_predict_takes_options_before_the_run(call: Call, trained: Path) -> None:
    after = call("predict", trained, "--source", 3, "--top", 2)
    assert call("predict", "--source", 3, "--top", 2, trained).out == after.out


def test_scores_of_a_heuristic_are_no_probabilities(call: Call, tmp_path: Path) -> None:
    assert call("train", "aa", "--dataset", "digits", "--data.k", 3, "--runs", tmp_path).code == 0
    done = call("predict", only_run(tmp_path), "--source", 3, "--top", 2)
    assert done.code == 0
    assert list(rows_of(done.out)[0]) == ["source", "target", "score"]


def test_list_shows_every_model_data_set_and_recipe(call: Call) -> None:
    done = call("list")
    assert done.code == 0
    for name in (*MODELS.names(), *DATASETS.names(), "ncnc/cora"):
        assert re.search(rf"^{re.escape(name)} ", done.out, re.MULTILINE), name


def test_list_takes_a_pattern(call: Call) -> None:
    first_words = [line.split()[0] for line in call("list", "ncn*").out.splitlines() if line.strip()]
    assert {"ncn", "ncnc", "ncnc/cora"} <= set(first_words)
    assert {"gae", "cora", "gae/cora"}.isdisjoint(first_words)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("zzz", "no model, data set or recipe matches 'zzz'"),
        ("zzz*", "no model, data set or recipe matches 'zzz*'"),
        ("ncnn", "matches 'ncnn'; did you mean 'ncn'?"),
    ],
)
def test_list_of_nothing_is_refused(call: Call, pattern: str, hint: str) -> None:
    done = call("list", pattern)
    assert (done.code, done.out) == (2, "")
    assert hint in done.complaint


def test_show_describes_a_task(call: Call) -> None:
    done = call("show", "link")
    assert done.code == 0
    for text in ("task link\n", "graphkit.tasks.link.LinkTask", "ncnc", "digits"):
        assert text in done.out
    table = done.out[done.out.index("parameter  ") :]
    assert re.search(r"^remove_targets +bool +True", table, re.MULTILINE)
    assert not re.search(r"^(benchmark|seed|device) ", table, re.MULTILINE)


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
