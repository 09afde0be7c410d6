"""GRIT as its formulas are written: all pairs side by side in tensors, gathers, scatters and batch norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import coalesce, scatter, softmax

from graphkit.models.grit import GRIT
from graphkit.models.grit_layer import GRITLayer
from graphkit.nn.walks import WalkEncoding

__all__ = ["PlainGRIT"]


class PlainLayer(nn.Module):
    """A layer over explicit pairs; its parameters are those of ``layer`` themselves."""

    def __init__(self, layer: GRITLayer) -> None:
        super().__init__()
        self.ours = layer
        assert layer.pair_out is not None
        self.pair_norm = nn.BatchNorm1d(layer.pair_out.out_features)
        self.norm, self.ffn_norm = (nn.BatchNorm1d(layer.out.out_features) for _ in range(2))
        for own, theirs in (
            (self.pair_norm, layer.pair_norm),
            (self.norm, layer.norm),
            (self.ffn_norm, layer.ffn_norm),
        ):
            assert theirs is not None
            own.load_state_dict(theirs.state_dict())

    def forward(self, x: Tensor, e: Tensor, index: Tensor, log_degree: Tensor) -> tuple[Tensor, Tensor]:
        layer, (key, query), nodes = self.ours, index, x.size(0)
        c, heads = layer.score.shape
        q, k, v = (part(x).view(-1, heads, c) for part in (layer.query, layer.key, layer.value))
        gain, offset = layer.pair(e).view(-1, heads, 2, c).unbind(2)
        t = (q[query] + k[key]) * gain
        hat = F.relu(torch.sqrt(F.relu(t)) - torch.sqrt(F.relu(-t)) + offset)
        score = torch.einsum("phc,ch->ph", hat, layer.score).clamp(-5, 5)
        alpha = softmax(score, query, num_nodes=nodes)[..., None]
        alpha = F.dropout(alpha, layer.attention_dropout, self.training)
        o = scatter(v[key] * alpha, query, dim_size=nodes)
        summed = scatter(hat * alpha, query, dim_size=nodes)
        assert layer.relation is not None
        o = (o + torch.einsum("nhc,chd->nhd", summed, layer.relation)).flatten(1)
        assert layer.degree is not None
        h = o * layer.degree[0] + o * log_degree[:, None] * layer.degree[1]
        h = self.norm(x + layer.out(h))
        assert layer.pair_out is not None
        e = self.pair_norm(e + layer.pair_out(hat.flatten(1)))
        return self.ffn_norm(h + layer.ffn_out(F.relu(layer.ffn_in(h)))), e


class PlainGRIT(nn.Module):
    """The same model, with the parameters of ``model`` and walks that were computed before.

    It is the model of ZINC: batch norms, clamped scores, edges and nodes of categories, no other dropout
    than that of attention. The list of all pairs is put together and sorted in every forward pass.
    """

    def __init__(self, model: GRIT) -> None:
        super().__init__()
        self.ours = model
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in model.layers)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, batch: Tensor, walks: WalkEncoding
    ) -> Tensor:
        ours, nodes, graphs = self.ours, x.size(0), int(batch[-1]) + 1
        assert ours.absolute is not None
        h = ours.node_features(x, nodes) + ours.absolute(walks.rrwp)
        edge = ours.edge_features(edge_attr, edge_index.size(1))
        loops = torch.arange(nodes).expand(2, nodes)
        index = torch.cat([edge_index, loops, walks.rrwp_index], 1)
        value = torch.cat([edge, edge.new_zeros(nodes, edge.size(1)), ours.relative(walks.rrwp_val)])
        index, e = coalesce(index, value, nodes, reduce="add")
        full = self._all_pairs(batch, graphs)
        index, e = coalesce(
            torch.cat([index, full], 1),
            torch.cat([e, e.new_zeros(full.size(1), e.size(1))]),
            nodes,
            reduce="add",
        )
        for layer in self.layers:
            h, e = layer(h, e, index, walks.log_deg)
        return ours.head(scatter(h, batch, dim_size=graphs))

    @staticmethod
    def _all_pairs(batch: Tensor, graphs: int) -> Tensor:
        parts = []
        for graph in range(graphs):
            own = (batch == graph).nonzero().squeeze(1)
            parts.append(torch.cartesian_prod(own, own).t())
        return torch.cat(parts, 1)
