r"""Paths from the seeds of a question to an answer, and how much each iteration of a model gave to them.

Layer l of an iteration sends :math:`a_l(u, v)` from u to v along the facts between them: a share of all that
it sends, the larger the likelier u was by then and the more the question's instructions make of the
relations. A walk from a seed, a neighbour or a pause in each layer, weighs :math:`\prod_l a_l`, where a pause
weighs as all that u sends together, to itself included, since its whole state is kept. The weight of a path
is that of all walks along it, wherever they pause, in the weight of all walks to its end. So in each
iteration the weights of all paths to an entity sum to 1, or to 0 if no walk reaches it in L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Reason", "StepLike", "Walks"]

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class StepLike(Protocol):
    """What a model tells of one layer of one iteration, for one question.

    Attributes:
        iteration: From 0.
        prior: ``[n]``, the probabilities that the layer was given.
        prob: ``[n]``, those that it gave.
        forward: ``[F]``, the share of what went along each fact in all that was sent.
        inverse: ``[F]``, the share of what went against it. The rest to 1 entities sent themselves.
    """

    iteration: int
    prior: Tensor
    prob: Tensor
    forward: Tensor
    inverse: Tensor


class Reason(NamedTuple):
    """A path from a seed to an answer.

    Attributes:
        nodes: Entities, the seed first.
        moves: From each to the next, the fact that most was sent along, and whether from head to tail.
        weights: Of each iteration, up to 1.
    """

    nodes: tuple[int, ...]
    moves: tuple[tuple[int, bool], ...]
    weights: tuple[float, ...]


class _Layer(NamedTuple):
    pair: Array  # [P] sent from one entity to another
    own: Array  # [n] what a pause weighs


class Walks:
    """What the iterations of a model sent, ready to be asked about any entity.

    Args:
        edge_index: ``[2, F]`` heads and tails in the subgraph of one question.
        num_nodes: n.
        seeds: Entities that the question names.
        steps: All layers of all iterations, in order; none if the model doesn't tell.
    """

    def __init__(
        self, edge_index: Tensor, num_nodes: int, seeds: Sequence[int], steps: Sequence[StepLike] = ()
    ) -> None:
        head, tail = (ends.cpu().numpy() for ends in edge_index)
        self.num_nodes, self.seeds, self.facts = num_nodes, list(seeds), head.size
        source, end = np.concatenate([head, tail]), np.concatenate([tail, head])
        pairs, self._pair_of = np.unique(source * num_nodes + end, return_inverse=True)
        self.source, self.end = pairs // max(num_nodes, 1), pairs % max(num_nodes, 1)
        self._loop = self.source == self.end
        sent = [np.concatenate([_plain(step.forward), _plain(step.inverse)]) for step in steps]
        self.iterations: list[list[_Layer]] = []
        for step, amount in zip(steps, sent, strict=True):
            if step.iteration == len(self.iterations):
                self.iterations.append([])
            self.iterations[-1].append(self._layer(amount, _plain(step.prior)))
        total = np.sum(sent, axis=0) if sent else np.zeros(2 * self.facts)
        order = np.lexsort((-np.arange(total.size), total, self._pair_of))
        last = np.flatnonzero(np.diff(self._pair_of[order], append=-1))
        self._fact = order[last]  # the move of each pair that most was sent along, the first of equal ones
        self._all = [self._all_walks(layers) for layers in self.iterations]
        self._best = [
            (layers, seed, *self._best_walks(layers, seed))
            for layers in self.iterations
            for seed in self.seeds
        ]

    def reasons(self, target: int) -> list[Reason]:
        """Returns paths to an entity that pass none twice, the weightiest of the last iteration first.

        They are the best walks of each iteration from each seed, for each number of moves. If no such walk
        is among the best, or the model doesn't tell, it is the shortest path. None leads to a seed, or to
        what isn't connected with one.
        """
        if target in self.seeds:
            return []
        paths = [
            self._followed(move, len(layers), hops, target)
            for layers, _, best, move in self._best
            for hops in range(1, len(layers) + 1)
            if best[len(layers), hops, target] > 0
        ]
        paths = [path for path in paths if self._is_simple(path)]
        if not paths:
            shortest = self._shortest(target)
            paths = [] if shortest is None else [shortest]
        found = [self._reason(path) for path in dict.fromkeys(paths)]
        found.sort(key=lambda reason: ([-w for w in reversed(reason.weights)], len(reason.moves)))
        return found

    def _is_simple(self, path: Sequence[int]) -> bool:
        """Whether a path comes to no entity twice."""
        return len({int(self.source[path[0]]), *self.end[list(path)].tolist()}) == len(path) + 1

    def _reason(self, path: tuple[int, ...]) -> Reason:
        nodes = (int(self.source[path[0]]), *(int(self.end[pair]) for pair in path))
        moves = tuple((int(self._fact[p]) % self.facts, bool(self._fact[p] < self.facts)) for p in path)
        return Reason(nodes, moves, tuple(self._weight(number, path) for number in range(len(self._all))))

    def _layer(self, sent: Array, prior: Array) -> _Layer:
        """Returns what a layer sent from one entity to another, and all that each entity sent."""
        pair = np.bincount(self._pair_of, sent, self.source.size)
        rest = max(0.0, 1.0 - float(pair.sum()))
        own = rest * prior / max(float(prior.sum()), 1e-300)  # all have the same relation to themselves
        own += np.bincount(self.source, pair, self.num_nodes)
        return _Layer(np.where(self._loop, 0.0, pair), own)

    def _all_walks(self, layers: Sequence[_Layer]) -> Array:
        """Returns the weight of all walks to each entity, ``[n]``."""
        reached = np.zeros(self.num_nodes)
        reached[self.seeds] = 1
        for layer in layers:
            sent = np.bincount(self.end, reached[self.source] * layer.pair, self.num_nodes)
            reached = reached * layer.own + sent
        return reached

    def _best_walks(self, layers: Sequence[_Layer], seed: int) -> tuple[Array, Ids]:
        """Finds the best walk from a seed to each entity, for each number of layers and of moves.

        Returns:
            Weights ``[L + 1, L + 1, n]`` by layers, moves, end; and each walk's last pair, -1 for a pause.
        """
        depth = len(layers)
        best = np.zeros((depth + 1, depth + 1, self.num_nodes))
        last = np.full(best.shape, -1, dtype=np.int64)
        best[0, 0, seed] = 1
        number = np.arange(self.end.size)
        for at, layer in enumerate(layers):
            for hops in range(at + 2):
                value = best[at, hops] * layer.own
                if hops and number.size:
                    taken = best[at, hops - 1][self.source] * layer.pair
                    order = np.lexsort((-number, taken, self.end))
                    top = order[np.flatnonzero(np.diff(self.end[order], append=-1))]
                    top = top[taken[top] > value[self.end[top]]]
                    value[self.end[top]] = taken[top]
                    last[at + 1, hops, self.end[top]] = top
                best[at + 1, hops] = value
        return best, last

    def _followed(self, last: Ids, depth: int, hops: int, target: int) -> tuple[int, ...]:
        """Returns the pairs of a best walk, without its pauses."""
        path: list[int] = []
        node = target
        for at in range(depth, 0, -1):
            pair = int(last[at, hops, node])
            if pair >= 0:
                path.append(pair)
                node, hops = int(self.source[pair]), hops - 1
        return tuple(reversed(path))

    def _weight(self, iteration: int, path: Sequence[int]) -> float:
        """Returns the weight of all walks along a path, pauses anywhere, in that of all walks to its end."""
        pairs = list(path)
        nodes = [self.source[pairs[0]], *self.end[pairs]]
        reached = np.zeros(len(nodes))
        reached[0] = 1
        for layer in self.iterations[iteration]:
            sent = reached * layer.own[nodes]
            sent[1:] += reached[:-1] * layer.pair[pairs]
            reached = sent
        total = self._all[iteration][nodes[-1]]
        return float(reached[-1] / total) if total > 0 else 0.0

    def _shortest(self, target: int) -> tuple[int, ...] | None:
        """Returns the pairs of a shortest path from any seed."""
        came = dict.fromkeys(self.seeds, -1)
        ring = list(self.seeds)
        while ring and target not in came:
            inside = np.zeros(self.num_nodes, dtype=bool)
            inside[ring] = True
            ring = []
            for pair in np.flatnonzero(inside[self.source]).tolist():
                node = int(self.end[pair])
                if node not in came:
                    came[node] = pair
                    ring.append(node)
        if target not in came:
            return None
        path: list[int] = []
        node = target
        while came[node] >= 0:
            path.append(came[node])
            node = int(self.source[path[-1]])
        return tuple(reversed(path))


def _plain(values: Tensor) -> Array:
    return values.detach().cpu().double().numpy()
