"""First values of tensor-train cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graphkit.nn.embedding.tt_shape import TTShape
from graphkit.sparse import Adjacency, as_adjacency

__all__ = ["effective_ranks", "gaussian_cores", "leading_eigenvectors", "orthogonal_cores"]


def effective_ranks(shape: TTShape) -> tuple[int, ...] | None:
    """Returns the largest ranks up to ``shape.ranks`` for which orthonormal cores exist, ``(e_0, ..., e_d)``.

    A core needs ``e_{k-1} q_k <= p_k e_k``. ``None`` if not even ranks of 1 do: there are too few rows.
    """
    e = [1] * (shape.num_cores + 1)
    for k in range(shape.num_cores, 0, -1):
        p, q = shape.row_factors[k - 1], shape.column_factors[k - 1]
        e[k - 1] = min(shape.ranks[k - 1], p * e[k] // q)
    return tuple(e) if min(e) >= 1 else None


def orthogonal_cores(
    shape: TTShape, gain: float = 1.0, gaussians: Sequence[Tensor] | None = None
) -> list[Tensor]:
    r"""Draws cores whose padded table has orthogonal columns: :math:`W^\top W = g^2 I` up to rounding.

    Core ``k`` takes the transposed orthonormal columns of a Gaussian ``[p_k r_k, r_{k-1} q_k]``. The tail of
    the train from core ``k`` on, as a matrix with a row for each ``(r_{k-1}, j_k, ..., j_d)``, then has
    orthonormal rows, by induction from the last core; for ``k = 1`` that is :math:`W^\top`. Where a rank is
    too high for that, only the leading channels take part. The others get noise where they leave a core and
    zeros where they enter the next one: the table doesn't see them, but the zeros receive gradient.

    Columns of Q are signed so that R has a positive diagonal; the factorisation runs in float64 on the CPU.

    Args:
        shape: Sizes.
        gain: ``g``; the table's entries have a deviation of ``g`` over the root of the number of positions.
        gaussians: Standard normal matrices ``[p_k e_k, e_{k-1} q_k]`` with effective ranks ``e``, in the
            order of the cores; drawn from torch's generator by default.

    Returns:
        Cores ``(p_k, r_{k-1}, q_k, r_k)`` in float64. Independent Gaussian ones of the same deviation where
        there are too few rows for orthogonal columns.

    Source:
        C. Yin, D. Zheng, I. Nisa, C. Faloutsos, G. Karypis, R. Vuduc, "Nimble GNN Embedding with Tensor-Train
        Decomposition", KDD 2022, arXiv:2206.10581 (three cores of equal rank; any number and rank here).
    """
    e = effective_ranks(shape)
    if e is None:
        return gaussian_cores(shape, gain / math.sqrt(shape.capacity))
    scale = gain ** (1 / shape.num_cores)
    cores = []
    for k, (p, r, q, s) in enumerate(shape.core_shapes):
        left, right = e[k], e[k + 1]
        drawn = torch.randn(p * right, left * q, dtype=torch.float64) if gaussians is None else gaussians[k]
        orthonormal, upper = torch.linalg.qr(drawn.to("cpu", torch.float64))
        signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(orthonormal)
        inner = (orthonormal * signs).t().reshape(left, q, p, right).permute(2, 0, 1, 3)
        core = torch.zeros(p, r, q, s, dtype=torch.float64)
        core[:, :left, :, :right] = inner
        if s > right:
            noise = torch.randn(p, left, q, s - right, dtype=torch.float64)
            core[:, :left, :, right:] = noise / math.sqrt(p * right)
        cores.append(core * scale)
    return cores


def gaussian_cores(shape: TTShape, std: float) -> list[Tensor]:
    r"""Draws independent Gaussian cores whose table's entries have the deviation ``std``.

    An entry is a sum of :math:`\prod_k r_k` products of ``d`` values each, so the values need the deviation
    :math:`(std / \sqrt{\prod_k r_k})^{1/d}`.

    Returns:
        Cores ``(p_k, r_{k-1}, q_k, r_k)`` in float64.
    """
    each = (std / math.sqrt(math.prod(shape.ranks))) ** (1 / shape.num_cores)
    return [torch.randn(*sizes, dtype=torch.float64) * each for sizes in shape.core_shapes]


def leading_eigenvectors(graph: Tensor | Adjacency, num_nodes: int, k: int, seed: int = 0) -> Tensor:
    r"""Computes eigenvectors of :math:`D^{-1/2} A D^{-1/2}` with the algebraically largest eigenvalues.

    Args:
        graph: ``edge_index`` ``[2, E]`` or rows; directions are ignored.
        num_nodes: N.
        k: How many, at most N.
        seed: Seeds the starting vector of the iteration.

    Returns:
        ``[N, k]`` float64, orthonormal columns by descending eigenvalue; of each column the entry that is
        largest in magnitude is positive.

    Raises:
        ValueError: If ``k`` isn't in ``[1, N]``.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import eigsh

    if not 1 <= k <= num_nodes:
        raise ValueError(f"k is {k}; it must lie in [1, {num_nodes}]")
    rows = as_adjacency(graph, num_nodes=num_nodes)
    ptr, col = rows.rowptr.cpu().numpy(), rows.col.cpu().numpy()
    adjacency = csr_matrix((np.ones(col.shape[0]), col, ptr), (num_nodes, num_nodes))
    if not rows.symmetric:
        adjacency = adjacency.maximum(adjacency.T)
    degree = np.asarray(adjacency.sum(1)).ravel()
    scale = 1 / np.sqrt(np.maximum(degree, 1))
    normalised = adjacency.multiply(scale[:, None]).multiply(scale[None, :]).tocsr()
    if k >= num_nodes - 1 or num_nodes <= 256:
        values, vectors = np.linalg.eigh(normalised.toarray())
    else:
        start = np.random.default_rng(seed).standard_normal(num_nodes)
        values, vectors = eigsh(normalised, k, which="LA", v0=start)
    vectors = vectors[:, np.argsort(-values, kind="stable")[:k]]
    peaks = vectors[np.abs(vectors).argmax(0), np.arange(k)]
    return torch.from_numpy(np.ascontiguousarray(vectors * np.where(peaks < 0, -1.0, 1.0)))
