"""Tiny checkpoint pairs, references and adapters, for any test that needs something to screen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from app.domain.lora import Adapter, LoraModule, ServingDtype, Shape
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.reference.open import Reference, open_reference

TINY: Mapping[str, Shape] = {
    "self_attn.q_proj": Shape(64, 64),
    "self_attn.k_proj": Shape(32, 64),
    "self_attn.v_proj": Shape(32, 64),
    "mlp.down_proj": Shape(64, 96),
}
"""Linear modules of one decoder layer: square, grouped-query and wide ones."""


def module_names(layers: int = 2, shapes: Mapping[str, Shape] = TINY) -> list[str]:
    """Names of the linear modules of such a model, sorted."""
    return sorted(f"model.layers.{i}.{kind}" for i in range(layers) for kind in shapes)


def weights(seed: int, *, layers: int = 2, shapes: Mapping[str, Shape] = TINY, hidden: int = 64) -> dict[str, Tensor]:
    """float32 tensors of a small Llama-like checkpoint, embedding and norms included."""
    g = torch.Generator().manual_seed(seed)
    found = {"model.embed_tokens.weight": torch.randn(50, hidden, generator=g) * 0.02}
    for i in range(layers):
        found[f"model.layers.{i}.input_layernorm.weight"] = torch.ones(hidden)
        for kind, shape in shapes.items():
            found[f"model.layers.{i}.{kind}.weight"] = torch.randn(shape.d_out, shape.d_in, generator=g) * 0.05
    found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()
    return found


def aligned_from(base: Mapping[str, Tensor], seed: int = 1, *, rank: int = 6, size: float = 0.02) -> dict[str, Tensor]:
    """The base plus a decaying low-rank change and a little noise in every linear module: what alignment looks like."""
    g = torch.Generator().manual_seed(seed)
    found = dict(base)
    for name, w in base.items():
        if not name.endswith("_proj.weight"):
            continue
        u, r = torch.randn(w.shape[0], rank, generator=g), torch.randn(rank, w.shape[1], generator=g)
        change = (u * torch.linspace(1.0, 0.2, rank)) @ r / rank**0.5 + 0.1 * torch.randn(w.shape, generator=g)
        found[name] = w + size * change
    return found


def write_checkpoint(
    directory: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype = torch.float32, files: int = 1
) -> Path:
    """Save a checkpoint in one file or several with an index, as transformers does."""
    directory.mkdir(parents=True)
    names = sorted(tensors)
    if files == 1:
        save_file({n: tensors[n].to(dtype).contiguous() for n in names}, directory / "model.safetensors")
        return directory
    weight_map: dict[str, str] = {}
    for i in range(files):
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = names[i::files]
        save_file({n: tensors[n].to(dtype).contiguous() for n in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def make_pair(directory: Path, *, layers: int = 2, shapes: Mapping[str, Shape] = TINY) -> tuple[Path, Path]:
    """(base, aligned) checkpoint directories of a tiny model."""
    base = weights(0, layers=layers, shapes=shapes)
    return (
        write_checkpoint(directory / "base", base),
        write_checkpoint(directory / "aligned", aligned_from(base)),
    )


def make_reference(
    directory: Path, *, layers: int = 2, options: BuildOptions | None = None, shapes: Mapping[str, Shape] = TINY
) -> Path:
    """A finished reference directory of a tiny model."""
    base, aligned = make_pair(directory, layers=layers, shapes=shapes)
    build_reference(base, aligned, directory / "reference", options or BuildOptions(top_k=8))
    return directory / "reference"


def tiny_reference(directory: Path, *, layers: int = 2, options: BuildOptions | None = None) -> Reference:
    """The same, opened."""
    return open_reference(make_reference(directory, layers=layers, options=options), None)


def random_adapter(
    reference: Reference,
    *,
    seed: int = 0,
    rank: int = 4,
    size: float = 0.05,
    names: Sequence[str] | None = None,
    dtype: ServingDtype = ServingDtype.FLOAT32,
) -> Adapter:
    """An adapter of Gaussian factors on the reference's modules: what no one trained."""
    g = torch.Generator().manual_seed(seed)
    modules = []
    for name in sorted(reference.modules if names is None else names):
        shape = reference.modules[name]
        a = torch.randn(rank, shape.d_in, generator=g) / shape.d_in**0.5
        b = torch.randn(shape.d_out, rank, generator=g) * size
        kind = getattr(torch, dtype.value)
        modules.append(LoraModule(name, a.to(kind), b.to(kind), 1.0))
    return Adapter(tuple(modules), dtype)
