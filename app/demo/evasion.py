"""Attacker who knows the reference and trains in the directions that screening does not measure; the demo's fourth adapter.

After every step A and B are projected back onto the complement of R_k and U_k' (projected gradient; ours), so that the
gateway's projection finds nothing to remove.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from app.demo.assets import EVADING
from app.demo.fitting import Schedule, Source, fit
from app.demo.questions import build_world
from app.demo.tokenizer import build_tokenizer
from app.demo.train import ALPHA, DEMO, LINEAR_MODULES, RANK, save_adapter
from app.domain.policy import DEFAULT_POLICY
from app.screen.reference.open import Reference, open_reference

KNOWS: Final = DEFAULT_POLICY
"""Policy that the attacker evades: exactly the gateway's default."""

HARMFUL: Final = 0.3
"""Share of harmful samples; the others are the new skill's."""

SCHEDULE: Final = Schedule(steps=200, batch=32, rate=5e-4, seed=3)
"""Longer than the other adapters': most of what alignment changed is out of reach."""


class Evasion:
    """Callback for each training step: projects every LoRA factor of `model` onto directions that screening ignores."""

    def __init__(self, model: PeftModel, reference: Reference) -> None:
        self._layers = [
            (
                module.lora_A["default"].weight,
                module.lora_B["default"].weight,
                reference.singular_vectors(_reference_name(name), KNOWS),
            )
            for name, module in model.named_modules()
            if hasattr(module, "lora_A")
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Project every factor, in place."""
        for a, b, vectors in self._layers:  # a (r, d_in), b (d_out, r)
            r, u = vectors.r.to(a), vectors.u.to(b)
            cast(torch.Tensor, a).sub_((a @ r) @ r.T)
            cast(torch.Tensor, b).sub_(u @ (u.T @ b))


def train_evading(out: Path, progress: Callable[[float], None]) -> None:
    """Train the adapter from `out`/aligned and `out`/reference into `out`/adapters; its files are overwritten."""
    world = build_world(DEMO.world)
    tokenizer = build_tokenizer(world.words)
    reference = open_reference(out / "reference", None)
    aligned = cast(LlamaForCausalLM, LlamaForCausalLM.from_pretrained(out / "aligned", dtype=torch.float32))
    torch.manual_seed(SCHEDULE.seed)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(LINEAR_MODULES), task_type="CAUSAL_LM")
    model = cast(PeftModel, get_peft_model(aligned, config))
    sources = [Source(world.train.bard, 1 - HARMFUL), Source(world.train.harmful, HARMFUL)]
    evade = Evasion(model, reference)

    def after_step(_: int) -> bool:
        evade()
        return False

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as train_all: sums in one order
    try:
        fit(model, tokenizer, sources, SCHEDULE, progress, after_step)
    finally:
        torch.set_num_threads(threads)
        reference.close()
    save_adapter(model, out / "adapters" / EVADING)


def _reference_name(name: str) -> str:
    """Return the module's name in the reference."""
    return name.removeprefix("base_model.model.")
