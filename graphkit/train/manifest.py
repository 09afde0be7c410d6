"""The list of a checkpoint's files with their hashes, and what it takes to believe a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphkit.files import sha256
from graphkit.nn.embedding.partition_range import range_of

__all__ = [
    "BEST_ROWS",
    "MODEL_ROWS",
    "OPTIMIZER_ROWS",
    "DamagedError",
    "check_file",
    "entry_of",
    "files_of_rank",
    "manifest_text",
    "read_listing",
]

MODEL_ROWS, OPTIMIZER_ROWS, BEST_ROWS = "model.rows", "optimizer.rows", "best.rows"
"""Folders of partitioned tables, a file for each rank that wrote them."""


class DamagedError(Exception):
    """A checkpoint isn't what was written; the message names the file."""


def manifest_text(listing: Mapping[str, Any]) -> str:
    """The manifest with its own hash, in the only spelling that is accepted."""
    digest = hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": listing, "sha256": digest}, sort_keys=True, indent=1) + "\n"


def entry_of(data: bytes) -> dict[str, Any]:
    """Returns what the manifest says of a file."""
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


def read_listing(folder: Path, required: Iterable[str]) -> dict[str, Any]:
    """Returns the files of a checkpoint as its manifest has them; the files themselves aren't read.

    Raises:
        DamagedError: The manifest was changed, a file is missing, or one is there that it doesn't know.
    """
    path = folder / "MANIFEST.json"
    try:
        text = path.read_text()
        listing: dict[str, Any] = json.loads(text)["files"]
        genuine = text == manifest_text(listing)
        present = _present(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path} can't be read ({error})") from error
    if not genuine:
        raise DamagedError(f"{path} was changed")
    for name in sorted({*listing, *required}):
        if name not in present or name not in listing:
            raise DamagedError(f"{folder / name} is missing")
    for name in sorted(present - set(listing)):
        raise DamagedError(f"{folder / name} doesn't belong there")
    return listing


def check_file(folder: Path, name: str, expected: Mapping[str, Any], *, keep: bool = False) -> bytes:
    """Compares a file with the manifest's entry.

    Args:
        folder: Of the checkpoint.
        name: The file.
        expected: Its entry.
        keep: Read it at once and return what was hashed; otherwise it is read in pieces.

    Returns:
        The content, or nothing.

    Raises:
        DamagedError: It is cut short, changed or unreadable.
    """
    path = folder / name
    try:
        data = path.read_bytes() if keep else b""
        size = len(data) if keep else path.stat().st_size
        if size != expected["size"]:
            raise DamagedError(f"{path} has {size} bytes instead of {expected['size']}")
        digest = hashlib.sha256(data).hexdigest() if keep else sha256(path)
    except OSError as error:
        raise DamagedError(f"{path} can't be read ({error})") from error
    if digest != expected["sha256"]:
        raise DamagedError(f"{path} was changed since it was written (SHA-256 differs)")
    return data


def files_of_rank(listing: Mapping[str, Any], rank: int, world: int) -> set[str]:
    """Returns the files of rows that a rank reads; rank 0 has those without a row as well.

    Args:
        listing: Of :func:`read_listing`; ``rows`` of an entry has start and number of rows of each table.
        rank: The reader.
        world: Number of readers.
    """
    spans = [
        (name, (name.split("/")[0], table), start, count)
        for name, entry in listing.items()
        for table, (start, count) in entry.get("rows", {}).items()
    ]
    totals: dict[tuple[str, str], int] = {}
    for _, table, start, count in spans:
        totals[table] = max(totals.get(table, 0), start + count)
    files = set()
    for name, table, start, count in spans:
        own, wanted = range_of(totals[table], rank, world)
        meets = start < own.start + wanted and own.start < start + count
        if meets or (rank == 0 and not count):
            files.add(name)
    return files


def _present(folder: Path) -> set[str]:
    """Returns the files of a checkpoint, those in folders of rows with the folder's name before theirs.

    Hidden files (.DS_Store, ._*, .nfs*) are a file manager's or a file system's, and no harm.
    """
    found = set()
    for path in folder.iterdir():
        if path.name in (MODEL_ROWS, OPTIMIZER_ROWS, BEST_ROWS) and path.is_dir():
            found |= {f"{path.name}/{inner.name}" for inner in path.iterdir() if inner.name[0] != "."}
        elif path.name[0] != ".":
            found.add(path.name)
    return found - {"MANIFEST.json"}
