"""What NBFNet has to compute, and nothing else: which states differ, and which are asked for.

Until layer l, only entities within l edges of a head differ from those of a propagation without any head (the
*background*, the same for all S). And of them only those count from which a tail that is asked for can still
be reached. So layer l has N rows of background and one row for each pair of a propagation s and an entity v
that is both; the results are exactly those of all S times N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graphkit.graphs import ragged_index

__all__ = ["Level", "Plan", "make_plan"]


class Level(NamedTuple):
    """One layer: n rows, the background's N and then pairs, and what they are computed from.

    Attributes:
        rowptr: ``[n + 1]`` int64; row i sums entries ``rowptr[i]`` to ``rowptr[i + 1] - 1``.
        col: ``[m]`` int32 rows of the layer before.
        kind: ``[m]`` int32 relations.
        own: ``[n]`` int64, the same entity's row of the layer before.
        head_row: ``[k]`` int64, the rows of heads.
        head_state: ``[k]`` int64, whose heads they are.
    """

    rowptr: Tensor
    col: Tensor
    kind: Tensor
    own: Tensor
    head_row: Tensor
    head_state: Tensor


class Plan(NamedTuple):
    """All layers.

    Attributes:
        first: ``[k]`` int64, the propagations whose head is a row of layer 0, after the N of the background.
        levels: Of layers 1 to L.
        row: The row of layer L of each result: of tails ``[S, c]``, or ``[S, N]``.
        num_nodes: N.
    """

    first: Tensor
    levels: list[Level]
    row: Tensor
    num_nodes: int


def make_plan(
    edge_index: Tensor,
    edge_type: Tensor,
    head: Tensor,
    num_nodes: int,
    num_layers: int,
    tails: Tensor | None = None,
) -> Plan:
    """Finds the rows of each layer.

    Args:
        edge_index: ``[2, E]`` int64, row 0 the source.
        edge_type: ``[E]`` int64.
        head: ``[S]`` int64.
        num_nodes: N.
        num_layers: L.
        tails: ``[S, c]`` int64, what is asked for; all entities by default.
    """
    source, kind, ptr = _sorted_by(edge_index[1], edge_index[0], edge_type, num_nodes)
    far, base = num_layers + 1, torch.arange(head.numel(), device=head.device) * num_nodes
    distance = _distances(edge_index, base + head, num_nodes, head.numel(), num_layers)
    place = torch.zeros(distance.numel(), dtype=torch.int64, device=head.device)  # of pairs within a layer
    asked = torch.arange(distance.numel(), device=head.device) if tails is None else base[:, None] + tails
    keys = _marked(asked[distance[asked] < far], distance.numel())
    place[keys] = num_nodes + torch.arange(keys.numel(), device=keys.device)
    row = torch.where(distance[asked] < far, place[asked], asked % num_nodes).view(head.numel(), -1)
    levels = []
    for layer in range(num_layers, 0, -1):
        node = keys % num_nodes
        items, begin = ragged_index(ptr, node)
        sender = source[items]
        pair = torch.repeat_interleave(keys - node, begin.diff(), output_size=items.numel()) + sender
        differs, before = distance[pair] < layer, distance[keys] < layer
        earlier = _marked(torch.cat([pair[differs], keys[before]]), distance.numel())
        place[earlier] = num_nodes + torch.arange(earlier.numel(), device=keys.device)
        col = torch.cat([source, torch.where(differs, place[pair], sender)])
        every = torch.arange(num_nodes, device=keys.device)
        heads = (distance[keys] == 0).nonzero().squeeze(1)
        levels.append(
            Level(
                torch.cat([ptr, source.numel() + begin[1:]]),
                col.to(torch.int32),
                torch.cat([kind, kind[items]]).to(torch.int32),
                torch.cat([every, torch.where(before, place[keys], node)]),
                heads + num_nodes,
                keys[heads] // num_nodes,
            )
        )
        keys = earlier
    return Plan(keys // num_nodes, levels[::-1], row, num_nodes)


def _sorted_by(key: Tensor, other: Tensor, kind: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns other ends and kinds of edges in the order of ``key``, and where each row begins."""
    order = torch.argsort(key, stable=True)
    ptr = key.new_zeros(rows + 1)
    torch.cumsum(torch.bincount(key, minlength=rows), 0, out=ptr[1:])
    return other[order], kind[order], ptr


def _distances(edge_index: Tensor, start: Tensor, num_nodes: int, states: int, limit: int) -> Tensor:
    """Returns the distance of each entity from each head, ``[S * N]`` int8, ``limit + 1`` where above it."""
    target, _, ptr = _sorted_by(edge_index[0], edge_index[1], edge_index[1], num_nodes)
    distance = torch.full((states * num_nodes,), limit + 1, dtype=torch.int8, device=start.device)
    distance[start] = 0
    ring = start
    for step in range(limit):
        node = ring % num_nodes
        items, begin = ragged_index(ptr, node)
        reached = (
            torch.repeat_interleave(ring - node, begin.diff(), output_size=items.numel()) + target[items]
        )
        distance[reached[distance[reached] > limit]] = step + 1
        ring = (distance == step + 1).nonzero().squeeze(1)
    return distance


def _marked(keys: Tensor, size: int) -> Tensor:
    """Returns the distinct keys in ascending order."""
    mark = torch.zeros(size, dtype=torch.bool, device=keys.device)
    mark[keys] = True
    return mark.nonzero().squeeze(1)
