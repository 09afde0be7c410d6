"""What data sets of relational queries share: one graph a query, its path, its identity, its benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Split
from graphkit.datasets.graph_sets import Arrays, pointer
from graphkit.errors import UserError
from graphkit.evaluation.graph import GraphEvaluator
from graphkit.graphs import ragged_index

__all__ = ["graph_keys", "held_out", "join_graphs", "relation_benchmark", "take_graphs", "with_paths"]

_INT = ("edge_type", "source", "target", "y", "k", "b")


def join_graphs(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Puts sets of graphs in flat arrays one after the other.

    Args:
        parts: Each with ``ptr``, ``edge_ptr`` and ``edge_index``; the other arrays that all of them have are
            joined along their first dimension.
    """
    shared = [name for name in parts[0] if all(name in part for part in parts)]
    made: Arrays = {}
    for name in shared:
        if name in ("ptr", "edge_ptr"):
            made[name] = pointer(np.concatenate([np.diff(part[name]) for part in parts]))
        else:
            made[name] = np.concatenate([part[name] for part in parts], 1 if name == "edge_index" else 0)
    return made


def take_graphs(arrays: Mapping[str, NDArray[Any]], ids: NDArray[np.int64]) -> Arrays:
    """Returns some graphs of a set in flat arrays, in the given order."""
    data = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
    count, chosen = len(arrays["ptr"]) - 1, torch.from_numpy(ids)
    edges, edge_ptr = ragged_index(data["edge_ptr"], chosen)
    nodes, ptr = ragged_index(data["ptr"], chosen)
    made: Arrays = {"ptr": ptr.numpy(), "edge_ptr": edge_ptr.numpy()}
    for name, value in arrays.items():
        if name == "edge_index":
            made[name] = value[:, edges.numpy()]
        elif name.startswith("edge_") and name not in made:
            made[name] = value[edges.numpy()]
        elif name.startswith("node_"):
            made[name] = value[nodes.numpy()]
        elif name not in made:
            assert len(value) == count
            made[name] = value[ids]
    return made


def with_paths(arrays: Arrays) -> Arrays:
    """Adds ``node_on_path`` ``[N]`` bool: the nodes of one shortest path between source and target.

    Directions don't count; both ends are included, and where nothing joins them they are all.
    """
    from graphkit.nn.paths import path_mask

    names = ("edge_index", "edge_ptr", "ptr", "source", "target")
    mask = path_mask(*(torch.from_numpy(arrays[name].astype(np.int64)) for name in names))
    return arrays | {"node_on_path": mask.numpy()}


def graph_keys(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Returns a number for each graph that doesn't depend on the numbering of its nodes and edges.

    It is a hash of the graph with its labels and its marked source and target, refined as by Weisfeiler and
    Leman. The answer isn't part of it.

    Args:
        arrays: ``edge_index``, ``edge_type``, ``ptr``, ``edge_ptr``, ``source`` and ``target``.
    """
    from graphkit.datasets import _relation_loops as loops

    def wide(name: str) -> NDArray[np.int64]:
        return np.ascontiguousarray(arrays[name], dtype=np.int64)

    found = np.zeros(len(arrays["ptr"]) - 1, dtype=np.int64)
    edges, types, ptr, edge_ptr = wide("edge_index"), wide("edge_type"), wide("ptr"), wide("edge_ptr")
    loops.graph_keys(edges, types, ptr, edge_ptr, wide("source"), wide("target"), found)
    return found


def held_out(count: int, ratio: float, seed: int, keys: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
    """Chooses graphs for validation.

    Args:
        count: Graphs to choose from.
        ratio: Share to choose, above 0 and below 1.
        seed: Seeds the choice.
        keys: ``[count]`` identities: equal graphs then stay on the same side, and as many are chosen as fit
            into the share.

    Returns:
        ``[count]`` which ones are chosen.

    Raises:
        UserError: The share is out of range, or leaves one side empty.
    """
    if not 0 < ratio < 1:
        raise UserError(f"valid_ratio is {ratio}; it must lie between 0 and 1")
    keys = np.arange(count) if keys is None else keys
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order] = sizes[order].cumsum() <= int(count * ratio)
    found: NDArray[np.bool_] = chosen[group]
    if not 0 < found.sum() < count:
        raise UserError(
            f"valid_ratio {ratio} of {count:,} graphs ({len(sizes):,} different) leaves a split empty"
        )
    return found


def relation_benchmark(
    name: str,
    tensors: Mapping[str, Tensor],
    splits: Mapping[str, NDArray[np.int64]],
    relations: Sequence[str],
    *,
    info: Mapping[str, Any],
    citation: str,
) -> Benchmark:
    """Makes a benchmark of queries: which relation holds between a graph's source and its target?

    Args:
        name: The registered name.
        tensors: Flat arrays of G graphs: ``edge_index`` ``[2, E]``, row 0 the tail of each arrow,
            ``edge_type`` ``[E]``, ``ptr``, ``edge_ptr``, ``source``, ``target`` and ``y`` ``[G]``,
            ``node_on_path`` ``[N]`` bool; ``k`` (length of the path) and ``b`` (number of paths) ``[G]``
            where known.
        splits: Graphs of each part.
        relations: The relations' names in the order of their numbers; answers are among them.
        info: Facts; counts are added.
        citation: What to cite.
    """
    values = {key: value.long() if key in _INT else value for key, value in tensors.items()}
    nodes = int(values["ptr"][-1])
    parts: dict[str, Split] = {part: {"index": torch.from_numpy(index)} for part, index in splits.items()}
    counts = {"graphs": values["y"].numel(), "nodes": nodes, "edges": int(values["edge_ptr"][-1])}
    return Benchmark(
        name,
        "relation",
        Data(num_nodes=nodes, **values),
        parts,
        DataSpec(num_relations=len(relations)),
        "accuracy",
        True,
        GraphEvaluator("classes", "accuracy"),
        citation,
        dict(info) | counts | {part: len(index) for part, index in splits.items()},
        targets="classes",
        target_names=list(relations),
    )
