"""The few loops that torch can't express fast, each a ``torch.library`` op: Numba on CPU, torch elsewhere."""

from graphkit.kernels.overlap import (
    Overlap,
    common_neighbors,
    common_neighbors_torch,
    overlap_count,
    overlap_count_torch,
    overlap_pool,
    overlap_pool_torch,
)
from graphkit.kernels.pair_product import pair_product, pair_product_torch
from graphkit.kernels.scaled import scaled_spmm, scaled_spmm_torch
from graphkit.kernels.spmm import sddmm, sddmm_torch, spmm, spmm_torch, transpose_csr, transpose_csr_torch
from graphkit.kernels.tt_lookup import tt_lookup, tt_lookup_torch

__all__ = [
    "Overlap",
    "common_neighbors",
    "common_neighbors_torch",
    "overlap_count",
    "overlap_count_torch",
    "overlap_pool",
    "overlap_pool_torch",
    "pair_product",
    "pair_product_torch",
    "scaled_spmm",
    "scaled_spmm_torch",
    "sddmm",
    "sddmm_torch",
    "spmm",
    "spmm_torch",
    "transpose_csr",
    "transpose_csr_torch",
    "tt_lookup",
    "tt_lookup_torch",
]
