"""Answers to queries over a user's own facts: as a table, as a picture, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.errors import UserError
from graphkit.evaluation import GraphEvaluator
from graphkit.graphs import collate
from graphkit.tasks.relation import RelationTask
from graphkit.tasks.relation_prediction import Fact, Query, ask, read_facts, relevant_facts

RELATIONS = ["zero", "one", "two"]  # of addition modulo 3
CONVERSE = {"zero": "zero", "one": "two", "two": "one"}
CHAIN = [Fact("a", "one", "b"), Fact("b", "one", "c"), Fact("c", "two", "d")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task(info: dict[str, Any] | None = None) -> RelationTask:
    """Sums of two numbers modulo 3."""
    graphs = [
        Data(
            edge_index=torch.tensor([[0, 1], [1, 2]]),
            edge_type=torch.tensor([i, j]),
            num_nodes=3,
            source=torch.tensor([0]),
            target=torch.tensor([2]),
            y=torch.tensor([(i + j) % 3]),
        )
        for i in range(3)
        for j in range(3)
    ]
    splits = {"train": [0, 4, 8], "valid": [1, 2], "test": [7, 5, 6]}
    made = Benchmark(
        "sums",
        "relation",
        collate(graphs),
        {name: {"index": torch.tensor(ids)} for name, ids in splits.items()},
        DataSpec(num_relations=3),
        "accuracy",
        True,
        GraphEvaluator("classes", "accuracy"),
        info=info or {},
        target_names=RELATIONS,
    )
    return RelationTask(made, 0, 4, 2)


class Adder(nn.Module):
    """Knows the answer where the graph is a chain."""

    def forward(
        self,
        edge_index: Tensor,
        edge_type: Tensor,
        source: Tensor,
        target: Tensor,
        *,
        num_nodes: int,
        path_node: Tensor,
        path_graph: Tensor,
    ) -> Tensor:
        owner = torch.zeros(num_nodes, dtype=torch.int64)
        owner[path_node] = path_graph
        total = torch.zeros_like(source).index_add(0, owner[edge_index[0]], edge_type)
        return 5.0 * nn.functional.one_hot(total % 3, 3).double()


def options(**given: Any) -> argparse.Namespace:
    blank = {"facts": None, "query": None, "draw": None, "split": None}
    return argparse.Namespace(**{**blank, **given})


def written(path: Path, facts: list[Fact] = CHAIN, mark: str = ",") -> Path:
    path.write_text("".join(mark.join(fact) + "\n" for fact in facts))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a,one,b\nb,two,c\n",
        "head,relation,tail\na,one,b\nb,two,c\n",
        "a\tone\tb\n\nb\ttwo\tc",
        "subject; predicate; object\na; one; b\n# a remark\nb; two; c\n",
        "a one b\nb two c\n",
    ],
)
def test_facts_are_read_with_and_without_a_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "facts").write_text(text)
    found = read_facts(tmp_path / "facts", RELATIONS)
    assert found == [Fact("a", "one", "b"), Fact("b", "two", "c")]


def test_answer_is_a_distribution_best_first(tmp_path: Path) -> None:
    file = written(tmp_path / "facts.csv")
    header, rows = task().predict(Adder(), options(facts=str(file), query=["a,d", "a, c"]))
    assert header == ["source", "target", "relation", "probability"]
    assert [row[:3] for row in rows[::3]] == [["a", "d", "one"], ["a", "c", "two"]]
    for block in (rows[:3], rows[3:]):
        values = [float(row[3]) for row in block]
        assert values == sorted(values, reverse=True)
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert sorted(row[2] for row in block) == sorted(RELATIONS)


def test_facts_off_every_chain_do_not_count() -> None:
    extra = [Fact("x", "two", "b"), Fact("d", "two", "y"), Fact("z", "one", "w"), Fact("d", "one", "a")]
    expected = ask(task(), Adder(), CHAIN, [Query("a", "d")])
    assert torch.equal(ask(task(), Adder(), [*extra, *CHAIN], [Query("a", "d")]), expected)
    assert relevant_facts([*CHAIN, *extra], Query("a", "d")) == CHAIN
    assert relevant_facts([*CHAIN, *extra], Query("b", "c")) == CHAIN[1:2]


def test_two_chains_are_both_used() -> None:
    other = [Fact("a", "two", "x"), Fact("x", "two", "d")]
    assert relevant_facts([*CHAIN, *other], Query("a", "d")) == [*CHAIN, *other]


def test_facts_are_turned_around_where_relations_have_a_converse() -> None:
    stated = [Fact("a", "one", "b"), Fact("c", "two", "b"), Fact("c", "two", "d")]
    with pytest.raises(UserError, match="join 'a' and 'd', but no chain leads from the one to the other"):
        relevant_facts(stated, Query("a", "d"))
    assert relevant_facts(stated, Query("a", "d"), CONVERSE) == CHAIN
    known = task({"converse": CONVERSE})
    assert int(ask(known, Adder(), stated, [Query("a", "d")]).argmax()) == 1
    assert int(ask(known, Adder(), stated, [Query("d", "a")]).argmax()) == 2


def test_names_with_commas_stand_in_quotation_marks(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text('"the house, old",one,b\nb,two,c\n')
    request = options(facts=str(tmp_path / "facts.csv"), query=['"the house, old",c'])
    assert task().predict(Adder(), request)[1][0][:3] == ["the house, old", "c", "zero"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_answer_is_drawn_with_its_path(tmp_path: Path, ending: str) -> None:
    parallel = [Fact("b", "zero", "c"), Fact("c", "one", "b"), Fact("c", "one", "c"), Fact("q", "one", "r")]
    file = written(tmp_path / "facts.csv", [*CHAIN, *parallel])
    picture = tmp_path / "new" / f"answer.{ending}"
    task().predict(Adder(), options(facts=str(file), query=["a,d"], draw=str(picture)))
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")


def test_two_neighbours_are_drawn_too(tmp_path: Path) -> None:
    file = written(tmp_path / "facts.csv", CHAIN[:1])
    task().predict(Adder(), options(facts=str(file), query=["a,b"], draw=str(tmp_path / "a.svg")))
    assert (tmp_path / "a.svg").exists()


def test_queries_of_a_split_are_answered(tmp_path: Path) -> None:
    made, net = task(), Adder()
    header, rows = made.predict(net, options(split="test"))
    index = made.benchmark.splits["test"]["index"]
    assert header == ["graph", "relation", "probability"]
    assert [row[0] for row in rows] == [str(graph) for graph in index.tolist()]
    assert [row[1] for row in rows] == [RELATIONS[r] for r in made.scores(net, index).argmax(1).tolist()]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("a,e", "no fact names 'e'"),
        ("a,q", "there is no path between 'a' and 'q'"),
        ("d,a", "no chain leads from the one to the other"),
        ("a,a", "asks about two nodes, not about 'a' and itself"),
        ("a", "--query is 'a'; it must be two nodes, A,B"),
        ("a,b,c", "it must be two nodes"),
        ("", "it must be two nodes"),
        ("a,", "it must be two nodes"),
    ],
)
def test_query_that_has_no_answer_is_refused(tmp_path: Path, query: str, message: str) -> None:
    file = written(tmp_path / "facts.csv", [*CHAIN, Fact("q", "one", "r")])
    with pytest.raises(UserError, match=message):
        task().predict(Adder(), options(facts=str(file), query=[query]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,onne,b\n", "facts.csv, line 1: unknown relation 'onne'; did you mean 'one'?"),
        (
            "a,one,b\nb,two\n",
            "facts.csv, line 2: a fact has three columns, head, relation and tail; got b, two",
        ),
        ("a,one,b\nb,,c\n", "line 2: a fact has three columns"),
        ("", "facts.csv holds no fact"),
        ("head,relation,tail\n", "facts.csv holds no fact"),
    ],
)
def test_file_that_holds_no_facts_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "facts.csv").write_text(text)
    with pytest.raises(UserError) as error:
        read_facts(tmp_path / "facts.csv", RELATIONS)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --facts FILE with --query A,B, or --split SPLIT"),
        ({"query": ["a,d"]}, "give --facts FILE with --query"),
        ({"facts": "facts.csv"}, "give --facts FILE with --query"),
        ({"facts": "facts.csv", "query": ["a,d"], "split": "test"}, "give --facts FILE with --query"),
        ({"split": "tset"}, "sums can't be evaluated on split 'tset'; take train or valid or test"),
        ({"split": "test", "draw": "x.png"}, "--draw takes one query"),
        (
            {"facts": "FACTS", "query": ["a,d", "a,c"], "draw": "x.png"},
            "--draw takes one query, and there are 2",
        ),
        ({"facts": "FACTS", "query": ["a,d"], "draw": "x.gif"}, "must end in .svg or .png"),
        ({"facts": "nowhere.csv", "query": ["a,d"]}, "can't read nowhere.csv"),
    ],
)
def test_request_that_cannot_be_met_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    if given.get("facts") == "FACTS":
        given = {**given, "facts": str(written(tmp_path / "facts.csv"))}
    with pytest.raises(UserError, match=message):
        task().predict(Adder(), options(**given))
