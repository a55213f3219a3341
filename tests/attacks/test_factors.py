"""Factors whose product is another update in the engine than in float64 (G15 to G20): stored is what was measured.

Whatever is uploaded, it is refused, or the stored factors do in the engine's arithmetic what they do in float64, and pass
again as they are.
"""

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from app.domain.artefact import Artefact
from app.domain.digest import digest_of
from app.domain.errors import GatewayError, Refused
from app.domain.lora import Received, ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import Outcome, Verdict
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.open import Reference
from app.validate.adapter import ValidateLimits
from tests.screen.emulated import strays
from tests.support.adapters import Upload, key
from tests.support.references import tiny_reference

Q = "model.layers.0.self_attn.q_proj"
POLICY = Policy(tau=3.0, top_k=4, max_pruned_share=0.0, max_update_ratio=1e9)
HARM, CARRIER = 2, 4
"""Rows of the hidden update, twice, and of the one that is shown."""

DTYPES = [ServingDtype.BFLOAT16, ServingDtype.FLOAT16]
NOTHING = digest_of(b"")

Factors = tuple[Tensor, Tensor]
"""b (d_out, r) and a (r, d_in), float64."""


class Heard:
    """Steps that keep the verdict."""

    verdict: Verdict | None = None

    def took(self, *_: object) -> None: ...

    def validated(self) -> None: ...

    def screened(self, verdict: Verdict) -> None:
        self.verdict = verdict


@dataclass(frozen=True)
class Gate:
    """The way in, from config and weights to bytes."""

    reference: Reference

    def measure(self, dtype: ServingDtype) -> Measure:
        target = TargetModel("served", self.reference.modules, dtype, 16)
        return Measure(target, ValidateLimits(), self.reference, POLICY, 60.0)

    def push(self, b: Tensor, a: Tensor, dtype: ServingDtype) -> tuple[Verdict, Artefact | None]:
        """Send one module in the serving dtype itself. Raises Refused."""
        kind = getattr(torch, dtype.value)
        tensors = {key(Q, "A"): a.to(kind).contiguous(), key(Q, "B"): b.to(kind).contiguous()}
        sent = Upload.valid(self.measure(dtype).target, rank=len(a), alpha=len(a))
        return self.again(sent.config_bytes, Upload(sent.model, sent.config, tensors).weights_bytes, dtype)

    def again(self, config: bytes, weights: bytes, dtype: ServingDtype) -> tuple[Verdict, Artefact | None]:
        steps = Heard()
        received = Received(NOTHING, NOTHING, len(config), len(weights))
        with tempfile.TemporaryFile() as sealed:
            sealed.write(weights)
            sealed.flush()
            made = sanitise(self.measure(dtype), config, cast("io.BufferedReader", sealed), received, steps)
        assert steps.verdict is not None
        return steps.verdict, made

    def harm(self) -> Factors:
        """An update on the inputs and outputs that alignment acts on: values of few bits, exact even as subnormals."""
        triples = self.reference.triples(Q)
        assert triples is not None
        r, u = (x[:, :HARM].double() for x in (triples.r, triples.u))
        return (8.0 * u / u.abs().max()).round() / 4096.0, (4.0 * r / r.abs().max()).round().T

    def carrier(self, seed: int, size: float) -> Factors:
        """Random, `size` times as long as the harm."""
        g = torch.Generator().manual_seed(seed)
        shape, (b, a) = self.reference.modules[Q], self.harm()
        rows = torch.randn(CARRIER, shape.d_in, generator=g, dtype=torch.float64)
        columns = torch.randn(shape.d_out, CARRIER, generator=g, dtype=torch.float64)
        return columns * (size * float((b @ a).norm() / (columns @ rows).norm())), rows

    def must_hold(self, b: Tensor, a: Tensor, dtype: ServingDtype) -> Artefact | None:
        """Refused, or stored as measured; the artefact if any."""
        try:
            verdict, made = self.push(b, a, dtype)
        except GatewayError as error:
            assert isinstance(error, Refused)
            return None
        if made is None:
            assert verdict.outcome is Outcome.REJECTED
            return None
        self.must_be_what_was_measured(made, dtype)
        second, same = self.again(made.config, made.weights, dtype)
        assert second.outcome is Outcome.CLEAN
        assert same is not None
        assert same.digest == made.digest
        return made

    def must_be_what_was_measured(self, made: Artefact, dtype: ServingDtype) -> None:
        tensors = load(made.weights)
        b, a = tensors[key(Q, "B")], tensors[key(Q, "A")]
        assert a.dtype is getattr(torch, dtype.value)
        g = torch.Generator().manual_seed(11)
        inputs = [torch.randn(a.shape[1], 8, generator=g), a.float().T, self.harm()[1].float().T]
        inputs.append(self.reference.inputs(Q, 8).float())
        x = torch.cat([one / one.norm(dim=0).clamp(min=1e-30) * a.shape[1] ** 0.5 for one in inputs], 1)
        assert strays(b, a, x) <= 2.0**-6


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    opened = tiny_reference(tmp_path_factory.mktemp("factors"))
    yield Gate(opened)
    opened.close()


def joined(*parts: Factors) -> Factors:
    return torch.cat([b for b, _ in parts], 1), torch.cat([a for _, a in parts], 0)


def scaled(factors: Factors, k: int) -> Factors:
    """a·2⁻ᵏ, b·2ᵏ."""
    b, a = factors
    return b * 2.0**k, a * 2.0**-k


def minus(factors: Factors) -> Factors:
    return -factors[0], factors[1]


def three_groups(harm: Factors, carrier: Factors, low: int, high: int) -> Factors:
    """The harm at one scale, its negative at another, and something to be measured."""
    return joined(scaled(harm, low), minus(scaled(harm, high)), scaled(carrier, low))


def test_the_harm_alone_is_rejected(gate: Gate) -> None:
    for dtype in DTYPES:
        verdict, made = gate.push(*gate.harm(), dtype)
        assert verdict.outcome is Outcome.REJECTED
        assert made is None


@pytest.mark.ruling("G15")
def test_g15_what_one_group_hides_the_engine_does_not_serve(gate: Gate) -> None:
    """The attack as it was made: the second group is subnormal in bfloat16, so the engine would serve the first whole."""
    made = gate.must_hold(*three_groups(gate.harm(), gate.carrier(0, 1e-3), 113, 133), ServingDtype.BFLOAT16)
    if made is not None:
        tensors = load(made.weights)
        b, a = gate.harm()
        kept = tensors[key(Q, "B")].double() @ tensors[key(Q, "A")].double()
        assert float(kept.norm()) <= 0.01 * float((b @ a).norm())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    low=st.integers(-126, 133),
    gap=st.integers(-40, 40),
    size=st.sampled_from([1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
)
@pytest.mark.ruling("G15", "G16")
def test_g15_g16_groups_at_any_two_scales(gate: Gate, dtype: ServingDtype, low: int, gap: int, size: float) -> None:
    gate.must_hold(*three_groups(gate.harm(), gate.carrier(1, size), low, low + gap), dtype)


def subnormal(_: Factors, carrier: Factors, at: float, lowest: int) -> Factors:
    """All of A, or of B, at the edge of what the dtype holds."""
    b, a = carrier
    power = 2.0 ** (lowest + round(8.0 * abs(at)))
    return (b, a / a.abs().max() * power) if at > 0 else (b / b.abs().max() * power, a)


def between_rows(harm: Factors, carrier: Factors, at: float) -> Factors:
    """Rows that differ in their last bits, and columns that take them away from one another, large."""
    b, a = harm
    other = a * (1.0 + 2.0**-7 * (1.0 if at > 0 else 2.0))
    large = 2.0 ** (8.0 * abs(at))
    return joined((b * large, a), (-b * large, other), carrier)


def against_each_other(_: Factors, carrier: Factors, at: float, most: int) -> Factors:
    """All of the size in one factor."""
    return scaled(carrier, round(most * at))


def rounded_before(_: Factors, carrier: Factors, at: float) -> Factors:
    """Every row holds a large common part that B takes away again: what x·A's rounding leaves of it is all there is."""
    b, a = carrier
    common = a.flip(0)[:1] * 2.0 ** (2.0 + 8.0 * abs(at))
    return torch.cat([b, -b.sum(1, keepdim=True)], 1), torch.cat([a + common, common], 0)


def overflowing(_: Factors, carrier: Factors, at: float, most: int) -> Factors:
    """A at the end of the dtype's range, B far within it."""
    b, a = carrier
    return b * 2.0 ** (-most / 2.0), a / a.abs().max() * 2.0 ** (most - 0.5 - abs(at))


def mixed(_: Factors, carrier: Factors, at: float) -> Factors:
    """The same update through an ill-conditioned change of basis."""
    b, a = carrier
    g = torch.Generator().manual_seed(round(1000 * abs(at)))
    turned = torch.linalg.qr(torch.randn(len(a), len(a), generator=g, dtype=torch.float64))[0]
    spread = turned * torch.logspace(0, 8.0 * at, len(a), dtype=torch.float64)
    return b @ spread @ turned.T, turned @ torch.linalg.solve(spread, a)


LOWEST = {ServingDtype.BFLOAT16: -133, ServingDtype.FLOAT16: -24}
HIGHEST = {ServingDtype.BFLOAT16: 128, ServingDtype.FLOAT16: 16}
KINDS: Mapping[str, Callable[[ServingDtype], Callable[[Factors, Factors, float], Factors]]] = {
    "G16_subnormal": lambda dtype: partial(subnormal, lowest=LOWEST[dtype]),
    "G17_rows": lambda _: between_rows,
    "G18_magnitude": lambda dtype: partial(against_each_other, most=HIGHEST[dtype]),
    "G19_rounding": lambda _: rounded_before,
    "G19_basis": lambda _: mixed,
    "G20_overflow": lambda dtype: partial(overflowing, most=HIGHEST[dtype]),
}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(-1.0, 1.0), size=st.sampled_from([1e-4, 1e-3, 1e-2, 1.0]), seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.ruling("G16", "G17", "G18", "G19", "G20")
def test_factors_of_every_kind(gate: Gate, kind: str, dtype: ServingDtype, at: float, size: float, seed: int) -> None:
    gate.must_hold(*KINDS[kind](dtype)(gate.harm(), gate.carrier(seed, size), at), dtype)
