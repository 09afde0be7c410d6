"""Short vectors as a Numba type: one for all heads of one or a few channels.

The loops of :mod:`graphkit.kernels._relative_attention_loops` read and write a dozen arrays at once. LLVM
can't tell that these don't overlap, and leaves such loops scalar; written in vectors, they stay vectors.
Everything here is to be called in compiled code.
"""

# mypy: disable-error-code="no-untyped-def, call-arg"
# Numba infers the types of what it compiles.

from __future__ import annotations

import math
import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = [
    "add",
    "clip",
    "exp",
    "fold",
    "inverse_size",
    "keep_heads",
    "larger",
    "load",
    "load_heads",
    "lower_bound",
    "only_above",
    "only_within",
    "signed_root",
    "splat",
    "store",
    "store_heads",
    "widen",
]

I32 = ir.IntType(32)


class Lanes(types.Type):
    """``count`` numbers of type ``real``."""

    def __init__(self, real: types.Float, count: int) -> None:
        self.real, self.count = real, count
        super().__init__(name=f"Lanes({real}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        number = manager.lookup(kind.real).get_value_type()
        super().__init__(manager, kind, ir.VectorType(number, kind.count))


def _operator(function: Any, instruction: str) -> None:
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(function)(_Typing)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    lower_builtin(function, Lanes, Lanes)(generate)


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _operator(_function, _instruction)
_operator(operator.truediv, "fdiv")


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Calls an LLVM intrinsic of a vector type."""
    kind = args[0].type
    letter = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}[kind.element]
    function = ir.FunctionType(kind, [a.type for a in args])
    full = f"llvm.{name}.v{kind.count}{letter}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, full), args)


def _fill(kind: ir.VectorType, value: Any) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _spread(builder: Any, scalar: Any, count: int) -> Any:
    kind = ir.VectorType(scalar.type, count)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _shuffle(builder: Any, vector: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, len(places)), places))


def _address(
    context: Any, builder: Any, array_type: Any, array: Any, row: Any, column: Any, kind: Any
) -> Any:
    """Returns a pointer to ``kind`` at an element of a contiguous matrix."""
    struct = context.make_array(array_type)(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
    place = builder.gep(struct.data, [builder.add(builder.mul(row, width), column)])
    return builder.bitcast(place, kind.as_pointer())


@intrinsic(prefer_literal=True)
def load(typingctx, array, row, column, lanes):
    """Returns elements ``column ... column + lanes - 1`` of a row."""
    kind = Lanes(array.dtype, lanes.literal_value)

    def generate(context, builder, sig, args):
        vector = context.get_value_type(kind)
        place = _address(context, builder, sig.args[0], *args[:3], vector)
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp, types.intp, lanes), generate


@intrinsic
def store(typingctx, array, row, column, vector):
    """Writes a vector to a row, from ``column`` on."""

    def generate(context, builder, sig, args):
        place = _address(context, builder, sig.args[0], *args[:3], args[3].type)
        builder.store(args[3], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic
def add(typingctx, array, row, column, vector):
    """Adds a vector to a row, from ``column`` on."""

    def generate(context, builder, sig, args):
        place = _address(context, builder, sig.args[0], *args[:3], args[3].type)
        size = array.dtype.bitwidth // 8
        builder.store(builder.fadd(builder.load(place, align=size), args[3]), place, align=size)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), generate


@intrinsic(prefer_literal=True)
def load_heads(typingctx, array, row, heads, lanes):
    """Returns a row of ``heads`` numbers, repeated to fill the lanes."""
    kind, count = Lanes(array.dtype, lanes.literal_value), heads.literal_value

    def generate(context, builder, sig, args):
        vector = ir.VectorType(context.get_value_type(array.dtype), count)
        zero = ir.Constant(ir.IntType(64), 0)
        place = _address(context, builder, sig.args[0], args[0], args[1], zero, vector)
        short = builder.load(place, align=array.dtype.bitwidth // 8)
        return _shuffle(builder, short, [lane % count for lane in range(kind.count)])

    return kind(array, types.intp, heads, lanes), generate


@intrinsic(prefer_literal=True)
def store_heads(typingctx, array, row, vector, heads):
    """Writes the first ``heads`` lanes to a row of so many numbers."""

    def generate(context, builder, sig, args):
        short = _shuffle(builder, args[2], list(range(heads.literal_value)))
        zero = ir.Constant(ir.IntType(64), 0)
        place = _address(context, builder, sig.args[0], args[0], args[1], zero, short.type)
        builder.store(short, place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector, heads), generate


@intrinsic(prefer_literal=True)
def splat(typingctx, value, lanes):
    """Returns a vector of one number."""
    kind = Lanes(value, lanes.literal_value)

    def generate(context, builder, sig, args):
        return _spread(builder, args[0], kind.count)

    return kind(value, lanes), generate


@intrinsic
def widen(typingctx, vector):
    """Returns the numbers in float64."""
    kind = Lanes(types.float64, vector.count)

    def generate(context, builder, sig, args):
        if vector.real == types.float64:
            return args[0]
        return builder.fpext(args[0], context.get_value_type(kind))

    return kind(vector), generate


@intrinsic(prefer_literal=True)
def fold(typingctx, vector, heads):
    """Gives each lane the sum of all lanes of its head; a lane's head is its number modulo ``heads``."""
    step = heads.literal_value

    def generate(context, builder, sig, args):
        total, by = args[0], vector.count // 2
        while by >= step:
            turned = _shuffle(builder, total, [(lane + by) % vector.count for lane in range(vector.count)])
            total = builder.fadd(total, turned)
            by //= 2
        return total

    return vector(vector, heads), generate


@intrinsic
def signed_root(typingctx, vector):
    """Returns ``sign(t) sqrt(|t|)``."""

    def generate(context, builder, sig, args):
        root = _call(builder, "sqrt", _call(builder, "fabs", args[0]))
        return _call(builder, "copysign", root, args[0])

    return vector(vector), generate


@intrinsic
def larger(typingctx, left, right):
    """Returns the larger of two vectors, element by element; NaN on the left stays."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[1], args[0])

    return left(left, right), generate


@intrinsic
def lower_bound(typingctx, vector, floor):
    """Returns ``max(vector, floor)`` for a scalar floor; NaN stays."""

    def generate(context, builder, sig, args):
        low = _spread(builder, args[1], vector.count)
        return builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])

    return vector(vector, vector.real), generate


@intrinsic
def clip(typingctx, vector, bound):
    """Returns the vector within ``[-bound, bound]``; NaN stays."""

    def generate(context, builder, sig, args):
        high = _spread(builder, args[1], vector.count)
        low = builder.fneg(high)
        most = builder.select(builder.fcmp_ordered(">", args[0], high), high, args[0])
        return builder.select(builder.fcmp_ordered("<", most, low), low, most)

    return vector(vector, vector.real), generate


@intrinsic
def only_within(typingctx, vector, bound, value):
    """Returns ``value`` where ``|vector| <= bound``, elsewhere 0."""

    def generate(context, builder, sig, args):
        high = _spread(builder, args[1], vector.count)
        inside = builder.fcmp_ordered("<=", _call(builder, "fabs", args[0]), high)
        return builder.select(inside, args[2], _fill(high.type, 0.0))

    return vector(vector, vector.real, vector), generate


@intrinsic
def only_above(typingctx, vector, floor, value):
    """Returns ``value`` where ``vector > floor``, elsewhere 0."""

    def generate(context, builder, sig, args):
        low = _spread(builder, args[1], vector.count)
        above = builder.fcmp_ordered(">", args[0], low)
        return builder.select(above, args[2], _fill(low.type, 0.0))

    return vector(vector, vector.real, vector), generate


@intrinsic
def exp(typingctx, vector):
    """Returns ``exp`` of numbers that are at most about 80; in float32 with an error of about one unit."""

    def generate(context, builder, sig, args):
        x = args[0]
        if vector.real == types.float64:
            return _call(builder, "exp", x)
        kind = x.type
        whole = ir.VectorType(I32, vector.count)

        def constant(value):
            return _fill(kind, value)

        # exp(x) = 2^n exp(r) with |r| <= log(2) / 2. The product with log(2) in two parts, by fused
        # operations, which (unlike products and sums) are never regrouped.
        lowest = constant(-87.0)
        x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
        n = _call(builder, "rint", builder.fmul(x, constant(math.log2(math.e))))
        high = 0.693145751953125  # 15 bits: its products with n are exact
        r = _call(builder, "fma", n, constant(-high), x)
        r = _call(builder, "fma", n, constant(high - math.log(2)), r)
        series = constant(1 / math.factorial(7))
        for power in range(6, -1, -1):
            series = _call(builder, "fma", series, r, constant(1 / math.factorial(power)))
        # NaN has no integer: it takes the least one here, and remains NaN in the series.
        least = constant(-126.0)
        exact = builder.select(builder.fcmp_ordered(">", n, least), n, least)
        bits = builder.add(builder.fptosi(exact, whole), _fill(whole, 127))
        return builder.fmul(series, builder.bitcast(builder.shl(bits, _fill(whole, 23)), kind))

    return vector(vector), generate


@intrinsic(prefer_literal=True)
def keep_heads(typingctx, before, between, threshold, scale, heads, lanes):
    """Returns ``scale`` for heads that dropout keeps in a row, else 0: ``column_bits`` for all heads at once.

    The first three arguments are uint32, as there.
    """
    kind, count = Lanes(scale, lanes.literal_value), heads.literal_value

    def generate(context, builder, sig, args):
        words = ir.VectorType(I32, kind.count)
        half = (count + 1) // 2
        head = [lane % count for lane in range(kind.count)]

        def folded(h, by):
            return builder.xor(h, builder.lshr(h, _fill(words, by)))

        first, second, limit = (_spread(builder, a, kind.count) for a in args[:3])
        h = builder.xor(ir.Constant(words, [h % half for h in head]), first)
        h = builder.mul(folded(h, 16), _fill(words, 0x7FEB352D))
        h = builder.mul(builder.add(folded(h, 15), second), _fill(words, 0x846CA68B))
        h = folded(h, 16)
        h = builder.lshr(h, ir.Constant(words, [16 if h >= half else 0 for h in head]))
        kept = builder.icmp_unsigned(">=", builder.and_(h, _fill(words, 0xFFFF)), limit)
        factor = _spread(builder, args[3], kind.count)
        return builder.select(kept, factor, _fill(factor.type, 0.0))

    word = types.uint32
    return kind(word, word, word, scale, heads, lanes), generate


@intrinsic
def inverse_size(typingctx, vector, least):
    """Returns ``0.5 / max(|vector|, least)``, and 0 where the vector is 0."""

    def generate(context, builder, sig, args):
        size = _call(builder, "fabs", args[0])
        low = _spread(builder, args[1], vector.count)
        bound = builder.select(builder.fcmp_ordered("<", size, low), low, size)
        zero = _fill(low.type, 0.0)
        slope = builder.fdiv(_fill(low.type, 0.5), bound)
        return builder.select(builder.fcmp_ordered("==", size, zero), zero, slope)

    return vector(vector, vector.real), generate
