"""Relation algebras: their tables obey the laws, and closure derives what follows and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphkit.datasets.algebra import (
    Algebra,
    algebra_of,
    algebraic_closure,
    exact_answers,
    interval_algebra,
    path_answers,
    rcc8_algebra,
    symbolic_scores,
)
from graphkit.errors import UserError

ALGEBRAS = [rcc8_algebra(), interval_algebra()]
both = pytest.mark.parametrize("algebra", ALGEBRAS, ids=lambda algebra: algebra.name)
algebras = st.sampled_from(ALGEBRAS)


def relation_of_intervals(algebra: Algebra, x: tuple[int, int], y: tuple[int, int]) -> int:
    """Names the relation by the order of the four end points, written down independently."""
    sign = lambda a, b: (a > b) - (a < b)  # noqa: E731
    (s, e), (t, f) = x, y
    names = {
        (0, 0): "=",
        (1, -1): "d",
        (-1, 1): "di",
        (0, -1): "s",
        (0, 1): "si",
        (1, 0): "f",
        (-1, 0): "fi",
    }
    if e <= t:
        name = "m" if e == t else "<"
    elif f <= s:
        name = "mi" if f == s else ">"
    else:
        name = names.get((sign(s, t), sign(e, f)), "o" if s < t else "oi")
    return algebra.names.index(name)


@both
def test_the_number_of_triples_is_the_published_one(algebra: Algebra) -> None:
    sizes = algebra.sizes[algebra.composition]
    triples, cells = {
        "rcc8": (193, {1: 27, 2: 4, 3: 8, 4: 3, 5: 16, 6: 3, 8: 3}),
        "interval": (409, {1: 97, 3: 42, 5: 24, 9: 3, 13: 3}),
    }[algebra.name]
    assert sizes.sum() == triples
    assert dict(zip(*np.unique(sizes, return_counts=True), strict=True)) == cells


@both
def test_the_identity_changes_nothing(algebra: Algebra) -> None:
    single = 1 << np.arange(len(algebra))
    assert (algebra.composition[algebra.identity] == single).all()
    assert (algebra.composition[:, algebra.identity] == single).all()
    assert algebra.converse[algebra.identity] == algebra.identity


@both
def test_the_converse_of_a_composition_is_that_of_the_converses_turned_round(algebra: Algebra) -> None:
    turned = algebra.composition[np.ix_(algebra.converse, algebra.converse)].T
    assert (algebra.converses[algebra.composition] == turned).all()
    assert (algebra.converse[algebra.converse] == np.arange(len(algebra))).all()
    fixed = {"rcc8": "DC EC PO EQ", "interval": "="}[algebra.name].split()
    assert [n for n, c in zip(algebra.names, algebra.converse, strict=True) if n == algebra.names[c]] == fixed


@both
def test_composition_is_associative_and_transposes_in_triples(algebra: Algebra) -> None:
    single = 1 << np.arange(len(algebra))
    a, b, c = single[:, None, None], single[None, :, None], single[None, None, :]
    assert (algebra.compose(algebra.compose(a, b), c) == algebra.compose(a, algebra.compose(b, c))).all()
    inside = algebra.composition[:, :, None] >> np.arange(len(algebra)) & 1  # c in a;b
    rotated = inside[algebra.converse].transpose(0, 2, 1)  # b in a~;c
    assert (inside == rotated).all()


def test_well_known_cells() -> None:
    rcc8, interval = ALGEBRAS
    for a, b, expected in (
        ("NTPP", "NTPP", "NTPP"),
        ("TPP", "TPP", "TPP NTPP"),
        ("EC", "NTPPI", "DC"),
        ("TPP", "TPPI", "DC EC PO TPP TPPI EQ"),
        ("NTPPI", "NTPP", "PO TPP NTPP TPPI NTPPI EQ"),
        ("TPPI", "TPP", "PO TPP TPPI EQ"),
        ("DC", "DC", "DC EC PO TPP NTPP TPPI NTPPI EQ"),
    ):
        assert rcc8.relations(int(rcc8.compose(rcc8.mask(a), rcc8.mask(b)))) == tuple(expected.split())
    for a, b, expected in (
        ("<", "<", "<"),
        ("m", "m", "<"),
        ("m", "mi", "= f fi"),
        ("o", "o", "< o m"),
        ("d", "di", "= < > d di o oi m mi s si f fi"),
        ("di", "d", "= d di o oi s si f fi"),
    ):
        assert interval.relations(int(interval.compose(interval.mask(a), interval.mask(b)))) == tuple(
            expected.split()
        )


def test_the_interval_table_is_what_wider_lines_give_too() -> None:
    algebra = interval_algebra()
    things = list(itertools.combinations(range(7), 2))
    relation = np.array([[relation_of_intervals(algebra, x, y) for y in things] for x in things])
    wider = Algebra.of_model("wider", algebra.names, relation)
    assert (wider.composition == algebra.composition).all()
    assert (wider.converse == algebra.converse).all()


@given(algebras, st.data())
def test_sets_compose_member_by_member(algebra: Algebra, data: st.DataObject) -> None:
    left, right = data.draw(st.integers(0, algebra.full)), data.draw(st.integers(0, algebra.full))
    expected = 0
    for a in range(len(algebra)):
        for b in range(len(algebra)):
            if left >> a & 1 and right >> b & 1:
                expected |= int(algebra.composition[a, b])
    assert algebra.compose(left, right) == expected
    members = [a for a in range(len(algebra)) if left >> a & 1]
    assert algebra.converses[left] == sum(1 << int(algebra.converse[a]) for a in members)
    assert algebra.sizes[left] == len(members)
    assert algebra.mask(algebra.relations(left)) == left
    for b in range(len(algebra)):
        assert algebra.columns[left, b] == algebra.compose(left, 1 << b)
        assert algebra.rows[b, left] == algebra.compose(1 << b, left)


# --- Closure ----------------------------------------------------------------------------------------------


def naive_closure(
    algebra: Algebra, edges: list[tuple[int, int]], masks: list[int], n: int
) -> NDArray[np.int64] | None:
    """Tightens every triple again and again; ``None`` if a pair is left empty."""
    found = np.full((n, n), algebra.full)
    np.fill_diagonal(found, 1 << algebra.identity)
    for (u, v), mask in zip(edges, masks, strict=True):
        found[u, v] &= mask
        found[v, u] &= int(algebra.converses[mask])
    while True:
        before = found.copy()
        for k in range(n):
            found &= algebra.compose(found[:, k : k + 1], found[k : k + 1, :])
        if (found == 0).any():
            return None
        if (found == before).all():
            return found


@st.composite
def networks(draw: st.DrawFn) -> tuple[Algebra, int, list[tuple[int, int]], list[int]]:
    """Random labels on a few pairs; about half of them contradict one another."""
    algebra = draw(algebras)
    n = draw(st.integers(2, 6))
    pairs = [(u, v) for u in range(n) for v in range(n) if u != v]
    edges = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=8))
    return algebra, n, edges, [draw(st.integers(1, algebra.full)) for _ in edges]


@given(networks())
def test_closure_is_the_fixpoint_of_composing_and_intersecting(network: Any) -> None:
    algebra, n, edges, masks = network
    expected = naive_closure(algebra, edges, masks, n)
    labels = [algebra.relations(mask) for mask in masks]
    if expected is None:
        with pytest.raises(UserError, match=r"contradict one another: no relation is left between nodes \d"):
            algebraic_closure(edges, labels, algebra, n)
    else:
        assert (algebraic_closure(edges, labels, algebra, n) == expected).all()


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Algebra, NDArray[np.int64], list[tuple[int, int]]]:
    """Things that exist, what holds between them, and pairs that are told."""
    n = draw(st.integers(3, 7))
    algebra = interval_algebra()
    ends = st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1])
    things = [(min(x), max(x)) for x in draw(st.lists(ends, min_size=n, max_size=n))]
    truth = np.array([[relation_of_intervals(algebra, x, y) for y in things] for x in things])
    pairs = [(u, v) for u in range(n) for v in range(n) if u != v]
    return algebra, truth, draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=12))


def one_graph(edges: Any, types: Any, n: int, source: int, target: int, y: int = 0) -> dict[str, Any]:
    return {
        "edge_index": np.array(edges).reshape(-1, 2).T,
        "edge_type": np.array(types),
        "ptr": np.array([0, n]),
        "edge_ptr": np.array([0, len(types)]),
        "source": np.array([source]),
        "target": np.array([target]),
        "y": np.array([y]),
    }


@given(worlds())
def test_what_is_true_is_never_ruled_out(world: Any) -> None:
    algebra, truth, edges = world
    types = [int(truth[u, v]) for u, v in edges]
    closure = algebraic_closure(edges, types, algebra, len(truth))
    assert (closure >> truth & 1).all()
    u, v = edges[0]
    graphs = one_graph(edges, types, len(truth), u, 0 if u else 1)
    assert exact_answers(graphs, algebra)[0] == closure[u, 0 if u else 1]
    assert closure[u, v] == 1 << types[0]


@settings(max_examples=50)
@given(worlds(), st.integers(0, 2), st.integers(0, 2))
def test_solving_a_graph_is_its_closure(world: Any, source: int, target: int) -> None:
    algebra, truth, edges = world
    types = [int(truth[u, v]) for u, v in edges]
    graphs = one_graph(edges, types, len(truth), source, target)
    closure = algebraic_closure(edges, types, algebra, len(truth))
    assert exact_answers(graphs, algebra)[0] == closure[source, target]


def test_closure_of_a_chain_and_of_two() -> None:
    rcc8 = rcc8_algebra()
    closure = algebraic_closure([(0, 1), (1, 2)], ["TPP", "NTPP"], rcc8)
    assert rcc8.relations(closure[0, 2]) == ("NTPP",)
    assert rcc8.relations(closure[2, 0]) == ("NTPPI",)
    assert rcc8.relations(closure[1, 1]) == ("EQ",)
    edges = [(0, 1), (1, 2), (0, 3), (3, 2)]
    for labels, expected in (
        (["PO", "TPP"], ("PO", "TPP", "NTPP")),
        (["TPPI", "PO"], ("PO", "TPPI", "NTPPI")),
        (["PO", "TPP", "TPPI", "PO"], ("PO",)),  # neither chain decides, both together do
    ):
        closure = algebraic_closure(edges[: len(labels)], labels, rcc8)
        assert rcc8.relations(closure[0, 2]) == expected


def test_labels_may_be_names_numbers_or_several_names() -> None:
    rcc8 = rcc8_algebra()
    expected = algebraic_closure([(0, 1)], ["EC"], rcc8)
    assert (algebraic_closure(np.array([[0, 1]]), [1], rcc8) == expected).all()
    twice = algebraic_closure([(0, 1), (1, 0)], [("EC", "TPP"), ["EC", "TPP"]], rcc8)
    assert (twice == expected).all()
    assert algebraic_closure([], [], rcc8).shape == (0, 0)
    assert algebraic_closure([(0, 0)], ["EQ"], rcc8, 2).tolist() == [[128, 255], [255, 128]]


def test_mistakes_in_facts_are_told() -> None:
    rcc8 = rcc8_algebra()
    with pytest.raises(UserError, match="'NTTP' is no relation of rcc8; did you mean 'NTPP'"):
        algebraic_closure([(0, 1)], ["NTTP"], rcc8)
    with pytest.raises(ValueError, match="label is 8"):
        algebraic_closure([(0, 1)], [8], rcc8)
    with pytest.raises(ValueError, match="labels has 1 entries; there are 2 edges"):
        algebraic_closure([(0, 1), (1, 2)], ["EC"], rcc8)
    with pytest.raises(ValueError, match=r"edges name nodes 0 to 3; they must lie in 0 to 2"):
        algebraic_closure([(0, 3)], ["EC"], rcc8, 3)
    with pytest.raises(UserError, match="node 1 has an edge to itself that isn't 'EQ'"):
        algebraic_closure([(1, 1)], ["DC"], rcc8)
    with pytest.raises(UserError, match="contradict one another: no relation is left between nodes 0 and 1"):
        algebraic_closure([(0, 1), (0, 1)], ["DC", "EC"], rcc8)
    with pytest.raises(UserError, match="no algebra 'rcc5'; did you mean 'rcc8'"):
        algebra_of("rcc5")
    with pytest.raises(ValueError, match="names has 17 relations"):
        Algebra("x", ("a",) * 17, 0, np.zeros(17, dtype=int), np.zeros((17, 17), dtype=int))
    with pytest.raises(ValueError, match=r"must be \(2,\) and \(2, 2\)"):
        Algebra("x", ("a", "b"), 0, np.zeros(2, dtype=int), np.zeros((2, 3), dtype=int))


# --- The single path --------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(algebras, st.integers(2, 6), st.integers(0, 1 << 30))
def test_the_best_path_against_all_paths(algebra: Algebra, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    edges = [(u, v) for u in range(n) for v in range(u + 1, n) if rng.random() < 0.6]
    types = rng.integers(len(algebra), size=len(edges)).tolist()

    def masks(node: int, mask: int) -> list[int]:
        found = [mask] if node == n - 1 else []
        for (u, v), r in zip(edges, types, strict=True):
            if u == node:
                found += masks(v, int(algebra.compose(mask, 1 << r)))
        return found

    every = masks(0, 1 << algebra.identity)
    best = min(every, key=lambda mask: (mask.bit_count(), mask), default=0)
    assert path_answers(one_graph(edges, types, n, 0, n - 1), algebra)[0] == best


def test_cycles_and_missing_paths_end_the_search() -> None:
    rcc8 = rcc8_algebra()
    around = one_graph([(0, 1), (1, 0), (1, 2)], [4, 4, 6], 3, 0, 2)
    assert path_answers(around, rcc8)[0] == rcc8.full
    assert path_answers(one_graph([(1, 0)], [4], 2, 0, 1), rcc8)[0] == 0
    assert exact_answers(one_graph([(1, 0)], [4], 2, 0, 1), rcc8)[0] == rcc8.mask("NTPPI")


def test_scores_share_out_what_is_left() -> None:
    rcc8 = rcc8_algebra()
    chain = one_graph([(0, 1), (1, 2)], [3, 3], 3, 0, 2, y=3)  # TPP;TPP leaves TPP and NTPP
    assert {name: score.tolist() for name, score in symbolic_scores(chain, rcc8).items()} == {
        "exact": [0.5],
        "single_path": [0.5],
        "entailed": [0.0],
    }
    assert symbolic_scores(chain | {"y": np.array([0])}, rcc8)["exact"].tolist() == [0.0]
    clash = one_graph([(0, 1), (0, 1)], [3, 4], 2, 0, 1, y=3)
    assert symbolic_scores(clash, rcc8)["exact"].tolist() == [0.0]
    assert symbolic_scores(clash, rcc8)["single_path"].tolist() == [1.0]
