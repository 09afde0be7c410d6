"""The facts of several questions in the order in which their entities are reasoned over.

Messages along a fact depend on its relation and its question alone, so they are computed once a *pair* of
question and relation; facts only say which pair's message goes where, and whose probability weighs it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from graphkit.kernels.fact_rows import FactRows, number_keys, sort_facts

__all__ = ["FactPlan", "Normalise", "fact_plan"]

Normalise = Literal["none", "sender", "official"]


class FactPlan(NamedTuple):
    """Where the messages of P pairs go in B questions with n entities and F facts, self loops included after.

    Attributes:
        types: ``[U]`` int64, the relations in use, ascending; R, the self loop's, is the last.
        pair_type: ``[2P]`` int64, place in ``types`` of each pair; then the same plus U, for messages against
            facts.
        pair_graph: ``[2P]`` int64, the question of each pair, twice.
        fact_pair: ``[F + n]`` int64, the pair of each fact.
        fact_weight: ``[2, F + n]`` weights along facts and against them; None for ones.
        both: Rows 2i and 2i + 1 of entity i: what facts with this tail carry (lines of pairs), and what facts
            with this head carry back (lines P and on).
        merged: Both of an entity in one row.
        seed_both: As ``both``, of the entities next to a seed only, and of their facts with seeds only.
        seed_merged: Both in one row.
        seed_rows: ``[a]`` int64, which entities those are.
        start: As ``merged``, with the weights of the first states.
        ptr: ``[B + 1]`` int64, where the entities of each question begin.
        batch: ``[n]`` int64, the question of each.
        seed: ``[S]`` int64.
        prior: ``[n]``, 1/s at each of the s seeds of a question.
    """

    types: Tensor
    pair_type: Tensor
    pair_graph: Tensor
    fact_pair: Tensor
    fact_weight: Tensor | None
    both: FactRows
    merged: FactRows
    seed_both: FactRows
    seed_merged: FactRows
    seed_rows: Tensor
    start: FactRows
    ptr: Tensor
    batch: Tensor
    seed: Tensor
    prior: Tensor


@torch.compiler.disable  # sizes decide shapes: nothing that a compiler could trace
@torch.no_grad()
def fact_plan(
    edge_index: Tensor,
    edge_type: Tensor,
    ptr: Tensor,
    seed: Tensor,
    num_relations: int,
    *,
    normalise: Normalise = "none",
    start_weights: bool = False,
    dtype: torch.dtype = torch.float32,
) -> FactPlan:
    """Sorts the facts of a batch.

    Args:
        edge_index: ``[2, F]`` int64, heads and tails in a disjoint union of questions.
        edge_type: ``[F]`` int64 in [0, R).
        ptr: ``[B + 1]`` int64, where the entities of each question begin.
        seed: ``[S]`` int64, the entities that questions name.
        num_relations: R, the self loop not counted.
        normalise: ``sender``: what an entity sends along its facts is divided among them, and what it sends
            against facts among those. ``official``: both directions are divided by the square of how many
            facts the head has.
        start_weights: Whether the facts of a head with the same relation count as one in the first states.
        dtype: Of all weights.

    Raises:
        ValueError: If shapes don't fit or an id is out of range.
    """
    _check(edge_index, edge_type, ptr, seed, num_relations, normalise)
    n, graphs = int(ptr[-1]), ptr.numel() - 1
    batch = torch.repeat_interleave(torch.arange(graphs, device=ptr.device), ptr.diff(), output_size=n)
    own = torch.arange(n, device=ptr.device)
    head, tail = torch.cat([edge_index[0], own]), torch.cat([edge_index[1], own])
    kind = torch.cat([edge_type, torch.full_like(own, num_relations)])
    if not torch.equal(batch[head], batch[tail]):
        raise ValueError("edge_index joins entities of two questions; a fact must lie within one")
    keys, pair = number_keys(batch[head] * (num_relations + 1) + kind, graphs * (num_relations + 1))
    types, pair_type = number_keys(keys % (num_relations + 1), num_relations + 1)
    pairs = keys.numel()

    row, line = torch.cat([2 * tail, 2 * head + 1]), torch.cat([pair, pair + pairs])
    source = torch.cat([head, tail])
    both, perm = sort_facts(row, line, source, 2 * pairs, 2 * ptr)
    weight = _weights(head, tail, n, normalise, dtype)
    if weight is not None:
        both = both._replace(weight=weight.flatten()[perm])
    first = _start_weights(head, kind, num_relations, dtype)[perm] if start_weights else None

    is_seed = torch.zeros(n, dtype=torch.bool, device=ptr.device)
    is_seed[seed] = True
    seeds = torch.zeros(graphs, dtype=dtype, device=ptr.device)
    seeds.index_add_(0, batch[seed], torch.ones_like(seed, dtype=dtype))
    prior = torch.zeros(n, dtype=dtype, device=ptr.device)
    prior.index_add_(0, seed, 1 / seeds[batch[seed]])
    told = is_seed[source].nonzero().squeeze(1)
    seed_rows, place = torch.unique(row[told] // 2, return_inverse=True)
    block, place = 2 * torch.searchsorted(seed_rows, ptr), 2 * place + row[told] % 2
    near, perm = sort_facts(place, line[told], source[told], 2 * pairs, block)
    if weight is not None:
        near = near._replace(weight=weight.flatten()[told[perm]])
    start = _merge(both)._replace(weight=first)
    return FactPlan(
        types,
        torch.cat([pair_type, pair_type + types.numel()]),
        (keys // (num_relations + 1)).repeat(2),
        pair,
        weight,
        both,
        _merge(both),
        near,
        _merge(near),
        seed_rows,
        start,
        ptr,
        batch,
        seed,
        prior,
    )


def _merge(both: FactRows) -> FactRows:
    """Makes one row of every two."""
    return both._replace(rowptr=both.rowptr[::2].contiguous(), block=both.block // 2)


def _weights(head: Tensor, tail: Tensor, n: int, normalise: Normalise, dtype: torch.dtype) -> Tensor | None:
    """Returns the weights of facts, ``[2, F + n]``: along facts, then against them."""
    if normalise == "none":
        return None
    out = 1 / torch.bincount(head, minlength=n).to(dtype)
    if normalise == "official":
        return (out * out)[head].expand(2, -1)
    return torch.stack([out[head], (1 / torch.bincount(tail, minlength=n).to(dtype))[tail]])


def _start_weights(head: Tensor, kind: Tensor, num_relations: int, dtype: torch.dtype) -> Tensor:
    """Returns one over the facts with the same head and relation, ``[2 (F + n)]``."""
    _, place, count = torch.unique(head * (num_relations + 1) + kind, return_inverse=True, return_counts=True)
    return (1 / count.to(dtype))[place].repeat(2)


def _check(
    edge_index: Tensor, edge_type: Tensor, ptr: Tensor, seed: Tensor, num_relations: int, normalise: Normalise
) -> None:
    if normalise not in ("none", "sender", "official"):
        raise ValueError(f"normalise is {normalise!r}; it must be none, sender or official")
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_type.shape != edge_index.shape[1:]:
        raise ValueError(
            f"edge_index {tuple(edge_index.shape)} and edge_type {tuple(edge_type.shape)} must be "
            "[2, F] and [F]"
        )
    if ptr.dim() != 1 or ptr.numel() < 1 or int(ptr[0]) != 0 or bool((ptr.diff() < 0).any()):
        raise ValueError("ptr must ascend from 0 to the number of entities")
    n = int(ptr[-1])
    for name, ids, size in (
        ("edge_index", edge_index, n),
        ("edge_type", edge_type, num_relations),
        ("seed", seed, n),
    ):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ValueError(f"{name} holds ids from {int(ids.min())} to {int(ids.max())}; {size} are known")
