"""Adapter under test: its factors, its pair's alignment vectors, and the measurements of screening."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.lora import Adapter, ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.verdict import ModuleVerdict
from app.screen.balance import balance_all
from app.screen.reference.open import Reference, open_reference
from app.screen.screen import screen
from app.validate.adapter import ValidateLimits, validate

MEASURE = Policy(tau=1e6, max_pruned_share=1.0, max_update_ratio=1e6)
"""Policy that condemns no module: only the scores are needed."""


@dataclass(frozen=True, slots=True, eq=False)
class Low:
    """Low-rank update: ΔW = b·a, b (d_out, r), a (r, d_in), float32."""

    b: Tensor
    a: Tensor

    @property
    def dense(self) -> Tensor:
        """ΔW (d_out, d_in)."""
        return self.b @ self.a


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """V = u·diag(s)·rᵀ of one module, complete, float32: u (d_out, n), s (n,), r (d_in, n)."""

    u: Tensor
    s: Tensor
    r: Tensor

    def best(self, k: int) -> Low:
        """Return the best rank-k approximation of V."""
        return Low(self.u[:, :k] * self.s[:k], self.r[:, :k].T)


class Alignment:
    """Alignment vectors of one pair: every module's V, decomposed, and the reference itself."""

    def __init__(self, reference: Path) -> None:
        self.reference: Reference = open_reference(reference, None)
        self.sides: dict[str, Side] = {}
        for name in self.reference.modules:
            v = self.reference.v(name)
            if v is not None:
                u, s, rt = torch.linalg.svd(v.double(), full_matrices=False)
                self.sides[name] = Side(u.float(), s.float(), rt.T.float())


@dataclass(frozen=True, eq=False)
class Subject:
    """Adapter under test. seed: of random draws. lows: module → its update, scaling included in b."""

    seed: int
    alignment: Alignment
    adapter: Adapter
    lows: Mapping[str, Low]

    @cached_property
    def verdicts(self) -> Mapping[str, ModuleVerdict]:
        """Screening's measurements by module, from the product's own code."""
        verdict = screen(self.adapter, self.alignment.reference, MEASURE, workers=1)
        return {module.name: module for module in verdict.modules}


def subject_of(folder: Path, alignment: Alignment, seed: int) -> Subject:
    """Open one cached adapter in the same way as an upload: validated and balanced, in float32."""
    shapes = alignment.reference.modules
    target = TargetModel("laboratory", shapes, ServingDtype.FLOAT32, max_rank=512)
    with (folder / WEIGHTS_FILE).open("rb") as weights:
        adapter = balance_all(validate((folder / CONFIG_FILE).read_bytes(), weights, target, ValidateLimits()))
    return Subject(seed, alignment, adapter, {m.name: Low(m.b.float(), m.a.float()) for m in adapter.modules})
