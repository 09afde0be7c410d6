"""Handwritten digits as graphs of their pixels: graph classification that needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from graphkit.data import Benchmark, DataSpec
from graphkit.datasets.builtin import CITATION
from graphkit.datasets.graph_sets import Arrays, graph_benchmark, index_type, pointer
from graphkit.datasets.splits import stratified_node_split
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.registry import register_dataset

__all__ = ["load_digits_graphs", "pixel_graphs"]


def grid(side: int, diagonals: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Joins each pixel of a square image to those beside it.

    Args:
        side: Pixels of a row, S.
        diagonals: Whether those across a corner are beside it, too.

    Returns:
        ``[2, E]`` pixels, counted row by row, in both directions and sorted; ``[E]`` their distances.
    """
    row, column = np.divmod(np.arange(side * side), side)
    down, right = (np.abs(place[:, None] - place[None, :]) for place in (row, column))
    square = down**2 + right**2
    near = (square > 0) & (square <= (2 if diagonals else 1))
    return np.stack(np.nonzero(near)), np.sqrt(square[near]).astype(np.float32)


def pixel_graphs(images: NDArray[np.float32], diagonals: bool, inked: bool) -> Arrays:
    """Makes a graph of each image.

    Args:
        images: ``[G, S, S]`` float32 intensities.
        diagonals: See :func:`grid`.
        inked: Whether pixels of intensity zero are left out.

    Returns:
        ``x`` ``[N, 3]`` float32 (intensity, row and column from 0 to 1), ``edge_index`` ``[2, E]``,
        ``edge_attr`` ``[E, 1]`` float32 (distance in pixels), ``ptr`` and ``edge_ptr``.
    """
    count, side, _ = images.shape
    edges, distance = grid(side, diagonals)
    pixels = images.reshape(count, -1)
    there = pixels > 0 if inked else np.ones_like(pixels, dtype=bool)
    graph, pixel = np.nonzero(there)
    x = np.stack([pixels[graph, pixel], pixel // side / (side - 1), pixel % side / (side - 1)], axis=1)
    number = there.cumsum(1) - 1  # of a pixel within its graph
    joined = there[:, edges[0]] & there[:, edges[1]]
    graph, edge = np.nonzero(joined)
    return {
        "x": x.astype(np.float32),
        "edge_index": np.stack([number[graph, end[edge]] for end in edges]).astype(index_type(side * side)),
        "edge_attr": distance[edge, None],
        "ptr": pointer(there.sum(1)),
        "edge_ptr": pointer(joined.sum(1)),
    }


@register_dataset("digits-graphs", task="graph")
def load_digits_graphs(
    *,
    root: str | Path = "data",
    task: str = "graph",
    seed: int = 0,
    diagonals: bool = True,
    inked: bool = True,
    valid_ratio: float = 0.1,
    test_ratio: float = 0.2,
) -> Benchmark:
    """Digits as graphs: 1,797 images of 8x8 pixels, which of ten digits is it? Needs no download.

    A node is a pixel with its intensity, row and column, an edge joins pixels side by side and has their
    distance. Split at random, class by class. Accuracy.

    Args:
        root: Not used: the images come with scikit-learn.
        task: ``"graph"``.
        seed: Seeds the split.
        diagonals: Whether pixels that touch at a corner are joined, too, not only those side by side.
        inked: Whether only pixels with ink are nodes, about 33 of an image; else all 64.
        valid_ratio: Share for validation.
        test_ratio: Share for test.

    Raises:
        UserError: A share is out of range.
    """
    from sklearn.datasets import load_digits as images

    pixels, labels = images(return_X_y=True)
    made = pixel_graphs((pixels / 16).astype(np.float32).reshape(-1, 8, 8), diagonals, inked)
    tensors = {name: torch.from_numpy(array) for name, array in made.items()}
    tensors["y"] = torch.from_numpy(labels).long()
    splits = stratified_node_split(tensors["y"], seed, valid_ratio, test_ratio, what="graphs")
    info = {"source": "scikit-learn", "split": "stratified", "seed": seed, "diagonals": diagonals}
    return graph_benchmark(
        "digits-graphs",
        tensors,
        splits,
        DataSpec(in_channels=3, edge_channels=1, out_channels=10),
        targets="classes",
        evaluator=GraphEvaluator("classes", "accuracy"),
        metric="accuracy",
        info=info | {"inked": inked},
        citation=CITATION,
    )
