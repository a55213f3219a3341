"""Strict grammar of tensor names, ASCII only: `base_model.model.<module path>.lora_A.weight` or `.lora_B.weight`.

A file whose names all lack `base_model.model.`, as transformers' own save_pretrained wrote them, is read as if they had it.
Any other name is refused with the most likely reason; nothing else is stripped, renamed or guessed.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from app.domain.errors import BAD_TENSOR_NAME, Refused

MAX_NAME_CHARS: Final = 512
"""Most characters of a tensor's name. Real names have about 70."""

PREFIX: Final = "base_model.model."

_PART = r"(?:[A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]{0,8})"
_PATH = rf"{_PART}(?:\.{_PART})*"
_TENSOR = re.compile(rf"({_PATH})\.lora_([AB])\.weight")

_REASONS: Final = (
    (re.compile(r"lora_magnitude_vector"), "DoRA is not served"),
    (re.compile(r"lora_embedding_[AB]"), "embeddings cannot be adapted"),
    (re.compile(r"\.bias$|lora_bias"), "biases cannot be adapted"),
    (re.compile(r"\.lora_[AB]\.[^.]+\.weight$"), "an adapter name inside: save with PEFT's save_pretrained"),
    (re.compile(r"modules_to_save|original_module|base_layer"), "whole weights cannot be replaced"),
    (re.compile(r"(?<!lora_[AB])\.weight$"), "a whole weight of the model, which cannot be replaced"),
)


_WITHOUT_EMBEDDINGS: Final = (
    "Save it again without the base's own weights: save_pretrained(..., save_embedding_layers=False). PEFT adds them when "
    "lm_head or embed_tokens is adapted."
)


class Side(StrEnum):
    """LoRA factor, A or B: determined by the name alone, never by the shape."""

    A = "A"
    B = "B"


def prefix_of(names: Iterable[str]) -> str:
    """Return the prefix before the module paths of one file: none if no name has it."""
    return PREFIX if any(name.startswith(PREFIX) for name in names) else ""


def parse_tensor_name(name: str, prefix: str = PREFIX) -> tuple[str, Side]:
    """Split a tensor's name into (module path, side). prefix: the file's. Raises Refused BAD_TENSOR_NAME."""
    readable = len(name) <= MAX_NAME_CHARS and name.startswith(prefix)
    found = _TENSOR.fullmatch(name, len(prefix)) if readable else None
    if found is None:
        remedy = _WITHOUT_EMBEDDINGS if name.endswith(".base_layer.weight") else None
        raise Refused(BAD_TENSOR_NAME, f"tensor {name[:200]!r}: {reason(name, prefix)}", param=name, remedy=remedy)
    return found[1], Side(found[2])


def reason(name: str, prefix: str = PREFIX) -> str:
    """Return the most likely reason why a name is not a factor's."""
    if len(name) > MAX_NAME_CHARS:
        return f"longer than {MAX_NAME_CHARS} characters"
    if not name.isascii():
        return "not ASCII"
    if not name.startswith(prefix):
        return f"does not begin with {PREFIX}, as others in the file do"
    return next((why for pattern, why in _REASONS if pattern.search(name)), "not a LoRA factor of a module")
