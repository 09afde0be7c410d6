"""Tensor-train embeddings: equal to the reference on its stored arrays."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from graphkit.kernels import tt_lookup
from graphkit.nn.embedding import TTEmbedding, TTShape
from graphkit.nn.embedding.tt_engines import Engine
from graphkit.nn.embedding.tt_init import orthogonal_cores

EXACT = {"atol": 1e-12, "rtol": 1e-12}


def tt_module(arrays: Any, engine: Any, dtype: torch.dtype) -> TTEmbedding:
    p, q, ranks = (arrays[name].tolist() for name in ("p", "q", "ranks"))
    sizes = {"rank": ranks[1:-1], "row_factors": p, "column_factors": q}
    emb = TTEmbedding(int(arrays["N"]), math.prod(q), engine=engine, **sizes).to(dtype)
    for k, core in enumerate(emb.cores):
        core.data.copy_(torch.tensor(arrays[f"core{k}"]).transpose(0, 1))
    return emb


def assert_tt_gradients(emb: TTEmbedding, loss: Tensor, arrays: Any, name: str, **tolerance: float) -> None:
    torch.testing.assert_close(loss.double(), torch.tensor(arrays[f"loss_{name}"]).reshape(()), **tolerance)
    for k, found in enumerate(torch.autograd.grad(loss, list(emb.cores))):
        expected = torch.tensor(arrays[f"grad_{name}_core{k}"]).transpose(0, 1)
        torch.testing.assert_close(found.double(), expected, **tolerance)


def check(path: Path) -> None:
    arrays = np.load(path)
    if "gauss0" in arrays.files:
        return check_tt_start(arrays)
    ids = torch.tensor(arrays["idx"])
    for engine, dtype in itertools.product(get_args(Engine), (torch.float64, torch.float32)):
        exact = dtype is torch.float64
        forward = {"atol": 1e-12, "rtol": 1e-12} if exact else {"atol": 1e-5, "rtol": 1e-5}
        backward = {"atol": 1e-10, "rtol": 1e-10} if exact else {"atol": 1e-3, "rtol": 1e-4}
        emb = tt_module(arrays, engine, dtype)
        rows = emb(ids)
        torch.testing.assert_close(rows.double(), torch.tensor(arrays["rows"]), **forward)
        linear = (rows * torch.tensor(arrays["w"]).to(dtype)).sum()
        assert_tt_gradients(emb, linear, arrays, "linear", **backward)
        assert_tt_gradients(emb, 0.5 * emb(ids).square().sum(), arrays, "quadratic", **backward)
        if "table" in arrays.files:
            torch.testing.assert_close(emb.weight().double(), torch.tensor(arrays["table"]), **forward)


def check_tt_start(arrays: Any) -> None:
    p, q, ranks = (tuple(arrays[name].tolist()) for name in ("p", "q", "ranks"))
    shape = TTShape(math.prod(p), math.prod(q), p, q, ranks)
    cores = orthogonal_cores(shape, gaussians=[torch.tensor(arrays[f"gauss{k}"]) for k in range(len(p))])
    table = tt_lookup(cores, torch.arange(shape.capacity))
    for k, core in enumerate(cores):
        torch.testing.assert_close(core.transpose(0, 1), torch.tensor(arrays[f"core{k}"]), **EXACT)
    torch.testing.assert_close(table, torch.tensor(arrays["table_padded"]), **EXACT)
    torch.testing.assert_close(table.t() @ table, torch.eye(table.size(1)).double(), **EXACT)
