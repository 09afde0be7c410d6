"""Layers that more than one model uses."""

from graphkit.nn.dropout import (
    DropoutReLU,
    FastDropout,
    NormDropoutReLU,
    dropout_relu,
    fast_dropout,
    norm_dropout_relu,
)

__all__ = [
    "DropoutReLU",
    "FastDropout",
    "NormDropoutReLU",
    "dropout_relu",
    "fast_dropout",
    "norm_dropout_relu",
]
