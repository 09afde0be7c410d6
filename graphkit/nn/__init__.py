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
from graphkit.nn.epistemic import Composition, EpistemicPropagation, MLPComposition
from graphkit.nn.facts import FactPlan, fact_plan
from graphkit.nn.features import CategoryEmbedding, EdgeFeatures, NodeFeatures
from graphkit.nn.graph_conv import GatedGCNLayer, GCNEdgeLayer, GINELayer
from graphkit.nn.graph_model import GraphModel
from graphkit.nn.instructions import InstructionDecoder, InstructionUpdate
from graphkit.nn.link import LinkModel, PairPredictor
from graphkit.nn.node import NodeModel
from graphkit.nn.node_pairs import NodePairs
from graphkit.nn.pairs import PairStructure, Rows, pair_structure
from graphkit.nn.readout import MLPHead, TaperedHead, pool
from graphkit.nn.reasoning import EntityScore, ReasoningLayer, RelationEmbedding, RelationText
from graphkit.nn.walks import (
    RRWP,
    RelativeEncoder,
    WalkEncoder,
    WalkEncoding,
    walk_encoding,
    walk_structure,
)

__all__ = [
    "RRWP",
    "CategoryEmbedding",
    "Composition",
    "Conv",
    "DenseEmbedding",
    "DropoutReLU",
    "EdgeFeatures",
    "Embedding",
    "EmbeddingConfig",
    "EntityScore",
    "EpistemicPropagation",
    "FactPlan",
    "FastDropout",
    "FeatureLinear",
    "GATLayer",
    "GCNEdgeLayer",
    "GCNLayer",
    "GINELayer",
    "GINLayer",
    "GatedGCNLayer",
    "GraphEncoder",
    "GraphModel",
    "HashEmbedding",
    "InstructionDecoder",
    "InstructionUpdate",
    "LinearLayer",
    "LinkModel",
    "MLPComposition",
    "MLPHead",
    "NodeFeatures",
    "NodeModel",
    "NodePairs",
    "NormDropoutReLU",
    "PairPredictor",
    "PairStructure",
    "QuotientRemainderEmbedding",
    "ReasoningLayer",
    "RelationEmbedding",
    "RelationText",
    "RelativeEncoder",
    "Rows",
    "SAGELayer",
    "TTEmbedding",
    "TTShape",
    "TaperedHead",
    "WalkEncoder",
    "WalkEncoding",
    "dropout_relu",
    "fact_plan",
    "fast_dropout",
    "fit_to_graph",
    "make_embedding",
    "norm_dropout_relu",
    "pair_structure",
    "pool",
    "propagate",
    "walk_encoding",
    "walk_structure",
]
