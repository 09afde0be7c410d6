"""The one place that embeddings come from: configuration to module, and module to the graph it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphkit.errors import UserError
from graphkit.nn.embedding.additive import HashEmbedding, QuotientRemainderEmbedding
from graphkit.nn.embedding.base import Embedding
from graphkit.nn.embedding.config import EmbeddingConfig
from graphkit.nn.embedding.dense import DenseEmbedding
from graphkit.nn.embedding.elsewhere import table_device
from graphkit.nn.embedding.tensor_train import TTEmbedding
from graphkit.sparse import Adjacency

__all__ = ["fit_to_graph", "make_embedding", "order_of"]


def make_embedding(config: EmbeddingConfig, num_embeddings: int, embedding_dim: int) -> Embedding:
    """Builds the embedding that a configuration describes.

    Its order and a spectral start need the graph: :func:`fit_to_graph` puts them in. Until then ids are their
    own positions.

    Args:
        config: See :class:`EmbeddingConfig`.
        num_embeddings: Rows ``N``.
        embedding_dim: The width that the model works with; ``config.dim`` goes before it.

    Raises:
        ValueError: An option out of range, or options that don't go together.
        UserError: An engine that isn't installed.
    """
    width = embedding_dim if config.dim is None else config.dim
    if config.kind == "auto" or config.partitioned:  # the plan is printed, and followed where it is asked for
        from graphkit.distributed.planner import resolve

        config = resolve(config, num_embeddings, width)
    if config.kind not in _MAKERS:
        raise ValueError(f"embedding.kind is {config.kind!r}; it must be one of {', '.join(_MAKERS)} or auto")
    if config.sparse and config.kind != "dense":
        raise ValueError(f"embedding.sparse goes with kind dense, not {config.kind}")
    if config.partitioned and config.kind not in _PARTITIONED:
        raise ValueError(f"embedding.partitioned goes with kind dense or tensor_train, not {config.kind}")
    if not config.partitioned and config.engine in ("all_to_all", "torchrec"):
        raise ValueError(f"embedding.engine {config.engine} goes with embedding.partitioned true")
    maker = _PARTITIONED[config.kind] if config.partitioned else _MAKERS[config.kind]
    made = maker(config, num_embeddings, width)
    made.config = config
    return made


def _start(config: EmbeddingConfig) -> dict[str, Any]:
    """How the table starts; a spectral start is put in by :func:`fit_to_graph`."""
    return {"init": "gaussian" if config.init == "spectral" else config.init, "std": config.std}


def _train(config: EmbeddingConfig) -> dict[str, Any]:
    """What makes a tensor train."""
    return {
        "rank": config.rank,
        "num_cores": config.num_cores,
        "row_factors": config.row_factors,
        "column_factors": config.column_factors,
        "engine": "auto" if config.engine == "all_to_all" else config.engine,
        **_start(config),
    }


def _dense(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    return DenseEmbedding(num_embeddings, width, sparse=config.sparse, **_start(config))


def _tensor_train(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    return TTEmbedding(num_embeddings, width, **_train(config))


def _hash(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    return HashEmbedding(
        num_embeddings,
        width,
        row_factors=config.row_factors,
        buckets=config.buckets,
        num_hashes=config.num_hashes,
        std=0.1 if config.std is None else config.std,
    )


def _quotient_remainder(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    std = 0.1 if config.std is None else config.std
    return QuotientRemainderEmbedding(num_embeddings, width, buckets=config.buckets, std=std)


def _partitioned_dense(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    options: dict[str, Any] = {"assignment": config.assignment, **_start(config)}
    if config.engine == "torchrec":
        from graphkit.distributed.torchrec import TorchRecEmbedding

        with table_device():
            return TorchRecEmbedding(num_embeddings, width, sharding=config.sharding, **options)
    from graphkit.distributed.embedding import PartitionedEmbedding

    with table_device():
        return PartitionedEmbedding(num_embeddings, width, **options)


def _partitioned_train(config: EmbeddingConfig, num_embeddings: int, width: int) -> Embedding:
    if config.engine == "torchrec":
        raise UserError("embedding.engine torchrec has full tables only; kind tensor_train takes all_to_all")
    from graphkit.distributed.tensor_train import PartitionedTTEmbedding

    sizes: dict[str, Any] = {"blocks": config.blocks, "assignment": config.assignment}
    with table_device():
        return PartitionedTTEmbedding(num_embeddings, width, **sizes, **_train(config))


_Maker = Callable[[EmbeddingConfig, int, int], Embedding]
_MAKERS: dict[str, _Maker] = {
    "dense": _dense,
    "tensor_train": _tensor_train,
    "hash": _hash,
    "quotient_remainder": _quotient_remainder,
}
_PARTITIONED: dict[str, _Maker] = {"dense": _partitioned_dense, "tensor_train": _partitioned_train}


def fit_to_graph(
    model: nn.Module,
    graph: Tensor | Adjacency,
    num_nodes: int,
    *,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Gives every embedding of a model that was made from a configuration its order, and its spectral start.

    Args:
        model: Any module.
        graph: ``edge_index`` ``[2, E]`` or rows: what messages may pass over, so no held-out edge.
        num_nodes: N; embeddings of another size are left alone.
        seed: Seeds the order where the configuration doesn't.
        folder: Where computed orders are kept and looked for; they are made each time without.
        progress: Called with a line of text every few seconds while an order is computed.
    """
    from graphkit.partition import cached_order, hierarchical_order

    for module in model.modules():
        config = getattr(module, "config", None)
        if not isinstance(module, Embedding) or not isinstance(config, EmbeddingConfig):
            continue
        if module.num_embeddings != num_nodes:
            continue
        if module.row_factors is not None and config.order != "identity":
            chosen = seed if config.order_seed is None else config.order_seed
            wanted: dict[str, Any] = {"method": config.order, "seed": chosen, "progress": progress}
            if folder is None:
                position = hierarchical_order(graph, num_nodes, module.row_factors, **wanted)
            else:
                position = cached_order(folder, graph, num_nodes, module.row_factors, **wanted)
            module.set_order(position)
        if config.init == "spectral":
            _start_from_spectrum(module, graph, num_nodes, config.std, seed)


def order_of(model: nn.Module) -> Tensor | None:
    """Returns the positions ``[N]`` of a model's first embedding whose order follows the graph, if any."""
    for module in model.modules():
        if isinstance(module, Embedding) and isinstance(module.position, Tensor):
            follows = module.config is None or module.config.order in ("hierarchical", "one_level")
            if follows:
                return module.position.cpu().long()
    return None


def _start_from_spectrum(
    module: Embedding, graph: Tensor | Adjacency, num_nodes: int, std: float | None, seed: int
) -> None:
    """Sets the table to leading eigenvectors: orthonormal columns, or scaled to the wanted deviation."""
    from graphkit.nn.embedding.tt_init import leading_eigenvectors

    if module.embedding_dim >= num_nodes:
        raise ValueError(f"init spectral needs a width below the number of nodes, {num_nodes}")
    vectors = leading_eigenvectors(graph, num_nodes, module.embedding_dim, seed)
    parameter = next(module.parameters())
    scale = 1.0 if std is None else std * num_nodes**0.5
    with torch.no_grad():
        module.set_table_((vectors * scale).to(parameter))
