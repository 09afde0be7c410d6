"""Splits of edges, nodes and graphs, each a pure function of the data and a seed, and benchmarks of links."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Split
from graphkit.errors import UserError
from graphkit.evaluation.metrics import LinkEvaluator
from graphkit.sampling import NegativeSampler

__all__ = [
    "LinkSplit",
    "link_benchmark",
    "ncn_link_split",
    "random_link_split",
    "random_node_split",
    "scaffold_split",
    "stratified_folds",
    "stratified_node_split",
]


@dataclass(frozen=True)
class LinkSplit:
    """Undirected edges of three splits, ``[2, *]`` int64, smaller end first, sorted.

    Attributes:
        train: What message passing sees.
        valid: Positive validation edges.
        test: Positive test edges.
        valid_neg: Validation pairs that are no edge in any split.
        test_neg: Test pairs that are no edge in any split; disjoint from ``valid_neg``.
    """

    train: Tensor
    valid: Tensor
    test: Tensor
    valid_neg: Tensor
    test_neg: Tensor

    def splits(self) -> dict[str, Split]:
        """Returns the form that :class:`~graphkit.data.Benchmark` holds."""
        return {
            "train": {"pos_edge_label_index": self.train},
            "valid": {"pos_edge_label_index": self.valid, "neg_edge_label_index": self.valid_neg},
            "test": {"pos_edge_label_index": self.test, "neg_edge_label_index": self.test_neg},
        }

    def counts(self) -> dict[str, int]:
        """Returns the size of each part."""
        return {name: int(getattr(self, name).size(1)) for name in self.__dataclass_fields__}


def _sorted(pairs: Tensor, num_nodes: int) -> Tensor:
    return pairs[:, torch.argsort(pairs[0] * num_nodes + pairs[1])]


class _TorchStream:
    """The numbers that torch's CPU generator gives after ``torch.manual_seed(seed)``.

    Both are the Mersenne Twister with one way of seeding, so numpy's serves: the stream doesn't depend on
    torch's version, and numbers can be skipped without a place to put them.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        start = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._bits.state = {"bit_generator": "MT19937", "state": start["state"]}

    def permutation(self, n: int, first: int | None = None) -> Tensor:
        """Returns the ``first`` entries (all by default) of ``torch.randperm(n)``, ``[first]`` int64.

        torch shuffles from the front: step i exchanges place i with a random later one and is final. So the
        first entries need the first steps only, on a table of the places that were touched; the numbers of
        the other steps are skipped.
        """
        first = n if first is None else min(first, n)
        steps = min(first, max(n - 1, 0))
        raw: NDArray[np.uint64] = self._bits.random_raw(steps)
        offset = raw.astype(np.int64) % (n - np.arange(steps))
        self._bits.random_raw(max(n - 1, 0) - steps, output=False)
        table: dict[int, int] = {}
        out = []
        for i, step in enumerate(offset.tolist()):
            here = table.pop(i, i)
            if step:
                out.append(table.get(i + step, i + step))
                table[i + step] = here
            else:
                out.append(here)
        out += [table.get(i, i) for i in range(steps, first)]
        return torch.tensor(out, dtype=torch.int64)


_RANDPERM_LIMIT = (2**32 - 1) // 20
"""From this length on ``torch.randperm`` draws numbers of 64 bits instead of 32."""


def ncn_link_split(edges: Tensor, num_nodes: int, seed: int) -> LinkSplit:
    """The 70/10/20 split of Neural Common Neighbor's Planetoid experiments (arXiv:2302.00890).

    Bit by bit what the authors' loader makes of ``edges`` after ``torch.manual_seed(seed)``, without the
    N x N mask that it needs and without touching torch's global generator:

    1. shuffle the edges; the first fifth is a pool, the next fifth the test set, the rest training;
    2. shuffle all non-edges; the first ones are the validation negatives, as many as the *pool* has edges,
       the next ones the test negatives;
    3. shuffle the pool; its last half is the validation set, the first half joins training.

    So validation has twice as many negatives as positives. The authors' environment (PyG 2.2) lists edges
    sorted by their smaller end, as :func:`~graphkit.sparse.undirected_edges` does; later versions of PyG sort
    by the larger one, which gives another, equally good split for the same seed.

    Args:
        edges: ``[2, M]`` int64, each undirected edge once, smaller end first. Their order matters.
        num_nodes: N. With more than 2e8 non-edges (N above 20,700) the negatives come from a generator
            seeded with ``seed`` instead: no reference split of that size exists.
        seed: 0 to 9 in the paper.
    """
    m = edges.size(1)
    pool_size = test_size = math.floor(0.2 * m)
    valid_size = int(pool_size * 0.10 / 0.2)
    if valid_size < 1:
        raise UserError(f"a 70/10/20 split needs at least 10 edges; this graph has {m}")
    stream = _TorchStream(seed)
    shuffled = edges[:, stream.permutation(m)]
    pool, test, train = shuffled.split([pool_size, test_size, m - pool_size - test_size], dim=1)

    sampler = NegativeSampler(edges, num_nodes)
    if sampler.available < pool_size + test_size:
        raise UserError(f"this graph has {sampler.available} non-edges; {pool_size + test_size} are needed")
    if sampler.available < _RANDPERM_LIMIT:
        ranks = stream.permutation(sampler.available, pool_size + test_size)
        negatives = sampler.of_rank(ranks)
    else:
        negatives = sampler.draw(pool_size + test_size, torch.Generator().manual_seed(seed))

    pool = pool[:, stream.permutation(pool_size)]
    train = torch.cat([train, pool[:, :-valid_size]], dim=1)
    parts = (train, pool[:, -valid_size:], test, negatives[:, :pool_size], negatives[:, pool_size:])
    return LinkSplit(*(_sorted(part, num_nodes) for part in parts))


def _check_ratios(valid_ratio: float, test_ratio: float) -> None:
    if not (valid_ratio > 0 and test_ratio > 0 and valid_ratio + test_ratio < 1):
        raise UserError(
            f"valid_ratio {valid_ratio:g} and test_ratio {test_ratio:g} must be positive "
            "and leave some to train"
        )


def random_link_split(
    edges: Tensor, num_nodes: int, seed: int, valid_ratio: float = 0.1, test_ratio: float = 0.2
) -> LinkSplit:
    """Splits edges at random, with as many negatives as positives in validation and test.

    Args:
        edges: ``[2, M]`` int64, each undirected edge once, smaller end first.
        num_nodes: N.
        seed: Decides the split, together with the edges' order.
        valid_ratio: Share of the validation edges.
        test_ratio: Share of the test edges.

    Raises:
        UserError: If a part would be empty, or the graph has too few non-edges.
    """
    _check_ratios(valid_ratio, test_ratio)
    m = edges.size(1)
    valid_size, test_size = int(m * valid_ratio), int(m * test_ratio)
    if min(valid_size, test_size, m - valid_size - test_size) < 1:
        raise UserError(
            f"{m} edges are too few for shares of {valid_ratio:g} (valid) and {test_ratio:g} (test)"
        )
    generator = torch.Generator().manual_seed(seed)
    shuffled = edges[:, torch.randperm(m, generator=generator)]
    valid, test, train = shuffled.split([valid_size, test_size, m - valid_size - test_size], dim=1)
    negatives = NegativeSampler(edges, num_nodes).draw(valid_size + test_size, generator)
    parts = (train, valid, test, negatives[:, :valid_size], negatives[:, valid_size:])
    return LinkSplit(*(_sorted(part, num_nodes) for part in parts))


def random_node_split(
    nodes: Tensor, seed: int, valid_ratio: float = 0.2, test_ratio: float = 0.2, *, what: str = "nodes"
) -> dict[str, Split]:
    """Splits nodes, or graphs, at random, whatever their classes.

    Args:
        nodes: ``[n]`` int64 distinct ids, those with a label.
        seed: Decides the split, together with the ids' order.
        valid_ratio: Share, rounded down, for validation.
        test_ratio: Share, rounded down, for test.
        what: What is split, for messages.

    Returns:
        ``index`` int64, ascending, for each split; the rest is for training.

    Raises:
        UserError: If the shares don't leave a training part, or a part is empty.
    """
    _check_ratios(valid_ratio, test_ratio)
    n = nodes.numel()
    valid, test = int(n * valid_ratio), int(n * test_ratio)
    if min(valid, test, n - valid - test) < 1:
        raise UserError(
            f"{n} {what} are too few for shares of {valid_ratio:g} (valid) and {test_ratio:g} (test)"
        )
    shuffled = nodes[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    parts = shuffled.split([valid, test, n - valid - test])
    named = zip(("valid", "test", "train"), parts, strict=True)
    index = {name: part.sort().values for name, part in named}
    return {name: {"index": index[name]} for name in ("train", "valid", "test")}


def stratified_node_split(
    y: Tensor, seed: int, valid_ratio: float = 0.2, test_ratio: float = 0.2, *, what: str = "nodes"
) -> dict[str, Split]:
    """Splits the labelled nodes, or graphs, at random, class by class.

    Args:
        y: ``[N]`` int64 classes; negative ones are unlabelled and belong to no split.
        seed: Decides the split.
        valid_ratio: Share of each class, rounded, for validation.
        test_ratio: Share of each class, rounded, for test.
        what: What is split, for messages.

    Returns:
        ``index`` ``[n]`` int64, ascending, for each split.

    Raises:
        UserError: If the shares don't leave a training part, or a part is empty.
    """
    _check_ratios(valid_ratio, test_ratio)
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    for label in torch.unique(y[y >= 0]).tolist():
        members = torch.nonzero(y == label).view(-1)
        members = members[torch.randperm(members.numel(), generator=generator)]
        valid, test = (round(members.numel() * share) for share in (valid_ratio, test_ratio))
        sizes = [valid, test, members.numel() - valid - test]
        for name, part in zip(("valid", "test", "train"), members.split(sizes), strict=True):
            parts[name].append(part)
    index = {name: torch.cat(part).sort().values if part else y.new_empty(0) for name, part in parts.items()}
    for name, part in index.items():
        if part.numel() == 0:
            raise UserError(f"the labelled {what} are too few: the {name} split would be empty")
    return {name: {"index": part} for name, part in index.items()}


def stratified_folds(y: Tensor, folds: int, fold: int, seed: int) -> dict[str, Split]:
    """Cross-validation: one fold for test, the next one for validation, the others for training.

    Args:
        y: ``[G]`` int64 classes from 0; each one is spread over the folds as evenly as can be.
        folds: Number of folds, at least 3.
        fold: Which one is for test, from 0.
        seed: Decides what the folds are.

    Returns:
        ``index`` int64, ascending, for each split.

    Raises:
        UserError: If there is no such fold, or fewer items than folds.
    """
    if not (folds >= 3 and 0 <= fold < folds):
        raise UserError(f"fold is {fold}; it must lie between 0 and {folds - 1}")
    if y.numel() < folds:
        raise UserError(f"{y.numel()} graphs are too few for {folds} folds")
    shuffled = torch.randperm(y.numel(), generator=torch.Generator().manual_seed(seed))
    # Class after class, dealt like cards: no class and no fold gets more than one above its share.
    order = shuffled[torch.argsort(y[shuffled], stable=True)]
    place = torch.empty_like(order)
    place[order] = torch.arange(y.numel()) % folds
    parts = {"test": place == fold, "valid": place == (fold + 1) % folds}
    parts["train"] = ~(parts["test"] | parts["valid"])
    return {name: {"index": torch.nonzero(parts[name]).view(-1)} for name in ("train", "valid", "test")}


def scaffold_split(scaffold: Tensor, valid_ratio: float = 0.1, test_ratio: float = 0.1) -> dict[str, Split]:
    """Splits molecules so that no scaffold is in two parts; the rarest ones are tested (arXiv:1703.00564).

    Groups of one scaffold come from the largest to the smallest, of equally large ones that with the later
    first molecule first. A group joins training if it fits into its share, else validation if both shares
    together hold it, else test. This is the rule of MoleculeNet, and OGB's splits by scaffold follow it.

    Args:
        scaffold: ``[G]`` int64, a number for each scaffold.
        valid_ratio: Share for validation.
        test_ratio: Share for test.

    Returns:
        ``index`` int64, ascending, for each split; a pure function of the scaffolds, no seed.

    Raises:
        UserError: If the shares don't leave a training part, or a part is empty.
    """
    _check_ratios(valid_ratio, test_ratio)
    n = scaffold.numel()
    order = torch.argsort(scaffold, stable=True)
    sizes = torch.unique_consecutive(scaffold[order], return_counts=True)[1].tolist() if n else []
    groups = sorted(order.split(sizes), key=lambda group: (group.numel(), int(group[0])), reverse=True)
    slack = 1e-9 * n  # shares are decimals, and 1 - 0.1 - 0.1 isn't 0.8
    first, second = n * (1 - valid_ratio - test_ratio) + slack, n * (1 - test_ratio) + slack
    parts: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    train = valid = 0
    for group in groups:
        size = group.numel()
        if train + size <= first:
            name, train = "train", train + size
        elif train + valid + size <= second:
            name, valid = "valid", valid + size
        else:
            name = "test"
        parts[name].append(group)
    for name, part in parts.items():
        if not part:
            raise UserError(
                f"{n} molecules of {len(groups)} scaffolds leave no {name} part at shares of {valid_ratio:g} "
                f"(valid) and {test_ratio:g} (test); a random split may"
            )
    return {name: {"index": torch.cat(part).sort().values} for name, part in parts.items()}


def link_benchmark(
    name: str,
    split: LinkSplit,
    num_nodes: int,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    metric: str = "hits@100",
    citation: str = "",
    info: Mapping[str, Any] | None = None,
    node_names: Sequence[str] | None = None,
) -> Benchmark:
    """Makes a link prediction benchmark of a split; message passing sees its training edges alone.

    Args:
        name: The registered name.
        split: The split of the undirected edges.
        num_nodes: N.
        x: ``[N, F]`` float32 features, if there are any.
        y: ``[N]`` labels, carried along.
        metric: ``"hits@K"``, ``"mrr"`` or ``"auc"``.
        citation: What to cite.
        info: Facts about the data; the split's counts are added.
        node_names: See :class:`Benchmark`.

    Raises:
        UserError: If a split has fewer negatives than ``metric`` needs.
    """
    evaluator = LinkEvaluator.fitting(metric, min(split.valid_neg.size(1), split.test_neg.size(1)))
    both = torch.cat([split.train, split.train.flip(0)], dim=1)
    both = both[:, torch.argsort(both[0] * num_nodes + both[1])]
    data = Data(x=x, y=y, edge_index=both, num_nodes=num_nodes)
    spec = DataSpec(num_nodes=num_nodes, in_channels=None if x is None else x.size(1))
    facts = {**(info or {}), **split.counts()}
    parts = split.splits()
    return Benchmark(
        name, "link", data, parts, spec, metric, True, evaluator, citation, facts, node_names=node_names
    )
