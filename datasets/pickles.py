"""Foreign pickles of plain data: arrays, sparse matrices, tensors and Python's containers, and nothing else.

A pickle may name any function and have it called. Here the few that data consists of are known by name, and
everything else is refused, so nothing in a file is ever run.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphkit.errors import UserError

__all__ = ["SparseParts", "read_pickle", "read_tensors"]


class SparseParts:
    """Stands in for scipy's ``coo_matrix``: holds its parts."""

    def coordinates(self) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Returns row and column of each entry, ``[E]`` int64, and the size of the square matrix.

        Raises:
            ValueError: If the parts disagree.
        """
        parts = self.__dict__
        shape = parts["_shape" if "_shape" in parts else "shape"]
        rows, columns = (int(size) for size in shape)
        if "coords" in parts:
            row, column = (np.asarray(ends) for ends in parts["coords"])
        else:
            row, column = (np.asarray(parts[name]) for name in ("row", "col"))
        for ends in (row, column):
            if (
                ends.ndim != 1
                or ends.dtype.kind not in "iu"
                or (ends.size and not 0 <= ends.min() <= ends.max() < rows)
            ):
                raise ValueError("the coordinates of a sparse matrix are out of range")
        if rows != columns or row.size != column.size:
            raise ValueError("a sparse matrix isn't square, or its coordinates aren't pairs")
        return row.astype(np.int64), column.astype(np.int64), rows


def _storage(content: bytes) -> Any:
    """Reads the storage of a pickled tensor, as torch does, but numbers alone."""
    return torch.load(io.BytesIO(content), weights_only=True)


def _known(module: str, name: str) -> Any:
    if name in ("coo_matrix", "coo_array") and module.startswith("scipy.sparse"):
        return SparseParts
    if module == "numpy" and name in ("ndarray", "dtype"):
        return getattr(np, name)
    if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
        sample = np.empty(0) if name == "_reconstruct" else np.float64(0)
        return sample.__reduce__()[0]
    if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
        return lambda data, kind, shape, order: np.frombuffer(data, kind).reshape(shape, order=order)
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
        return torch._utils._rebuild_tensor_v2
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return _storage
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
        return lambda text, _: str(text).encode("latin1")
    return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (found := _known(module, name)) is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data has no use for")
        return found


def read_pickle(path: Path) -> Any:
    """Returns the arrays, numbers, lists and dictionaries in a pickle; sparse matrices as parts.

    Raises:
        UserError: The file can't be read, is damaged, or names anything but data.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged or no pickle of data: {_first_line(error)}") from error


def read_tensors(path: Path) -> Any:
    """Returns what torch saved in a file: tensors and containers of them.

    Raises:
        UserError: The file can't be read, is damaged, or names anything but data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        raise UserError(f"{path} is damaged or no file of tensors: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
