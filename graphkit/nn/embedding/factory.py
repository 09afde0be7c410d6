"""The one place that embeddings come from: configuration to module, and module to the graph it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphkit.nn.embedding.additive import HashEmbedding, QuotientRemainderEmbedding
from graphkit.nn.embedding.base import Embedding
from graphkit.nn.embedding.config import EmbeddingConfig
from graphkit.nn.embedding.dense import DenseEmbedding
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
        ValueError: An option out of range.
    """
    width = embedding_dim if config.dim is None else config.dim
    plain: Any = "gaussian" if config.init == "spectral" else config.init  # replaced in fit_to_graph
    made: Embedding
    if config.kind == "dense":
        made = DenseEmbedding(num_embeddings, width, sparse=config.sparse, init=plain, std=config.std)
    elif config.sparse:
        raise ValueError(f"embedding.sparse goes with kind dense, not {config.kind}")
    elif config.kind == "tensor_train":
        made = TTEmbedding(
            num_embeddings,
            width,
            rank=config.rank,
            num_cores=config.num_cores,
            row_factors=config.row_factors,
            column_factors=config.column_factors,
            init=plain,
            std=config.std,
            engine=config.engine,
        )
    elif config.kind == "hash":
        made = HashEmbedding(
            num_embeddings,
            width,
            row_factors=config.row_factors,
            buckets=config.buckets,
            num_hashes=config.num_hashes,
            std=0.1 if config.std is None else config.std,
        )
    elif config.kind == "quotient_remainder":
        std = 0.1 if config.std is None else config.std
        made = QuotientRemainderEmbedding(num_embeddings, width, buckets=config.buckets, std=std)
    else:
        raise ValueError(
            f"embedding.kind is {config.kind!r}; it must be dense, tensor_train, hash or quotient_remainder"
        )
    made.config = config
    return made


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
