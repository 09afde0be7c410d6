"""Tensors and nested state as safetensors and JSON, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from graphkit.errors import UserError
from graphkit.train.sharded import Shard, StoredRows

__all__ = [
    "load_tensors",
    "map_tensors",
    "pack",
    "read_tensors",
    "save_tensors",
    "tensor_bytes",
    "unpack",
]


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns named tensors in the safetensors format.

    Tied tensors (same memory, same view) are written once and listed as aliases in the header; other overlaps
    are written apart. Non-contiguous tensors become contiguous.
    """
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"'{name}' is a {type(tensor).__name__}; checkpoints hold tensors only")
        tensor = tensor.detach()
        if tensor.layout != torch.strided:
            raise UserError(f"'{name}' is a {tensor.layout} tensor; checkpoints hold dense ones only")
        if tensor.numel():
            view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if view in seen:
                aliases[name] = seen[view]
                continue
            seen[view] = name
        value = tensor.cpu().contiguous()
        memory = value.untyped_storage().data_ptr()
        if memory in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        kept[name] = value
    metadata = {"aliases": json.dumps(aliases)} if aliases else None
    return safetensors.torch.save(kept, metadata=metadata)


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Reads :func:`tensor_bytes`; aliases come back as the same tensor."""
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    size = int.from_bytes(data[:8], "little")
    return _with_aliases(tensors, json.loads(data[8 : 8 + size]).get("__metadata__"))


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Maps a file of :func:`tensor_bytes` into memory: what isn't looked at isn't read.

    Changes of the tensors stay in memory.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _with_aliases(tensors, file.metadata())


def _with_aliases(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None) -> dict[str, Tensor]:
    for name, source in json.loads((metadata or {}).get("aliases", "{}")).items():
        tensors[name] = tensors[source]
    return tensors


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes :func:`tensor_bytes` to a file, in place."""
    path.write_bytes(tensor_bytes(tensors))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a file of :func:`save_tensors`.

    Raises:
        UserError: The file is missing or no safetensors file.
    """
    try:
        return read_tensors(path.read_bytes())
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"can't read tensors from {path}: {error}") from error


def pack(value: Any, tensors: dict[str, Tensor], name: str = "", rows: dict[str, Shard] | None = None) -> Any:
    """Splits nested state into a JSON tree and a flat mapping of tensors.

    Args:
        value: Dictionaries, lists, tuples, tensors, shards and JSON scalars, nested.
        tensors: Receives the tensors under their path, e.g. ``state/0/exp_avg``.
        name: Path of ``value``.
        rows: Receives the shards likewise.

    Returns:
        The tree; :func:`unpack` undoes it.

    Raises:
        UserError: A value that JSON and safetensors can't hold.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Shard) and rows is not None:
        rows[name] = value
        return {"rows": name}
    if isinstance(value, Mapping):
        items = [[key, pack(item, tensors, f"{name}/{key}", rows)] for key, item in value.items()]
        return {"items": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(item, tensors, f"{name}/{i}", rows) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"state '{name}' is a {type(value).__name__}, which a checkpoint can't hold")


def unpack(tree: Any, tensors: Mapping[str, Tensor], rows: Mapping[str, StoredRows] | None = None) -> Any:
    """Puts nested state together again; shards come back as the stored tables that they are parts of."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "rows":
        return (rows or {})[content]
    if kind == "items":
        return {key: unpack(item, tensors, rows) for key, item in content}
    items = [unpack(item, tensors, rows) for item in content]
    return tuple(items) if kind == "tuple" else items
