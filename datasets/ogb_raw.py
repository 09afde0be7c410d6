"""OGB's raw files: where they lie, how they come, and how tables in them are read.

An archive of OGB holds one folder with ``raw`` (CSV or npz), ``split`` and ``mapping``. The ogb package reads
it through pickles of its own and asks questions on the way; here the CSV goes to pandas, arrays are read as
plain numbers, and nothing is asked.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphkit.errors import UserError
from graphkit.files import fetch, lock, make_folder, sha256, sync_folder

__all__ = [
    "Source",
    "damaged",
    "distinct",
    "find_or_fetch",
    "fingerprint_of",
    "processed_folder",
    "read_count",
    "read_csv",
    "read_split",
    "require",
]

URL = "https://snap.stanford.edu/ogb/data/nodeproppred"
MOLECULES_URL = "https://snap.stanford.edu/ogb/data/graphproppred/csv_mol_download"
_MARKS = ("edge.csv.gz", "data.npz", "triplet-type-list.csv.gz", "num-node-list.csv.gz")
_HASHED = 256 << 20  # larger files are told apart by size and time: hashing them takes longer than mapping
_DAY = 86400.0


@dataclass(frozen=True)
class Source:
    """Where a data set of OGB comes from.

    Attributes:
        name: ``"ogbn-arxiv"``.
        archive: Name of its archive: ``"arxiv"``.
        split: Name of its split: ``"time"``.
        molecules: Whether it is one of the sets of molecules, which lie elsewhere.
    """

    name: str
    archive: str
    split: str
    molecules: bool = False

    @property
    def folder(self) -> str:
        """The name that the ogb package gives its folder: ``"ogbn_arxiv"``."""
        return self.name.replace("-", "_")

    @property
    def url(self) -> str:
        return f"{MOLECULES_URL if self.molecules else URL}/{self.archive}.zip"

    @property
    def instead(self) -> str:
        """What to use where it can't be fetched."""
        if self.molecules:
            return "the molecules of 'nci-tpsa' need no download"
        return "'cora' (task node) is small, and 'digits' needs no download"


# --- Files in place, or fetched ---------------------------------------------------------------------------


def find_or_fetch(root: Path, source: Source) -> Path:
    """Returns the folder that holds ``raw`` and ``split``: one in place, else a fetched archive's.

    Looked for are ``<root>/ogbn_arxiv``, ``<root>/ogb/ogbn_arxiv``, ``<root>/arxiv`` and ``root`` itself,
    then the archive ``arxiv.zip`` in the same places. What is fetched goes to ``<root>/ogbn_arxiv``, by one
    process, while the others wait.

    Raises:
        UserError: Nothing in place and no network, a damaged archive or one with files for elsewhere, or a
            folder that can't be written.
    """
    home = root / source.folder
    places = [home, root / "ogb" / source.folder, root / source.archive, root]
    if (found := _in_place(places)) is not None:
        return found
    with lock(home / ".fetch.lock", timeout=_DAY):
        if (found := _in_place(places)) is not None:  # another process was faster
            return found
        if (home / "raw").is_dir() and any((home / "raw").iterdir()):
            raise UserError(
                f"{home / 'raw'} has none of {', '.join(_MARKS)}: complete it, or move it away to fetch all"
            )
        named = f"{source.archive}.zip"
        given = next((p / named for p in (*places, root / "ogb") if (p / named).is_file()), None)
        hint = f"or unpack it, so that {home}/raw and {home}/split exist; {source.instead}"
        archive = given or fetch(source.url, home / named, hint=hint)
        _unpack(archive, home)
        if given is None:
            archive.unlink()
    return home


def _in_place(places: Sequence[Path]) -> Path | None:
    return next((p for p in places if any((p / "raw" / mark).is_file() for mark in _MARKS)), None)


def _unpack(archive: Path, home: Path) -> None:
    """Unpacks an archive's one folder into ``home``, beside what is there.

    ``raw`` appears last, when everything else has its place; a killed attempt is done again.
    """
    for rest in make_folder(home).glob(".unpack-*"):  # of a process that was killed
        shutil.rmtree(rest, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".unpack-", dir=home))
    try:
        try:
            with zipfile.ZipFile(archive) as file:
                members = [_checked(archive, member) for member in file.infolist()]
                tops = {m.filename.split("/raw/")[0] for m in members if "/raw/" in m.filename}
                if len(tops) != 1 or "/" in (top := tops.pop()):
                    raise UserError(f"{archive} isn't an archive of OGB: it must hold one folder with raw/")
                for member in members:
                    file.extract(member, work)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{archive} is damaged ({error}); delete it to fetch it again") from error
        except OSError as error:
            raise UserError(f"cannot unpack {archive}: {error.strerror or error}") from error
        for path in sorted((work / top).iterdir(), key=lambda path: path.name == "raw"):
            target = home / path.name
            if path.name == "raw" or not target.exists():
                os.replace(path, target)
        sync_folder(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _checked(archive: Path, member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """Refuses an entry that would land outside of the folder, or that is anything but a file or folder."""
    name = member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    outside = name.startswith("/") or "\\" in name or ".." in name.split("/") or re.match(r"[A-Za-z]:", name)
    if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{archive} is refused: its entry '{name}' is no plain file within its folder")
    return member


def processed_folder(root: Path, source: Source) -> Path:
    """Returns where the read form of a data set is kept."""
    return root / source.folder / "processed"


def require(path: Path, advice: str = "") -> Path:
    """Returns ``path`` if it is a file.

    Raises:
        UserError: If not; names it and adds ``advice``.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing{f'; {advice}' if advice else ''}")
    return path


def fingerprint_of(paths: Sequence[Path]) -> str:
    """Returns what tells the files' contents from others: SHA-256, of large ones size and time instead.

    Raises:
        UserError: If one is missing or can't be read.
    """
    parts = []
    for path in paths:
        try:
            facts = require(path).stat()
            large = facts.st_size > _HASHED
            parts.append(f"{facts.st_size}-{facts.st_mtime_ns}" if large else sha256(path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return "/".join(parts)


# --- CSV --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turns whatever a reader raises at a damaged file into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise UserError(f"{path} doesn't fit into memory") from error
    except Exception as error:  # pandas, zlib and numpy each have their own
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is damaged or something else: {first}") from error


def read_csv(path: Path, dtype: Any, columns: int | None = None, rows: int | None = None) -> NDArray[Any]:
    """Reads a table of numbers without a header, gzipped.

    Args:
        path: The file.
        dtype: numpy's type of the numbers.
        columns: The expected width; any if ``None``.
        rows: The expected length; any if ``None``.

    Returns:
        ``[rows, columns]``, C order, writable.

    Raises:
        UserError: If it is missing, damaged, of another size, or holds anything but numbers.
    """
    import pandas as pd

    require(path)
    with damaged(path):
        frame = pd.read_csv(path, compression="gzip", header=None, dtype=dtype, engine="c")
        # One column after another: a whole second table is never made.
        values = np.empty(frame.shape, dtype=dtype)
        for k in range(frame.shape[1]):
            values[:, k] = frame[k].to_numpy()
    if columns is not None and values.shape[1] != columns:
        raise UserError(f"{path} has {values.shape[1]} columns; {columns} were expected")
    if rows is not None and values.shape[0] != rows:
        raise UserError(f"{path} has {values.shape[0]:,} rows; {rows:,} were expected")
    return values


def read_count(path: Path) -> int:
    """Reads a file that holds one number: how many nodes or edges there are.

    Raises:
        UserError: If it holds anything else.
    """
    return int(read_csv(path, np.int64, columns=1, rows=1)[0, 0])


def distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the values ascending and once each; a hundred times faster than ``np.unique`` on numpy 2.4."""
    ordered = np.sort(values)
    keep = np.ones(ordered.size, dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def read_split(folder: Path, num_nodes: int, what: str = "node") -> dict[str, NDArray[np.int64]]:
    """Reads ``train``, ``valid`` and ``test`` indices of nodes, or of graphs.

    Raises:
        UserError: If one is missing, empty, out of range, or an id occurs twice.
    """
    parts = {}
    for name in ("train", "valid", "test"):
        path = folder / f"{name}.csv.gz"
        parts[name] = np.ascontiguousarray(read_csv(path, np.int64, columns=1)[:, 0])
        if parts[name].size == 0 or parts[name].min() < 0 or parts[name].max() >= num_nodes:
            raise UserError(f"{path} must hold {what} ids from 0 to {num_nodes - 1}, at least one")
    joined = np.concatenate(list(parts.values()))
    if distinct(joined).size != joined.size:
        raise UserError(f"{folder} names a {what} twice: the splits must be disjoint")
    return parts
