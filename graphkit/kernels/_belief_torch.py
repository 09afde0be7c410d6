"""The operations of :mod:`graphkit.kernels.belief` in plain torch, always in rounds: for other devices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS, FACTOR = 1e-18, 1e-18  # what is added to pooled minima, and to every factor of a product


class Graph(NamedTuple):
    """A graph, anchors ``[S, A]`` and rounds: ``rounds``, or where that is 0 as many as matter.

    That is ``turns`` ``[A]``, the largest of a component's anchors, where it has cycles.
    """

    edge_index: Tensor
    edge_type: Tensor
    anchor: Tensor
    turns: Tensor
    num_nodes: int
    rounds: int


def pool(message: Tensor, target: Tensor, num_rows: int, product: bool) -> Tensor:
    """Pools messages ``[S, E, n, F]`` of each target and normalises them: ``[S, num_rows, n, F]``."""
    shape = (message.size(0), num_rows, *message.shape[2:])
    index = target[None, :, None, None].expand_as(message)
    if product:
        logs = (message + FACTOR).log()
        return message.new_zeros(shape).scatter_add(1, index, logs).softmax(2)
    low = message.new_zeros(shape).scatter_reduce(1, index, message, "amin", include_self=False) + EPS
    return low / low.sum(2, keepdim=True)


def unpool(grad: Tensor, pooled: Tensor, message: Tensor, target: Tensor, product: bool) -> Tensor:
    """Returns the gradient of messages; that of a minimum goes to the first edge that attains it."""
    grad = grad - (grad * pooled).sum(2, keepdim=True)
    if product:
        return (grad * pooled)[:, target] / (message + FACTOR)
    index = target[None, :, None, None].expand_as(message)
    low = torch.zeros_like(pooled).scatter_reduce(1, index, message, "amin", include_self=False)
    grad = grad / (low + EPS).sum(2, keepdim=True)
    edge = torch.arange(target.numel(), device=target.device)[None, :, None, None]
    beyond = torch.full_like(edge, target.numel())
    place = torch.where(message == low[:, target], edge, beyond)
    first = place.new_full(pooled.shape, target.numel()).scatter_reduce(1, index, place, "amin")
    return torch.where(first[:, target] == edge, grad[:, target], 0.0)


def node_rounds(graph: Graph, head: Tensor, tail: Tensor) -> Tensor:
    """Returns in how many rounds each node may change, ``[N]``, given the edges that are kept."""
    nodes = graph.num_nodes
    if graph.rounds:
        return head.new_full((nodes,), graph.rounds)
    missing, level = head.new_zeros(nodes), head.new_full((nodes,), -1)
    missing.index_add_(0, head, torch.ones_like(head))
    ready, depth = missing == 0, 0
    while bool(ready.any()):
        level[ready] = depth
        missing.index_add_(0, head, -ready[tail].long())
        ready, depth = (missing == 0) & (level < 0), depth + 1
    if bool((level >= 0).all()):
        return level
    part = components(graph.edge_index, nodes)
    cyclic = torch.zeros(nodes, dtype=torch.bool, device=head.device)
    cyclic[part[level < 0]] = True
    most = head.new_zeros(nodes)
    turns = graph.turns.expand_as(graph.anchor).flatten()
    most.scatter_reduce_(0, part[graph.anchor.flatten()], turns, "amax")
    return torch.where(cyclic[part], most[part], level)


def components(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Returns the least node of every node's component."""
    part = torch.arange(num_nodes, device=edge_index.device)
    while True:
        low = part[edge_index].amin(0).repeat(2)
        found = part.scatter_reduce(0, edge_index.flatten(), low, "amin")
        found = found[found]
        if torch.equal(found, part):
            return part
        part = found


def history(matrix: Tensor, graph: Graph, product: bool) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Returns the states of all rounds, kept edges ``[3, E']`` and what changes in a round, ``[L, S, N]``."""
    copies, anchor = graph.anchor.size(0), graph.anchor
    tail, head = graph.edge_index
    kept = torch.ones_like(head, dtype=torch.bool)
    if copies == 1:  # an anchor's belief is put back after each round
        kept = ~torch.isin(head, anchor[0])
    edges = torch.stack([tail, head, graph.edge_type])[:, kept]
    limit = node_rounds(graph, edges[1], edges[0])
    moves = torch.zeros(copies, graph.num_nodes, dtype=torch.bool, device=head.device)
    moves[:, edges[1]] = True
    moves.scatter_(1, anchor, False)
    state = matrix.new_full((copies, graph.num_nodes, matrix.size(1), matrix.size(3)), 1.0 / matrix.size(1))
    first = torch.zeros_like(state[0, :1])
    first[:, 0] = 1.0
    state[torch.arange(copies, device=head.device)[:, None], anchor] = first
    states = [state]
    turns = int(limit.max()) if limit.numel() else 0
    changes = moves & (limit >= torch.arange(1, turns + 1, device=head.device)[:, None, None])
    for change in changes:
        message = send(matrix, states[-1], edges)
        pooled = pool(message, edges[1], graph.num_nodes, product)
        states.append(torch.where(change[..., None, None], pooled, states[-1]))
    return states, edges, changes, limit


def send(matrix: Tensor, state: Tensor, edges: Tensor) -> Tensor:
    """Returns the messages ``matrix[kind] state[tail]``, ``[S, E, n, F]``."""
    return torch.einsum("epif,seif->sepf", matrix[edges[2]], state[:, edges[0]])


def sweep(matrix: Tensor, graph: Graph, product: bool) -> Tensor:
    """Returns the final beliefs, ``[S, N, n, F]``."""
    return history(matrix, graph, product)[0][-1].clone()


def sweep_grad(grad: Tensor, matrix: Tensor, graph: Graph, product: bool) -> Tensor:
    """Returns the gradient of the matrix, round by round from the last."""
    states, edges, changes, _ = history(matrix, graph, product)
    total = torch.zeros_like(matrix)
    for before, after, change in zip(states[-2::-1], states[:0:-1], changes.flip(0), strict=True):
        own = torch.where(change[..., None, None], grad, 0.0)
        message = send(matrix, before, edges)
        # rows that didn't change take no part: their gradient is 0 here
        g = unpool(own, after, message, edges[1], product)
        total.index_add_(0, edges[2], torch.einsum("sepf,seif->epif", g, before[:, edges[0]]))
        back = torch.einsum("epif,sepf->seif", matrix[edges[2]], g)
        grad = (grad - own).index_add(1, edges[0], back)
    return total


def pairs(
    composition: Tensor,
    state: Tensor,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    num_groups: int,
    product: bool,
) -> Tensor:
    """Returns the pooled compositions of each group, ``[G, n, F]``."""
    z = torch.einsum("pijf,kif,kjf->kpf", composition, state[left], state[right])
    return pool(z[None], group, num_groups, product)[0]


def pairs_grad(
    grad: Tensor,
    composition: Tensor,
    state: Tensor,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    product: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of composition and state."""
    x, y = state[left], state[right]
    z = torch.einsum("pijf,kif,kjf->kpf", composition, x, y)[None]
    out = pool(z, group, grad.size(0), product)
    g = unpool(grad[None], out, z, group, product)[0]
    total = torch.einsum("kpf,kif,kjf->pijf", g, x, y)
    flow = torch.zeros_like(state)
    flow.index_add_(0, left, torch.einsum("pijf,kpf,kjf->kif", composition, g, y))
    flow.index_add_(0, right, torch.einsum("pijf,kpf,kif->kjf", composition, g, x))
    return total, flow


def answer(
    composition: Tensor,
    relation: Tensor,
    graph: Graph,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    num_groups: int,
    product: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the answers ``[G, n, F]``, the beliefs of a graph and its reverse, and the matrices."""
    after = torch.einsum("pijf,rjf->rpif", composition, relation)
    matrix = torch.cat([after, torch.einsum("pijf,rif->rpjf", composition, relation)])
    state = sweep(matrix, graph, product)[0]
    return pairs(composition, state, left, right, group, num_groups, product), state, matrix


def answer_grad(
    grad: Tensor,
    state: Tensor,
    matrix: Tensor,
    composition: Tensor,
    relation: Tensor,
    graph: Graph,
    left: Tensor,
    right: Tensor,
    group: Tensor,
    product: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of composition and relations."""
    total, flow = pairs_grad(grad, composition, state, left, right, group, product)
    after, before = sweep_grad(flow[None], matrix, graph, product).chunk(2)
    total = total + torch.einsum("rpif,rjf->pijf", after, relation)
    total = total + torch.einsum("rpjf,rif->pijf", before, relation)
    own = torch.einsum("pijf,rpif->rjf", composition, after)
    return total, own + torch.einsum("pijf,rpjf->rif", composition, before)
