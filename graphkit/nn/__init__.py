"""Layers that more than one model uses."""

from graphkit.nn.dropout import (
    DropoutReLU,
    FastDropout,
    NormDropoutReLU,
    dropout_relu,
    fast_dropout,
    norm_dropout_relu,
)
from graphkit.nn.encoder import FeatureLinear, GraphEncoder, propagate
from graphkit.nn.link import LinkModel, PairPredictor
from graphkit.nn.pairs import PairStructure, Rows, pair_structure

__all__ = [
    "DropoutReLU",
    "FastDropout",
    "FeatureLinear",
    "GraphEncoder",
    "LinkModel",
    "NormDropoutReLU",
    "PairPredictor",
    "PairStructure",
    "Rows",
    "dropout_relu",
    "fast_dropout",
    "norm_dropout_relu",
    "pair_structure",
    "propagate",
]
