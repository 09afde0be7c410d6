"""The configuration of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from graphkit.errors import UserError, did_you_mean

__all__ = ["EmbeddingConfig"]


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """What stands behind the learnt rows of a model without node features.

    Attributes:
        kind: ``dense``: every row of its own; ``tensor_train``: products of small cores; ``hash``: sums of a
            cluster's rows and hashed ones; ``quotient_remainder``: sums of two rows; ``auto``: dense,
            partitioned or tensor train, whichever a plan of memory and traffic finds.
        dim: Width of a row; by default the width that the model works with.
        sparse: Dense only: gradients of the rows that were looked up alone, and a lazy optimizer step.
        init: ``orthogonal``: columns orthonormal up to ``std``; ``gaussian``: independent entries;
            ``spectral``: from leading eigenvectors of the normalised adjacency. Hash and quotient-remainder
            start Gaussian unless it is ``spectral``.
        std: Deviation of the table's entries at the start; by default ``N**-0.5`` where columns are
            orthonormal, else 0.1.
        rank: Tensor train: rank between cores, one for all or one for each bond.
        num_cores: Tensor train: number of cores, at least 2.
        row_factors: Tensor train and hash: factors of the row index; chosen by itself if not given.
        column_factors: Tensor train: factors of the width; chosen by itself if not given.
        order: Which rows share parameters: ``hierarchical`` and ``one_level`` follow METIS partitions of the
            graph, ``random`` and ``identity`` (ids as they are) don't look at it.
        order_seed: Seeds the order; by default the run's seed.
        buckets: Hash: rows for the part of each node's own. Quotient-remainder: number of remainders.
            Chosen from the number of nodes if not given.
        num_hashes: Hash: hashed rows that a node adds up.
        engine: Tensor train: how rows are computed; ``auto`` looks at the batch. Partitioned tables:
            ``all_to_all``, which ``auto`` means too, or ``torchrec``.
        partitioned: Dense and tensor train: rows are spread over the ranks, which exchange what they look up.
        assignment: Partitioned: which rank a row lives on. ``blocks``: by id, or by ``order`` where there is
            a train; ``hash``: evenly; ``partition``: by a METIS partition of the graph.
        sharding: Engine torchrec: what a rank holds. ``row_wise``: rows; ``column_wise``: columns of all;
            ``table_wise``: rank 0 has them all.
        blocks: Partitioned tensor train: blocks of rows that have a train of their own.
        memory_gb: ``auto``: what the table may take on a rank, with gradients and the optimizer's state; by
            default a quarter of the machine's or device's memory, shared by the ranks there.
    """

    kind: Literal["dense", "tensor_train", "hash", "quotient_remainder", "auto"] = "dense"
    dim: int | None = None
    sparse: bool = False
    init: Literal["orthogonal", "gaussian", "spectral"] = "orthogonal"
    std: float | None = None
    rank: int | list[int] = 16
    num_cores: int = 3
    row_factors: list[int] | None = None
    column_factors: list[int] | None = None
    order: Literal["hierarchical", "one_level", "random", "identity"] = "hierarchical"
    order_seed: int | None = None
    buckets: int | None = None
    num_hashes: int = 2
    engine: Literal["auto", "full", "prefix", "gather", "fused", "all_to_all", "torchrec"] = "auto"
    partitioned: bool = False
    assignment: Literal["blocks", "hash", "partition"] = "blocks"
    sharding: Literal["row_wise", "column_wise", "table_wise"] = "row_wise"
    blocks: int = 8
    memory_gb: float | None = None

    @classmethod
    def of(cls, value: EmbeddingConfig | Mapping[str, Any] | None) -> EmbeddingConfig:
        """Reads a configuration or the mapping that a file holds.

        Raises:
            UserError: An unknown key, with the closest known one.
        """
        if value is None:
            return cls()
        if isinstance(value, EmbeddingConfig):
            return value
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise UserError(f"unknown key 'embedding.{key}'{did_you_mean(str(key), known)}")
        return cls(**value)
