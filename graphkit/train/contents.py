"""What one checkpoint holds, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from graphkit.errors import UserError
from graphkit.nn.embedding.partition_range import RowRange
from graphkit.train.manifest import (
    BEST_ROWS,
    MODEL_ROWS,
    OPTIMIZER_ROWS,
    DamagedError,
    check_file,
    files_of_rank,
    read_listing,
)
from graphkit.train.sharded import StoredRows, stored_rows
from graphkit.train.tensors import map_tensors, read_tensors, unpack

__all__ = ["FORMAT", "PLAIN_FORMAT", "BestWeights", "Snapshot", "read_best", "read_checkpoint"]

FORMAT = 2
"""Version of a checkpoint's layout; one of a newer version is refused."""

PLAIN_FORMAT = 1
"""The version that a checkpoint without partitioned tables has: it is what it always was."""

_REQUIRED = ("model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json", "config.json")


@dataclass
class Snapshot:
    """What one checkpoint holds, on the CPU.

    Attributes:
        model: ``state_dict`` of the model.
        optimizer: ``state_dict`` of the optimizer, ``None`` for a model without parameters.
        state: JSON values: position, counters, generators, scaler.
        config: The run's configuration.
        best: ``state_dict`` of the best evaluation, ``None`` before the first.
        best_is_model: The best weights are these weights.
        ranges: To be saved: the entries of ``model`` and ``best`` that are this rank's rows of a partitioned
            table. Rows in the optimizer's state are :class:`~graphkit.train.sharded.Shard` there.
        rows: As loaded: the tables in each folder of rows. ``model`` and ``best`` don't have them then, and
            the optimizer's state has the stored tables in their place.
        folder: As loaded: where from.
    """

    model: Mapping[str, Tensor]
    optimizer: Any
    state: dict[str, Any]
    config: dict[str, Any]
    best: Mapping[str, Tensor] | None = None
    best_is_model: bool = False
    ranges: Mapping[str, RowRange] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, StoredRows]] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def best_rows(self) -> str:
        """The folder of rows that has the best weights."""
        return MODEL_ROWS if self.best_is_model else BEST_ROWS


@dataclass
class BestWeights:
    """The weights of the best evaluation, mapped into memory.

    Attributes:
        tensors: ``state_dict`` without partitioned tables.
        rows: Those, as they lie on the disk.
    """

    tensors: dict[str, Tensor]
    rows: dict[str, StoredRows]


def read_checkpoint(folder: Path, *, share: tuple[int, int] | None = None) -> Snapshot:
    """Verifies and reads one checkpoint; tables of rows are mapped.

    Args:
        folder: The checkpoint.
        share: Rank and number of ranks: of the files of rows verify only those that this rank will read.

    Raises:
        DamagedError: A file is missing, additional (and not hidden), cut short, changed or unreadable.
        UserError: The format is newer than this version of graphkit.
    """
    listing = read_listing(folder, _REQUIRED)
    own = None if share is None else files_of_rank(listing, *share)
    files = {}
    for name, entry in listing.items():
        if "rows" not in entry:
            files[name] = check_file(folder, name, entry, keep=True)
        elif own is None or name in own:
            check_file(folder, name, entry)
    with _understood(folder):
        state = _state(files["state.json"], folder)
        rows = {group: stored_rows(folder / group) for group in _row_folders(listing)}
        model = read_tensors(files["model.safetensors"])
        tensors = read_tensors(files["optimizer.safetensors"])
        best = read_tensors(files["best.safetensors"]) if "best.safetensors" in files else None
        return Snapshot(
            model=model,
            optimizer=unpack(json.loads(files["optimizer.json"]), tensors, rows.get(OPTIMIZER_ROWS)),
            state=state,
            config=json.loads(files["config.json"]),
            best=model if state["best_is_model"] else best,
            best_is_model=state["best_is_model"],
            rows=rows,
            folder=folder,
        )


def read_best(folder: Path) -> BestWeights:
    """Verifies what the best weights need, and maps them."""
    listing = read_listing(folder, _REQUIRED)
    best_is_model = "best.safetensors" not in listing
    file, group = ("model.safetensors", MODEL_ROWS) if best_is_model else ("best.safetensors", BEST_ROWS)
    for name, entry in listing.items():
        if "rows" not in entry or name.startswith(f"{group}/"):
            check_file(folder, name, entry)
    with _understood(folder):
        state = _state((folder / "state.json").read_bytes(), folder)
        if best_is_model and not state["best_is_model"]:
            raise UserError(f"{folder.parent}: nothing was evaluated yet, so there are no best weights")
        rows = stored_rows(folder / group) if group in _row_folders(listing) else {}
        return BestWeights(map_tensors(folder / file), rows)


@contextmanager
def _understood(folder: Path) -> Iterator[None]:
    """Turns what goes wrong in reading verified files into damage."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise DamagedError(f"{folder} doesn't hold what a checkpoint holds ({error})") from error


def _state(data: bytes, folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(data)
    if state["format"] > FORMAT:
        raise UserError(
            f"{folder} has checkpoint format {state['format']}, this graphkit reads up to {FORMAT}; "
            "update graphkit to use it"
        )
    return state


def _row_folders(listing: Mapping[str, Any]) -> list[str]:
    return sorted({name.split("/")[0] for name, entry in listing.items() if "rows" in entry})
