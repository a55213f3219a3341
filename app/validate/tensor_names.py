"""Strict grammar of tensor names, ASCII only: `base_model.model.<module path>.lora_A.weight` or `.lora_B.weight`.

Any other name is refused with the most likely reason; nothing is stripped, renamed or guessed.
"""

import re
from enum import StrEnum
from typing import Final

from app.domain.errors import BAD_TENSOR_NAME, Refused

MAX_NAME_CHARS: Final = 512
"""Most characters of a tensor's name. Real names have about 70."""

PREFIX: Final = "base_model.model."

_PART = r"(?:[A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]{0,8})"
_PATH = rf"{_PART}(?:\.{_PART})*"
_MODULE = re.compile(_PATH)
_TENSOR = re.compile(rf"base_model\.model\.({_PATH})\.lora_([AB])\.weight")

_REASONS: Final = (
    (re.compile(r"lora_magnitude_vector"), "DoRA is not served"),
    (re.compile(r"lora_embedding_[AB]"), "embeddings cannot be adapted"),
    (re.compile(r"\.bias$|lora_bias"), "biases cannot be adapted"),
    (re.compile(r"\.lora_[AB]\.[^.]+\.weight$"), "an adapter name inside: save with PEFT's save_pretrained"),
    (re.compile(r"modules_to_save|original_module|base_layer"), "whole weights cannot be replaced"),
)


class Side(StrEnum):
    """LoRA factor, A or B: determined by the name alone, never by the shape."""

    A = "A"
    B = "B"


def is_module_path(text: str) -> bool:
    """Return whether `text` is a literal module path such as `model.layers.0.self_attn.q_proj`."""
    return len(text) <= MAX_NAME_CHARS and _MODULE.fullmatch(text) is not None


def parse_tensor_name(name: str) -> tuple[str, Side]:
    """Split a tensor's name into (module path, side). Raises Refused BAD_TENSOR_NAME."""
    found = _TENSOR.fullmatch(name) if len(name) <= MAX_NAME_CHARS else None
    if found is None:
        raise Refused(BAD_TENSOR_NAME, f"tensor {name[:200]!r}: {_reason(name)}", param=name)
    return found[1], Side(found[2])


def _reason(name: str) -> str:
    if len(name) > MAX_NAME_CHARS:
        return f"longer than {MAX_NAME_CHARS} characters"
    if not name.isascii():
        return "not ASCII"
    if not name.startswith(PREFIX):
        return f"does not begin with {PREFIX}"
    return next((why for pattern, why in _REASONS if pattern.search(name)), "not a LoRA factor of a module")
