"""NCN and NCNC written plainly: stock torch modules, everything computed where it is asked for.

The baseline of ``benchmarks/ncn.py``. It computes the same functions as :mod:`graphkit.models.ncn` and
:mod:`graphkit.models.ncnc`, but the way that they are usually written: dense features, the adjacency built
anew from its edge list for every batch, one predictor call for positives and one for negatives, node states
transformed for all nodes in each call, and every list of common neighbours by whole-array operations.
"""

from __future__ import annotations

import torch
from overlap import textbook_lists
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import negative_sampling

from graphkit.config import RunConfig
from graphkit.data import Benchmark
from graphkit.sparse import CSRGraph

__all__ = ["PlainEncoder", "PlainLinks", "PlainNCN", "PlainNCNC", "plain_model"]

Entries = tuple[Tensor, Tensor]  # row and node of every entry of a list of lists


def adjacency(edges: Tensor, num_nodes: int) -> CSRGraph:
    """Builds sorted rows of an undirected graph from its edges ``[2, M]``, listed once each."""
    both = torch.cat([edges, edges.flip(0)], dim=1)
    matrix = torch.sparse_coo_tensor(both, torch.ones(both.size(1)), (num_nodes, num_nodes)).coalesce()
    row, col = matrix.indices()
    return rows_of(row, col, num_nodes)


def rows_of(row: Tensor, col: Tensor, num_nodes: int) -> CSRGraph:
    """Wraps sorted entries; the fields that the plain form has no use for stay empty."""
    rowptr = torch.zeros(num_nodes + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=num_nodes), 0, out=rowptr[1:])
    return CSRGraph(rowptr, col, row, torch.empty(2, 0, dtype=torch.int64))


def drop_entries(graph: CSRGraph, p: float, training: bool) -> CSRGraph:
    """Drops stored entries at random."""
    if not training or p == 0:
        return graph
    row, col = graph.edge_index()
    keep = torch.rand(row.numel()) >= p
    return rows_of(row[keep], col[keep], graph.num_nodes)


def neighborhood_split(graph: CSRGraph, pairs: Tensor) -> tuple[Entries, Entries, Entries]:
    """Lists common neighbours and both differences, searching all keys of one end in all of the other's."""
    keys = []
    for nodes in pairs:
        size = graph.rowptr[nodes + 1] - graph.rowptr[nodes]
        row = torch.repeat_interleave(torch.arange(nodes.numel()), size)
        entry = torch.arange(row.numel()) - (size.cumsum(0) - size)[row] + graph.rowptr[nodes][row]
        keys.append((row << 32) | graph.col[entry])
    swapped = keys[0].numel() > keys[1].numel()
    small, large = reversed(keys) if swapped else keys
    at = torch.searchsorted(large, small).clamp_(max=max(large.numel() - 1, 0))
    shared = large[at] == small if large.numel() else torch.zeros_like(small, dtype=torch.bool)
    alone = torch.ones_like(large, dtype=torch.bool)
    alone[at[shared]] = False
    only = [small[~shared], large[alone]]
    only_i, only_j = reversed(only) if swapped else only
    common, first, second = ((k >> 32, k & 0xFFFFFFFF) for k in (small[shared], only_i, only_j))
    return common, first, second


def pool(entries: Entries, weight: Tensor | None, x: Tensor, num_rows: int) -> Tensor:
    """Sums weighted node states over each list, ``[num_rows, H]``."""
    row, node = entries
    messages = x[node] if weight is None else weight.unsqueeze(1) * x[node]
    return torch.zeros(num_rows, x.size(1)).index_add(0, row, messages)


class PlainEncoder(nn.Module):
    """Dropout and a linear map of the dense features, then one weightless convolution."""

    def __init__(self, in_channels: int, width: int, feature_dropout: float, dropout: float, tail: float):
        super().__init__()
        self.input = nn.Sequential(nn.Dropout(feature_dropout), nn.Linear(in_channels, width))
        self.input_dropout, self.tail_dropout = nn.Dropout(dropout), nn.Dropout(tail)
        self.jumping = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, graph: CSRGraph) -> Tensor:
        h = self.input_dropout(self.input(x))
        row, col = graph.edge_index()
        scale = (1.0 + graph.degree()).rsqrt()
        values = scale[row] * scale[col]
        n = graph.num_nodes
        matrix = torch.sparse_coo_tensor(torch.stack([row, col]), values, (n, n), is_coalesced=True)
        h = torch.sparse.mm(matrix, h) + (scale * scale).unsqueeze(1) * h
        return self.jumping * self.tail_dropout(h)


def hidden(width: int, p: float, norm: bool = True) -> list[nn.Module]:
    """Linear, LayerNorm if asked for, dropout, ReLU."""
    middle: list[nn.Module] = [nn.LayerNorm(width)] if norm else []
    return [nn.Linear(width, width), *middle, nn.Dropout(p), nn.ReLU()]


class PlainNCN(nn.Module):
    """The predictor with common neighbours."""

    def __init__(self, width: int, p: float, edge_dropout: float, two_layer_head: bool) -> None:
        super().__init__()
        self.node_mlp = nn.Sequential(*hidden(width, p, norm=False), *hidden(width, p))
        self.common_mlp = nn.Sequential(*hidden(width, p, norm=False), *hidden(width, p))
        self.pair_mlp = nn.Sequential(*hidden(width, p))
        layers = hidden(width, p) + (hidden(width, p) if two_layer_head else [])
        self.head = nn.Sequential(*layers, nn.Linear(width, 1))
        self.beta = nn.Parameter(torch.ones(1))
        self.edge_dropout = edge_dropout

    def forward(self, h: Tensor, graph: CSRGraph, pairs: Tensor) -> Tensor:
        return self.score(h, drop_entries(graph, self.edge_dropout, self.training), pairs)

    def score(self, h: Tensor, graph: CSRGraph, pairs: Tensor) -> Tensor:
        """Scores on a graph whose edges are dropped already."""
        x = h + self.node_mlp(h)
        z = pool(textbook_lists(graph, pairs), None, x, pairs.size(1))
        return self.combine(h, z, pairs)

    def combine(self, h: Tensor, z: Tensor, pairs: Tensor) -> Tensor:
        product = h[pairs[0]] * h[pairs[1]]
        return self.head(self.beta * self.common_mlp(z) + self.pair_mlp(product)).squeeze(-1)


class PlainNCNC(PlainNCN):
    """The predictor with completion: every candidate is scored by a nested call, one call a side.

    A target is never an edge of the graph here, so no candidate is a pair of one node.
    """

    def __init__(
        self,
        width: int,
        p: float,
        edge_dropout: float,
        two_layer_head: bool,
        scale: float,
        offset: float,
        prior: float,
        ceiling: float,
    ) -> None:
        super().__init__(width, p, edge_dropout, two_layer_head)
        self.scale, self.offset, self.prior, self.ceiling = scale, offset, prior, ceiling

    def forward(self, h: Tensor, graph: CSRGraph, pairs: Tensor) -> Tensor:
        graph = drop_entries(graph, self.edge_dropout, self.training)
        x = h + self.node_mlp(h)
        common, only_i, only_j = neighborhood_split(graph, pairs)
        z = pool(common, None, x, pairs.size(1))
        for (row, node), other in ((only_i, pairs[1]), (only_j, pairs[0])):
            with torch.no_grad():
                logit = self.score(h, graph, torch.stack([other[row], node]))
                chance = torch.sigmoid(self.scale * (logit - self.offset))
                odds = self.prior * chance
                weight = self.ceiling * odds / (odds + 1 - chance)
            z = z + pool((row, node), weight, x, pairs.size(1))
        return self.combine(h, z, pairs)


def plain_model(config: RunConfig, in_channels: int) -> tuple[PlainEncoder, PlainNCN]:
    """Builds encoder and predictor with a recipe's settings.

    Raises:
        ValueError: Settings that the plain form doesn't cover.
    """
    m = config.model
    usual = {
        "num_layers": 1,
        "conv": "puregcn",
        "jumping": True,
        "residual": False,
        "node_mlp": True,
        "predictor_norm": True,
        "tail_activation": True,
        "edge_dropout": 0.0,
        "max_common": None,
        "parity": False,
    }
    other = [name for name, value in usual.items() if m[name] != value]
    if other:
        raise ValueError(f"the plain form is written for other values of {', '.join(other)}")
    width = m["hidden_channels"]
    encoder = PlainEncoder(in_channels, width, m["feature_dropout"], m["dropout"], m["tail_dropout"])
    args = (width, m["predictor_dropout"], m["predictor_edge_dropout"], m["two_layer_head"])
    if config.model_name == "ncn":
        return encoder, PlainNCN(*args)
    return encoder, PlainNCNC(*args, m["scale"], m["offset"], m["prior"], m["ceiling"])


class PlainLinks:
    """Training epochs and evaluations in the plain form."""

    def __init__(self, config: RunConfig, benchmark: Benchmark) -> None:
        data = benchmark.data
        self.benchmark, self.train = benchmark, config.train
        self.x, self.num_nodes = data.x, int(data.num_nodes)
        self.edges = benchmark.splits["train"]["pos_edge_label_index"]
        self.encoder, self.predictor = plain_model(config, data.x.size(1))
        rates = config.optim.group_lr
        groups = [
            {"params": list(self.encoder.parameters()), "lr": rates["encoder"]},
            {"params": list(self.predictor.parameters()), "lr": rates["predictor"]},
        ]
        self.optimizer = torch.optim.Adam(groups)

    def load(self, state: dict[str, Tensor]) -> None:
        """Copies the weights of the library's model; within a block they come in the same order."""
        with torch.no_grad():
            linear = self.encoder.input[1]
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(state["encoder.input.weight"].t())
            linear.bias.copy_(state["encoder.input.bias"])
            self.encoder.jumping.copy_(state["encoder.jumping"])
            self.predictor.beta.copy_(state["predictor.beta"])
            for name in ("node_mlp", "common_mlp", "pair_mlp", "head"):
                theirs = [v for key, v in state.items() if key.startswith(f"predictor.{name}.")]
                ours = list(getattr(self.predictor, name).parameters())
                for parameter, value in zip(ours, theirs, strict=True):
                    parameter.copy_(value)

    def epoch(self) -> None:
        """Trains on every full batch once."""
        self.encoder.train()
        self.predictor.train()
        count, size = self.edges.size(1), self.train.batch_size
        both = torch.cat([self.edges, self.edges.flip(0)], dim=1)
        negatives = negative_sampling(both, self.num_nodes, num_neg_samples=count)
        order = torch.randperm(count)
        for start in range(0, count - size + 1, size):
            chosen = order[start : start + size]
            rest = torch.ones(count, dtype=torch.bool)
            rest[chosen] = False
            graph = adjacency(self.edges[:, rest], self.num_nodes)
            h = self.encoder(self.x, graph)
            positive = self.predictor(h, graph, self.edges[:, chosen])
            negative = self.predictor(h, graph, negatives[:, start : start + size])
            loss = F.softplus(-positive).mean() + F.softplus(negative).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def scores(self, pairs: Tensor) -> Tensor:
        """Scores pairs ``[2, B]`` on the graph of all training edges, ``[B]``."""
        self.encoder.eval()
        self.predictor.eval()
        graph = adjacency(self.edges, self.num_nodes)
        h = self.encoder(self.x, graph)
        parts = pairs.split(self.train.eval_batch_size, dim=1)
        return torch.cat([self.predictor(h, graph, part) for part in parts])

    def evaluate(self, split: str) -> dict[str, float]:
        """Returns the metrics of a split; everything is computed anew."""
        parts = self.benchmark.splits[split]
        positive, negative = (self.scores(parts[f"{k}_edge_label_index"]) for k in ("pos", "neg"))
        return self.benchmark.evaluator(positive, negative)
