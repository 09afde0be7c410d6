"""``export``: a run's best weights as plain tensors in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from graphkit.commands.parser import Parser
from graphkit.distributed.embedding import PartitionedTable
from graphkit.errors import UserError
from graphkit.inference import load
from graphkit.nn.embedding import Embedding
from graphkit.train.streaming import Streamed, stream_tensors

__all__ = ["export", "plain_weights"]

DESCRIPTION = """Writes the weights of a run's best evaluation to one safetensors file, under the names that
the model's state_dict has.

  export runs/sage-ogbn-arxiv weights.safetensors
  export runs/sage-ogbn-arxiv weights.safetensors --dense

A table that was partitioned over ranks becomes one tensor, its rows in the order of ids. With --dense every
embedding becomes one, NAME.table of shape [N, D], whatever stands behind its rows."""

_ROWS = 65_536


def export(argv: Sequence[str]) -> int:
    """The command; returns the exit code.

    Raises:
        UserError: No such run, or a file that can't be written.
    """
    parser = Parser("export", DESCRIPTION)
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder, or runs/<model>-<dataset> for its newest run"
    )
    parser.add_argument("file", metavar="FILE", help="the file, which is replaced if it is there")
    parser.add_argument("--dense", action="store_true", help="write compressed tables out in full")
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of the data sets (default: the one that the run used)"
    )
    options = parser.parse_args(argv)
    path = Path(options.file)
    if path.suffix != ".safetensors":
        raise UserError(f"the file is called {path.name}; it is written as safetensors and must be named so")
    model = load(options.run, data_root=options.data_root).model
    weights = plain_weights(model, dense=options.dense)
    stream_tensors(path, weights)
    print(f"{len(weights)} tensors, {path.stat().st_size:,} bytes, written to {path}")
    return 0


def plain_weights(model: nn.Module, *, dense: bool = False) -> dict[str, Streamed]:
    """Returns a model's weights by name, tables of rows to be made block by block in the order of ids.

    Args:
        model: In one process.
        dense: Every embedding as one table; otherwise full ones that were partitioned.
    """
    tables = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Embedding)
        and (dense or (isinstance(module, PartitionedTable) and module.kind == "dense"))
    }
    inside = tuple(f"{name}." for name in tables)
    found = {name: _table(module) for name, module in tables.items()}
    weights = {f"{name}.table".removeprefix("."): table for name, table in found.items()}
    for name, tensor in _stored(model):
        if not name.startswith(inside or ("\0",)):
            weights[name] = Streamed(tensor.dtype, tuple(tensor.shape), partial(list, [tensor]))
    return weights


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields what a ``state_dict`` holds, without making one: that of a mapped table would be a copy."""
    hidden = {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    yield from model.named_parameters(remove_duplicate=False)
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in hidden:
            yield name, buffer


def _table(embedding: Embedding) -> Streamed:
    count = embedding.num_embeddings

    def blocks() -> Iterator[Tensor]:
        with torch.no_grad():
            for start in range(0, count, _ROWS):
                yield embedding.rows(start, min(start + _ROWS, count))

    return Streamed(next(embedding.parameters()).dtype, (count, embedding.embedding_dim), blocks)
