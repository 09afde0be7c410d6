"""Checkpoints that are complete or absent, and notice a flipped bit.

A checkpoint is a directory ``step-XXXXXXXX`` (``.1``, ``.2`` follow if one step is saved again, as before and
after an evaluation)::

    model.safetensors       weights and buffers
    optimizer.safetensors   tensors of the optimizer's state
    optimizer.json          the rest of it
    state.json              position, best so far, generators, scaler, format
    config.json             the run's configuration
    best.safetensors        weights of the best evaluation, unless those are model.safetensors
    model.rows/ optimizer.rows/ best.rows/
                            the same of partitioned tables, a file a rank (:mod:`graphkit.train.sharded`)
    MANIFEST.json           SHA-256 and size of each file above, and of itself

It is written under a temporary name, flushed to disk and renamed once: from then on it counts. The pointer
files ``last`` and ``best`` follow, for people and scripts; loading trusts the directories, newest first, and
what their manifests say.

The best weights live in memory between checkpoints and inside each checkpoint, not in one of their own at
each improvement: in small runs every other epoch is an improvement, and flushing 10 MB to disk takes as long
as an epoch. Since the best is part of each checkpoint, a resumed run knows exactly what the stopped one knew.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.files import atomic_write, sync_folder
from graphkit.nn.embedding.partition_range import RowRange
from graphkit.train.contents import (
    FORMAT,
    PLAIN_FORMAT,
    BestWeights,
    Snapshot,
    read_best,
    read_checkpoint,
)
from graphkit.train.manifest import (
    BEST_ROWS,
    MODEL_ROWS,
    OPTIMIZER_ROWS,
    DamagedError,
    entry_of,
    manifest_text,
)
from graphkit.train.sharded import Shard, agree, raise_together, save_rows
from graphkit.train.tensors import pack, tensor_bytes

__all__ = [
    "FORMAT",
    "BestWeights",
    "CheckpointStore",
    "DamagedError",
    "Snapshot",
    "load_best",
    "open_best",
    "read_checkpoint",
]

_NAME = re.compile(r"^step-(\d{8,})(?:\.(\d+))?$")
_log = logging.getLogger("graphkit")
_T = TypeVar("_T")


def fault_point(name: str) -> None:
    """Does nothing; tests put a failure here to interrupt a save at each of its stages."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``; made on the first save.
        keep: Number of newest checkpoints kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = max(2, keep)
        self.in_use: str | None = None

    def names(self) -> list[str]:
        """Returns the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(_order(path.name), path.name) for path in self.folder.iterdir() if path.is_dir()]
        return [name for order, name in sorted((o, n) for o, n in found if o is not None)]

    # Saving

    def save(self, snapshot: Snapshot, updates: int) -> Path:
        """Writes a checkpoint and publishes it.

        With partitioned tables all ranks call it together, and each writes its rows; without them one does.

        Args:
            snapshot: What to save.
            updates: Steps done, which gives the name.

        Returns:
            The new directory.

        Raises:
            UserError: The disk is full or can't be written, for any rank; earlier checkpoints are untouched.
        """
        settle = raise_together if snapshot.ranges else _raise
        first = not snapshot.ranges or rank_and_world()[0] == 0
        name, owner = self._free_name(updates), os.getpid()
        if snapshot.ranges:
            name, owner = agree((name, owner))[0]
        temporary = self.folder / f".tmp-{name}-{owner}"
        tensors: dict[str, Tensor] = {}
        shards: dict[str, Shard] = {}
        tree, error = None, None
        try:
            tree = pack(snapshot.optimizer, tensors, rows=shards)
            if first:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._sweep()
                temporary.mkdir()
        except Exception as problem:
            error = self._told(problem, name)
        settle(error)
        try:
            # Fails on all ranks or on none, so nothing has to be settled after it.
            listing = self._write_rows(temporary, snapshot, shards) if snapshot.ranges else {}
        except Exception as problem:
            if first:
                shutil.rmtree(temporary, ignore_errors=True)
            raise self._told(problem, name) from problem
        if first:
            try:
                self._write_all(temporary, snapshot, tree, tensors, listing)
                self._publish(temporary, name, snapshot)
            except Exception as problem:
                shutil.rmtree(temporary, ignore_errors=True)
                error = self._told(problem, name)
        settle(error)
        if first:
            fault_point("before prune")
            self._prune()
        return self.folder / name

    def _told(self, problem: Exception, name: str) -> Exception:
        """Returns what to tell of a problem: one line of a disk's, the problem itself if it is a mistake."""
        if not isinstance(problem, (OSError, UserError)):
            return problem
        told = UserError(f"can't write checkpoint {self.folder / name}: {problem}")
        told.__cause__ = problem
        return told

    def _publish(self, temporary: Path, name: str, snapshot: Snapshot) -> None:
        fault_point("before rename")
        os.rename(temporary, self.folder / name)
        fault_point("after rename")
        sync_folder(self.folder)
        atomic_write(self.folder / "last", name + "\n")
        fault_point("between pointers")
        if snapshot.best is not None:
            file = "model.safetensors" if snapshot.best_is_model else "best.safetensors"
            atomic_write(self.folder / "best", f"{name}/{file}\n")

    def _write_rows(self, folder: Path, snapshot: Snapshot, optimizer: dict[str, Shard]) -> dict[str, Any]:
        """Writes the rows of all ranks, which call it together; returns their part of the manifest."""
        groups = {MODEL_ROWS: _shards(snapshot.model, snapshot.ranges), OPTIMIZER_ROWS: optimizer}
        if snapshot.best is not None and not snapshot.best_is_model:
            groups[BEST_ROWS] = _shards(snapshot.best, snapshot.ranges)
        listing: dict[str, Any] = {}
        for group, shards in groups.items():
            for file, entry in save_rows(folder / group, shards).items():
                listing[f"{group}/{file}"] = entry
            fault_point(f"after {group}")
        return listing

    def _write_all(
        self,
        folder: Path,
        snapshot: Snapshot,
        tree: Any,
        tensors: Mapping[str, Tensor],
        listing: dict[str, Any],
    ) -> None:
        form = FORMAT if listing else PLAIN_FORMAT
        state = {"format": form, **snapshot.state, "best_is_model": snapshot.best_is_model}
        contents: dict[str, Any] = {
            "model.safetensors": _without(snapshot.model, snapshot.ranges),
            "optimizer.safetensors": tensors,
            "optimizer.json": tree,
            "state.json": state,
            "config.json": snapshot.config,
        }
        if snapshot.best is not None and not snapshot.best_is_model:
            contents["best.safetensors"] = _without(snapshot.best, snapshot.ranges)
        for name, content in contents.items():
            tensor_file = name.endswith(".safetensors")
            data = tensor_bytes(content) if tensor_file else json.dumps(content, default=str).encode()
            listing[name] = entry_of(data)
            write_flushed(folder / name, data)
            fault_point(f"after {name}")
        for group in {name.split("/")[0] for name in listing if "/" in name}:
            sync_folder(folder / group)
        write_flushed(folder / "MANIFEST.json", manifest_text(listing).encode())
        fault_point("after MANIFEST.json")
        sync_folder(folder)

    def _free_name(self, updates: int) -> str:
        name, again = f"step-{updates:08d}", 0
        while (self.folder / (f"{name}.{again}" if again else name)).exists():
            again += 1
        return f"{name}.{again}" if again else name

    def _sweep(self) -> None:
        """Removes what a killed save or deletion left; the run's lock keeps other writers away."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        """Deletes all but the newest; the best weights are inside each, and the one in use stays."""
        for name in self.names()[: -self.keep]:
            if name == self.in_use:
                continue
            try:
                # Renamed first: a deletion cut short must not look like a damaged checkpoint.
                doomed = self.folder / f".tmp-old-{name}"
                os.rename(self.folder / name, doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                _log.warning("old checkpoint %s could not be deleted: %s", self.folder / name, error)

    # Loading

    def load(self, *, repair: bool = False, together: bool = False) -> Snapshot | None:
        """Returns the newest good checkpoint, ``None`` if there never was one.

        Args:
            repair: Rename damaged checkpoints to ``damaged-...``, so that the run goes on without them.
            together: All ranks call it at once and get the same one, which is good for all of them. Each
                verifies the files that it will read; otherwise all files are verified.

        Raises:
            UserError: All are damaged, or one comes from a newer format.
        """
        share = rank_and_world() if together else None
        return self._newest(lambda folder: read_checkpoint(folder, share=share), repair, together)

    def open_best(self) -> BestWeights | None:
        """Returns the best weights of the newest good checkpoint; of the optimizer's rows nothing is read.

        Raises:
            UserError: As in :meth:`load`, or nothing was evaluated yet.
        """
        return self._newest(read_best, repair=False, together=False)

    def _newest(self, read: Callable[[Path], _T], repair: bool, together: bool) -> _T | None:
        problems = []
        first = not together or rank_and_world()[0] == 0
        names = agree(self.names())[0] if together else self.names()
        for name in reversed(names):
            found: _T | None = None
            problem: str | None = None
            try:
                found = read(self.folder / name)
            except DamagedError as error:
                problem = str(error)
            seen = agree(problem) if together else [problem]
            problem = next((text for text in seen if text is not None), None)
            if problem is None:
                self.in_use = name
                return found
            problems.append(problem)
            if first:
                _log.warning("checkpoint damaged: %s; trying the one before", problem)
                if repair:
                    self._set_aside(name)
        if problems:
            raise UserError(f"no checkpoint in {self.folder} is intact: {'; '.join(problems)}")
        return None

    def _set_aside(self, name: str) -> None:
        target, again = self.folder / f"damaged-{name}", 0
        while target.exists():
            again += 1
            target = self.folder / f"damaged-{name}-{again}"
        try:
            os.rename(self.folder / name, target)
        except OSError as error:
            _log.warning("damaged checkpoint %s could not be renamed: %s", self.folder / name, error)


def open_best(folder: Path) -> BestWeights:
    """Opens the best weights of a run's newest good checkpoint, without reading more of them than is asked.

    Args:
        folder: The ``checkpoints`` folder of a run.

    Raises:
        UserError: There is no checkpoint, none is intact, or nothing was evaluated yet.
    """
    best = CheckpointStore(folder).open_best()
    if best is None:
        raise UserError(f"{folder} holds no checkpoint")
    return best


def load_best(folder: Path) -> dict[str, Tensor]:
    """Returns the best weights of a run's newest good checkpoint, partitioned tables in one piece.

    Args:
        folder: The ``checkpoints`` folder of a run.

    Raises:
        UserError: There is no checkpoint, none is intact, or nothing was evaluated yet.
    """
    best = open_best(folder)
    return {**best.tensors, **{name: rows.read(0, rows.shape[0]) for name, rows in best.rows.items()}}


def write_flushed(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        fault_point(f"before flush of {path.name}")
        os.fsync(file.fileno())


def _shards(tensors: Mapping[str, Tensor], ranges: Mapping[str, RowRange]) -> dict[str, Shard]:
    return {name: Shard(tensors[name], rows) for name, rows in ranges.items()}


def _without(tensors: Mapping[str, Tensor], ranges: Mapping[str, RowRange]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in ranges}


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _order(name: str) -> tuple[int, int] | None:
    match = _NAME.match(name)
    return (int(match[1]), int(match[2] or 0)) if match else None
