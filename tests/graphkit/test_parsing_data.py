"""Data sets given by a file, and their options without the section before them."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphkit.errors import UserError
from graphkit.experiment import choose_task
from graphkit.parsing import data_options, from_file, resolve, sectioned
from graphkit.registry import DATASETS, MODELS


def test_file_of_molecules_is_a_data_set_with_a_file() -> None:
    assert from_file("csv:a/b:c.csv", ["--x", "1"]) == (
        "smiles-csv",
        ["--data.file", "a/b:c.csv", "--x", "1"],
    )
    assert from_file("csv:~/m.csv", []) == ("smiles-csv", ["--data.file", str(Path.home() / "m.csv")])
    assert from_file("digits", ["--x"]) == ("digits", ["--x"])
    assert from_file(None, []) == (None, [])
    with pytest.raises(UserError, match="the file is missing"):
        from_file("csv:", [])


@pytest.mark.parametrize("flags", [["--k", "5"], ["--k=5"], ["--data.k", "5"]])
def test_option_of_a_data_set_may_stand_alone(flags: list[str]) -> None:
    assert resolve("ncn", "digits", flags).data["k"] == 5
    assert data_options("partition", DATASETS.get("digits"), flags)["k"] == 5


def test_options_of_a_data_set_are_told_from_others() -> None:
    flags = ["--valid-ratio=0.2", "--seed", "3", "--root", "x", "--model.k", "4", "k", "--k"]
    entry = DATASETS.get("custom")
    assert "valid_ratio" in data_options("partition", entry, ["--edges", "e.csv"])
    assert sectioned(entry, flags) == ["--data.valid_ratio=0.2", *flags[1:]]


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--kk", "unknown option '--kk'; did you mean '--k'?"),
        ("--data.kk", "unknown option '--data.kk'; did you mean '--data.k'?"),
        ("--model.k", "unknown option '--model.k'"),
    ],
)
def test_typo_in_an_option_of_a_data_set_is_named(flag: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve("ncn", "digits", [flag, "5"])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "flag", "message"),
    [
        (
            "digits-graphs",
            "--smiles",
            "unknown option '--smiles' of data set 'digits-graphs'; 'smiles-csv' has it (--dataset csv:FILE)",
        ),
        (
            "digits",
            "--data.edges=friends.csv",
            "unknown option '--data.edges' of data set 'digits'; 'custom' has it (--dataset custom)",
        ),
        (
            "digits",
            "--normalize-features",
            "unknown option '--normalize-features' of data set 'digits'; "
            "'citeseer', 'cora', 'custom' and 'pubmed' have it (--dataset NAME)",
        ),
    ],
)
def test_option_of_another_data_set_names_it(dataset: str, flag: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve("graph-gin" if dataset == "digits-graphs" else "ncn", dataset, [flag, "x"])
    assert str(caught.value) == message


def test_many_data_sets_with_an_option_are_counted() -> None:
    with pytest.raises(
        UserError, match=r"; '[^']+', '[^']+', '[^']+' and \d+ more have it \(--dataset NAME\)"
    ):
        data_options("partition", DATASETS.get("digits-graphs"), ["--attributes", "true"])


def test_models_that_serve_the_data_set_are_named() -> None:
    gcn, digits = MODELS.get("gcn"), DATASETS.get("digits")
    with pytest.raises(UserError) as caught:
        choose_task(gcn, digits, "link")
    names = ", ".join(MODELS.names(task="link"))
    assert str(caught.value).endswith(f", and task 'link' was asked for; models for link prediction: {names}")
    with pytest.raises(UserError, match=r"models for link prediction: .*; models for node prediction: "):
        choose_task(gcn, digits, "graph")
