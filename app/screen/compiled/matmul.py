"""Products of a bfloat16 V with a few float32 columns at the speed of memory: register tiles, compiled by numba.

V is read as stored and widened in registers. torch widens it into a buffer that it then reads again, and its products with
eight columns reach a tenth of the processor's peak arithmetic. A tile is LANES columns of V wide and TILE columns of the
other factor deep, written as vectors in LLVM's language, which splits them for processors with narrower registers.

Every kernel runs on one thread and releases the interpreter's lock. Blocks and the order of sums depend only on the shape,
and a column's result does not depend on the columns beside it: results are bit-identical on any number of threads, and for
one adapter or several together.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types  # type: ignore[import-untyped]
from numba.extending import intrinsic  # type: ignore[import-untyped]
from numpy.typing import NDArray

from app.screen.compiled.numba_support import compiled

LANES: Final = 16
"""float32 values in a vector: one AVX-512 register, two of AVX2."""

WIDTH: Final = 2 * LANES
"""Columns of V processed at a time: one cache line of bfloat16. V's width must be a multiple of it."""

TILE: Final = 8
"""Columns of the other factor in a tile: with ROWS, 24 accumulators of the 32 registers. Missing ones are zero padding."""

ROWS: Final = 3
"""Rows of V in a tile of V·X."""

BLOCK: Final = 24
"""Rows of V used for both products while they are in the cache: 192 KiB at 4096 columns. A multiple of ROWS."""

FOLD: Final = 20
"""Number of blocks (480 rows) summed in float32 before the sum is added to the float64 total."""

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_HALVES, _WORDS = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(_I32, LANES)
_BYTE = ir.IntType(8).as_pointer()


def _at(b: Any, base: Any, *offsets: tuple[Any, int]) -> Any:
    """Return base + Σ index·stride, in bytes."""
    for index, stride in offsets:
        base = b.add(base, b.mul(index, _I64(stride)))
    return base


def _load(b: Any, address: Any) -> Any:
    return b.load(b.inttoptr(address, _VECTOR.as_pointer()), align=4)


def _widen(b: Any, address: Any) -> Any:
    """Return LANES bfloat16 values as float32, whose upper halves are their bits."""
    bits = b.zext(b.load(b.inttoptr(address, _HALVES.as_pointer()), align=2), _WORDS)
    return b.bitcast(b.shl(bits, ir.Constant(_WORDS, [16] * LANES)), _VECTOR)


def _splat(b: Any, address: Any) -> Any:
    """Return a vector with one float32 in every lane."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    one = b.insert_element(nothing, b.load(b.inttoptr(address, _F32.as_pointer()), align=4), _I32(0))
    return b.shuffle_vector(one, nothing, ir.Constant(_WORDS, [0] * LANES))


def _fma(b: Any, x: Any, y: Any, z: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32"), [x, y, z])


def _prefetch(b: Any, address: Any) -> None:
    """Prefetch a cache line; an address beyond the mapping has no effect."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTE, _I32, _I32, _I32])
    fetch = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(fetch, [b.inttoptr(address, _BYTE), _I32(0), _I32(3), _I32(1)])


def _loop(b: Any, count: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """Pass `start` through `count` ≥ 1 iterations of body(i, values), in registers."""
    before, turn = b.block, b.append_basic_block("turn")
    b.branch(turn)
    b.position_at_end(turn)
    i, values = b.phi(_I64), [b.phi(s.type) for s in start]
    after = body(i, values)
    i.add_incoming(_I64(0), before)
    i.add_incoming(b.add(i, _I64(1)), b.block)
    for value, first, later in zip(values, start, after, strict=True):
        value.add_incoming(first, before)
        value.add_incoming(later, b.block)
    end = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", b.add(i, _I64(1)), count), turn, end)
    b.position_at_end(end)
    return after


def _dot(rows: int) -> Any:
    """Build out[r, c] = Σ_j V[r, j]·X[c, j], `rows` rows, TILE columns; strides in bytes, `lines` of WIDTH columns."""

    @intrinsic  # type: ignore[untyped-decorator]
    def dot(_: Any, v: Any, vs: Any, x: Any, xs: Any, lines: Any, out: Any, os: Any) -> Any:
        def generate(context: Any, b: Any, _: Any, args: list[Any]) -> Any:
            v, vs, x, xs, lines, out, os = args
            at_row = [_at(b, v, (vs, r)) for r in range(rows)]
            at_column = [_at(b, x, (xs, c)) for c in range(TILE)]

            def body(i: Any, sums: list[Any]) -> list[Any]:
                sums = list(sums)
                for row in at_row:
                    _prefetch(b, _at(b, row, (i, 2 * WIDTH), (vs, ROWS)))
                for part in range(WIDTH // LANES):
                    here = b.add(b.mul(i, _I64(WIDTH)), _I64(part * LANES))
                    wide = [_widen(b, _at(b, row, (here, 2))) for row in at_row]
                    for c, column in enumerate(at_column):
                        one = _load(b, _at(b, column, (here, 4)))
                        for r in range(rows):
                            sums[r * TILE + c] = _fma(b, wide[r], one, sums[r * TILE + c])
                return sums

            sums = _loop(b, lines, [ir.Constant(_VECTOR, [0.0] * LANES)] * (rows * TILE), body)
            kind = ir.FunctionType(_F32, [_F32, _VECTOR])
            add = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
            for r in range(rows):
                for c in range(TILE):
                    total = b.call(add, [_F32(0.0), sums[r * TILE + c]], fastmath=("reassoc",))
                    b.store(total, b.inttoptr(_at(b, out, (os, r), (_I64(c), 4)), _F32.as_pointer()))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return dot


@intrinsic  # type: ignore[untyped-decorator]
def _outer(_: Any, v: Any, vs: Any, rows: Any, u: Any, us: Any, t: Any, ts: Any) -> Any:
    """Add Σ_r V[r, j]·U[r, c] to t[c, j] for WIDTH columns j and TILE columns c; strides in bytes."""

    def generate(context: Any, b: Any, _: Any, args: list[Any]) -> Any:
        v, vs, rows, u, us, t, ts = args
        parts = WIDTH // LANES
        places = [_at(b, t, (ts, c), (_I64(p), 4 * LANES)) for c in range(TILE) for p in range(parts)]

        def body(i: Any, sums: list[Any]) -> list[Any]:
            row, scalars = b.add(v, b.mul(vs, i)), b.add(u, b.mul(us, i))
            sums = list(sums)
            wide = [_widen(b, _at(b, row, (_I64(p), 2 * LANES))) for p in range(parts)]
            for c in range(TILE):
                one = _splat(b, _at(b, scalars, (_I64(c), 4)))
                for p in range(parts):
                    sums[c * parts + p] = _fma(b, one, wide[p], sums[c * parts + p])
            return sums

        for place, total in zip(places, _loop(b, rows, [_load(b, p) for p in places], body), strict=True):
            b.store(total, b.inttoptr(place, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


_dot_rows, _dot_row = _dot(ROWS), _dot(1)


@compiled
def _right_block(v: Any, x: Any, h: Any, at: int, end: int) -> None:
    """Compute rows at..end of V·X."""
    vs, xs, hs, lines = 2 * v.shape[1], 4 * v.shape[1], 4 * h.shape[1], v.shape[1] // WIDTH
    at_v, at_x, at_h = v.ctypes.data, x.ctypes.data, h.ctypes.data
    whole = end - (end - at) % ROWS
    for c in range(0, h.shape[1], TILE):
        for r in range(at, whole, ROWS):
            _dot_rows(at_v + r * vs, vs, at_x + c * xs, xs, lines, at_h + r * hs + 4 * c, hs)
        for r in range(whole, end):
            _dot_row(at_v + r * vs, vs, at_x + c * xs, xs, lines, at_h + r * hs + 4 * c, hs)


@compiled
def _right(v: Any, x: Any, h: Any) -> None:
    """Compute V·X, the last rows first: after `_both` they are still in the cache."""
    for back in range((v.shape[0] - 1) // BLOCK, -1, -1):
        _right_block(v, x, h, back * BLOCK, min((back + 1) * BLOCK, v.shape[0]))


@compiled
def _both(v: Any, u: Any, x: Any, partial: Any, t: Any, h: Any) -> None:
    height, width, n = v.shape[0], v.shape[1], u.shape[1]
    vs, us, ts = 2 * width, 4 * n, 4 * width
    at_v, at_u, at_t = v.ctypes.data, u.ctypes.data, partial.ctypes.data
    for block, at in enumerate(range(0, height, BLOCK)):
        end = min(at + BLOCK, height)
        _right_block(v, x, h, at, end)
        for c in range(0, n, TILE):
            for j in range(0, width, WIDTH):
                here, out = at_v + at * vs + 2 * j, at_t + c * ts + 4 * j
                _outer(here, vs, end - at, at_u + at * us + 4 * c, us, out, ts)
        if block % FOLD == FOLD - 1 or end == height:
            for c in range(n):
                for j in range(width):
                    t[c, j] += partial[c, j]
                    partial[c, j] = 0.0


def right(v: NDArray[np.int16], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return V·Xᵀ: v (d_out, d_in) bits of bfloat16, x (n, d_in), both contiguous, n a multiple of TILE → (d_out, n)."""
    h = np.empty((v.shape[0], x.shape[0]), np.float32)
    _right(v, x, h)
    return h


def both(
    v: NDArray[np.int16], u: NDArray[np.float32], x: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return (Uᵀ·V (n, d_in) in float64, V·Xᵀ (d_out, n)) in one read of V; u (d_out, n), the rest as for `right`."""
    n = u.shape[1]
    t, h = np.zeros((n, v.shape[1])), np.empty((v.shape[0], n), np.float32)
    _both(v, u, x, np.zeros((n, v.shape[1]), np.float32), t, h)
    return t, h
