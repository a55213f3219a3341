"""Synthetic reference of real size without real checkpoints, and adapters to screen against it. Labelled as synthetic.

V = U·diag(s)·Rᵀ + σ·noise with six spikes far above the noise. The singular values in its manifest come from that
construction, not from a decomposition: spikes by the formula for spiked matrices (F. Benaych-Georges, R. R. Nadakuditi, J.
Multivariate Anal. 111 (2012) 120), noise from a narrower matrix of the same proportions. They are within about one per cent
of V's own, which is sufficient to time a screening and insufficient for decisions.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from app.domain.digest import digest_of
from app.domain.lora import Adapter, LoraModule, ServingDtype, Shape
from app.screen.reference.manifest import MANIFEST, FileInfo, Manifest, ModuleInfo, dump
from app.screen.reference.spectrum import NODES, gauss_nodes

LABEL: Final = b"synthetic: no checkpoints; written by app.bench.screening.synthetic"
"""Bytes whose digest stands in for the digests of the two checkpoints."""

SPIKES: Final = (12.0, 9.0, 7.0, 5.0, 4.0, 3.0)
"""Singular values of V's low-rank part, in units of the noise's largest."""

NOISE: Final = 1e-4
"""Standard deviation of the noise: weights change by about this much in alignment training."""

TOP_K: Final = 16
"""Singular triples kept of each module: at most so many are measured."""

NARROW: Final = 512
"""Smaller side of the matrix from which the noise's singular values are taken: a tenth of a second."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bulk:
    """Noise of one shape: the matrix (d_out, d_in), and eigenvalues of noise·noiseᵀ with the multiplicity of each.

    noise: None where no V is written.
    """

    shape: Shape
    noise: Tensor | None
    eigenvalues: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
    each: float


@dataclass(frozen=True, slots=True)
class Width:
    """Widths of a Llama: hidden states, keys and values, and the hidden layer of an MLP."""

    hidden: int
    key_values: int
    inner: int


LLAMA_7B: Final = Width(4096, 4096, 11008)
LLAMA_70B: Final = Width(8192, 1024, 28672)


def llama_modules(
    layers: int, kinds: tuple[str, ...] = ("q_proj", "v_proj"), width: Width = LLAMA_7B
) -> dict[str, Shape]:
    """Return linear modules of a Llama by name: the given kinds in the first `layers` layers."""
    narrow, square = Shape(width.key_values, width.hidden), Shape(width.hidden, width.hidden)
    tall, wide = Shape(width.inner, width.hidden), Shape(width.hidden, width.inner)
    all_kinds = {
        "q_proj": ("self_attn", square),
        "k_proj": ("self_attn", narrow),
        "v_proj": ("self_attn", narrow),
        "o_proj": ("self_attn", square),
        "gate_proj": ("mlp", tall),
        "up_proj": ("mlp", tall),
        "down_proj": ("mlp", wide),
    }
    chosen = {kind: all_kinds[kind] for kind in kinds or tuple(all_kinds)}
    return {f"model.layers.{i}.{part}.{kind}": shape for i in range(layers) for kind, (part, shape) in chosen.items()}


def write_synthetic(
    out: Path,
    shapes: Mapping[str, Shape],
    progress: Callable[[int], None] = lambda done: None,
    *,
    only_compact: bool = False,
) -> None:
    """Write a reference with V in bfloat16 at `out`, and `out`-compact beside it without V. About 0.1 s a module.

    only_compact: only the latter. Raises OSError if the disk has too little space.
    """
    compact = out.with_name(out.name + "-compact")
    for directory in (compact,) if only_compact else (compact, out):
        directory.mkdir(parents=True)
    infos: dict[str, ModuleInfo] = {}
    bulks: dict[Shape, _Bulk] = {}
    for i, (name, shape) in enumerate(shapes.items()):
        bulk = bulks[shape] if shape in bulks else bulks.setdefault(shape, _bulk(shape, with_noise=not only_compact))
        infos[name] = _write_module(out, compact, name, bulk, i)
        progress(i + 1)
    label = digest_of(LABEL)
    whole = Manifest(label, label, "bfloat16", TOP_K, compact=False, modules=infos)
    if not only_compact:
        (out / MANIFEST).write_bytes(dump(whole))
    small = {name: replace(info, v=None) for name, info in infos.items()}
    (compact / MANIFEST).write_bytes(dump(replace(whole, compact=True, modules=small)))


def _bulk(shape: Shape, *, with_noise: bool) -> _Bulk:
    g = torch.Generator().manual_seed(1)
    short = min(shape.d_out, shape.d_in)
    side = min(NARROW, short)
    scale = short / side
    narrow = torch.randn(side, round(max(shape.d_out, shape.d_in) / scale), generator=g, dtype=torch.float64)
    values = torch.linalg.svdvals(narrow).square().numpy() * scale * NOISE**2
    each = (short - len(SPIKES)) / side
    noise = NOISE * torch.randn(shape.d_out, shape.d_in, generator=g) if with_noise else None
    return _Bulk(shape, noise, values, each)


def _write_module(out: Path, compact: Path, name: str, bulk: _Bulk, seed: int) -> ModuleInfo:
    d_out, d_in = bulk.shape.d_out, bulk.shape.d_in
    g = torch.Generator().manual_seed(seed)
    top_k = min(TOP_K, d_out, d_in)
    u, r = (torch.linalg.qr(torch.randn(d, top_k, generator=g))[0] for d in (d_out, d_in))
    spikes = torch.zeros(top_k)
    many = min(len(SPIKES), top_k)
    spikes[:many] = torch.tensor(SPIKES[:many]) * float(bulk.eigenvalues.max()) ** 0.5
    theta = spikes[:many].double().numpy() ** 2
    squares = (theta + NOISE**2 * d_out) * (theta + NOISE**2 * d_in) / theta  # of the spiked singular values
    values = np.concatenate([squares, bulk.eigenvalues])
    counts = np.concatenate([np.ones(many), np.full(len(bulk.eigenvalues), bulk.each)])
    s1 = float(squares.max()) ** 0.5
    file, norm = None, float(values @ counts) ** 0.5
    if bulk.noise is not None:
        noise = torch.roll(bulk.noise, 61 * seed, 0)  # different noise for each module, at the price of a copy
        v = torch.addmm(noise, u * spikes, r.T).bfloat16()
        norm = float(v.double().norm()) if v.numel() < 1 << 20 else float(v.float().norm())
        file = _save(f"{name}.v.safetensors", {"v": v}, out)
    m, times = np.append((1.0 - values / values.max()) ** 2, 1.0), np.append(counts, max(0.0, d_out - counts.sum()))
    nodes, node_counts = gauss_nodes(m, times, NODES)
    s = spikes.clamp(min=1e-3 * s1)
    return ModuleInfo(
        name=name,
        d_out=d_out,
        d_in=d_in,
        v_norm=norm,
        s1=s1,
        lambda_max=s1**2 / norm,
        c_norm=float((values**2) @ counts) ** 0.5 / norm,
        rounding=0.0,
        top_k=top_k,
        triples_error=0.0,
        nodes=nodes,
        counts=node_counts,
        v=file,
        triples=_save(
            f"{name}.triples.safetensors",
            {"u": u.contiguous(), "s": s, "r": r.contiguous()},
            *((compact,) if file is None else (out, compact)),
        ),
        outputs=top_k,
    )


def _save(file: str, tensors: dict[str, Tensor], *directories: Path) -> FileInfo:
    data = save(tensors)
    for directory in directories:
        (directory / file).write_bytes(data)
    return FileInfo(file, hashlib.sha256(data).hexdigest(), len(data))


def random_adapter(shapes: Mapping[str, Shape], rank: int, seed: int) -> Adapter:
    """Return a random bfloat16 adapter on every module, of realistic size."""
    g = torch.Generator().manual_seed(seed)
    modules = []
    for name in sorted(shapes):
        a, b = (torch.randn(n, generator=g) for n in ((rank, shapes[name].d_in), (shapes[name].d_out, rank)))
        modules.append(LoraModule(name, a.mul_(1e-2).bfloat16(), b.mul_(1e-3).bfloat16(), 1.0))
    return Adapter(tuple(modules), ServingDtype.BFLOAT16)
