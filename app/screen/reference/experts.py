"""Experts' matrices in a checkpoint: each a tensor of its own, or a part of one with three dimensions.

Older checkpoints, and all that transformers saves by default, hold `….experts.3.gate_proj.weight`. Fused ones hold
`….experts.gate_up_proj`, (E, 2·d_ff, d_model), with the gate's rows first (GPT-OSS interleaves them), and
`….experts.down_proj`, (E, d_model, d_ff); in some classes, such as Llama 4, the last two dimensions are exchanged.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.experts import KINDS, STACKED, Kinds
from app.domain.lora import Shape

CONFIG: Final = "config.json"

STACKED_ONLY: Final = frozenset({
    "ClefOmniForJointSchema",
    "GptOssForCausalLM",
    "InternS1ProForConditionalGeneration",
    "InternS2MobiusForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
})  # fmt: skip
"""Architectures whose experts' factors vLLM reads from stacked tensors only (`is_3d_moe_weight`), one A for gate and up.
Both are measured as one matrix of each expert, in the order of the checkpoint's rows, if it holds them fused."""

_GATE_UP: Final = ".experts.gate_up_proj"
_MIXTRAL: Final = frozenset({"MixtralForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM", "MiniMaxM2ForCausalLM"})
"""Architectures that vLLM names `block_sparse_moe.experts.0.w1`, transformers 5 `mlp.experts.gate_up_proj`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Weight of a linear module (d_out, d_in) in a checkpoint.

    tensor: the whole weight, or a tensor of three dimensions with it at index `expert`, from row `first` on; transposed:
    from column `first` on, as (d_in, d_out).
    """

    tensor: str
    shape: Shape
    expert: int | None = None
    first: int = 0
    transposed: bool = False


def architectures(checkpoint: Path) -> frozenset[str]:
    """Return the architectures that config.json names; none if there is no readable one."""
    try:
        named = json.loads((checkpoint / CONFIG).read_bytes())["architectures"]
        return frozenset(map(str, named))
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()


def fused(shapes: Mapping[str, tuple[int, ...]], known: frozenset[str]) -> Iterator[tuple[str, Part]]:
    """Yield the modules in fused tensors, with their parts. shapes: all tensors. known: the checkpoint's architectures.

    Pairs of other shapes are not read: nothing says then which of their values are an expert's.
    """
    kinds = STACKED if known & STACKED_ONLY else KINDS[1 if known & _MIXTRAL else 0]
    for tensor, shape in shapes.items():
        if tensor.endswith(_GATE_UP):
            path = tensor.removesuffix(".gate_up_proj")
            down = shapes.get(path + ".down_proj", ())
            if len(shape) == len(down) == 3 and all(shape) and shape[0] == down[0]:
                named = path.replace(".mlp.experts", ".block_sparse_moe.experts") if kinds is KINDS[1] else path
                yield from _layer(path, named, kinds, shape, down)


def _layer(
    path: str, named: str, kinds: Kinds, shape: tuple[int, ...], down: tuple[int, ...]
) -> Iterator[tuple[str, Part]]:
    """Yield one layer's modules. The shapes tell the order: both orders fit only if d_ff were 0."""
    count, rows, columns = shape
    transposed = (rows, columns) == (down[2], 2 * down[1])
    if not transposed and (rows, columns) != (2 * down[2], down[1]):
        return
    inner, width = (down[1], rows) if transposed else (down[2], columns)
    into, out = Shape(2 * inner if kinds.joint else inner, width), Shape(width, inner)
    for expert in range(count):
        both = f"{path}.gate_up_proj"
        yield f"{named}.{expert}.{kinds.gate}", Part(both, into, expert, 0, transposed)
        if not kinds.joint:
            yield f"{named}.{expert}.{kinds.up}", Part(both, into, expert, inner, transposed)
        yield f"{named}.{expert}.{kinds.down}", Part(f"{path}.down_proj", out, expert, 0, transposed)
