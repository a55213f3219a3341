"""Alignment vectors and updates to measure, and one call that measures them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.policy import Comparison
from app.screen.distances import Scored, against_inputs, against_v
from app.screen.lora_svd import thin_svd
from app.screen.reference.manifest import ModuleInfo
from app.screen.reference.spectrum import Keep, Spectrum, spectrum_of

ALL = tuple(Comparison)


@dataclass(frozen=True)
class Module:
    """One module's V with everything a reference keeps of it, in memory."""

    v: Tensor
    info: ModuleInfo
    u: Tensor
    r: Tensor

    def score(self, b: Tensor, a: Tensor, comparison: Comparison, k: int = 4) -> float:
        """E-DIEM; fails the test where there is none."""
        score = self.measure(b, a, k)[0][comparison].score
        assert score is not None
        return score

    def measure(self, b: Tensor, a: Tensor, k: int = 4) -> tuple[dict[Comparison, Scored], float | None]:
        """All comparisons, and Safe LoRA's cosine."""
        update = thin_svd(b, a)
        assert update is not None
        whole = against_v(update, self.v, self.info)
        scored = {
            Comparison.INPUT: against_inputs(update, update.on_inputs(self.r[:, :k])),
            Comparison.ALIGNMENT: whole.alignment,
            Comparison.PROJECTION: whole.projection,
        }
        return scored, whole.cosine


def decomposed(v: Tensor, top_k: int) -> Spectrum:
    """The spectrum with exactly so many triples, both sides."""
    return spectrum_of(v, Keep(1.0, top_k, top_k), float(v.double().norm()))


def module(v: Tensor, top_k: int = 8) -> Module:
    """What the builder would keep of this V."""
    found = decomposed(v, top_k)
    norm = float(v.double().norm())
    info = ModuleInfo(
        name="m",
        d_out=v.shape[0],
        d_in=v.shape[1],
        v_norm=norm,
        s1=found.s1,
        lambda_max=found.s1**2 / norm,
        c_norm=found.c_norm,
        rounding=0.0,
        top_k=len(found.triples.s),
        triples_error=found.error,
        nodes=found.nodes,
        counts=found.counts,
        v=None,
        triples=None,
        outputs=len(found.triples.s),
    )
    return Module(v, info, found.triples.u, found.triples.r)


def alignment_vector(d_out: int, d_in: int, *, seed: int = 0, norm: float = 1.0, rank: int = 6) -> Tensor:
    """A decaying low-rank part and noise, as alignment leaves it; bfloat16."""
    g = torch.Generator().manual_seed(seed)
    low = (torch.randn(d_out, rank, generator=g) * torch.linspace(1.0, 0.2, rank)) @ torch.randn(
        rank, d_in, generator=g
    )
    v = low / rank**0.5 + 0.2 * torch.randn(d_out, d_in, generator=g)
    scaled: Tensor = v * (norm / float(v.norm()))
    return scaled.bfloat16()


def factors(d_out: int, d_in: int, rank: int, *, seed: int = 0, norm: float = 1.0) -> tuple[Tensor, Tensor]:
    """(b, a) of a random update with ‖ΔW‖_F = norm and uneven singular values; float64."""
    g = torch.Generator().manual_seed(1000 + seed)
    a = torch.randn(rank, d_in, generator=g, dtype=torch.float64) * torch.linspace(1.0, 0.3, rank)[:, None]
    b = torch.randn(d_out, rank, generator=g, dtype=torch.float64)
    return b * (norm / float((b @ a).norm())), a
