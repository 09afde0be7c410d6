"""Checkpoints that are complete or absent, and notice a flipped bit.

A checkpoint is a directory ``step-XXXXXXXX`` (``.1``, ``.2`` follow if one step is saved again, as before and
after an evaluation)::

    model.safetensors       weights and buffers
    optimizer.safetensors   tensors of the optimizer's state
    optimizer.json          the rest of it
    state.json              position, best so far, generators, scaler, format
    config.json             the run's configuration
    best.safetensors        weights of the best evaluation, unless those are model.safetensors
    MANIFEST.json           SHA-256 and size of each file above, and of itself

It is written under a temporary name, flushed to disk and renamed once: from then on it counts. The pointer
files ``last`` and ``best`` follow, for people and scripts; loading trusts the directories, newest first, and
what their manifests say.

The best weights live in memory between checkpoints and inside each checkpoint, not in one of their own at
each improvement: in small runs every other epoch is an improvement, and flushing 10 MB to disk takes as long
as an epoch. Since the best is part of each checkpoint, a resumed run knows exactly what the stopped one knew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from graphkit.errors import UserError
from graphkit.files import atomic_write, sync_folder
from graphkit.train.tensors import pack, read_tensors, tensor_bytes, unpack

__all__ = [
    "FORMAT",
    "CheckpointStore",
    "DamagedError",
    "Snapshot",
    "load_best",
    "read_checkpoint",
]

FORMAT = 1
"""Version of the layout above; a checkpoint of a newer one is refused, of an older one read or refused."""

_NAME = re.compile(r"^step-(\d{8,})(?:\.(\d+))?$")
_REQUIRED = ("model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json", "config.json")
_log = logging.getLogger("graphkit")


class DamagedError(Exception):
    """A checkpoint isn't what was written; the message names the file."""


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
    """

    model: Mapping[str, Tensor]
    optimizer: Any
    state: dict[str, Any]
    config: dict[str, Any]
    best: Mapping[str, Tensor] | None = None
    best_is_model: bool = False


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

        Args:
            snapshot: What to save.
            updates: Steps done, which gives the name.

        Returns:
            The new directory.

        Raises:
            UserError: The disk is full or can't be written; earlier checkpoints are untouched.
        """
        name = self._free_name(updates)
        temporary = self.folder / f".tmp-{name}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            temporary.mkdir()
            self._write_all(temporary, snapshot)
            fault_point("before rename")
            os.rename(temporary, self.folder / name)
            fault_point("after rename")
            sync_folder(self.folder)
            atomic_write(self.folder / "last", name + "\n")
            fault_point("between pointers")
            if snapshot.best is not None:
                file = "model.safetensors" if snapshot.best_is_model else "best.safetensors"
                atomic_write(self.folder / "best", f"{name}/{file}\n")
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(f"can't write checkpoint {self.folder / name}: {error}") from error
        fault_point("before prune")
        self._prune()
        return self.folder / name

    def _write_all(self, folder: Path, snapshot: Snapshot) -> None:
        tensors: dict[str, Tensor] = {}
        tree = pack(snapshot.optimizer, tensors)
        state = {"format": FORMAT, **snapshot.state, "best_is_model": snapshot.best_is_model}
        contents: dict[str, Any] = {
            "model.safetensors": snapshot.model,
            "optimizer.safetensors": tensors,
            "optimizer.json": tree,
            "state.json": state,
            "config.json": snapshot.config,
        }
        if snapshot.best is not None and not snapshot.best_is_model:
            contents["best.safetensors"] = snapshot.best
        listing = {}
        for name, content in contents.items():
            tensor_file = name.endswith(".safetensors")
            data = tensor_bytes(content) if tensor_file else json.dumps(content, default=str).encode()
            listing[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            write_flushed(folder / name, data)
            fault_point(f"after {name}")
        write_flushed(folder / "MANIFEST.json", _manifest_text(listing).encode())
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

    def load(self, *, repair: bool = False) -> Snapshot | None:
        """Returns the newest good checkpoint, ``None`` if there never was one.

        Args:
            repair: Rename damaged checkpoints to ``damaged-...``, so that the run goes on without them.

        Raises:
            UserError: All are damaged, or one comes from a newer format.
        """
        problems = []
        for name in reversed(self.names()):
            try:
                snapshot = read_checkpoint(self.folder / name)
            except DamagedError as error:
                problems.append(str(error))
                _log.warning("checkpoint damaged: %s; trying the one before", error)
                if repair:
                    self._set_aside(name)
                continue
            self.in_use = name
            return snapshot
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


def read_checkpoint(folder: Path) -> Snapshot:
    """Verifies and reads one checkpoint.

    Raises:
        DamagedError: A file is missing, additional (and not hidden), cut short, changed or unreadable.
        UserError: The format is newer than this version of graphkit.
    """
    files = _verified_files(folder)
    try:
        state = json.loads(files["state.json"])
        if state["format"] > FORMAT:
            raise UserError(
                f"{folder} has checkpoint format {state['format']}, this graphkit reads up to {FORMAT}; "
                "update graphkit to use it"
            )
        model = read_tensors(files["model.safetensors"])
        tensors = read_tensors(files["optimizer.safetensors"])
        best = read_tensors(files["best.safetensors"]) if "best.safetensors" in files else None
        return Snapshot(
            model=model,
            optimizer=unpack(json.loads(files["optimizer.json"]), tensors),
            state=state,
            config=json.loads(files["config.json"]),
            best=model if state["best_is_model"] else best,
            best_is_model=state["best_is_model"],
        )
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise DamagedError(f"{folder} doesn't hold what a checkpoint holds ({error})") from error


def load_best(folder: Path) -> dict[str, Tensor]:
    """Returns the best weights of a run's newest good checkpoint.

    Args:
        folder: The ``checkpoints`` folder of a run.

    Raises:
        UserError: There is no checkpoint, none is intact, or nothing was evaluated yet.
    """
    snapshot = CheckpointStore(folder).load()
    if snapshot is None:
        raise UserError(f"{folder} holds no checkpoint")
    if snapshot.best is None:
        raise UserError(f"{folder}: nothing was evaluated yet, so there are no best weights")
    return dict(snapshot.best)


def write_flushed(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        fault_point(f"before flush of {path.name}")
        os.fsync(file.fileno())


def _verified_files(folder: Path) -> dict[str, bytes]:
    try:
        text = (folder / "MANIFEST.json").read_text()
        listing = json.loads(text)["files"]
        genuine = text == _manifest_text(listing)
        # Hidden files (.DS_Store, ._*, .nfs*) are a file manager's or a file system's, and no harm.
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        present.discard("MANIFEST.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / 'MANIFEST.json'} can't be read ({error})") from error
    if not genuine:
        raise DamagedError(f"{folder / 'MANIFEST.json'} was changed")
    for name in sorted(set(listing) | set(_REQUIRED)):
        if name not in present or name not in listing:
            raise DamagedError(f"{folder / name} is missing")
    for name in sorted(present - set(listing)):
        raise DamagedError(f"{folder / name} doesn't belong there")
    files = {}
    for name, expected in listing.items():
        try:
            files[name] = data = (folder / name).read_bytes()
        except OSError as error:
            raise DamagedError(f"{folder / name} can't be read ({error})") from error
        if len(data) != expected["size"]:
            raise DamagedError(f"{folder / name} has {len(data)} bytes instead of {expected['size']}")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise DamagedError(f"{folder / name} was changed since it was written (SHA-256 differs)")
    return files


def _manifest_text(listing: dict[str, Any]) -> str:
    """The manifest with its own hash, in the only spelling that is accepted."""
    digest = hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": listing, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def _order(name: str) -> tuple[int, int] | None:
    match = _NAME.match(name)
    return (int(match[1]), int(match[2] or 0)) if match else None
