"""What data sets of many graphs share: flat arrays and their checks, texts among them, the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.data import Data

from graphkit.data import Benchmark, DataSpec, Evaluator, Processed, Split, cached
from graphkit.errors import UserError

__all__ = [
    "Arrays",
    "Texts",
    "check_graphs",
    "graph_benchmark",
    "index_type",
    "join_texts",
    "kept_graphs",
    "pointer",
    "split_at",
    "texts_of",
    "with_inverse",
]

Arrays = dict[str, NDArray[Any]]

_FLAT = ("x", "edge_index", "edge_attr", "y", "ptr", "edge_ptr")


def index_type(limit: int) -> np.dtype[Any]:
    """Returns the smallest signed integer type that holds 0 to ``limit - 1``."""
    return next(np.dtype(t) for t in (np.int8, np.int16, np.int32, np.int64) if limit - 1 <= np.iinfo(t).max)


def pointer(counts: NDArray[Any] | Sequence[int]) -> NDArray[np.int64]:
    """Returns where each of G graphs begins, ``[G + 1]`` int64, from their sizes ``[G]``."""
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return ptr


def with_inverse(edges: NDArray[Any]) -> NDArray[Any]:
    """Puts the other direction right after each edge, as OGB does: ``[2, M]`` to ``[2, 2M]``.

    Attributes follow by ``np.repeat(edge_attr, 2, axis=0)``.
    """
    both = np.repeat(edges, 2, axis=1)
    both[:, 1::2] = edges[::-1]
    return both


def check_graphs(
    where: str | Path,
    arrays: Mapping[str, NDArray[Any]],
    node_categories: Sequence[int] | None = None,
    edge_categories: Sequence[int] | None = None,
) -> None:
    """Checks flat arrays: pointers, ids within their graph, categories within their range, finite numbers.

    Args:
        where: The file, for messages.
        arrays: ``ptr`` and ``edge_ptr`` ``[G + 1]``, ``edge_index`` ``[2, E]``, maybe ``x``, ``edge_attr``.
        node_categories: Categories of each column of ``x``; ``None`` where it holds numbers.
        edge_categories: Those of ``edge_attr``.

    Raises:
        UserError: Names the file and the first graph that is wrong.
    """
    ptr, edge_ptr, edges = arrays["ptr"], arrays["edge_ptr"], arrays["edge_index"]
    for counts, rows, what in (
        (ptr, arrays["x"].shape[0] if "x" in arrays else int(ptr[-1]), "nodes"),
        (edge_ptr, edges.shape[1], "edges"),
    ):
        if counts.ndim != 1 or counts[0] != 0 or (np.diff(counts) < 0).any() or counts[-1] != rows:
            raise UserError(f"{where}: the graphs' {what} don't add up: {int(counts[-1]):,} of {rows:,}")
    if len(ptr) != len(edge_ptr):
        raise UserError(f"{where}: {len(ptr) - 1:,} graphs by nodes, {len(edge_ptr) - 1:,} by edges")
    limit = np.repeat(np.diff(ptr), np.diff(edge_ptr))
    wrong = ((edges < 0) | (edges >= limit)).any(0)
    if wrong.any():
        edge = int(wrong.argmax())
        graph = int(np.searchsorted(edge_ptr, edge, side="right")) - 1
        raise UserError(
            f"{where}: graph {graph} has {limit[edge]} nodes, and an edge {edges[:, edge].tolist()}"
        )
    for name, categories in (("x", node_categories), ("edge_attr", edge_categories)):
        if name not in arrays:
            continue
        values = arrays[name]
        if categories is None:
            if not np.isfinite(values).all():
                raise UserError(f"{where}: {name} holds values that aren't finite numbers")
            continue
        if values.ndim != 2 or values.shape[1] != len(categories):
            raise UserError(
                f"{where}: {name} has shape {list(values.shape)}; {len(categories)} columns were expected"
            )
        for column, known in enumerate(categories):
            low, high = values[:, column].min(initial=0), values[:, column].max(initial=0)
            if low < 0 or high >= known:
                found = low if low < 0 else high
                raise UserError(
                    f"{where}: column {column} of {name} holds {found}; known are 0 to {known - 1}"
                )


# --- Texts as tensors: a cache holds numbers alone ----------------------------------------------------------


def join_texts(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Returns texts, none with a line break, as the bytes of their lines, ``[n]`` uint8."""
    if any("\n" in text for text in texts):
        raise ValueError("texts holds one with a line break; they must be lines")
    return np.frombuffer("".join(f"{text}\n" for text in texts).encode(), dtype=np.uint8)


class Texts(Sequence[str]):
    """The lines that :func:`join_texts` made bytes, decoded when they are asked for.

    Args:
        lines: ``[n]`` uint8.
    """

    def __init__(self, lines: Tensor) -> None:
        self._lines = lines.numpy()
        ends = np.flatnonzero(self._lines == ord("\n"))
        self._starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> list[str]: ...

    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        i = at + len(self) if at < 0 else at
        if not 0 <= i < len(self):
            raise IndexError(f"text {at} of {len(self)}")
        return self._lines[self._starts[i] : self._starts[i + 1] - 1].tobytes().decode()


def texts_of(tensors: Mapping[str, Tensor], name: str = "smiles") -> Texts | None:
    """Returns the texts called ``name``, if there are any."""
    return Texts(tensors[name]) if name in tensors else None


# --- The benchmark ----------------------------------------------------------------------------------------


def kept_graphs(folder: Path, key: str, build: Callable[[], tuple[Arrays, dict[str, Any]]]) -> Processed:
    """Returns the arrays and facts that ``build`` made the first time, from a hashed cache of numbers."""

    def processed() -> Processed:
        arrays, info = build()
        return Processed({name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}, info)

    return cached(folder, key, processed)


def split_at(*sizes: int) -> dict[str, Split]:
    """Returns the split of graphs that lie one part after the other: training, validation, test."""
    parts = torch.arange(sum(sizes)).split(list(sizes))
    return {
        name: {"index": part.clone()} for name, part in zip(("train", "valid", "test"), parts, strict=True)
    }


def graph_benchmark(
    name: str,
    tensors: Mapping[str, Tensor],
    splits: Mapping[str, Split],
    spec: DataSpec,
    *,
    targets: Literal["regression", "binary", "classes"],
    evaluator: Evaluator,
    metric: str,
    info: Mapping[str, Any],
    citation: str = "",
    target_names: Sequence[str] | None = None,
    smiles: Sequence[str] | None = None,
    from_smiles: Callable[[str], Data] | None = None,
) -> Benchmark:
    """Makes a benchmark of graphs in flat arrays.

    Args:
        name: The registered name.
        tensors: ``ptr``, ``edge_ptr``, ``edge_index`` and ``y``, maybe ``x`` and ``edge_attr``; others are
            left out.
        splits: ``index`` of each part.
        spec: The sizes that models are built from.
        targets: What ``y`` holds; see :class:`Benchmark`.
        evaluator: What compares predictions with ``y``.
        metric: The deciding one of its metrics; errors are minimised.
        info: Facts; the counts of graphs, nodes, edges (columns of ``edge_index``) and parts are added.
        citation: What to cite.
        target_names: The name of each target.
        smiles: The molecule of each graph.
        from_smiles: Makes a graph of a molecule.
    """
    nodes = int(tensors["ptr"][-1])
    data = Data(num_nodes=nodes, **{key: tensors[key] for key in _FLAT if key in tensors})
    facts = dict(info)
    facts |= {"graphs": tensors["ptr"].numel() - 1, "nodes": nodes, "edges": int(tensors["edge_ptr"][-1])}
    facts |= {part: int(split["index"].numel()) for part, split in splits.items()}
    return Benchmark(
        name,
        "graph",
        data,
        dict(splits),
        spec,
        metric,
        metric not in ("mae", "rmse"),
        evaluator,
        citation,
        facts,
        targets=targets,
        target_names=target_names,
        smiles=smiles,
        from_smiles=from_smiles,
    )
