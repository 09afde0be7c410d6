"""Graphs and features larger than memory: arrays that stay on disk and are read where they are touched.

``build_mapped_csr`` sorts edges by target without holding them: it counts the entries of each row, then takes
as many rows at a time as fit a buffer, puts their entries in place (a counting sort, one pass over the edges
for each buffer), sorts and de-duplicates each row, and appends them to a file. Of the process's own memory
that takes 8 (N + 1) bytes for the row pointers, the buffer (at most 4 bytes an entry) and one chunk of edges;
the files take 8 (N + 1) + 4 E bytes. With N = 111 million nodes and 1.6 billion edges, both directions:

    =============================  ===========================  =================
    row pointers on disk           8 (N + 1)                     0.9 GB
    entries on disk                4 E, E <= 3.2 billion        12.9 GB
    building, in memory            8 (N + 1) + buffer + chunk    0.9 GB + 2 GiB + 16 bytes an edge of a chunk
    sampling, in memory            4 N for a batch at a time     0.4 GB each
    =============================  ===========================  =================

What is mapped counts as the system's file cache, which it takes back when others need memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.files import atomic_write, lock, make_folder, sync_folder
from graphkit.kernels.parallel import num_parts, run_ranges, weighted_bounds
from graphkit.sparse import Adjacency

__all__ = ["Chunks", "Report", "build_mapped_csr", "map_array", "open_mapped_csr"]

Chunks = Callable[[], Iterable[Tensor]]
"""Gives all edges in pieces ``[2, k]`` int64 (sources above targets), the same at each call."""

Report = Callable[[str, int, int], None]
"""Is told of progress: what is being done, edges done so far, edges in all (0 while that is unknown)."""

_FORMAT = 1
_MANIFEST = "csr.json"
_HEADER = 128
_PIECE = 1 << 22
_MAP_NORESERVE = 0x4000  # Linux; Python names it from 3.13 on

_log = logging.getLogger("graphkit")


def map_array(path: str | Path) -> Tensor:
    """Returns the array of a ``.npy`` file as a tensor over the mapped file; nothing is read yet.

    The mapping is private: writing to the tensor copies the page written to and never reaches the file. It
    reserves no memory for that, so a file may be larger than memory. The tensor keeps the file open.

    Args:
        path: An array of numbers of any shape, in the machine's byte order.

    Raises:
        UserError: If the file can't be read, is no such array, or is shorter than its header says.
    """
    try:
        with open(path, "rb") as file:
            shape, fortran, dtype = _read_header(file)
            offset = file.tell()
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            length = os.fstat(file.fileno()).st_size
            if length < offset + size:
                raise UserError(f"{path} is cut short: {length} bytes of {offset + size}")
            kind = torch.from_numpy(np.empty(0, dtype)).dtype  # raises TypeError for what torch doesn't have
            if not size:
                return torch.empty(shape, dtype=kind)
            # Private and writable memory is charged against what the machine has unless it is told not to.
            extra = _MAP_NORESERVE if sys.platform == "linux" else 0
            mapped = mmap.mmap(
                file.fileno(),
                offset + size,
                flags=mmap.MAP_PRIVATE | extra,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except OSError as error:
        raise UserError(f"cannot map {path}: {error.strerror or error}") from error
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no array that can be mapped ({error})") from error
    array = np.ndarray(shape, dtype, buffer=mapped, offset=offset, order="F" if fortran else "C")
    return torch.from_numpy(array)


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads shape, order and type; the file is left where the data begins."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"its format is {version}")
    return readers[version](file)


def open_mapped_csr(folder: str | Path, key: str, *, verify: bool = False) -> Adjacency:
    """Returns the finished graph of a folder, mapped.

    Args:
        folder: What :func:`build_mapped_csr` was given.
        key: Likewise.
        verify: Also compare the files' hashes, which reads all of them.

    Raises:
        UserError: If there is none, it isn't finished, it is of another key, or it is damaged.
    """
    found = _read(Path(folder), key, verify)
    if isinstance(found, str):
        raise UserError(found or f"no finished graph in {folder}; build it first")
    return found


def _read(folder: Path, key: str, verify: bool = False) -> Adjacency | str:
    """Returns the graph, an empty string if there is none, or what is wrong with it."""
    manifest = folder / _MANIFEST
    try:
        text = manifest.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot read {manifest}: {error.strerror or error}"
    try:
        stored = json.loads(text)
        if stored.pop("self") != _hash_of(stored):
            return f"{manifest} is damaged"
        if stored["format"] != _FORMAT or stored["key"] != key:
            return f"{folder} holds another graph, of key '{stored['key']}' and format {stored['format']}"
        for name, facts in stored["files"].items():
            if os.path.getsize(folder / name) != facts["bytes"]:
                return f"{folder / name} is damaged: it should have {facts['bytes']} bytes"
            if verify and _data_hash(folder / name) != facts["sha256"]:
                return f"{folder / name} is damaged: its hash differs"
        rowptr, col = map_array(folder / "rowptr.npy"), map_array(folder / "col.npy")
        nodes, entries = stored["num_nodes"], stored["num_entries"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the graph in {folder} can't be read ({error})"
    fits = rowptr.dtype == torch.int64 and rowptr.shape == (nodes + 1,)
    fits = fits and col.dtype == torch.int32 and col.shape == (entries,)
    if not fits or int(rowptr[0]) != 0 or int(rowptr[-1]) != entries:
        return f"the files in {folder} don't fit together"
    return Adjacency(rowptr, col, nodes, stored["undirected"])


def _hash_of(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _data_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(_HEADER)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def build_mapped_csr(
    chunks: Chunks,
    num_nodes: int,
    folder: str | Path,
    *,
    key: str,
    undirected: bool,
    report: Report | None = None,
    buffer_bytes: int = 2 << 30,
) -> Adjacency:
    """Builds the in-neighbour lists of a graph on disk, once; afterwards they are only opened.

    Rows are ascending, without self loops and repetitions. The files get their names when they are whole, and
    count once a manifest that vouches for them is written last: a build that was killed is done again.

    Args:
        chunks: The edges; called twice or more, see ``buffer_bytes``.
        num_nodes: N.
        folder: Where the files go, one graph a folder. Another graph in it is replaced.
        key: Says all that the result depends on: the raw file's hash, options, a version.
        undirected: Add each edge's reverse. Without it the result isn't marked symmetric even if it is.
        report: Told of progress; by default a line is logged now and then.
        buffer_bytes: Memory for the entries of as many rows as fit (of one row at least). The edges are
            iterated once for counting and once for each buffer full.

    Raises:
        ValueError: If ids are out of range, a chunk has a wrong shape or dtype, or another call gives other
            edges.
        UserError: If the folder can't be written or the disk is full.
    """
    if not 0 <= num_nodes < 2**31 - 1:
        raise ValueError(f"num_nodes is {num_nodes}; it must be at least 0 and below {2**31 - 1}")
    if buffer_bytes < 4:
        raise ValueError(f"buffer_bytes is {buffer_bytes}; it must be at least 4")
    where = make_folder(folder)
    with lock(where / ".csr.lock", timeout=24 * 3600.0):
        found = _read(where, key)
        if isinstance(found, Adjacency):
            return found
        if found:
            warnings.warn(f"{found}; it is replaced", stacklevel=2)
        for rest in where.glob(".csr-*.tmp"):  # of a build that was killed
            rest.unlink(missing_ok=True)
        writers = {}
        try:
            writers = {name: _ArrayFile(where, name, t) for name, t in (("rowptr", "<i8"), ("col", "<i4"))}
            rowptr = _sort_edges(
                chunks, num_nodes, undirected, report or _logged(), buffer_bytes, writers["col"]
            )
            writers["rowptr"].append(rowptr)
            files = {f"{name}.npy": writer.finish() for name, writer in writers.items()}
            (where / _MANIFEST).unlink(missing_ok=True)  # it vouches for the files that are replaced now
            sync_folder(where)
            for writer in writers.values():
                writer.publish()
        except OSError as error:
            raise UserError(f"cannot write {where}: {error.strerror or error}") from error
        finally:
            for writer in writers.values():
                writer.discard()
        facts = {
            "format": _FORMAT,
            "key": key,
            "num_nodes": num_nodes,
            "num_entries": int(rowptr[-1]),
            "undirected": undirected,
            "files": files,
        }
        atomic_write(where / _MANIFEST, json.dumps({"self": _hash_of(facts), **facts}, indent=1))
    return open_mapped_csr(where, key)


def _sort_edges(
    chunks: Chunks, num_nodes: int, both: bool, report: Report, buffer_bytes: int, col: _ArrayFile
) -> np.ndarray:
    """Writes the entries and returns the row pointers."""
    from graphkit.kernels import _csr_loops as loops

    place = np.zeros(num_nodes + 1, np.int64)
    total, mark = 0, 0
    for source, target in _ends(chunks):
        fault, more = loops.count_targets(source, target, both, place)
        if fault:
            raise ValueError(f"chunks hold an id outside [0, {num_nodes})")
        mark = (mark + int(more)) % 2**64
        total += source.size
        report("counting edges", total, 0)
    np.cumsum(place, out=place)
    windows = _windows(place, buffer_bytes // 4)
    buffer = np.empty(max((size for *_, size in windows), default=0), np.int32)
    for number, (first, last, base, size) in enumerate(windows, 1):
        what = f"sorting rows, pass {number} of {len(windows)}"
        done, again = 0, 0
        for source, target in _ends(chunks):
            more = loops.scatter(source, target, both, first, last, base, size, place, buffer)
            again = (again + int(more)) % 2**64
            done += source.size
            report(what, done, total)
        if (done, again) != (total, mark):
            raise ValueError("chunks gave other edges at another call; they must be the same each time")
        ends = place[first:last]
        bounds = [row + 1 for row in weighted_bounds(ends, num_parts(size))]
        run_ranges(loops.sort_rows, [0, *bounds[1:]], ends, base, buffer)
        col.append(buffer[: loops.drop_repeats(ends, base, buffer)])
    place[num_nodes] = 0
    loops.lengths_to_pointers(place)
    return place


def _windows(rowptr: np.ndarray, capacity: int) -> list[tuple[int, int, int, int]]:
    """Cuts rows into runs of at most ``capacity`` entries: first row, end, first entry, entries."""
    windows, first, num_nodes = [], 0, rowptr.size - 1
    while first < num_nodes:
        base = int(rowptr[first])
        last = int(np.searchsorted(rowptr, base + capacity, side="right")) - 1
        last = min(max(last, first + 1), num_nodes)
        windows.append((first, last, base, int(rowptr[last]) - base))
        first = last
    return windows


def _ends(chunks: Chunks) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yields sources and targets of each chunk."""
    for chunk in chunks():
        if chunk.dtype != torch.int64 or chunk.dim() != 2 or chunk.size(0) != 2:
            raise ValueError(f"a chunk is {chunk.dtype} {tuple(chunk.shape)}; it must be int64 [2, k]")
        yield chunk[0].contiguous().numpy(), chunk[1].contiguous().numpy()


class _ArrayFile:
    """A vector in the ``.npy`` format, written piece by piece under a temporary name."""

    def __init__(self, folder: Path, name: str, descr: str) -> None:
        self.path, self.descr = folder / f"{name}.npy", descr
        handle, temporary = tempfile.mkstemp(prefix=f".csr-{name}-", suffix=".tmp", dir=folder)
        self.temporary: Path | None = Path(temporary)
        self.file = os.fdopen(handle, "wb")
        self.file.write(bytes(_HEADER))
        self.digest = hashlib.sha256()

    def append(self, piece: np.ndarray) -> None:
        for start in range(0, piece.size, _PIECE):
            content = piece[start : start + _PIECE].astype(self.descr, copy=False).tobytes()
            self.digest.update(content)
            self.file.write(content)

    def finish(self) -> dict[str, int | str]:
        """Completes the file and flushes it to disk; returns what the manifest says of it."""
        size = self.file.tell()
        count = (size - _HEADER) // np.dtype(self.descr).itemsize
        text = f"{{'descr': '{self.descr}', 'fortran_order': False, 'shape': ({count},), }}"
        start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
        self.file.seek(0)
        self.file.write(start + text.ljust(_HEADER - 11).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": size, "sha256": self.digest.hexdigest()}

    def publish(self) -> None:
        """Gives it its name."""
        assert self.temporary is not None
        os.replace(self.temporary, self.path)
        self.temporary = None

    def discard(self) -> None:
        """Removes it unless it has its name."""
        with contextlib.suppress(OSError):
            self.file.close()
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


def _logged(interval: float = 10.0) -> Report:
    """Returns a report that logs a line at most every ``interval`` seconds."""
    shown = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= interval:
            shown = time.monotonic()
            of = f" of {total / 1e6:.0f}" if total else ""
            _log.info(f"{what}: {done / 1e6:.0f}{of} million")

    return report
