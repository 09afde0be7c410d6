"""A safetensors file that is written block by block."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.files import make_folder, sync_folder

__all__ = ["Streamed", "stream_tensors"]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Streamed(NamedTuple):
    """A tensor that is made while it is written.

    Attributes:
        dtype: Of all blocks.
        shape: Of the whole.
        blocks: Yields it, cut along the first dimension.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]


def stream_tensors(path: Path, tensors: Mapping[str, Streamed]) -> None:
    """Writes tensors of which none need ever be in memory as a whole.

    The file appears under its name when it is complete and on the disk.

    Raises:
        UserError: A data type that safetensors doesn't have, blocks that aren't the tensor announced, or a
            disk that can't be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # Wide types first, as safetensors does it: every tensor is aligned to its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    for name in order:
        dtype, shape, _ = tensors[name]
        if dtype not in _CODES:
            raise UserError(f"'{name}' is {dtype}, which an exported file can't hold")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                begin, stop = header[name]["data_offsets"]
                _write_blocks(file, name, tensors[name], stop - begin)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write_blocks(file: IO[bytes], name: str, tensor: Streamed, size: int) -> None:
    written = 0
    for block in tensor.blocks():
        if block.dtype != tensor.dtype:
            raise UserError(f"'{name}' has a block of {block.dtype}, not {tensor.dtype}")
        data = block.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        written += file.write(data.numpy().data)
    if written != size:
        raise UserError(f"'{name}' has {written} bytes instead of {size}")
