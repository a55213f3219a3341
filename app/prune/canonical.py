"""Canonical form of an adapter: the only code that writes bytes the engine may read.

Canonical form: balanced factors (app/screen/balance.py), one dtype (the serving dtype), one rank (smaller modules
padded with zero rows and columns), scaling 1 (already in B; lora_alpha = r), modules sorted by name, `target_modules`
the exact list of full module names, no optional field. Equal adapters give equal bytes, however their uploads differed.

Where experts of a layer are served, every other matrix of that layer's experts has factors of zeros, which change nothing:
vLLM packs all of a layer's experts into one tensor and fails if one is missing, as a pruned one would be. In classes whose
experts it reads from stacked tensors only, they are written stacked (domain/experts.py).
"""

import io
import json
from collections.abc import Iterable
from typing import Final

import torch

from app.domain.artefact import Artefact, content_digest_of
from app.domain.digest import digest_of
from app.domain.experts import lacking, pairs_of
from app.domain.lora import MAX_MODULES, Adapter, LoraModule, Received, ServingDtype, Shape, TargetModel
from app.domain.manifest import manifest_json
from app.domain.verdict import Decision, Outcome, Verdict

SERVED: Final = (Decision.KEEP, Decision.PROJECT)
"""Decisions after which a module is written: unchanged, or projected."""

CONFIG_BYTES: Final = (64 << 10) + MAX_MODULES * 96
"""Most bytes of a canonical configuration: the largest adapter's modules, each named in a line of 50 to 80 bytes."""

STORED: Final = {
    ServingDtype.FLOAT32: ("F32", 4),
    ServingDtype.FLOAT16: ("F16", 2),
    ServingDtype.BFLOAT16: ("BF16", 2),
}
"""Name in a safetensors header and bytes of a value, of each serving dtype."""

ALIGNMENT: Final = 8
"""The header's length is a multiple of this, padded with spaces, as safetensors writes it."""

KEY_PREFIX: Final = "base_model.model."
"""Prefix that PEFT and vLLM expect before a module's path."""


def canonicalise(adapter: Adapter, verdict: Verdict, received: Received, target: TargetModel) -> Artefact:
    """Write `adapter` in canonical form.

    `adapter`: the pruned adapter, balanced. `verdict`: the screening of the upload it came from; every
    module of the adapter must be one the verdict keeps or projects. Raises ValueError (a bug in the caller)
    otherwise, or if no module is left.
    """
    _check_verdict(adapter, verdict)
    config = config_bytes(written((module.name for module in adapter.modules), target), adapter.rank, target)
    weights = _weights(adapter, target)
    digests = {"config": digest_of(config), "weights": digest_of(weights)}
    manifest = manifest_json(received, verdict, **digests)
    return Artefact(content_digest_of(**digests), config, weights, manifest)


def _check_verdict(adapter: Adapter, verdict: Verdict) -> None:
    decisions = {module.name: module.decision for module in verdict.modules}
    not_served = [m.name for m in adapter.modules if decisions.get(m.name) not in SERVED]
    if not_served or verdict.outcome is Outcome.REJECTED:
        raise ValueError(f"no verdict keeps {not_served or 'a rejected adapter'}")
    if not adapter.modules:
        raise ValueError("an emptied adapter has no artefact: its name is served by the served model")
    if not adapter.balanced:
        raise ValueError("only balanced factors are written: the engine may compute another update from others")


def written(served: Iterable[str], target: TargetModel) -> tuple[str, ...]:
    """Return the modules that an artefact holds factors of, sorted: those served, and the rest of their layers' experts."""
    modules = tuple(served)
    return tuple(sorted((*modules, *lacking(modules, target.modules))))


def config_bytes(modules: tuple[str, ...], rank: int, target: TargetModel) -> bytes:
    """Return the canonical adapter_config.json of an adapter of this rank on these modules, sorted by name."""
    fields = {
        "base_model_name_or_path": target.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,  # alpha = r: scaling 1, since the received scaling is already in B
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()


def _weights(adapter: Adapter, target: TargetModel) -> bytes:
    """Return the safetensors file of the adapter, the same bytes as `safetensors.torch.save` gives.

    That function would hold two more copies of all tensors while it writes; here it is one more tensor.
    """
    served = {module.name: module for module in adapter.modules}
    kind, size = STORED[target.dtype]
    header: dict[str, object] = {}
    end = 0
    pairs = pairs_of(written(served, target))
    for name, members in pairs.items():
        shape, ranks = target.modules[members[0]], len(members) * adapter.rank
        for key, rows, columns in (("A", ranks, shape.d_in), ("B", shape.d_out, ranks)):
            begin, end = end, end + rows * columns * size
            entry = {"dtype": kind, "shape": [rows, columns], "data_offsets": [begin, end]}
            header[f"{KEY_PREFIX}{name}.lora_{key}.weight"] = entry
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    file = io.BytesIO()
    file.write(len(text).to_bytes(8, "little") + text)
    for members in pairs.values():
        each = [_padded(served.get(module), target.modules[module], adapter) for module in members]
        for tensor in each[0] if len(each) == 1 else _stacked(each):
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
    return file.getvalue()  # the buffer itself, not a copy


def _stacked(each: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (E·r, d_in) and B (d_out, r·E) of all experts, in the order that `pairs_of` describes."""
    a, b = zip(*each, strict=True)
    return torch.cat(a), torch.stack(b, dim=-1).flatten(1)


def _padded(module: LoraModule | None, shape: Shape, adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, d_in) and B (d_out, rank), padded with zeros: ΔW stays the same, and no rank_pattern is needed.

    module: None for an expert that is written as zeros.
    """
    if module is not None and module.rank == adapter.rank:
        return module.a.contiguous(), module.b.contiguous()
    like = adapter.modules[0].a
    a, b = like.new_zeros((adapter.rank, shape.d_in)), like.new_zeros((shape.d_out, adapter.rank))
    if module is not None:
        a[: module.rank] = module.a
        b[:, : module.rank] = module.b
    return a, b
