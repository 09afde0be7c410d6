"""The few loops that torch can't express fast, each a ``torch.library`` op: Numba on CPU, torch elsewhere."""

from graphkit.kernels.edge_gate import edge_gate_mean, edge_gate_mean_torch
from graphkit.kernels.edge_relu import edge_relu_sum, edge_relu_sum_torch
from graphkit.kernels.fact_rows import FactRows
from graphkit.kernels.fact_sum import fact_sum, fact_sum_torch
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
from graphkit.kernels.random_walks import (
    random_walk_diagonal,
    random_walk_diagonal_torch,
    random_walks,
    random_walks_torch,
)
from graphkit.kernels.relation_sum import relation_sum, relation_sum_torch
from graphkit.kernels.relative_attention import RelativeAttention, relative_attention
from graphkit.kernels.scaled import scaled_spmm, scaled_spmm_torch
from graphkit.kernels.segment_softmax import segment_softmax, segment_softmax_torch
from graphkit.kernels.spmm import sddmm, sddmm_torch, spmm, spmm_torch, transpose_csr, transpose_csr_torch
from graphkit.kernels.text_pool import text_pool, text_pool_torch
from graphkit.kernels.tt_lookup import tt_lookup, tt_lookup_torch

__all__ = [
    "FactRows",
    "Overlap",
    "RelativeAttention",
    "common_neighbors",
    "common_neighbors_torch",
    "edge_gate_mean",
    "edge_gate_mean_torch",
    "edge_relu_sum",
    "edge_relu_sum_torch",
    "fact_sum",
    "fact_sum_torch",
    "overlap_count",
    "overlap_count_torch",
    "overlap_pool",
    "overlap_pool_torch",
    "pair_product",
    "pair_product_torch",
    "random_walk_diagonal",
    "random_walk_diagonal_torch",
    "random_walks",
    "random_walks_torch",
    "relation_sum",
    "relation_sum_torch",
    "relative_attention",
    "scaled_spmm",
    "scaled_spmm_torch",
    "sddmm",
    "sddmm_torch",
    "segment_softmax",
    "segment_softmax_torch",
    "spmm",
    "spmm_torch",
    "text_pool",
    "text_pool_torch",
    "transpose_csr",
    "transpose_csr_torch",
    "tt_lookup",
    "tt_lookup_torch",
]
