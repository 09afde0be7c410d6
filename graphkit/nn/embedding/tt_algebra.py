"""Tensor trains from tables, and to lower or higher ranks.

Cores are ``(p_k, r_{k-1}, q_k, r_k)`` throughout. Factorisations run in float64 on the CPU.

Source:
    I. V. Oseledets, "Tensor-Train Decomposition", SIAM Journal on Scientific Computing 33(5), 2011: TT-SVD
    (algorithm 1) and rounding (algorithm 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["balance_cores", "grow_cores", "round_cores", "tt_svd"]


def tt_svd(
    table: Tensor,
    row_factors: Sequence[int],
    column_factors: Sequence[int],
    *,
    ranks: Sequence[int] | None = None,
    tol: float = 0.0,
) -> list[Tensor]:
    r"""Decomposes a table by singular value decompositions of its unfoldings, from left to right.

    Args:
        table: ``[P, D]`` by position, padding included.
        row_factors: ``(p_1, ..., p_d)``, product ``P``.
        column_factors: ``(q_1, ..., q_d)``, product ``D``.
        ranks: ``(r_0, ..., r_d)``, not to be exceeded.
        tol: Largest error as a share of the table's Frobenius norm, as far as ``ranks`` allow.

    Returns:
        Cores in float64; all but the last one have orthonormal columns as ``(p_k r_{k-1} q_k) x r_k``.
    """
    d = len(row_factors)
    axes = [axis for k in range(d) for axis in (k, d + k)]
    rest = table.detach().to("cpu", torch.float64).reshape(*row_factors, *column_factors).permute(axes)
    budget = tol * float(torch.linalg.vector_norm(rest)) / math.sqrt(max(1, d - 1))
    cores, left = [], 1
    for k in range(d - 1):
        p, q = row_factors[k], column_factors[k]
        rest = rest.reshape(left * p * q, -1)
        basis, rest = _truncate(rest, budget, None if ranks is None else ranks[k + 1])
        cores.append(basis.view(left, p, q, -1).transpose(0, 1).contiguous())
        left = basis.size(1)
    cores.append(rest.reshape(left, row_factors[-1], column_factors[-1], 1).transpose(0, 1).contiguous())
    return cores


def round_cores(
    cores: Sequence[Tensor], *, ranks: Sequence[int] | None = None, tol: float = 0.0
) -> list[Tensor]:
    r"""Lowers ranks with the smallest change of the table that one sweep gives.

    A sweep of QR decompositions from the right makes every tail of the train orthonormal; then a singular
    vector dropped from the left costs its singular value, as in the table itself. The whole change is at most
    :math:`\sqrt{d-1}` times that of the best train of these ranks.

    Args:
        cores: A tensor train.
        ranks: ``(r_0, ..., r_d)``, not to be exceeded.
        tol: Largest change as a share of the (padded) table's Frobenius norm, as far as ``ranks`` allow.

    Returns:
        Cores in float64.
    """
    work = [core.detach().to("cpu", torch.float64).transpose(0, 1) for core in cores]  # (r, p, q, s)
    for k in range(len(work) - 1, 0, -1):
        r, p, q, s = work[k].shape
        orthonormal, upper = torch.linalg.qr(work[k].reshape(r, p * q * s).t())
        work[k] = orthonormal.t().reshape(-1, p, q, s)
        work[k - 1] = work[k - 1] @ upper.t()
    budget = tol * float(torch.linalg.vector_norm(work[0])) / math.sqrt(max(1, len(work) - 1))
    for k in range(len(work) - 1):
        r, p, q, s = work[k].shape
        limit = None if ranks is None else ranks[k + 1]
        basis, carry = _truncate(work[k].reshape(r * p * q, s), budget, limit)
        work[k] = basis.view(r, p, q, -1)
        work[k + 1] = torch.tensordot(carry, work[k + 1], dims=1)
    return [core.transpose(0, 1).contiguous() for core in work]


def grow_cores(cores: Sequence[Tensor], ranks: Sequence[int]) -> list[Tensor]:
    """Raises ranks without changing the table.

    A new channel leaves its core with noise of the core's own deviation, drawn from torch's generator, and
    enters the next core with zeros: it adds nothing, but the zeros receive gradient at once and the noise as
    soon as they have moved.

    Args:
        cores: A tensor train.
        ranks: ``(r_0, ..., r_d)``, none below the present one.

    Returns:
        Cores of the same dtype and device.
    """
    grown = []
    for k, core in enumerate(cores):
        p, r, q, s = core.shape
        wide = core.new_zeros(p, ranks[k], q, ranks[k + 1])
        wide[:, :r, :, :s] = core.detach()
        if ranks[k + 1] > s:
            noise = torch.randn(p, r, q, ranks[k + 1] - s, dtype=torch.float64)
            deviation = core.detach().double().pow(2).mean().sqrt()
            wide[:, :r, :, s:] = (noise.to(core.device) * deviation).to(core.dtype)
        grown.append(wide)
    return grown


def balance_cores(cores: Sequence[Tensor]) -> list[Tensor]:
    """Scales cores to one root mean square without changing the table: one learning rate then fits them all.

    A table of zeros has no scale and is left as it is.
    """
    sizes = [float(core.pow(2).mean().sqrt()) for core in cores]
    if min(sizes) == 0:
        return list(cores)
    common = math.exp(sum(math.log(size) for size in sizes) / len(sizes))
    return [core * (common / size) for core, size in zip(cores, sizes, strict=True)]


def _truncate(matrix: Tensor, budget: float, limit: int | None) -> tuple[Tensor, Tensor]:
    """Returns ``U [m, r]`` and ``S V^T [r, n]`` with a dropped part of norm at most ``budget``.

    The rank is at least 1 and at most ``limit``, which goes before the budget.
    """
    # S V^T is taken as U^T A, so that of a wide matrix the triangle of its QR decomposition is enough.
    wide = matrix.size(1) > 2 * matrix.size(0)
    small = torch.linalg.qr(matrix.t(), mode="r").R.t() if wide else matrix
    left, values, _ = torch.linalg.svd(small, full_matrices=False)
    # tail[r]: norm of what is dropped at rank r
    tail = values.pow(2).flip(0).cumsum(0).flip(0).sqrt()
    rank = max(1, int((tail > budget).sum()))
    if limit is not None:
        rank = min(rank, limit)
    return left[:, :rank], left[:, :rank].t() @ matrix
