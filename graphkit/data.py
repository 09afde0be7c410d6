"""What a data set is to the rest of graphkit: a :class:`Benchmark`, and the sizes it decides."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphkit.errors import UserError
from graphkit.files import atomic_write, lock, make_folder, sha256
from graphkit.registry import DATASETS
from graphkit.sparse import Adjacency

__all__ = [
    "Benchmark",
    "DataSpec",
    "Evaluator",
    "Processed",
    "Split",
    "cached",
    "file_hash",
    "files_kept",
    "load_dataset",
    "row_normalized",
]

Split = Mapping[str, Tensor]
"""The tensors of one split. Link: ``pos_edge_label_index`` and ``neg_edge_label_index``, ``[2, E]`` int64
(training has no negatives). Node and graph: ``index`` ``[n]`` int64, ids of nodes or graphs."""

Evaluator = Callable[..., dict[str, float]]
"""Turns predictions into named metrics. Link: ``evaluator(pos_scores, neg_scores)``. Node and
graph: ``evaluator(predictions, y)``."""


@dataclass(frozen=True)
class DataSpec:
    """The sizes that the data decides; a model's constructor takes those that it names.

    Attributes:
        num_nodes: Nodes of the (single) graph.
        in_channels: Width of ``x``; ``None`` if the nodes have no features.
        num_classes: Classes of a node task.
        num_relations: Edge types, inverses not counted.
        out_channels: Width of a graph task's prediction: targets, labels or classes.
        node_categories: Categories of each column of an integer ``x``; ``in_channels`` is ``None`` then.
        edge_categories: Categories of each column of an integer ``edge_attr``.
        edge_channels: Width of a floating-point ``edge_attr``; ``None`` if edges have none.
        text_channels: Width of encoded texts; set by a task that encodes them.
    """

    num_nodes: int | None = None
    in_channels: int | None = None
    num_classes: int | None = None
    num_relations: int | None = None
    out_channels: int | None = None
    node_categories: tuple[int, ...] | None = None
    edge_categories: tuple[int, ...] | None = None
    edge_channels: int | None = None
    text_channels: int | None = None

    def offered(self) -> dict[str, Any]:
        """Returns every size by name, for a model to pick from."""
        return asdict(self)


@dataclass
class Benchmark:
    """A data set made ready for one task.

    Attributes:
        name: The registered name.
        task: ``"link"``, ``"node"``, ...
        data: What message passing may see. Link: ``edge_index`` holds the *training* edges only, in both
            directions; ``x`` is ``[N, F]`` float32 or absent. Graph: all graphs in flat arrays, as
            :class:`~graphkit.graphs.GraphSet` reads them, with ``y`` for graphs or nodes.
        splits: ``"train"``, ``"valid"``, ``"test"``.
        spec: The sizes that models are built from.
        metric: The metric that decides, one of the evaluator's keys (``"hits@100"``).
        maximize: Whether larger is better.
        evaluator: See :data:`Evaluator`.
        citation: The paper or page to cite.
        info: Facts worth a line in the run's result: split seed, counts, source, licence. ``files`` holds the
            SHA-256 of the user's own files by path, for :func:`files_kept`; ``smiles column`` is the name of
            the molecules' column in them.
        node_names: The user's name of each node, where that isn't its number; for predictions.
        node_aliases: Other names of nodes, each with the node that has it; for questions.
        adjacency: What message passing sees as sorted rows, where the loader keeps them; memory-mapped for
            large graphs. ``data.edge_index`` is then the graph as stored.
        targets: What ``y`` holds, graph task: ``regression`` ``[G, T]`` float32, ``binary`` labels ``[G, T]``
            float32 in 0 and 1, either with NaN where unknown, or ``classes`` ``[G]`` int64. G counts graphs,
            or nodes where these are what is predicted.
        target_names: The name of each target, label or class.
        smiles: The molecule that each graph is, where it is one.
        from_smiles: Turns a molecule into a graph with the features of this data set; raises
            :class:`~graphkit.errors.UserError` for what is none.
        questions: The words of each question, question answering. ``data`` holds the rest of them as
            :class:`~graphkit.questions.QuestionSet`; ``node_names`` and ``target_names`` name entities and
            relations.
        question_texts: What a model reads for each question, if that isn't the question as asked: its words
            with ``info["mask"]`` in place of the entities that it names.
        target_texts: The words that stand for each target or relation, where its name isn't made of words.
    """

    name: str
    task: str
    data: Data
    splits: dict[str, Split]
    spec: DataSpec
    metric: str
    maximize: bool
    evaluator: Evaluator
    citation: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    node_names: Sequence[str] | None = None
    adjacency: Adjacency | None = None
    targets: Literal["", "regression", "binary", "classes"] = ""
    target_names: Sequence[str] | None = None
    smiles: Sequence[str] | None = None
    from_smiles: Callable[[str], Data] | None = None
    questions: Sequence[str] | None = None
    question_texts: Sequence[str] | None = None
    target_texts: Sequence[str] | None = None
    node_aliases: Sequence[tuple[str, int]] = ()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that stand for the graph, its features and labels, the node names and the splits.

        Computed when first asked for; a benchmark isn't changed after that. Of a tensor above 1 GiB only
        shape, type and 64 evenly spaced blocks of 1 MiB count: it may be mapped from a disk.
        """
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps(None if self.node_names is None else list(self.node_names)).encode())
        groups = {
            "data": self.data.to_dict(),
            **{f"split {name}": part for name, part in self.splits.items()},
        }
        if self.adjacency is not None:
            groups["adjacency"] = {"rowptr": self.adjacency.rowptr, "col": self.adjacency.col}
        for group, values in sorted(groups.items()):
            for name, value in sorted(values.items()):
                if isinstance(value, Tensor):
                    plain = value.detach().cpu().to_dense()
                    digest.update(f"{group}/{name} {plain.dtype} {tuple(plain.shape)}".encode())
                    for block in _blocks(plain):
                        digest.update(block.reshape(-1).view(torch.uint8).numpy().data)
                elif isinstance(value, bool | int | float | str):
                    digest.update(f"{group}/{name} {value!r}".encode())
        return digest.hexdigest()


_WHOLE = 1 << 30
_BLOCKS, _BLOCK_BYTES = 64, 1 << 20


def _blocks(value: Tensor) -> Iterator[Tensor]:
    """Yields what the fingerprint hashes of a dense tensor: all of it, or blocks evenly spaced to the end.

    Blocks follow the order of indices, whatever the order in memory, and nothing but them is copied.
    """
    if value.numel() * value.element_size() <= _WHOLE:
        yield value.contiguous()
        return
    count = _BLOCK_BYTES // value.element_size()
    for k in range(_BLOCKS):
        start = (value.numel() - count) * k // (_BLOCKS - 1)
        yield value[torch.unravel_index(torch.arange(start, start + count), value.shape)]


def load_dataset(
    name: str,
    *,
    root: str | Path = "data",
    task: Literal["link", "node"] | str | None = None,
    seed: int = 0,
    **options: Any,
) -> Benchmark:
    """Loads a registered data set.

    Args:
        name: A registered name, e.g. ``"cora"``.
        root: Folder for raw files and caches; raw files already in place are used.
        task: The task to prepare it for; the data set's first one by default.
        seed: Seeds random splits; ignored by data sets whose split is fixed.
        **options: What this data set's loader takes beside these.

    Raises:
        UserError: Unknown name, a task it doesn't serve, missing files offline, corrupt files.
    """
    entry = DATASETS.get(name)
    chosen = task or entry.tasks[0]
    if chosen not in entry.tasks:
        raise UserError(f"data set '{name}' has no task '{chosen}'; it serves: {', '.join(entry.tasks)}")
    benchmark: Benchmark = entry.target(root=Path(root), task=chosen, seed=seed, **options)
    return benchmark


def row_normalized(x: Tensor) -> Tensor:
    """Returns ``x`` ``[N, F]`` with each row divided by its sum; rows of zeros stay."""
    return x / x.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)


class Processed(NamedTuple):
    """What a raw file was turned into.

    Attributes:
        tensors: By name; any dtype and shape that safetensors knows.
        info: Anything that JSON holds.
    """

    tensors: dict[str, Tensor]
    info: dict[str, Any]


_CACHE_FORMAT = 1
_uncached: set[str] = set()


def cached(
    folder: str | Path, key: str, build: Callable[[], Processed], *, timeout: float = 3600.0
) -> Processed:
    """Returns what ``build`` made the first time: tensors in safetensors, the rest in JSON, both hashed.

    Processes that start together build once: one of them, under a lock, while the others wait. Nothing that
    could run code is ever read.

    Args:
        folder: Where the cache lies, created if need be. If it can't be written, ``build`` runs each time,
            and a warning says so once.
        key: Says all that the result depends on: raw files' hashes, options, the format's version.
        build: Makes the result; what it raises is passed on, and nothing is stored.
        timeout: Seconds to wait for another process that builds the same.

    Raises:
        UserError: If another process holds the lock for longer than ``timeout``.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    stem = f"{re.sub(r'[^A-Za-z0-9]+', '-', key)[:40].strip('-')}-{digest}"
    tensors, manifest = Path(folder) / f"{stem}.safetensors", Path(folder) / f"{stem}.json"
    found = _read_cache(tensors, manifest, key)
    if isinstance(found, Processed):
        return found
    try:
        if not os.access(make_folder(folder), os.W_OK):
            raise UserError(f"cannot write {folder}")
    except UserError as error:
        if str(folder) not in _uncached:
            _uncached.add(str(folder))
            warnings.warn(f"nothing is cached: {error}", stacklevel=2)
        return _plain(build())
    with lock(Path(folder) / f".{stem}.lock", timeout):
        found = _read_cache(tensors, manifest, key)  # another process may have built it
        if isinstance(found, Processed):
            return found
        if found:
            warnings.warn(f"{found}; it is built again", stacklevel=2)
        made = _plain(build())
        _write_cache(tensors, manifest, key, made)
    return made


_hashes: ContextVar[Mapping[str, str]] = ContextVar("hashes of files that a run was trained on")


@contextmanager
def files_kept(hashes: Mapping[str, str]) -> Iterator[None]:
    """Lets loaders find in their cache what they made of a user's files, if these are gone.

    Args:
        hashes: SHA-256 by path, as a run's result has them from ``Benchmark.info["files"]``.
    """
    token = _hashes.set(hashes)
    try:
        yield
    finally:
        _hashes.reset(token)


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a user's file, for the key of :func:`cached`; of one that is gone, the kept one.

    Raises:
        UserError: It isn't there, and :func:`files_kept` doesn't know it.
    """
    if path.is_file():
        return sha256(path)
    kept = _hashes.get({}).get(str(path))
    if kept is None:
        raise UserError(f"there is no file {path}")
    return kept


def _plain(made: Processed) -> Processed:
    """Returns the result as it would come from the cache, so that the first time is like every other."""
    return Processed(made.tensors, json.loads(json.dumps(made.info)))


def _hash_of(facts: dict[str, Any]) -> str:
    """Returns the hash by which a manifest vouches for itself."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _read_cache(tensors: Path, manifest: Path, key: str) -> Processed | str:
    """Returns the cached result, an empty string if there is none, or what is wrong with it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        text = manifest.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot read {manifest} ({error.strerror or error})"
    try:
        stored = json.loads(text)
        if stored.pop("self") != _hash_of(stored):
            return f"{manifest} is damaged"
        if stored["format"] != _CACHE_FORMAT or stored["key"] != key:
            return f"{manifest} belongs to something else"
        if sha256(tensors) != stored["sha256"]:
            return f"{tensors} is damaged"
        return Processed(load_file(tensors), stored["info"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"{tensors} can't be read ({error})"


def _write_cache(tensors: Path, manifest: Path, key: str, made: Processed) -> None:
    """Writes tensors, then the manifest that makes them count; a full disk costs a warning only."""
    from safetensors.torch import save

    content = save({name: t.detach().cpu().contiguous().clone() for name, t in made.tensors.items()})
    facts = {
        "format": _CACHE_FORMAT,
        "key": key,
        "sha256": hashlib.sha256(content).hexdigest(),
        "info": made.info,
    }
    try:
        atomic_write(tensors, content)
        atomic_write(manifest, json.dumps({"self": _hash_of(facts), **facts}, indent=1))
    except UserError as error:
        warnings.warn(f"nothing is cached: {error}", stacklevel=3)
