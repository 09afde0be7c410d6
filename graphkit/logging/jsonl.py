"""The log that always exists: one JSON object a line, appended and flushed."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from graphkit.errors import UserError
from graphkit.files import atomic_write

__all__ = ["MetricsLog"]


class MetricsLog:
    """An append-only file of JSON lines that can be taken back to an earlier length.

    Args:
        path: The file; made at the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line; NaN and infinities become strings, which JSON has no numbers for.

        Raises:
            UserError: The file can't be written.
        """
        text = json.dumps({key: _finite(value) for key, value in line.items()}, default=str)
        try:
            if self._file is None:
                self._file = open(self.path, "ab")  # noqa: SIM115  (kept open between lines)
            self._file.write(text.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error}") from error

    def position(self) -> int:
        """Flushes to disk and returns the length in bytes, for a checkpoint to remember.

        Raises:
            UserError: The file can't be written.
        """
        if self._file is None:
            return self.path.stat().st_size if self.path.exists() else 0
        try:
            os.fsync(self._file.fileno())
            return self._file.tell()
        except OSError as error:
            raise UserError(f"can't write {self.path}: {error}") from error

    def rewind(self, position: int) -> None:
        """Drops what was logged after a checkpoint; the file is replaced whole."""
        self.close()
        content = self.path.read_bytes() if self.path.exists() else b""
        if len(content) < position:
            logging.getLogger("graphkit").warning(
                "%s has %d bytes where the checkpoint counted %d: lines were lost",
                self.path,
                len(content),
                position,
            )
            position = content.rfind(b"\n") + 1
        if len(content) > position:
            atomic_write(self.path, content[:position])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
