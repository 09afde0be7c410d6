"""Raw files of a data set: in place, in an archive in place, or in one that is fetched."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from graphkit.errors import UserError
from graphkit.files import fetch, lock, make_folder, sync_folder

__all__ = ["find_files", "raw_files"]

_DAY = 86400.0


def find_files(folders: Sequence[Path], names: Sequence[str]) -> list[Path] | None:
    """Returns the paths of files in the first folder that has all of them."""
    for folder in folders:
        if all((folder / name).is_file() for name in names):
            return [folder / name for name in names]
    return None


def raw_files(
    folders: Sequence[Path],
    names: Sequence[str],
    url: str,
    archive: str,
    *,
    optional: Sequence[str] = (),
    hint: str = "",
) -> list[Path]:
    """Returns raw files: those of the first folder that has all, else those of a zip archive.

    The archive is looked for in the same folders and those above them, then fetched. Of its entries those
    with the wanted names, in whatever folder, are unpacked to the first folder, by one process, while the
    others wait. A file appears under its name only when it is complete.

    Args:
        folders: Where the files may lie; those fetched go to the first one.
        names: Their names.
        url: Where the archive is.
        archive: Its name in a folder.
        optional: Names of further files, unpacked if the archive has them.
        hint: What to use instead, for the message.

    Raises:
        UserError: Nothing in place and no network, a damaged archive, or one without the files.
    """
    if (found := find_files(folders, names)) is not None:
        return found
    home = make_folder(folders[0])
    with lock(home / ".fetch.lock", timeout=_DAY):
        if (found := find_files(folders, names)) is not None:  # another process was faster
            return found
        places = dict.fromkeys([*folders, *(folder.parent for folder in folders)])
        given = next((place / archive for place in places if (place / archive).is_file()), None)
        unpacked = f"or unpack it, so that {home} holds {', '.join(names)}"
        path = given or fetch(url, home / archive, hint=f"{unpacked}; {hint}" if hint else unpacked)
        _unpack(path, home, names, optional)
        if given is None:
            path.unlink()
    return [home / name for name in names]


def _unpack(archive: Path, home: Path, names: Sequence[str], optional: Sequence[str]) -> None:
    """Unpacks the entries with the given names, without their folders; the last of ``names`` last."""
    try:
        with zipfile.ZipFile(archive) as file:
            entries = {PurePosixPath(entry.filename).name: entry for entry in file.infolist()}
            missing = [name for name in names if name not in entries]
            if missing:
                raise UserError(f"{archive} holds no {', '.join(missing)}: it isn't the expected archive")
            for name in [*(name for name in optional if name in entries), *names]:
                with file.open(entries[name]) as source:
                    _write(source, home / name)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} is damaged ({error}); delete it to fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {error.strerror or error}") from error
    sync_folder(home)


def _write(source: IO[bytes], target: Path) -> None:
    """Copies a stream to a file that appears when it is complete."""
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
