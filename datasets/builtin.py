"""Graphs that need no download: scikit-learn's handwritten digits as a nearest-neighbour graph."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec
from graphkit.datasets.splits import link_benchmark, random_link_split, stratified_node_split
from graphkit.errors import UserError
from graphkit.evaluation.metrics import NodeEvaluator
from graphkit.registry import register_dataset
from graphkit.sparse import undirected_edges

__all__ = ["load_digits", "nearest_neighbours"]

CITATION = (
    "Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 "
    "(CC BY 4.0), as distributed with scikit-learn"
)


def nearest_neighbours(points: Tensor, k: int) -> Tensor:
    """Joins each point to its k nearest ones; exact for integer coordinates, ties to the smaller index.

    Args:
        points: ``[N, F]`` int64.
        k: Neighbours of each point, ``1 <= k < N``.

    Returns:
        ``[2, M]`` int64, the undirected edges (near from at least one end), smaller end first, sorted.
    """
    n = points.size(0)
    values = points.double()  # products of small integers are exact
    square = values.square().sum(1)
    distance = (square[:, None] + square[None, :] - 2 * values @ values.T).to(torch.int64)
    rank = distance * n + torch.arange(n)  # distinct, so the order is total
    rank.fill_diagonal_(torch.iinfo(torch.int64).max)
    near = rank.topk(k, dim=1, largest=False).indices
    edge_index = torch.stack([torch.arange(n).repeat_interleave(k), near.reshape(-1)])
    return undirected_edges(edge_index, n)


@register_dataset("digits", task=("link", "node"))
def load_digits(
    *,
    root: str | Path = "data",
    task: str = "link",
    seed: int = 0,
    k: int = 8,
    valid_ratio: float | None = None,
    test_ratio: float = 0.2,
) -> Benchmark:
    """Digits: 1,797 images of 8x8 pixels, each joined to its nearest ones. Needs no download.

    Args:
        root: Not used: the images come with scikit-learn.
        task: ``"link"`` (Hits@100) or ``"node"`` (which of ten digits; accuracy).
        seed: Seeds the split: edges at random, or nodes class by class.
        k: Nearest images that each one is joined to; joined is who is near from either end.
        valid_ratio: Share for validation; by default 0.1 of the edges or 0.2 of the nodes.
        test_ratio: Share for test.

    Raises:
        UserError: If ``k`` or a share is out of range.
    """
    from sklearn.datasets import load_digits as images

    pixels, labels = images(return_X_y=True)
    points, y = torch.from_numpy(pixels).long(), torch.from_numpy(labels).long()
    n = points.size(0)
    if not 1 <= k < n:
        raise UserError(f"k is {k}; it must lie between 1 and {n - 1}")
    edges = nearest_neighbours(points, k)
    x = points.float() / 16
    info = {"source": "scikit-learn", "k": k, "nodes": n, "edges": edges.size(1), "seed": seed}
    if task == "node":
        valid_ratio = 0.2 if valid_ratio is None else valid_ratio
        splits = stratified_node_split(y, seed, valid_ratio, test_ratio)
        info |= {"split": "stratified"} | {name: part["index"].numel() for name, part in splits.items()}
        data = Data(x=x, y=y, edge_index=torch.cat([edges, edges.flip(0)], 1), num_nodes=n)
        spec = DataSpec(n, x.size(1), 10)
        return Benchmark(
            "digits", task, data, splits, spec, "accuracy", True, NodeEvaluator(), CITATION, info
        )
    valid_ratio = 0.1 if valid_ratio is None else valid_ratio
    parted = random_link_split(edges, n, seed, valid_ratio, test_ratio)
    return link_benchmark("digits", parted, n, x=x, y=y, citation=CITATION, info=info | {"split": "random"})
