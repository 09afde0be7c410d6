"""Reasoning problems: their shape, their one answer, their conditions, and how like the published ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphkit.datasets.algebra import algebra_of, algebraic_closure, path_answers, symbolic_scores
from graphkit.datasets.problems import Conditions, chain_tables, make_problems
from graphkit.datasets.reasoning_csv import problem_files, read_problems
from graphkit.datasets.relation_graphs import graph_keys, take_graphs
from graphkit.errors import UserError

Arrays = dict[str, Any]
NAMES = ("rcc8", "interval")
both = pytest.mark.parametrize("name", NAMES)


def graphs(arrays: Arrays) -> list[tuple[list[tuple[int, int, int]], int]]:
    """Returns each graph as (tail, head, relation) and its number of nodes."""
    found = []
    for g in range(len(arrays["y"])):
        part = slice(arrays["edge_ptr"][g], arrays["edge_ptr"][g + 1])
        edges = np.vstack([arrays["edge_index"][:, part], arrays["edge_type"][part]]).T.tolist()
        found.append(([tuple(edge) for edge in edges], int(arrays["ptr"][g + 1] - arrays["ptr"][g])))
    return found


def equal(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@both
def test_chains_are_all_that_mean_one_relation(name: str) -> None:
    algebra = algebra_of(name)
    pair_ptr, pair_label, pair_mask, chain_ptr, chain_label = chain_tables(algebra)
    for r in range(len(algebra)):
        pairs = {tuple(pair) for pair in pair_label[pair_ptr[r] : pair_ptr[r + 1]].tolist()}
        assert pairs == {
            (a, b)
            for a in range(len(algebra))
            for b in range(len(algebra))
            if int(algebra.composition[a, b]) >> r & 1 and algebra.composition[a, b] != algebra.full
        }
    assert (pair_mask == algebra.composition[tuple(pair_label.T)]).all()
    rng = np.random.default_rng(0)
    for length in (2, 3, 4):
        known = {}
        for r in range(len(algebra)):
            part = slice(chain_ptr[length - 2, r], chain_ptr[length - 2, r + 1])
            known |= dict.fromkeys(map(tuple, chain_label[length - 2, part, :length].tolist()), r)
        assert len(known) == chain_ptr[length - 2, -1]
        for chain in rng.integers(len(algebra), size=(300, length)).tolist():
            mask = 1 << chain[0]
            for label in chain[1:]:
                mask = int(algebra.compose(mask, 1 << label))
            assert (tuple(chain) in known) == (mask.bit_count() == 1)
            if mask.bit_count() == 1:
                assert 1 << known[tuple(chain)] == mask


@both
@pytest.mark.parametrize(("k", "b"), [(2, 1), (3, 2), (4, 3), (5, 1), (6, 3), (9, 2), (15, 1)])
def test_every_path_has_k_edges_and_leads_from_the_first_node_to_the_last(name: str, k: int, b: int) -> None:
    algebra = algebra_of(name)
    made = make_problems(algebra, [k], [b], 6)
    assert Counter(made["y"].tolist()) == dict.fromkeys(range(len(algebra)), 6)
    assert (made["y"][:-1] <= made["y"][1:]).all()
    for at, (edges, nodes) in enumerate(graphs(made)):
        assert (made["source"][at], made["target"][at]) == (0, nodes - 1)
        level = {0: 0}
        for u, v, _ in sorted(edges):
            assert level.setdefault(v, level[u] + 1) == level[u] + 1
        assert sorted(level) == list(range(nodes))
        assert max(level.values()) == level[nodes - 1] == k
        assert {u for u, _, _ in edges} == set(range(nodes - 1)), "no dead end"
        assert len({(u, v) for u, v, _ in edges}) == len(edges)
        if k <= 4:
            assert nodes == (k - 1) * b + 2
            assert len(edges) == k * b
            assert sum(u == 0 for u, _, _ in edges) == b
        # numbered branch by branch: what an edge leads to is new or was there, in the order of the list
        fresh = [v for _, v, _ in edges if v != nodes - 1]
        assert len(set(fresh)) == nodes - 2
    assert (made["k"] == k).all()
    assert (made["b"] == b).all()


@both
def test_the_facts_leave_the_answer_alone(name: str) -> None:
    algebra = algebra_of(name)
    made = make_problems(algebra, [2, 4, 5, 8], [1, 3], 2, seed=3)
    for (edges, nodes), y in zip(graphs(made), made["y"].tolist(), strict=True):
        closure = algebraic_closure([edge[:2] for edge in edges], [edge[2] for edge in edges], algebra)
        assert closure[0, nodes - 1] == 1 << y


def test_a_cell_is_the_same_whatever_else_is_made() -> None:
    algebra = algebra_of("rcc8")
    one = make_problems(algebra, [5], [2], 10, seed=1)
    many = make_problems(algebra, [3, 5], [1, 2], 10, seed=1)
    assert equal(one, make_problems(algebra, [5], [2], 10, seed=1))
    cell, every = np.flatnonzero((many["k"] == 5) & (many["b"] == 2)), graphs(many)
    assert [every[g] for g in cell] == graphs(one)
    assert graphs(make_problems(algebra, [5], [2], 10, seed=2)) != graphs(one)
    assert graphs(make_problems(algebra, [5], [2], 4, seed=1))[:4] == graphs(one)[:4]


def test_no_graph_occurs_twice_if_none_may() -> None:
    algebra = algebra_of("rcc8")
    made = make_problems(algebra, [2], [1, 2], 60, 0, Conditions(dedupe=True))
    every = graphs(made)
    for b in (1, 2):
        rows = [every[g] for g in np.flatnonzero(made["b"] == b)]
        # branches have no order
        different = {
            frozenset(Counter((edges[i][2], edges[i + 1][2]) for i in range(0, len(edges), 2)).items())
            for edges, _ in rows
        }
        assert len(different) == len(rows)
    assert int((made["b"] == 1).sum()) == 27, "all chains of two edges that decide"
    assert len(np.unique(graph_keys(make_problems(algebra, [2], [1], 300)))) == 27


def test_no_path_alone_need_give_the_answer() -> None:
    algebra = algebra_of("interval")
    made = make_problems(algebra, [3, 5], [2], 20, 0, Conditions(require_multipath=True))
    assert (algebra.sizes[path_answers(made, algebra)] > 1).all()
    there = {algebra.names[y] for y in made["y"].tolist()}
    assert there == set(algebra.names) - {"<", ">", "m", "mi"}, "no two chains leave these, unless one does"
    with pytest.raises(UserError, match="no problems with k = 3 and b = 1 under require_multipath=True"):
        make_problems(algebra, [3], [1], 5, 0, Conditions(require_multipath=True))


def test_identities_can_be_capped() -> None:
    algebra = algebra_of("rcc8")
    made = make_problems(algebra, [4], [2], 20, 0, Conditions(max_identity_share=0.25))
    same = [np.mean([r == algebra.identity for _, _, r in edges]) for edges, _ in graphs(made)]
    assert max(same) == 0.25
    assert algebra.identity not in made["y"], "EQ needs a branch of EQ alone"


def test_values_out_of_range_are_told() -> None:
    algebra = algebra_of("rcc8")
    for arguments, message in (
        (([1], [1], 5), "k is 1; it must lie between 2 and 64"),
        (([2], [65], 5), "b is 65; it must lie between 1 and 64"),
        (([], [1], 5), "k is empty"),
        (([2], [1], 0), "0 problems of each relation"),
        (([2], [1], 5, -1), "seed is -1"),
    ):
        with pytest.raises(UserError, match=message):
            make_problems(algebra, *arguments)
    with pytest.raises(UserError, match="max_identity_share is 0; it must lie above 0"):
        Conditions(max_identity_share=0)


def test_a_graphs_key_knows_no_numbering() -> None:
    made = make_problems(algebra_of("rcc8"), [5], [2], 10)
    keys = graph_keys(made)
    rng = np.random.default_rng(0)
    edges, ptr, at = made["edge_index"].copy(), made["ptr"], made["edge_ptr"]
    types, source, target = made["edge_type"].copy(), made["source"].copy(), made["target"].copy()
    for g in range(len(keys)):
        number = rng.permutation(ptr[g + 1] - ptr[g])
        order = at[g] + rng.permutation(at[g + 1] - at[g])
        edges[:, at[g] : at[g + 1]] = number[made["edge_index"][:, order]]
        types[at[g] : at[g + 1]] = made["edge_type"][order]
        source[g], target[g] = number[source[g]], number[target[g]]
    other = {"edge_index": edges, "edge_type": types, "source": source, "target": target}
    assert (graph_keys(made | other) == keys).all()
    turned = {"source": made["target"], "target": made["source"]}
    assert (graph_keys(made | turned) != keys).all()
    one = types.copy()
    one[at[:-1]] = (one[at[:-1]] + 1) % 8
    assert (graph_keys(made | other | {"edge_type": one}) != keys).all()


def test_some_graphs_of_a_set_in_any_order() -> None:
    made = make_problems(algebra_of("rcc8"), [3, 5], [2], 2)
    made["node_name"] = np.arange(made["ptr"][-1])
    ids = np.array([9, 0, 9, 4])
    part, every = take_graphs(made, ids), graphs(made)
    assert graphs(part) == [every[g] for g in ids]
    assert part["y"].tolist() == made["y"][ids].tolist()
    names = np.split(made["node_name"], made["ptr"][1:-1])
    assert part["node_name"].tolist() == np.concatenate([names[g] for g in ids]).tolist()
    assert take_graphs(made, ids[:0])["edge_index"].shape == (2, 0)


# --- The published files ----------------------------------------------------------------------------------


def statistics(arrays: Arrays, identity: int, entailed: Any) -> dict[str, float]:
    at = arrays["edge_ptr"]
    types = [arrays["edge_type"][at[g] : at[g + 1]] for g in range(len(at) - 1)]
    return {
        "nodes": float(np.diff(arrays["ptr"]).mean()),
        "edges": float(np.diff(at).mean()),
        "identities": float(np.mean([(one == identity).mean() for one in types])),
        "entailed": float(entailed.mean()),
    }


@pytest.mark.parametrize(
    ("name", "k", "b"),
    [("rcc8", 2, 2), ("rcc8", 4, 3), ("rcc8", 7, 2), ("rcc8", 9, 1), ("interval", 3, 3), ("interval", 6, 1)],
)
def test_made_problems_are_like_the_published_ones(test_data: Path, name: str, k: int, b: int) -> None:
    algebra = algebra_of(name)
    files = problem_files(test_data / "rcc8_interval", name)
    published = read_problems(files[k, b], algebra, k, b)
    per_relation = len(published["y"]) // len(algebra)
    assert Counter(published["y"].tolist()) == dict.fromkeys(range(len(algebra)), 800)
    made = make_problems(algebra, [k], [b], per_relation)
    scores = [symbolic_scores(arrays, algebra) for arrays in (published, made)]
    assert (scores[0]["exact"] == 1).all(), "the closure of every published row is its label alone"
    found, expected = (
        statistics(arrays, algebra.identity, score["entailed"])
        for arrays, score in zip((made, published), scores, strict=True)
    )
    assert found["nodes"] == pytest.approx(expected["nodes"], rel=0.02)
    assert found["edges"] == pytest.approx(expected["edges"], rel=0.02)
    assert found["entailed"] == pytest.approx(expected["entailed"], abs=0.03)
    assert found["identities"] == pytest.approx(expected["identities"], abs=0.02)


@both
def test_full_closure_solves_published_rows(test_data: Path, name: str) -> None:
    algebra = algebra_of(name)
    for (k, b), path in problem_files(test_data / "rcc8_interval", name).items():
        rows = read_problems(path, algebra, k, b)
        rows = take_graphs(rows, np.linspace(0, len(rows["y"]) - 1, 8).astype(np.int64))
        assert rows["target"].tolist() == [nodes - 1 for _, nodes in graphs(rows)]
        for (edges, nodes), y in zip(graphs(rows), rows["y"].tolist(), strict=True):
            closure = algebraic_closure([edge[:2] for edge in edges], [edge[2] for edge in edges], algebra)
            assert closure[0, nodes - 1] == 1 << y
