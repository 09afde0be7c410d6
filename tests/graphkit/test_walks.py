"""Random walks, their encodings and the pairs that they are laid out in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from graphkit.kernels.random_walks import (
    random_walk_diagonal,
    random_walk_diagonal_torch,
    random_walks,
    random_walks_torch,
)
from graphkit.nn.node_pairs import NodePairs
from graphkit.nn.walks import RRWP, RelativeEncoder, WalkEncoding, walk_encoding, walk_structure

EXACT = {"atol": 1e-12, "rtol": 1e-12}


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Edges, pointers and perhaps weights of some small graphs, with loops, repeated and one-way edges."""
    sizes = draw(st.lists(st.integers(0, 20), min_size=0, max_size=4))
    seed = draw(st.integers(0, 2**31))
    density = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    generator = torch.Generator().manual_seed(seed)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    parts = [
        torch.randint(size, (2, int(size * density)), generator=generator) + ptr[g]
        for g, size in enumerate(sizes)
        if size
    ]
    edges = torch.cat([*parts, torch.empty(2, 0, dtype=torch.int64)], dim=1)
    edges = edges[:, torch.randperm(edges.size(1), generator=generator)]  # graphs may be mixed
    weighted = draw(st.booleans())
    return edges, ptr, torch.rand(edges.size(1), generator=generator).double() if weighted else None


def dense_walks(edges: Tensor, ptr: Tensor, steps: int, weight: Tensor | None, overwrite: bool) -> Tensor:
    """The definition: powers of the dense matrix of each graph, ``[P, K]``."""
    rows = []
    weight = torch.ones(edges.size(1), dtype=torch.float64) if weight is None else weight
    for first, last in zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True):
        adjacency = torch.zeros(last - first, last - first, dtype=torch.float64)
        degree = torch.zeros(last - first, dtype=torch.float64)
        for (u, v), w in zip(edges.t().tolist(), weight.tolist(), strict=True):
            if first <= u < last:
                degree[u - first] += w
                adjacency[u - first, v - first] = w + (0 if overwrite else adjacency[u - first, v - first])
        inverse = torch.where(degree == 0, 0, 1 / degree)
        step = inverse[:, None] * adjacency
        powers = [torch.eye(last - first, dtype=torch.float64)]
        for _ in range(steps - 1):
            powers.append(powers[-1] @ step)
        rows.append(torch.stack(powers, -1).reshape(-1, steps))
    return torch.cat(rows) if rows else torch.empty(0, steps, dtype=torch.float64)


# --- Walks -------------------------------------------------------------------------------------------------


@given(batches(), st.integers(1, 6), st.sampled_from(["add", "overwrite"]))
@settings(max_examples=40)
def test_walks_are_powers_of_the_dense_matrix(
    batch: tuple[Tensor, Tensor, Tensor | None], steps: int, duplicates: str
) -> None:
    edges, ptr, weight = batch
    expected = dense_walks(edges, ptr, steps, weight, duplicates == "overwrite")
    options = {"duplicates": duplicates, "dtype": torch.float64}
    torch.testing.assert_close(random_walks(edges, ptr, steps, weight, **options), expected, **EXACT)
    single = random_walks(edges, ptr, steps, weight, duplicates=duplicates)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-5)
    plain = random_walks_torch(edges, ptr, weight, steps, duplicates == "overwrite", torch.float64)
    torch.testing.assert_close(plain, expected, **EXACT)


@given(batches(), st.integers(1, 6), st.sampled_from(["add", "overwrite"]))
@settings(max_examples=20)
def test_diagonal_is_that_of_all_pairs(
    batch: tuple[Tensor, Tensor, Tensor | None], steps: int, duplicates: str
) -> None:
    edges, ptr, weight = batch
    walks = dense_walks(edges, ptr, steps, weight, duplicates == "overwrite")
    expected = walks[NodePairs.full(ptr.diff()).loops()]
    found = random_walk_diagonal(edges, ptr, steps, weight, duplicates=duplicates, dtype=torch.float64)
    torch.testing.assert_close(found, expected, **EXACT)
    plain = random_walk_diagonal_torch(edges, ptr, weight, steps, duplicates == "overwrite", torch.float64)
    torch.testing.assert_close(plain, expected, **EXACT)


@given(batches())
@settings(max_examples=20)
def test_probabilities_sum_to_1_where_a_node_can_be_left_for_good(
    batch: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    edges, ptr, _ = batch
    edges = torch.cat([edges, edges.flip(0)], dim=1)  # no dead ends
    pairs = NodePairs.full(ptr.diff())
    walks = random_walks(edges, ptr, 5, dtype=torch.float64)
    total = walks.new_zeros(pairs.num_nodes, 5).index_add(0, pairs.query(), walks)
    leaves = torch.bincount(edges[0], minlength=pairs.num_nodes) > 0
    torch.testing.assert_close(total[leaves], torch.ones_like(total[leaves]), **EXACT)
    assert torch.equal(total[~leaves], torch.tensor([[1.0, 0, 0, 0, 0]]).double().expand((~leaves).sum(), -1))


def test_authors_treatment_of_repeated_edges_loses_probability() -> None:
    edges, ptr = torch.tensor([[0, 0, 0, 1, 2], [1, 1, 2, 0, 0]]), torch.tensor([0, 3])
    added, overwritten = (random_walks(edges, ptr, 2, duplicates=d)[:, 1] for d in ("add", "overwrite"))
    torch.testing.assert_close(added[:3], torch.tensor([0, 2 / 3, 1 / 3]))
    torch.testing.assert_close(overwritten[:3], torch.tensor([0, 1 / 3, 1 / 3]))


def test_one_step_is_the_identity_alone() -> None:
    edges, ptr = torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2, 3])
    assert random_walks(edges, ptr, 1).flatten().tolist() == [1, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="steps is 0"):
        random_walks(edges, ptr, 0)


def test_result_does_not_depend_on_the_number_of_threads() -> None:
    sizes = torch.tensor([60, 1, 0, 90, 40] * 3)
    ptr = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    node = torch.arange(int(ptr[-1]))
    graph = torch.repeat_interleave(torch.arange(15), sizes)
    chain = torch.stack([node[:-1], node[1:]])[:, graph[1:] == graph[:-1]]
    edges = torch.cat([chain, chain.flip(0)], dim=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone, own = random_walks(edges, ptr, 9), random_walk_diagonal(edges, ptr, 9)
        torch.set_num_threads(3)
        assert torch.equal(random_walks(edges, ptr, 9), alone)
        assert torch.equal(random_walk_diagonal(edges, ptr, 9), own)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("edges", "ptr", "message"),
    [
        ([[0], [2]], [0, 2, 4], "joins nodes of two graphs"),
        ([[0], [4]], [0, 4], "outside"),
        ([[-1], [0]], [0, 4], "outside"),
        ([[0], [1]], [0, 4, 2], "ptr must ascend"),
        ([[0], [1]], [1, 4], "ptr must ascend"),
        ([[0.0], [1.0]], [0, 4], "edge_index is torch.float32"),
    ],
)
def test_wrong_edges_and_pointers_are_refused(edges: list, ptr: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_walks(torch.tensor(edges), torch.tensor(ptr), 3)
    with pytest.raises(ValueError, match=message):
        random_walk_diagonal(torch.tensor(edges), torch.tensor(ptr), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_weight": torch.ones(3)}, "edge_weight has shape"),
        ({"duplicates": "mean"}, "duplicates is 'mean'"),
        ({"dtype": torch.float16}, "dtype is torch.float16"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_walks(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0, 2]), 3, **options)


# --- Pairs -------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), max_size=5))
@settings(max_examples=25)
def test_full_pairs_are_those_of_each_graph_in_order(sizes: list[int]) -> None:
    pairs, first, expected = NodePairs.full(torch.tensor(sizes, dtype=torch.int64)), 0, []
    for size in sizes:
        nodes = range(first, first + size)
        expected += [(i, j) for i in nodes for j in nodes]
        first += size
    assert list(zip(pairs.query().tolist(), pairs.key.tolist(), strict=True)) == expected
    assert (pairs.num_nodes, pairs.num_pairs) == (first, len(expected))
    assert pairs.key.dtype == torch.int32
    query, key = torch.tensor(expected, dtype=torch.int64).reshape(-1, 2).t()
    assert torch.equal(pairs.find(query, key), torch.arange(len(expected)))
    assert torch.equal(pairs.edge_index(), torch.stack([key, query]))


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 40))
@settings(max_examples=25)
def test_listed_pairs_are_sorted_once_each_and_found(seed: int, nodes: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randint(nodes, (2, count), generator=generator)
    pairs = NodePairs.of(query, key, nodes)
    expected = sorted(set(zip(query.tolist(), key.tolist(), strict=True)))
    assert list(zip(pairs.query().tolist(), pairs.key.tolist(), strict=True)) == expected
    every = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).t()
    rows = {pair: row for row, pair in enumerate(expected)}
    assert pairs.find(*every).tolist() == [rows.get((i, j), -1) for i, j in every.t().tolist()]


def test_selected_pairs_keep_their_order() -> None:
    full = NodePairs.full(torch.tensor([2, 3]))
    keep = full.key % 2 == 0
    pairs, rows = full.select(keep)
    assert torch.equal(rows, keep.nonzero().squeeze(1))
    assert torch.equal(pairs.query(), full.query()[rows])
    assert torch.equal(pairs.key, full.key[rows])
    assert pairs.find(torch.tensor([0, 0]), torch.tensor([0, 1])).tolist() == [0, -1]


# --- Encodings ---------------------------------------------------------------------------------------------


def graph(nodes: int, edges: list[list[int]]) -> Data:
    index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return Data(edge_index=index, num_nodes=nodes)


PATH = [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_transform_adds_what_the_paper_defines() -> None:
    data = RRWP(3)(graph(4, PATH))  # the last node is alone
    torch.testing.assert_close(data.rrwp, torch.tensor([[1, 0, 0.5], [1, 0, 1], [1, 0, 0.5], [1, 0, 0]]))
    found = {
        (i, j): v.tolist() for (j, i), v in zip(data.rrwp_index.t().tolist(), data.rrwp_val, strict=True)
    }
    assert found[(0, 1)] == [0, 1, 0]
    assert found[(1, 0)] == [0, 0.5, 0]
    assert found[(0, 2)] == [0, 0, 0.5]
    assert found[(3, 3)] == [1, 0, 0]
    assert len(found) == 10  # nothing leads to the lone node or from it
    assert data.deg.tolist() == [1, 2, 1, 0]
    torch.testing.assert_close(data.log_deg, torch.tensor([2.0, 3, 2, 1]).log())


def test_walks_follow_the_direction_of_edges() -> None:
    data = RRWP(2)(graph(2, [[0, 1]]))
    walked = {
        tuple(pair): value.tolist()
        for pair, value in zip(data.rrwp_index.t().tolist(), data.rrwp_val, strict=True)
    }
    assert walked == {(0, 0): [1, 0], (1, 0): [0, 1], (1, 1): [1, 0]}  # (to, from)


def test_shortest_paths_are_marked_at_their_length() -> None:
    data = RRWP(3, kind="spd")(graph(5, [*PATH, [2, 3], [3, 2]]))
    assert not data.rrwp.any()
    length = {
        (i, j): v.nonzero().tolist()
        for (j, i), v in zip(data.rrwp_index.t().tolist(), data.rrwp_val, strict=True)
    }
    assert length[(0, 0)] == [[0]]
    assert length[(0, 2)] == [[2]]
    assert (0, 3) not in length  # farther than 2
    assert (0, 4) not in length
    assert set(data.rrwp_val.unique().tolist()) == {0, 1}


def test_transformed_graphs_batch_as_the_batch_transforms() -> None:
    graphs = [graph(3, PATH), graph(1, []), graph(4, PATH)]
    joined = Batch.from_data_list([RRWP(4)(g.clone()) for g in graphs])
    whole = RRWP(4)(Batch.from_data_list(graphs))
    for found, expected in zip(WalkEncoding.of(joined), WalkEncoding.of(whole), strict=True):
        assert torch.equal(found, expected)


def test_edge_weights_are_used_and_may_leave_a_node_without_exit() -> None:
    data = graph(2, [[0, 1], [0, 0], [1, 0]])
    data.edge_weight = torch.tensor([3.0, 1.0, 0.0])
    found = WalkEncoding.of(RRWP(2)(data))
    assert found.rrwp.tolist() == [[1, 0.25], [1, 0]]
    assert found.deg.tolist() == [4, 0]


def test_missing_and_wrong_encodings_are_named() -> None:
    with pytest.raises(ValueError, match="rrwp_index"):
        WalkEncoding.of(graph(3, PATH))
    with pytest.raises(ValueError, match="steps is 0"):
        RRWP(0)
    with pytest.raises(ValueError, match="kind is 'far'"):
        RRWP(3, kind="far")
    with pytest.raises(ValueError, match="duplicates is 'mean'"):
        RRWP(3, duplicates="mean")
    edges, ptr = graph(3, PATH).edge_index, torch.tensor([0, 3])
    with pytest.raises(ValueError, match="kind is 'far'"):
        walk_encoding(edges, 3, ptr, kind="far")
    with pytest.raises(ValueError, match="have 3 steps; they must have 4"):
        walk_structure(edges, ptr.diff(), 4, given=walk_encoding(edges, 3, ptr))
    assert repr(RRWP(3)) == "RRWP(steps=3, kind='rrwp')"


@given(batches(), st.booleans(), st.sampled_from(["rrwp", "spd"]), st.sampled_from(["add", "overwrite"]))
@settings(max_examples=25)
def test_given_encodings_are_laid_out_like_those_computed(
    batch: tuple[Tensor, Tensor, Tensor | None], full: bool, kind: str, duplicates: str
) -> None:
    edges, ptr, _ = batch
    options = {"kind": kind, "duplicates": duplicates, "dtype": torch.float64}
    computed = walk_structure(edges, ptr.diff(), 3, full=full, **options)
    stored = walk_encoding(edges, 3, ptr, **options)
    given = walk_structure(edges, ptr.diff(), 3, full=full, given=stored, **options)
    for found, expected in zip(given[1:], computed[1:], strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(given.pairs.key, computed.pairs.key)
    assert torch.equal(given.pairs.rowptr, computed.pairs.rowptr)
    assert (computed.pairs.loops() >= 0).all()  # every node attends to itself at least
    assert (computed.edge_row >= 0).all()


def test_relative_encoder_adds_up_the_features_of_repeated_edges() -> None:
    edges = torch.tensor([[0, 0, 1], [1, 1, 1]])
    structure = walk_structure(edges, torch.tensor([2]), 3)
    encoder, edge = RelativeEncoder(3, 2), torch.randn(3, 2)
    pair = encoder(structure.relative, structure.edge_row, edge)
    without = structure.relative @ encoder.weight.t()
    assert encoder.bias is None
    torch.testing.assert_close(
        pair - without, torch.stack([0 * edge[0], 0 * edge[0], edge[0] + edge[1], edge[2]])
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(structure.relative, structure.edge_row, edge.bfloat16()).dtype == torch.float32
