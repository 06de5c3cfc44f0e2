"""A numba type for 16 complex numbers side by side, held in vector registers.

In memory they stand as 16 real parts, then 16 imaginary parts, all float32, on a
64-byte boundary. LLVM makes AVX-512, AVX2 or NEON code of it, so no compiler is
needed at installation. All that is here can only be called from compiled kernels;
arrays are flat float32 and indices count floats.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import overload, register_model

LANES = 16
"""Complex numbers side by side."""

WIDTH = 2 * LANES
"""Floats that they take."""

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_PAIR = ir.LiteralStructType([_VECTOR, _VECTOR])
_BYTES = 4 * LANES
_FAST = ("fast",)
intrinsic: Any = numba_intrinsic  # called without the typing context


class LanesType(types.Type):
    """Type of 16 complex numbers."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes_type = LanesType()


@register_model(LanesType)
class _LanesModel(PrimitiveModel):
    def __init__(self, manager: Any, fe_type: LanesType) -> None:
        super().__init__(manager, fe_type, _PAIR)


# ------------------------------------------------------------------ building blocks


def _split(builder: Any, lanes: Any) -> tuple[Any, Any]:
    return builder.extract_value(lanes, 0), builder.extract_value(lanes, 1)


def _join(builder: Any, re: Any, im: Any) -> Any:
    pair = builder.insert_value(ir.Constant(_PAIR, ir.Undefined), re, 0)
    return builder.insert_value(pair, im, 1)


def _spread(builder: Any, scalar: Any) -> Any:
    """Return a vector of one scalar."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    first = ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES)
    return builder.shuffle_vector(one, undefined, first)


def _scale(builder: Any, lanes: Any, vector: Any) -> Any:
    re, im = _split(builder, lanes)
    return _join(
        builder,
        builder.fmul(re, vector, flags=_FAST),
        builder.fmul(im, vector, flags=_FAST),
    )


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any):  # type: ignore[no-untyped-def]
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [index])
    return builder.bitcast(pointer, _VECTOR.as_pointer())


def _read(builder: Any, pointer: Any, align: int = _BYTES) -> Any:
    value = builder.load(pointer)
    value.align = align
    return value


def _write(
    builder: Any, value: Any, pointer: Any, align: int = _BYTES, past: bool = False
) -> None:
    """Write a vector; ``past`` the caches, for what is not read again soon."""
    instruction = builder.store(value, pointer)
    instruction.align = align
    if past:
        mark = builder.module.add_metadata([ir.Constant(_INT, 1)])
        instruction.set_metadata("nontemporal", mark)


# --------------------------------------------------------------------- load and store


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Return the lanes at ``array[index]``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], *args)
        following = builder.gep(pointer, [ir.Constant(_INT, 1)])
        return _join(builder, _read(builder, pointer), _read(builder, following))

    return lanes_type(array, types.intp), generate


def _store(past: bool) -> Any:
    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _address(context, builder, signature.args[0], *args[:2])
            following = builder.gep(pointer, [ir.Constant(_INT, 1)])
            re, im = _split(builder, args[2])
            _write(builder, re, pointer, past=past)
            _write(builder, im, following, past=past)
            return context.get_dummy_value()

        return types.void(array, types.intp, lanes_type), generate

    return store


store = _store(past=False)
store_past = _store(past=True)


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of ``array[index]``, to be written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _address(context, builder, signature.args[0], *args)
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        name = "llvm.prefetch.p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        write, near, data = _INT(1), _INT(3), _INT(1)
        builder.call(function, [builder.bitcast(pointer, byte), write, near, data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


# ------------------------------------------------------------------------- arithmetic


@intrinsic
def zero(typing_context: Any) -> Any:
    """Return sixteen zeros."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = ir.Constant(_VECTOR, [0.0] * LANES)
        return _join(builder, nothing, nothing)

    return lanes_type(), generate


def _elementwise(operation: str) -> Any:
    @intrinsic
    def combine(typing_context: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (xr, xi), (yr, yi) = _split(builder, args[0]), _split(builder, args[1])
            act = getattr(builder, operation)
            return _join(builder, act(xr, yr, flags=_FAST), act(xi, yi, flags=_FAST))

        return lanes_type(lanes_type, lanes_type), generate

    return combine


_add, _subtract = _elementwise("fadd"), _elementwise("fsub")


@intrinsic
def _times_float(typing_context: Any, x: Any, factor: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _scale(builder, args[0], _spread(builder, args[1]))

    return lanes_type(lanes_type, types.float32), generate


@intrinsic
def _times_complex(typing_context: Any, x: Any, factor: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        re, im = _split(builder, args[0])
        number = context.make_complex(builder, types.complex64, value=args[1])
        c, s = _spread(builder, number.real), _spread(builder, number.imag)

        def multiply(a: Any, b: Any) -> Any:
            return builder.fmul(a, b, flags=_FAST)

        return _join(
            builder,
            builder.fsub(multiply(re, c), multiply(im, s), flags=_FAST),
            builder.fadd(multiply(re, s), multiply(im, c), flags=_FAST),
        )

    return lanes_type(lanes_type, types.complex64), generate


@intrinsic
def times_i(typing_context: Any, x: Any) -> Any:
    """Return the lanes times the imaginary unit."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        re, im = _split(builder, args[0])
        nothing = ir.Constant(_VECTOR, [0.0] * LANES)
        return _join(builder, builder.fsub(nothing, im, flags=_FAST), re)

    return lanes_type(lanes_type), generate


@intrinsic
def swap(typing_context: Any, x: Any) -> Any:
    """Return the lanes with real and imaginary parts exchanged."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        re, im = _split(builder, args[0])
        return _join(builder, im, re)

    return lanes_type(lanes_type), generate


@overload(operator.add)
def _overload_add(x, y):  # type: ignore[no-untyped-def]
    if x == lanes_type and y == lanes_type:
        return lambda x, y: _add(x, y)
    return None


@overload(operator.sub)
def _overload_subtract(x, y):  # type: ignore[no-untyped-def]
    if x == lanes_type and y == lanes_type:
        return lambda x, y: _subtract(x, y)
    return None


@overload(operator.mul)
def _overload_multiply(x, y):  # type: ignore[no-untyped-def]
    if x == lanes_type and y == types.float32:
        return lambda x, y: _times_float(x, y)
    if x == lanes_type and y == types.complex64:
        return lambda x, y: _times_complex(x, y)
    return None


# -------------------------------------------------------------------------- transpose


def _transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """Exchange blocks of 1, 2, 4, ... between rows: log2(lanes) rounds of shuffles."""
    block = 1
    while block < LANES:
        low = [i if not i & block else LANES + i - block for i in range(LANES)]
        high = [i + block if not i & block else LANES + i for i in range(LANES)]
        done = list(rows)
        for i in range(LANES):
            if not i & block:
                for place, mask in ((i, low), (i + block, high)):
                    order = ir.Constant(ir.VectorType(_INT, LANES), mask)
                    pair = rows[i], rows[i + block]
                    done[place] = builder.shuffle_vector(*pair, order)
        rows, block = done, 2 * block
    return rows


def _transposer(past: bool) -> Any:
    @intrinsic
    def transpose(
        typing_context: Any,
        source: Any,
        start: Any,
        step: Any,
        target: Any,
        target_start: Any,
        target_step: Any,
    ) -> Any:
        """Copy 16 rows of 16 floats as 16 columns."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(array: int, row: int) -> Any:
                begin, stride = args[array + 1], args[array + 2]
                offset = builder.mul(stride, ir.Constant(stride.type, row))
                place = builder.add(begin, offset)
                kind = signature.args[array]
                return _address(context, builder, kind, args[array], place)

            rows = [_read(builder, pointer(0, n), align=4) for n in range(LANES)]
            align = _BYTES if past else 4
            for n, row in enumerate(_transpose(builder, rows)):
                _write(builder, row, pointer(3, n), align=align, past=past)
            return context.get_dummy_value()

        intp = types.intp
        return types.void(source, intp, intp, target, intp, intp), generate

    return transpose


transpose = _transposer(past=False)
transpose_past = _transposer(past=True)
