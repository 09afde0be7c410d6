"""``torch.distributed.checkpoint`` on tables of rows; imported when there is one, as it takes a second."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard as ShardPlacement
from torch.futures import Future

from graphkit.environment import rank_and_world
from graphkit.errors import UserError
from graphkit.files import sha256

__all__ = ["load", "save", "whole_view"]


class _RowWriter(HuggingFaceStorageWriter):
    """Writes a rank's tensors from where they are.

    The stock writer joins them into one string of bytes first, which takes twice their memory.

    Attributes:
        written: SHA-256, size, and first and number of rows of each table, by the file's name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.folder = folder
        self.written: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, Any] = {}
        results: list[WriteResult] = []
        for item in plan.items:
            assert item.tensor_data is not None
            name = item.index.fqn
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            tensors[name] = tensor.detach()
            offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            results.append(WriteResult(item.index, tensors[name].nbytes, None))
        if tensors:
            path = self.folder / f"rows-{plan.storage_data['shard_index']:05d}.safetensors"
            header = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
            safetensors.torch.save_file(_apart(tensors), path, metadata=header)
            _flush(path)
            spans = {name: [offsets[name]["saved_offsets"][0], len(rows)] for name, rows in tensors.items()}
            self.written[path.name] = {"sha256": sha256(path), "size": path.stat().st_size, "rows": spans}
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def save(folder: Path, views: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Writes the rows of every rank; returns the manifest's entry of this rank's file by its name.

    Raises:
        UserError: A rank could not; all raise.
    """
    writer = _RowWriter(folder)
    alone = rank_and_world()[1] == 1
    _checked(lambda: state_dict_saver.save(dict(views), storage_writer=writer, no_dist=alone))
    return writer.written


def load(folder: Path, views: Mapping[str, Tensor]) -> None:
    """Fills views in place.

    Raises:
        UserError: A rank could not; all raise.
    """
    reader = HuggingFaceStorageReader(str(folder))
    alone = rank_and_world()[1] == 1
    _checked(lambda: state_dict_loader.load(dict(views), storage_reader=reader, no_dist=alone))


def whole_view(local: Tensor, total: int) -> Tensor:
    """Returns a table of ``total`` rows of which this rank holds ``local``, on the CPU and contiguous.

    Alone that is ``local`` itself; else a ``DTensor``, which shares its memory.
    """
    world = rank_and_world()[1]
    if world == 1:
        return local
    shape = torch.Size((total, *local.shape[1:]))
    mesh = init_device_mesh("cpu", (world,))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [ShardPlacement(0)], run_check=False, shape=shape, stride=stride)


def _checked(action: Callable[[], Any]) -> None:
    """Turns what distributed checkpoints raise, with the errors of all ranks in it, into one line."""
    try:
        with warnings.catch_warnings():
            # that one process is alone needs no telling
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            action()
    except CheckpointException as error:
        told = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in sorted(error.failures.items()))
        raise UserError(told) from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives tied tensors memory of their own, which safetensors asks for."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        value = tensor.cpu().contiguous()
        if value.numel() and value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        apart[name] = value
    return apart


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
