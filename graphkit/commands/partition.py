"""``partition``: the order of a graph's nodes, computed before the runs that use it."""

from __future__ import annotations

import argparse
import io
import logging
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from graphkit.commands.parser import Parser
from graphkit.data import Benchmark, load_dataset
from graphkit.errors import UserError
from graphkit.files import atomic_write
from graphkit.parsing import data_options
from graphkit.partition import METHODS, OrderStatistics, cached_order, order_statistics
from graphkit.registry import DATASETS
from graphkit.report import format_table

__all__ = ["partition"]

DESCRIPTION = """Orders the nodes of a data set for compressed embeddings, and says how well the order follows
its edges. Runs that need the same order find it in DIR/orders.

  partition ogbn-arxiv --dim 128 --rank 8           as a tensor train of three cores shares rows
  partition cora --task node --factors 13,14,16 --seed 3
  partition cora --task node --factors 13,14,16 --method random

A data set that serves several tasks is ordered for its first one unless --task says otherwise: of a link task
messages pass over the training edges alone. METIS needs about 50 bytes for each edge and direction."""

_log = logging.getLogger("graphkit")


def partition(argv: Sequence[str]) -> int:
    """The command; returns the exit code.

    Raises:
        UserError: A data set without a single graph, factors that don't hold its nodes, no pymetis.
    """
    options, flags = _parser().parse_known_args(_dataset_first(argv))
    if options.dataset is None:
        known = ", ".join(DATASETS.names())
        raise UserError(f"the data set comes first: partition DATASET [options]; known: {known}")
    chosen = data_options("partition", DATASETS.get(options.dataset), flags)
    benchmark = load_dataset(
        options.dataset, root=options.data_root, task=options.task, seed=options.seed, **chosen
    )
    nodes, graph = benchmark.spec.num_nodes, benchmark.adjacency
    graph = benchmark.data.edge_index if graph is None else graph
    if nodes is None or graph is None:
        raise UserError(f"data set '{options.dataset}' isn't one graph, so there is nothing to order")
    folder = Path(options.data_root) / "orders"
    begun = time.monotonic()
    try:
        factors = options.factors or _tensor_train_factors(nodes, options)
        position = cached_order(
            folder, graph, nodes, factors, method=options.method, seed=options.seed, progress=_log.info
        )
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
    seconds = time.monotonic() - begun
    found = order_statistics(position, graph, factors, _labels(benchmark))
    print(_summary(options, benchmark, factors, found))
    if options.method in ("hierarchical", "one_level"):
        print(f"{seconds:.1f} s, kept in {folder}")
    if options.out is not None:
        content = io.BytesIO()
        np.save(content, position.numpy())
        atomic_write(options.out, content.getvalue())
        print(f"positions written to {options.out}")
    return 0


def _summary(
    options: argparse.Namespace, benchmark: Benchmark, factors: Sequence[int], found: OrderStatistics
) -> str:
    """Returns a line on the leaves, and a table with a row for each level of cells."""
    title = f"{options.method} order of {options.dataset} ({benchmark.task})"
    shape, padding = " x ".join(map(str, factors)), f"{100 * found.padding:.1f} % padding"
    size = f"{benchmark.spec.num_nodes:,} nodes in {found.leaves:,} leaves of at most {factors[-1]:,}"
    line = f"{title}: {size}, {shape} positions, {padding}"
    rows = []
    for level, share in enumerate(found.shared, 1):
        row = {"digits": level, "cells": math.prod(factors[:level]), "edges inside, %": 100 * share}
        if found.purity is not None:
            row["label purity, %"] = 100 * found.purity[level - 1]
        rows.append(row)
    return f"{line}\n\n{format_table(rows)}\n" if rows else line


def _labels(benchmark: Benchmark) -> Tensor | None:
    """Returns one class a node, if the data set has that."""
    y = benchmark.data.get("y")
    if not isinstance(y, Tensor) or y.numel() != benchmark.spec.num_nodes:
        return None
    if y.is_floating_point():  # NaN where a label is missing
        y = torch.where(y.isnan(), -1, y)
    return y.long()


def _tensor_train_factors(nodes: int, options: argparse.Namespace) -> tuple[int, ...]:
    """Returns the row factors that a tensor train of this width and rank takes by itself."""
    from graphkit.nn.embedding.tt_shape import TTShape

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranks that are cut: the model says so in its turn
        shape = TTShape.auto(nodes, options.dim, num_cores=options.cores, rank=options.rank)
    return shape.row_factors


def _factors(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' must be integers with commas, as 55,55,56") from None


def _dataset_first(argv: Sequence[str]) -> list[str]:
    """Turns a leading name into an option, so that no flag's value is taken for it."""
    return ["--dataset-name", argv[0], *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


def _parser() -> Parser:
    parser = Parser("partition", DESCRIPTION)
    parser.usage = "partition DATASET [options] [--data.key value ...]"
    parser.add_argument("--dataset-name", dest="dataset", help=argparse.SUPPRESS)
    parser.add_argument(
        "--factors", type=_factors, metavar="P1,P2,...", help="row factors; default: a tensor train's own"
    )
    parser.add_argument("--dim", type=int, default=128, help="width of that tensor train (default 128)")
    parser.add_argument("--rank", type=int, default=16, help="its rank (default 16)")
    parser.add_argument("--cores", type=int, default=3, help="its number of cores (default 3)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"default {METHODS[0]}")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of random splits (default 0)")
    parser.add_argument("--task", metavar="NAME", help="task, where the data set serves several (its first)")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="folder of the data sets (data)")
    parser.add_argument("--out", metavar="FILE", help="write the positions there as well, as .npy")
    return parser
