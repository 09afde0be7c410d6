"""Layers that more than one model uses."""

from graphkit.nn.conv import Conv, GATLayer, GCNLayer, GINLayer, LinearLayer, SAGELayer
from graphkit.nn.dropout import (
    DropoutReLU,
    FastDropout,
    NormDropoutReLU,
    dropout_relu,
    fast_dropout,
    norm_dropout_relu,
)
from graphkit.nn.embedding import (
    DenseEmbedding,
    Embedding,
    EmbeddingConfig,
    HashEmbedding,
    QuotientRemainderEmbedding,
    TTEmbedding,
    TTShape,
    fit_to_graph,
    make_embedding,
)
from graphkit.nn.encoder import FeatureLinear, GraphEncoder, propagate
from graphkit.nn.link import LinkModel, PairPredictor
from graphkit.nn.node import NodeModel
from graphkit.nn.pairs import PairStructure, Rows, pair_structure

__all__ = [
    "Conv",
    "DenseEmbedding",
    "DropoutReLU",
    "Embedding",
    "EmbeddingConfig",
    "FastDropout",
    "FeatureLinear",
    "GATLayer",
    "GCNLayer",
    "GINLayer",
    "GraphEncoder",
    "HashEmbedding",
    "LinearLayer",
    "LinkModel",
    "NodeModel",
    "NormDropoutReLU",
    "PairPredictor",
    "PairStructure",
    "QuotientRemainderEmbedding",
    "Rows",
    "SAGELayer",
    "TTEmbedding",
    "TTShape",
    "dropout_relu",
    "fast_dropout",
    "fit_to_graph",
    "make_embedding",
    "norm_dropout_relu",
    "pair_structure",
    "propagate",
]
