"""Large arrays on disk: written once as plain ``.npy`` files, mapped into memory ever after.

A mapped array costs no memory until it is looked at, and only as many pages as are. Writing to one changes
the process's own copy of a page, never the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphkit.datasets.ogb_raw import damaged, require
from graphkit.errors import UserError
from graphkit.files import atomic_write, lock, make_folder, sync_folder
from graphkit.mapped import map_array

__all__ = ["kept_arrays", "read_member", "stream_member"]

Arrays = Mapping[str, NDArray[Any]]

_FORMAT = 1
_CHUNK = 16 << 20
_DAY = 86400.0
_MANIFEST = "manifest.json"


def kept_arrays(
    folder: Path, key: str, build: Callable[[Path], Arrays], *, needs_disk: bool = False
) -> dict[str, Tensor]:
    """Returns what ``build`` made the first time, memory-mapped.

    Processes that start together build once: one of them, under a lock, while the others wait. The arrays
    appear under their final name only when all of them are on disk. They are recognised by their sizes and a
    hashed manifest; unlike :func:`graphkit.data.cached`, contents aren't hashed at each start, which would
    read all of them.

    Args:
        folder: Where they lie. If it can't be written, ``build`` runs each time in memory, with a warning.
        key: Says all that the result depends on.
        build: Gets a folder, may leave ``NAME.npy`` files in it, and returns further arrays by name.
        needs_disk: Whether ``build`` can't do without a folder.

    Raises:
        UserError: If ``needs_disk`` and the folder can't be written, or the disk is full.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    stem = f"{re.sub(r'[^A-Za-z0-9]+', '-', key)[:40].strip('-')}-{digest}"
    target = folder / stem
    if not isinstance(found := _open(target, key), str):
        return found
    try:
        if not os.access(make_folder(folder), os.W_OK):
            raise UserError(f"cannot write {folder}")
    except UserError as error:
        if needs_disk:
            raise UserError(f"{error}; its arrays are too large for memory and are unpacked there") from error
        warnings.warn(f"nothing is cached: {error}", stacklevel=2)
        return {name: torch.from_numpy(array) for name, array in build(folder).items()}
    with lock(folder / f".{stem}.lock", timeout=_DAY):
        if not isinstance(found := _open(target, key), str):  # another process was faster
            return found
        if found:
            warnings.warn(f"{found}; it is built again", stacklevel=2)
        for rest in (*folder.glob(f".{stem}-*.tmp"), target):  # of a process that was killed, or damaged
            shutil.rmtree(rest, ignore_errors=True)
        _write(target, key, build)
        made = _open(target, key)
    if isinstance(made, str):
        raise UserError(f"{target} can't be read back: {made}")
    return made


def _hash_of(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _open(target: Path, key: str) -> dict[str, Tensor] | str:
    """Maps what is stored; returns an empty string if there is nothing, or what is wrong with it."""
    try:
        stored = json.loads((target / _MANIFEST).read_bytes())
        if stored.pop("self") != _hash_of(stored) or (stored["format"], stored["key"]) != (_FORMAT, key):
            return f"{target / _MANIFEST} is damaged"
        for name, size in stored["bytes"].items():
            if (target / f"{name}.npy").stat().st_size != size:
                return f"{target / name}.npy is cut short"
        return {name: map_array(target / f"{name}.npy") for name in stored["bytes"]}
    except FileNotFoundError as error:
        return "" if not target.exists() else f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{target} can't be read ({error})"


def _write(target: Path, key: str, build: Callable[[Path], Arrays]) -> None:
    """Builds in a temporary folder, flushes it to disk, and renames it."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    try:
        try:
            for name, array in build(work).items():
                np.save(work / f"{name}.npy", array, allow_pickle=False)
            arrays = sorted(work.glob("*.npy"))
            for path in arrays:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            facts = {"format": _FORMAT, "key": key, "bytes": {p.stem: p.stat().st_size for p in arrays}}
            atomic_write(work / _MANIFEST, json.dumps({"self": _hash_of(facts), **facts}, indent=1))
            os.chmod(work, 0o755)
            os.replace(work, target)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror or error}") from error
        sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- Members of an npz file -------------------------------------------------------------------------------


def _header(source: IO[bytes], path: Path, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads the header of an ``.npy`` stream: shape, Fortran order, dtype; numbers only."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(source)
    if version not in readers:
        raise UserError(f"{path}: '{member}' has the array format {version}; 1.0 and 2.0 are known")
    shape, fortran, dtype = readers[version](source)
    if dtype.kind not in "iufb":
        raise UserError(f"{path}: '{member}' holds {dtype}, not numbers; nothing is unpickled")
    return shape, fortran, dtype


def _wanted(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns what torch models take: int64 of integers, float32 of floating point."""
    return np.dtype(np.float32) if dtype.kind == "f" else np.dtype(np.int64)


def read_member(path: Path, member: str) -> NDArray[Any]:
    """Reads a small array of an npz file; ``int64`` or ``float32``.

    Raises:
        UserError: If the file or the array is missing, damaged, or holds anything but numbers.
    """
    require(path)
    with damaged(path), zipfile.ZipFile(path) as archive, _opened(archive, path, member) as source:
        shape, fortran, dtype = _header(source, path, member)
        content = source.read()
        array: NDArray[Any] = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
        return array.astype(_wanted(dtype))


def _opened(archive: zipfile.ZipFile, path: Path, member: str) -> IO[bytes]:
    try:
        return archive.open(f"{member}.npy")
    except KeyError:
        names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
        raise UserError(f"{path} holds no array '{member}', but {names}") from None


def stream_member(
    path: Path, member: str, target: Path, *, below: int | None = None
) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Copies an array of an npz file to an ``.npy`` file without ever holding more than a piece of it.

    Integers become int64 and floating point float32; rows keep their order in memory. The zip file's checksum
    is verified on the way.

    Args:
        path: The npz file.
        member: The array's name.
        target: The file to write.
        below: If given, all numbers must lie in ``[0, below)``.

    Returns:
        Shape and dtype of what was written.

    Raises:
        UserError: If the array is missing, damaged, out of range, or holds anything but numbers.
    """
    require(path)
    with damaged(path), zipfile.ZipFile(path) as archive, _opened(archive, path, member) as source:
        shape, fortran, dtype = _header(source, path, member)
        into = _wanted(dtype)
        with open(target, "wb") as out:
            header = {"descr": np.lib.format.dtype_to_descr(into), "fortran_order": fortran, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            left = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            meter = _Meter(f"{path.name}: {member}", left)
            while left:
                block = np.frombuffer(_exactly(source, min(left, _CHUNK)), dtype)
                if below is not None and not (block.min() >= 0 and block.max() < below):
                    raise UserError(f"{path}: '{member}' names node {block.max()}; there are {below}")
                try:
                    out.write(block.astype(into, copy=False).data)
                except OSError as error:
                    raise UserError(f"cannot write {target}: {error.strerror or error}") from error
                left -= block.nbytes
                meter.show(left)
            if source.read(1):  # at the end the checksum is compared as well
                raise UserError(f"{path}: '{member}' is longer than its shape {shape} says")
            meter.close()
    return shape, into


def _exactly(source: IO[bytes], size: int) -> bytes:
    """Reads ``size`` bytes, a multiple of any number's size."""
    parts = []
    while size:
        part = source.read(size)
        if not part:
            raise EOFError("it is cut short")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Meter:
    """A line on a terminal that says how much has been unpacked; nothing elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total = name, total
        self.shown = time.monotonic()
        self.on = False
        with contextlib.suppress(ValueError):  # a closed stream
            self.on = sys.stderr.isatty()

    def show(self, left: int) -> None:
        if self.on and time.monotonic() - self.shown > 0.5:
            self.shown = time.monotonic()
            done = f"{(self.total - left) / 1e9:.2f} of {self.total / 1e9:.2f} GB"
            print(f"\r{self.name}: {done}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.on:
            print(f"\r{self.name}: {self.total / 1e9:.2f} GB{' ' * 16}", file=sys.stderr)
