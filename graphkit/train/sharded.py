"""Partitioned tables in checkpoints: every rank saves its rows, any number of ranks reads them back.

The engine is ``torch.distributed.checkpoint`` with its safetensors layout: a folder with one file a rank,
``rows-00001.safetensors``, whose header says where the file's rows stand in the whole table. Its own writer
joins a rank's tensors into one string of bytes before they reach the disk, which takes twice the table's
memory; the one here hands them to safetensors, which writes them from where they are, and hashes the file.
Whatever reads that layout reads these files; nothing is pickled.

A process that looks rows up, or copies them elsewhere, needs no rank: :func:`stored_rows` maps the files
into memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import torch.distributed as dist
from torch import Tensor, nn

from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import RowRange, range_of

__all__ = [
    "Shard",
    "StoredRows",
    "agree",
    "load_rows",
    "partitioned_parameters",
    "raise_together",
    "save_rows",
    "stored_rows",
]

_OFFSETS = "DCP_SHARDING_INFO"  # the header's entry in which distributed checkpoints keep a tensor's offsets


class Shard(NamedTuple):
    """The rows of a table that this rank holds.

    Attributes:
        local: ``[rows here, ...]``.
        rows: Where they stand in the whole; ``None`` to read all of them.
    """

    local: Tensor
    rows: RowRange | None


@dataclass(frozen=True)
class StoredRows:
    """A table as it lies on the disk, mapped into memory: pages are read when they are looked at.

    Attributes:
        name: What it is called there.
        shape: Of the whole table.
        parts: First row, rows and file of each part, in order and without gaps.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[int, Tensor, Path], ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0][1].dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Returns rows ``start`` to ``stop - 1``: a view of the file if they are in one, else a copy."""
        pieces = [
            rows[max(0, start - first) : max(0, stop - first)]
            for first, rows, _ in self.parts
            if first < stop and start < first + len(rows)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces) if pieces else self.parts[0][1][:0]


def partitioned_parameters(model: nn.Module) -> dict[str, RowRange]:
    """Returns which rows this rank has of each parameter that holds only its own, by the parameter's name."""
    found = model.named_parameters(remove_duplicate=False)
    return {name: p.rows for name, p in found if getattr(p, "partitioned", False)}  # type: ignore[attr-defined]


def save_rows(folder: Path, shards: Mapping[str, Shard]) -> dict[str, dict[str, Any]]:
    """Writes the rows of all ranks into a new folder, if there are any; all ranks call it together.

    Args:
        folder: Where, on a file system that all ranks share.
        shards: Tables by name, the same on each rank.

    Returns:
        The manifest's entry of each file by its name, of all ranks, on every rank.

    Raises:
        UserError: A rank could not write, or ranks don't hold the same tables; all ranks raise.
        ValueError: Rows that aren't the rank's block; the others raise :class:`UserError`.
    """
    if not any(agree(bool(shards))):
        return {}
    from graphkit.train import row_engine

    error: Exception | None = None
    if rank_and_world()[0] == 0:
        try:
            folder.mkdir()
        except OSError as problem:
            error = problem
    raise_together(error)
    views: dict[str, Tensor] = {}
    try:
        if not folder.is_dir():
            raise UserError(f"{folder} isn't seen by all ranks; partitioned tables need a shared file system")
        views = {name: _view(name, shard) for name, shard in shards.items()}
    except (UserError, ValueError) as problem:
        error = problem
    raise_together(error)
    tables = agree(sorted((name, str(view.dtype), list(view.shape)) for name, view in views.items()))
    for rank, theirs in enumerate(tables):
        if theirs != tables[0]:
            raise UserError(f"rank {rank} has the partitioned tables {theirs}, rank 0 {tables[0]}")
    listing: dict[str, dict[str, Any]] = {}
    for written in agree(row_engine.save(folder, views)):
        listing |= written
    return listing


def load_rows(folder: Path, shards: Mapping[str, Shard]) -> None:
    """Fills each rank's rows from a folder of :func:`save_rows`, whatever number of ranks wrote it.

    All ranks call it together.

    Args:
        folder: Of :func:`save_rows`.
        shards: Tables by name, filled in place; a rank without row range asks for all rows.

    Raises:
        UserError: A table isn't there, or has another shape.
    """
    from graphkit.train import row_engine

    if not shards:
        return
    stored = stored_rows(folder)
    for name, (local, rows) in shards.items():
        wanted = local.shape if rows is None else (rows.total, *local.shape[1:])
        if name not in stored or stored[name].shape != tuple(wanted):
            there = f"has shape {list(stored[name].shape)}" if name in stored else "isn't there"
            raise UserError(f"'{name}' {there}; it must be {list(wanted)}")
    # Devices other than the CPU get theirs by way of it.
    staged = {
        name: Shard(shard.local.detach().cpu().contiguous(), shard.rows) for name, shard in shards.items()
    }
    row_engine.load(folder, {name: _view(name, shard) for name, shard in staged.items()})
    for name, shard in shards.items():
        if staged[name].local.data_ptr() != shard.local.data_ptr():
            shard.local.detach().copy_(staged[name].local)


def stored_rows(folder: Path) -> dict[str, StoredRows]:
    """Maps the tables of a folder into memory.

    Raises:
        ValueError: Rows are missing, or a file isn't one of :func:`save_rows`.
    """
    parts: dict[str, list[tuple[int, Tensor, Path]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            offsets = json.loads((file.metadata() or {}).get(_OFFSETS, "{}"))
            for name in file.keys():  # noqa: SIM118
                first = int(offsets[name]["saved_offsets"][0])
                parts.setdefault(name, []).append((first, file.get_tensor(name), path))
    tables = {}
    for name, found in parts.items():
        found.sort(key=lambda part: (part[0], len(part[1])))
        end = 0
        for first, rows, path in found:
            if first != end:
                raise ValueError(f"{path} has rows of '{name}' from {first}; those from {end} are missing")
            end += len(rows)
        tables[name] = StoredRows(name, (end, *found[0][1].shape[1:]), tuple(found))
    return tables


def agree(value: Any) -> list[Any]:
    """Returns what every rank said, by rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    everywhere: list[Any] = [None] * world
    dist.all_gather_object(everywhere, value)
    return everywhere


def raise_together(error: Exception | None) -> None:
    """Raises on every rank if there was an error on one: there the error itself, elsewhere what it says.

    Raises:
        UserError: Another rank failed.
    """
    told = None if error is None else str(error)
    if error is not None and not isinstance(error, UserError):
        told = f"rank {rank_and_world()[0]} failed with {type(error).__name__}: {error}"
    first = next((message for message in agree(told) if message is not None), None)
    if error is not None:
        raise error
    if first is not None:
        raise UserError(first)


def _view(name: str, shard: Shard) -> Tensor:
    """Returns the whole table of a shard, as distributed checkpoints know it.

    Raises:
        ValueError: The rows of a rank aren't the block that ``DTensor`` expects there.
    """
    from graphkit.train import row_engine

    local, (rank, world) = shard.local.detach().cpu().contiguous(), rank_and_world()
    if shard.rows is None:
        return local
    if (shard.rows, len(local)) != range_of(shard.rows.total, rank, world):
        raise ValueError(
            f"'{name}' has {len(local)} rows, {shard.rows}, on rank {rank} of {world}; its block is "
            f"{range_of(shard.rows.total, rank, world)}"
        )
    return row_engine.whole_view(local, shard.rows.total)
