"""Vectors over facets, for the loops of :mod:`graphkit.kernels._belief_loops`: called in compiled code."""

# mypy: ignore-errors
# Numba types what it compiles.

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphkit.kernels._relative_attention_vectors import Lanes, load, splat, store, widen

__all__ = [
    "first_least",
    "larger",
    "lift",
    "load",
    "lowered",
    "narrow",
    "only_equal",
    "smaller",
    "splat",
    "store",
    "times_power",
    "widen",
]

# A product leaves the range [2^-500, 1] downwards only: it is then multiplied by 2^500, and that is counted.
LIFT = 2.0**500
FLOOR = 2.0**-500


def _fill(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, scalar: Any, count: int) -> Any:
    kind = ir.VectorType(scalar.type, count)
    word = ir.IntType(32)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(word, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(word, count), [0] * count))


@intrinsic
def smaller(typingctx, left, right):
    """Returns the smaller of two vectors, lane by lane."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[1], args[0]), args[1], args[0])

    return left(left, right), generate


@intrinsic
def larger(typingctx, left, right):
    """Returns the larger of two vectors, lane by lane."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return left(left, right), generate


@intrinsic
def first_least(typingctx, least, vector, place, number):
    """Returns ``number`` where ``vector < least``, elsewhere ``place``."""

    def generate(context, builder, sig, args):
        below = builder.fcmp_ordered("<", args[1], args[0])
        return builder.select(below, _spread(builder, args[3], least.count), args[2])

    return least(least, vector, place, least.real), generate


@intrinsic
def only_equal(typingctx, place, number, value):
    """Returns ``value`` where ``place`` is ``number``, elsewhere 0."""

    def generate(context, builder, sig, args):
        same = builder.fcmp_ordered("==", args[0], _spread(builder, args[1], place.count))
        return builder.select(same, args[2], _fill(args[2].type, 0.0))

    return place(place, place.real, value), generate


@intrinsic
def lift(typingctx, product):
    """Returns ``product * 2^500`` where it is below ``2^-500``, elsewhere ``product``."""

    def generate(context, builder, sig, args):
        below = builder.fcmp_ordered("<", args[0], _fill(args[0].type, FLOOR))
        return builder.select(below, builder.fmul(args[0], _fill(args[0].type, LIFT)), args[0])

    return product(product), generate


@intrinsic
def lowered(typingctx, product, power):
    """Returns ``power - 1`` where ``product`` is below ``2^-500``, elsewhere ``power``."""

    def generate(context, builder, sig, args):
        below = builder.fcmp_ordered("<", args[0], _fill(args[0].type, FLOOR))
        return builder.select(below, builder.fsub(args[1], _fill(args[1].type, 1.0)), args[1])

    return power(product, power), generate


@intrinsic
def times_power(typingctx, product, power):
    """Returns ``product * 2^(500 power)`` for whole powers, at most 0; below -1 they give 0."""

    def generate(context, builder, sig, args):
        kind = args[0].type
        low = builder.fmul(args[0], _fill(kind, FLOOR))
        rest = builder.select(builder.fcmp_ordered("==", args[1], _fill(kind, -1.0)), low, _fill(kind, 0.0))
        return builder.select(builder.fcmp_ordered("==", args[1], _fill(kind, 0.0)), args[0], rest)

    return product(product, power), generate


@intrinsic
def narrow(typingctx, vector, like):
    """Returns numbers of float64 in the type of ``like``, a number."""
    kind = Lanes(like, vector.count)

    def generate(context, builder, sig, args):
        if like == types.float64:
            return args[0]
        return builder.fptrunc(args[0], context.get_value_type(kind))

    return kind(vector, like), generate
