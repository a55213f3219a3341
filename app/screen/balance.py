"""Balanced factors of an update: the one form in which an adapter is measured and served.

ΔW = B·A has many factorisations. In float64 they are all equivalent. In the engine they are not: it reads subnormal
numbers as zero and rounds x·A to the serving dtype before multiplying by B, so factors that cancel in float64 need not
cancel there. The gateway therefore serves ΔW's thin singular value decomposition U·diag(s)·Wᵀ as B = U·√s and
A = √s·Wᵀ, rounded to the serving dtype, and measures these rounded factors. Their columns (rows of A) are nearly
orthogonal and of equal length, which bounds the engine's error: with unit roundoff u, for any x, rounding x·A changes
B·A·x by at most √3·u of itself (with normalised columns B̂ and ‖B̂ᵀB̂ − I‖ ≤ ½ by Gershgorin:
‖B·δ‖² ≤ 3/2·u²·Σ‖bᵢ‖²hᵢ² ≤ 3/2·u²·2·‖B·h‖²). Nothing cancels.

Reproducible: exact.py's Gram matrices and core_svd.py's decomposition are bit-identical on any BLAS, number of threads or
processor, so ties between singular values are broken in the same way too; signs are fixed by the largest entry of each
row of A. This relies on IEEE 754 arithmetic and on a compiler that does not fuse multiplications and additions unasked;
the only processors tested are x86-64.

Idempotent: factors that are already balanced (`balanced`), as all output of this module is, keep their bytes. Other
factors that pass that test are measured unchanged and satisfy the bound above.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import BAD_NUMBERS, SCREENING_TIMEOUT, Refused
from app.domain.lora import Adapter, LoraModule
from app.screen.bits import has_subnormal, magnitude, magnitudes
from app.screen.core_svd import Array, cholesky, core_svd, multiply, summed
from app.screen.exact import by_rows, gram, product, shifted
from app.screen.threads import each, threads_for

GRAM_SLICES: Final = 3
"""Slices of 19 bits into which factors are cut for their Gram matrices: float64's own precision."""

FORM_SLICES: Final = 1
"""The same if only lengths and angles are needed: cosines of vectors of d numbers, to √d·2⁻²⁰."""

FLOOR: Final = 2.0**-20
"""Smallest share of the largest singular value that is kept, in any dtype."""

CANCELLED: Final = 2.0**-12
"""Smallest share of the largest ‖bᵢ‖·‖aᵢ‖ that ‖ΔW‖₂ must have: below it the factors cancel, which no training produces
and no 16-bit engine can reproduce."""

RANGE: Final = 128.0
"""Smallest √‖ΔW‖₂ in units of the dtype's smallest normal number: the loss of x·A below that number, for inputs with
entries of about 1, is then under a hundredth of ΔW's output for each pair. In float16 that is ‖ΔW‖₂ = 6e-5: smaller
updates are served as zero."""

SMALLEST: Final = 2.0**-50
"""Smallest √‖ΔW‖₂ in any dtype: products of two factors stay within the range of float32, in which the engine sums."""

LOST: Final = 2.0**-4
"""Largest share of a factor's length that may lie in numbers too small for the dtype: a factor that loses more no longer
has a meaningful direction."""

NEAR_ORTHOGONAL: Final = 0.5
"""Largest sum of the cosines of a column with all others. Rounding leaves about r·u/√d."""

ALIKE: Final = 2.0
"""Largest ratio between the lengths of bᵢ and aᵢ. Rounding leaves 1 + 2·u; entries lost below the dtype's range leave
more."""


Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """r pairs of a column of B and a row of A, stored as rows of magnitude below 1 times a power of two, in float64.

    a (r, d_in) and b (r, d_out): the rows without their powers of two; ea, eb (r,): the exponents of those powers;
    gram_a, gram_b (r, r): Gram matrices of a and b, precise enough for lengths and angles.
    """

    a: Tensor
    b: Tensor
    ea: Whole
    eb: Whole
    gram_a: Array
    gram_b: Array

    def only(self, chosen: NDArray[np.intp]) -> "_Pairs":
        """Return the chosen pairs, by index."""
        pick = torch.from_numpy(chosen)
        grams = (g[np.ix_(chosen, chosen)] for g in (self.gram_a, self.gram_b))
        return _Pairs(self.a[pick], self.b[pick], self.ea[chosen], self.eb[chosen], *grams)

    def measured(self) -> "_Pairs":
        """Return the same pairs with Gram matrices of float64's precision, for the decomposition."""
        return replace(self, gram_a=gram(self.a, GRAM_SLICES).numpy(), gram_b=gram(self.b, GRAM_SLICES).numpy())

    @property
    def lengths(self) -> tuple[Array, Array]:
        """‖aᵢ‖ and ‖bᵢ‖, (r,) each; no product of two exceeds float64's range."""
        of = ((self.gram_a, self.ea), (self.gram_b, self.eb))
        a, b = (np.ldexp(np.sqrt(np.diagonal(g)), e) for g, e in of)
        return a, b


def balance_all(adapter: Adapter, *, workers: int | None = None, deadline_s: float | None = None) -> Adapter:
    """Return `adapter` with every module balanced, at most of its rank; the bytes depend only on the module's own.

    workers: threads, one module each (None: see `threads_for`). deadline_s: seconds after which no further module
    is started (None: no limit). Raises Refused BAD_NUMBERS, naming the module, and SCREENING_TIMEOUT.
    """
    end = None if deadline_s is None else time.monotonic() + deadline_s

    def one(module: LoraModule) -> LoraModule:
        if end is not None and not time.monotonic() < end:
            raise Refused(
                SCREENING_TIMEOUT, f"balancing took longer than {deadline_s:g} s; module {module.name} unseen"
            )
        return balance(module)

    modules = tuple(each(one, adapter.modules, workers or threads_for(adapter.modules)))
    return Adapter(modules, adapter.dtype, balanced=True)


def balance(module: LoraModule) -> LoraModule:
    """Return the module in balanced form, at most of its own rank (1 for a zero update). Raises Refused BAD_NUMBERS.

    b (d_out, r) and a (r, d_in) finite, of one dtype, r ≤ 2¹⁰, d ≤ 2²⁰.
    """
    trimmed = _trimmed(module)
    pairs = _pairs(trimmed)
    if balanced(trimmed, pairs):
        return trimmed
    made = _rounded(module, *_singular_factors(trimmed, pairs.measured()))
    made, pairs = _without_unresolved(made, _pairs(made))
    if not balanced(made, pairs):
        raise _refused(module.name, f"its factors do not survive rounding to {_short(module.a.dtype)}")
    return made


def balanced(module: LoraModule, pairs: "_Pairs | None" = None) -> bool:
    """Return whether a module's factors already are output of `balance`, within rounding; the same on any machine.

    True if there is no subnormal number, every pair is of similar length and resolved beside the largest, and every
    column is nearly orthogonal to all others together. A zero update must be one pair of zeros.
    """
    if has_subnormal(module.a) or has_subnormal(module.b):
        return False
    pairs = pairs or _pairs(module)
    if not (np.diagonal(pairs.gram_a).any() or np.diagonal(pairs.gram_b).any()):
        return module.rank == 1
    resolved = bool(_resolved(pairs, module.a.dtype).all())
    return resolved and all(_nearly_orthogonal(g) for g in (pairs.gram_a, pairs.gram_b))


def _trimmed(module: LoraModule) -> LoraModule:
    """Return the module without trailing pairs of zeros, which padding to a common rank leaves; at least one pair."""
    rank = module.rank
    while rank > 1 and not (bool(module.a[rank - 1].any()) or bool(module.b[:, rank - 1].any())):
        rank -= 1
    if rank == module.rank:
        return module
    return replace(module, a=module.a[:rank].contiguous(), b=module.b[:, :rank].contiguous())


def _pairs(module: LoraModule) -> _Pairs:
    a, b = (x.new_empty(x.shape, dtype=torch.float64).copy_(x) for x in (module.a, module.b.T))
    (a, ea), (b, eb) = by_rows(a), by_rows(b)
    return _Pairs(a, b, ea.numpy(), eb.numpy(), gram(a, FORM_SLICES).numpy(), gram(b, FORM_SLICES).numpy())


def _resolved(pairs: _Pairs, dtype: torch.dtype) -> NDArray[np.bool_]:
    """Return a mask (r,) of the pairs of similar length and within the dtype's resolution of the longest.

    All False if the longest is too short for the dtype's range.
    """
    a, b = pairs.lengths
    longest = float((a * b).max(initial=0.0))
    within = longest >= max(RANGE * float(torch.finfo(dtype).tiny), SMALLEST) ** 2
    similar = (a <= ALIKE * b) & (b <= ALIKE * a)
    found: NDArray[np.bool_] = within & similar & (a * b >= 0.5 * resolution(dtype) * longest) & (a * b > 0.0)
    return found


def resolution(dtype: torch.dtype) -> float:
    """Return the smallest share of ‖ΔW‖₂ that a kept singular value has: a quarter of the dtype's unit roundoff.

    Leaving out smaller ones changes ΔW by less than rounding its first pair does (about 0.6 of the unit roundoff).
    """
    return max(float(torch.finfo(dtype).eps) / 8.0, FLOOR)


def _nearly_orthogonal(g: Array) -> bool:
    length = np.sqrt(np.diagonal(g))
    cosines = np.abs(g) / (length[:, None] * length[None, :])
    np.fill_diagonal(cosines, 0.0)
    return bool((summed(cosines) <= NEAR_ORTHOGONAL).all())


def _singular_factors(module: LoraModule, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """Return (√s·Wᵀ (n, d_in), (U·√s)ᵀ (n, d_out)) in float64, resolved s descending; n = 0 for a zero update.

    With Gram matrices Â·Âᵀ = L_A·L_Aᵀ and B̂ᵀ·B̂ = L_B·L_Bᵀ, D the powers of two and L_Bᵀ·D·L_A = P·Σ·Qᵀ:
    √s·Wᵀ = Σ^−½·Pᵀ·L_Bᵀ·D·Â and U·√s = B̂·D·L_A·Q·Σ^−½ (the square-root method of balanced truncation).
    """
    a, b = pairs.lengths
    alive = np.flatnonzero(a * b > 0.0)
    if len(alive) == 0:
        return pairs.a[:0], pairs.b[:0]
    if len(alive) < module.rank:
        pairs = pairs.only(alive)
    exponents = pairs.ea + pairs.eb
    even = 2 * (int(exponents.max() + 1) // 2)
    scale = np.ldexp(1.0, exponents - even)[:, None]  # D, as shares of 2^even
    left, right = cholesky(pairs.gram_b), cholesky(pairs.gram_a)
    found = core_svd(multiply(np.ascontiguousarray(left.T), scale * right))
    least = CANCELLED * math.ldexp(float((a * b).max()), -even)
    if found is None or not found[1].max(initial=0.0) > least:
        raise _refused(module.name, "its factors cancel: what is left is less than rounding them may change")
    p, s, q = found
    keep = s >= resolution(module.a.dtype) * s[0]
    root = np.sqrt(s[keep])
    to_a = scale * multiply(left, np.ascontiguousarray(p[:, keep])) / root  # (r, n)
    to_b = scale * multiply(right, np.ascontiguousarray(q[:, keep])) / root
    return _combined(to_a, pairs.a, even // 2), _combined(to_b, pairs.b, even // 2)


def _combined(weights: Array, rows: Tensor, exponent: int) -> Tensor:
    """Return weightsᵀ·rows·2^exponent: (n, d)."""
    scaled, exponents = by_rows(torch.from_numpy(np.ascontiguousarray(weights.T)))
    return shifted(product(scaled, rows), exponents + exponent)


def _rounded(module: LoraModule, a: Tensor, b: Tensor) -> LoraModule:
    """Return the factors in the module's dtype, subnormals as zeros (as an engine reads them), signs normalised.

    The largest entry of each row of A is made positive. Pairs that lose more than LOST of a factor are left out.
    """
    dtype = module.a.dtype
    made = [x.to(dtype) for x in (a, b)]
    sizes = [magnitudes(x) for x in made]
    if any(x.max(initial=0) >= magnitude(math.inf, dtype) for x in sizes):
        raise _refused(module.name, f"its balanced factors leave the range of {_short(dtype)}")
    small = [torch.from_numpy(x < magnitude(torch.finfo(dtype).tiny, dtype)) for x in sizes]
    if any(bool(lost.any()) for lost in small):
        kept = torch.tensor(_survives(a, small[0])) & torch.tensor(_survives(b, small[1]))
        made = [x.masked_fill(lost, 0.0)[kept] for x, lost in zip(made, small, strict=True)]
    a, b = made
    if len(a):
        first = np.argmax(magnitudes(a), axis=1)  # the first of equals
        negative = a[torch.arange(len(a)), torch.from_numpy(first)] < 0
        a[negative], b[negative] = 0.0 - a[negative], 0.0 - b[negative]  # 0 − 0 = 0
    return replace(module, a=a, b=b.T.contiguous())


def _survives(exact: Tensor, lost: Tensor) -> list[bool]:
    """Return whether each row of `exact` (n, d) has at most LOST of its length in `lost`; sums are rounded once, so the
    result is the same on any machine."""
    squares = exact.square()
    parts = zip(squares.masked_fill(~lost, 0.0).tolist(), squares.tolist(), strict=True)
    return [math.fsum(small) <= LOST * LOST * math.fsum(total) for small, total in parts]


def _without_unresolved(module: LoraModule, pairs: _Pairs) -> tuple[LoraModule, _Pairs]:
    """Leave out pairs that rounding left below the dtype's resolution or with one factor only; at least a zero pair."""
    keep = np.flatnonzero(_resolved(pairs, module.a.dtype))
    if len(keep) == 0:
        a, b = module.a.new_zeros(1, module.a.shape[1]), module.b.new_zeros(module.b.shape[0], 1)
        return replace(module, a=a, b=b), pairs
    if len(keep) < module.rank:
        chosen, pairs = torch.from_numpy(keep), pairs.only(keep)
        module = replace(module, a=module.a[chosen].contiguous(), b=module.b[:, chosen].contiguous())
    return module, pairs


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refused(module: str, why: str) -> Refused:
    return Refused(BAD_NUMBERS, f"module {module}: {why}", param=module)
