"""Embeddings of node ids behind one interface, and the factory that models take them from."""

from graphkit.nn.embedding.additive import HashEmbedding, QuotientRemainderEmbedding
from graphkit.nn.embedding.base import Embedding
from graphkit.nn.embedding.config import EmbeddingConfig
from graphkit.nn.embedding.dense import DenseEmbedding
from graphkit.nn.embedding.factory import fit_to_graph, make_embedding, order_of
from graphkit.nn.embedding.tensor_train import TTEmbedding
from graphkit.nn.embedding.tt_shape import TTShape

__all__ = [
    "DenseEmbedding",
    "Embedding",
    "EmbeddingConfig",
    "HashEmbedding",
    "QuotientRemainderEmbedding",
    "TTEmbedding",
    "TTShape",
    "fit_to_graph",
    "make_embedding",
    "order_of",
]
