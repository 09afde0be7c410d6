"""Graph convolutions against their formulas in float64, and against PyTorch Geometric's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from graphkit.nn.conv import (
    Conv,
    GATLayer,
    GCNLayer,
    GINLayer,
    LinearLayer,
    SAGELayer,
    aggregate,
)
from graphkit.nn.norm import SafeBatchNorm
from graphkit.sampling import NeighborSampler
from graphkit.sparse import Adjacency, SparseRows
from graphkit.testing import edge_case_graphs

NODES = 12
WIDTHS = [pytest.param(9, 4, id="narrower"), pytest.param(4, 9, id="wider"), pytest.param(6, 6, id="equal")]
LAYERS: dict[str, Callable[[int, int], Conv]] = {
    "linear": LinearLayer,
    "gcn": GCNLayer,
    "sage": SAGELayer,
    "gin": GINLayer,
    "gat": GATLayer,
    "gat, 3 heads": lambda f, h: GATLayer(f, 3 * h, 3),
    "gat, averaged": lambda f, h: GATLayer(f, h, 2, concat=False),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(name: str, width: int, hidden: int) -> Conv:
    """A layer in float64 and evaluation mode whose parameters all matter."""
    layer = LAYERS[name](width, hidden).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for module in layer.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return layer


def graph_of(directed: bool, nodes: int = NODES, edges: int = 40) -> Adjacency:
    """Random edges; the last node has none."""
    ends = torch.randint(nodes - 1, (2, edges), generator=torch.Generator().manual_seed(3))
    ends = ends if directed else torch.cat([ends, ends.flip(0)], dim=1)
    return Adjacency.from_edge_index(ends, nodes)


def dense(graph: Adjacency) -> Tensor:
    """``A[v, u] = 1`` where ``u`` is an in-neighbour of ``v``."""
    source, target = graph.edge_index()
    matrix = torch.zeros(graph.num_rows, graph.num_cols, dtype=torch.float64)
    matrix[target, source] = 1
    return matrix


def features(width: int, nodes: int = NODES) -> Tensor:
    return torch.randn(nodes, width, dtype=torch.float64)


def batch_norm(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def attention(h: Tensor, matrix: Tensor, layer: GATLayer) -> Tensor:
    """Equations 1 to 6 of the paper, one head after the other."""
    allowed = matrix + torch.eye(h.size(0)) > 0
    heads = []
    for k, weight in enumerate(layer.weight.split(layer.width, dim=1)):
        mapped = h @ weight
        score = (mapped @ layer.target_weight[k])[:, None] + (mapped @ layer.source_weight[k])[None, :]
        score = F.leaky_relu(score, layer.slope).masked_fill(~allowed, -torch.inf)
        heads.append(score.softmax(1) @ mapped)
    together = torch.cat(heads, 1) if layer.concat else torch.stack(heads).mean(0)
    return together + layer.bias


def formula(layer: Conv, h: Tensor, matrix: Tensor) -> Tensor:
    """The layer by matrices over all pairs of nodes."""
    degree = matrix.sum(1)
    if isinstance(layer, LinearLayer):
        return h @ layer.weight + layer.bias
    if isinstance(layer, GCNLayer):
        scale = (degree + 1).rsqrt()
        return scale[:, None] * (matrix + torch.eye(len(h))) * scale @ h @ layer.weight + layer.bias
    if isinstance(layer, SAGELayer):
        mean = matrix @ h / degree.clamp(min=1)[:, None]
        return h @ layer.own + mean @ layer.neighbour + layer.bias
    if isinstance(layer, GINLayer):
        total = (1 + layer.epsilon) * h + matrix @ h
        hidden = F.relu(batch_norm(total @ layer.weight + layer.bias, layer.norm))
        return hidden @ layer.second.weight.T + layer.second.bias
    assert isinstance(layer, GATLayer)
    return attention(h, matrix, layer)


# --- The whole graph ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_formula(name: str, directed: bool, width: int, hidden: int) -> None:
    layer, graph, h = make(name, width, hidden), graph_of(directed), features(width)
    assert graph.symmetric != directed
    torch.testing.assert_close(layer(h, graph), formula(layer, h, dense(graph)))


def theirs(layer: Conv, width: int) -> nn.Module:
    """PyTorch Geometric's layer with the same weights."""
    if isinstance(layer, GCNLayer):
        other = GCNConv(width, layer.weight.size(1))
        weights = {"lin.weight": layer.weight.T, "bias": layer.bias}
    elif isinstance(layer, SAGELayer):
        other = SAGEConv(width, layer.own.size(1))
        weights = {"lin_l.weight": layer.neighbour.T, "lin_l.bias": layer.bias, "lin_r.weight": layer.own.T}
    elif isinstance(layer, GINLayer):
        first = nn.Linear(width, layer.weight.size(1))
        other = GINConv(nn.Sequential(first, layer.norm, nn.ReLU(), layer.second), train_eps=True)
        weights = {"nn.0.weight": layer.weight.T, "nn.0.bias": layer.bias, "eps": layer.epsilon}
    else:
        assert isinstance(layer, GATLayer)
        other = GATConv(width, layer.width, layer.heads, concat=layer.concat, negative_slope=layer.slope)
        weights = {
            "lin.weight": layer.weight.T,
            "att_src": layer.source_weight[None],
            "att_dst": layer.target_weight[None],
            "bias": layer.bias,
        }
    missing, unexpected = other.double().load_state_dict(weights, strict=False)
    assert unexpected == []
    assert [name for name in missing if not name.startswith(("nn.1", "nn.3"))] == []
    return other.eval()


@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "linear"])
def test_layer_equals_that_of_pytorch_geometric(name: str, directed: bool, width: int, hidden: int) -> None:
    layer, graph = make(name, width, hidden), graph_of(directed)
    other = theirs(layer, width)
    ours_in, theirs_in = (features(width).requires_grad_() for _ in range(2))
    theirs_in.data.copy_(ours_in.data)
    ours, expected = layer(ours_in, graph), other(theirs_in, graph.edge_index())
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours_in.grad, theirs_in.grad)


@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_sparse_features_give_what_dense_ones_do(name: str, width: int, hidden: int) -> None:
    layer, graph = make(name, width, hidden), graph_of(False)
    h = features(width) * (torch.rand(NODES, width) < 0.3)
    torch.testing.assert_close(layer(SparseRows.from_dense(h), graph), layer(h, graph))
    gradients = [
        torch.autograd.grad(layer(x, graph).square().sum(), list(layer.parameters()))
        for x in (SparseRows.from_dense(h), h)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("odd", list(edge_case_graphs()))
def test_odd_graphs_have_finite_results_and_gradients(name: str, odd: str) -> None:
    data = edge_case_graphs(5)[odd]
    layer = LAYERS[name](5, 4).train()
    graph = Adjacency.from_edge_index(data.edge_index, data.num_nodes)
    x = data.x.requires_grad_()
    out = layer(x, graph)
    out.square().sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["linear", "gcn", "sage", "gin", "gat"])
def test_node_without_neighbours_stands_alone(name: str) -> None:
    """The last node has no edge: its state is that of a graph of one node."""
    layer, h = make(name, 5, 4), features(5)
    alone = Adjacency.from_edge_index(torch.zeros(2, 0, dtype=torch.int64), 1)
    torch.testing.assert_close(layer(h, graph_of(False))[-1:], layer(h[-1:], alone))


# --- A part of the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_range_of_rows_equals_that_part_of_the_whole(
    name: str, width: int, hidden: int, sparse: bool
) -> None:
    layer, graph = make(name, width, hidden), graph_of(True)
    h = features(width)
    x = SparseRows.from_dense(h) if sparse else h
    whole, sources = layer(x, graph), layer.prepare(x)
    for start, stop in ((0, 5), (4, 4), (3, 9), (9, NODES)):
        part = graph.rows(start, stop)
        torch.testing.assert_close(layer.combine(sources, x, part, start), whole[start:stop])
        torch.testing.assert_close(layer(x, part, start), whole[start:stop])


@pytest.mark.parametrize(("width", "hidden"), WIDTHS)
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_block_with_all_neighbours_equals_the_whole_graph(
    name: str, directed: bool, width: int, hidden: int
) -> None:
    layer, graph, h = make(name, width, hidden), graph_of(directed), features(width)
    seeds = torch.tensor([7, 11, 0, 3])
    batch = NeighborSampler(graph, [-1]).sample(seeds, 0, 0)
    (block,) = batch.blocks()
    assert block.num_rows < block.num_cols
    torch.testing.assert_close(layer(h[batch.n_id], block), layer(h, graph)[seeds])


def mean_of_draws(compute: Callable[[Tensor, Adjacency], Tensor], graph: Adjacency, k: int) -> Tensor:
    """How many standard errors the mean over samples of ``k`` neighbours is off the whole, ``[R, F]``."""
    h, seeds = features(3), torch.arange(graph.num_rows)
    sampler, draws = NeighborSampler(graph, [k], seed=1), []
    for step in range(300):
        batch = sampler.sample(seeds, 0, step)
        draws.append(compute(h[batch.n_id], batch.blocks()[0]))
    found = torch.stack(draws)
    error = found.std(0) / len(draws) ** 0.5
    difference = found.mean(0) - compute(h, graph)
    exact = error < 1e-12  # where nothing was left out
    assert difference[exact].abs().max() < 1e-9
    assert (~exact).any()
    return difference[~exact] / error[~exact]


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", ["sum", "mean", "gcn", "sage"])
def test_sampled_neighbours_stand_for_all_in_the_mean(name: str, k: int) -> None:
    graph = graph_of(True)
    assert int(graph.count().max()) > 4
    computed: dict[str, Callable[[Tensor, Adjacency], Tensor]] = {
        "sum": aggregate,
        "mean": lambda h, block: aggregate(h, block, mean=True),
        "gcn": make("gcn", 3, 2),
        "sage": make("sage", 3, 2),
    }
    with torch.no_grad():
        assert mean_of_draws(computed[name], graph, k).abs().max() < 5


def test_sum_of_sampled_neighbours_is_scaled_by_what_was_left_out() -> None:
    h, block = (
        features(2, 4),
        Adjacency(
            torch.tensor([0, 2, 3, 3]),
            torch.tensor([1, 3, 0], dtype=torch.int32),
            4,
            False,
            torch.tensor([6, 1, 0, 2]),
            torch.tensor([6, 1, 0]),
        ),
    )
    expected = torch.stack([3 * (h[1] + h[3]), h[0], torch.zeros(2, dtype=torch.float64)])
    torch.testing.assert_close(aggregate(h, block), expected)
    expected[0] /= 6
    torch.testing.assert_close(aggregate(h, block, mean=True), expected)


def test_rows_of_a_part_must_come_with_degrees_where_a_layer_needs_them() -> None:
    block = Adjacency(torch.tensor([0, 1]), torch.tensor([1], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="must come with source_degree"):
        make("gcn", 2, 2)(features(2, 3), block)


# --- Gradients, numbers, arguments -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcn", "sage", "gat", "gat, 3 heads", "gat, averaged"])
def test_gradients_of_a_small_case(name: str) -> None:
    layer, graph = make(name, 3, 2), graph_of(True, 5, 9)
    x = features(3, 5).requires_grad_()
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda *_: layer(x, graph), [x, *parameters])


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_attention_survives_scores_of_any_size(size: float) -> None:
    """The largest score of a row is subtracted from all, also where the row is the node itself alone."""
    layer, h = GATLayer(3, 2), torch.rand(NODES, 3)
    with torch.no_grad():
        for parameter in (layer.source_weight, layer.target_weight):
            parameter.fill_(size)
        layer.weight.abs_()
    out = layer(h, graph_of(False))
    out.sum().backward()
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out[-1], h[-1] @ layer.weight)  # no neighbour
    assert all(torch.isfinite(parameter.grad).all() for parameter in layer.parameters())


def star(neighbours: int) -> Adjacency:
    """Node 0 hears all others, and they hear it."""
    ends = torch.stack([torch.arange(1, neighbours + 1), torch.zeros(neighbours, dtype=torch.int64)])
    return Adjacency.from_edge_index(torch.cat([ends, ends.flip(0)], 1), neighbours + 1)


@pytest.mark.parametrize(("dtype", "degree"), [(torch.bfloat16, 3000), (torch.float16, 70000)])
@pytest.mark.parametrize("name", ["gcn", "sage", "gat"])
def test_half_precision_knows_large_degrees(name: str, dtype: torch.dtype, degree: int) -> None:
    """float16 ends at 65,504, and adding ones in bfloat16 ends at 256."""
    layer, graph = make(name, 3, 2), star(degree)
    h = torch.rand(degree + 1, 3).to(dtype)
    found = layer.to(dtype)(h, graph)
    assert found.dtype == dtype
    expected = layer.double()(h.double(), graph)
    torch.testing.assert_close(found.double(), expected, atol=0.05, rtol=0.05)
    mean = aggregate(torch.ones(degree + 1, 1, dtype=dtype), graph, mean=True)
    assert torch.equal(mean, torch.ones_like(mean))


@pytest.mark.parametrize("name", LAYERS)
def test_reset_draws_parameters_anew(name: str) -> None:
    layer = make(name, 4, 4)
    before = {key: value.clone() for key, value in layer.named_parameters()}
    torch.manual_seed(5)
    layer.reset_parameters()
    torch.manual_seed(5)
    fresh = LAYERS[name](4, 4).double()
    after = dict(layer.named_parameters())
    assert all(not torch.equal(before[key], after[key]) for key in before)
    for key, value in fresh.named_parameters():
        if value.dim() == 1 and "norm.weight" not in key and "second" not in key:
            assert not after[key].any(), key
        assert after[key].shape == value.shape


def test_heads_are_checked() -> None:
    with pytest.raises(ValueError, match="heads is 0; it must be at least 1"):
        GATLayer(4, 8, 0)
    with pytest.raises(ValueError, match="out_channels is 8; it must be a multiple of heads, 3"):
        GATLayer(4, 8, 3)
    assert GATLayer(4, 8, 3, concat=False)(torch.randn(2, 4), graph_of(True, 2, 2)).shape == (2, 8)


@pytest.mark.parametrize("rows", [0, 1])
def test_normalisation_of_less_than_two_rows_takes_running_statistics(rows: int) -> None:
    norm = SafeBatchNorm(3).train()
    norm(torch.randn(20, 3) * 2 + 1)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(rows, 3, requires_grad=True)
    out = norm(x)
    torch.testing.assert_close(out, norm.eval()(x))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_normalisation_of_more_rows_is_that_of_torch() -> None:
    ours, plain, x = SafeBatchNorm(3).train(), nn.BatchNorm1d(3).train(), torch.randn(2, 3)
    assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
