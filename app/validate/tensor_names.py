"""Strict grammar of tensor names, ASCII only: `base_model.model.<module path>.lora_A.weight` or `.lora_B.weight`.

A file whose names all lack `base_model.model.`, as transformers' own save_pretrained wrote them, is read as if they had it.
`….lm_head.base_layer.weight` is the base's own weight, which PEFT saves unchanged beside an adapted head's factors.
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
_HEAD = re.compile(rf"((?:{_PATH}\.)?lm_head)\.base_layer\.weight")

NO_WHOLE_WEIGHTS: Final = (
    "Train without modules_to_save, and without new tokens (save_embedding_layers=False): no weight of the model is "
    "replaced. With an enlarged vocabulary, serve the merged model instead."
)
_WITHOUT_EMBEDDINGS: Final = (
    "Save it again without the base's own weights: save_pretrained(..., save_embedding_layers=False). PEFT adds them when "
    "lm_head or embed_tokens is adapted; lm_head's is passed over if lm_head is adapted."
)
_NO_EMBEDDINGS: Final = "Train without embed_tokens in target_modules: embeddings are not measured."

_REASONS: Final = (
    (re.compile(r"lora_magnitude_vector"), "DoRA is not served", "Train without DoRA (use_dora=False)."),
    (re.compile(r"lora_embedding_[AB]"), "embeddings cannot be adapted", _NO_EMBEDDINGS),
    (re.compile(r"\.bias$|lora_bias"), "biases cannot be adapted", 'Train with bias="none" and lora_bias=False.'),
    (
        re.compile(r"\.lora_[AB]\.[^.]+\.weight$"),
        "an adapter name inside: save with PEFT's save_pretrained",
        "Save it with PEFT's save_pretrained, which leaves the adapter's name out, not with torch or accelerate.",
    ),
    (re.compile(r"base_layer\.weight$"), "whole weights cannot be replaced", _WITHOUT_EMBEDDINGS),
    (
        re.compile(r"modules_to_save|original_module|base_layer|(?<!lora_[AB])\.weight$"),
        "whole weights of the model cannot be replaced",
        NO_WHOLE_WEIGHTS,
    ),
)
"""Common slips: their mark, the reason for the refusal, its remedy."""


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
        why, remedy = _explained(name, prefix)
        raise Refused(BAD_TENSOR_NAME, f"tensor {name[:200]!r}: {why}", param=name, remedy=remedy)
    return found[1], Side(found[2])


def head_of(name: str, prefix: str = PREFIX) -> str | None:
    """Return the path of the head whose own weight this tensor is, which PEFT saves beside its factors; None for others."""
    found = _HEAD.fullmatch(name, len(prefix)) if len(name) <= MAX_NAME_CHARS and name.startswith(prefix) else None
    return None if found is None else found[1]


def reason(name: str, prefix: str = PREFIX) -> str:
    """Return the most likely reason why a name is not a factor's."""
    return _explained(name, prefix)[0]


def _explained(name: str, prefix: str) -> tuple[str, str | None]:
    """Return the most likely reason why a name is not a factor's, and the remedy if it is a common slip."""
    if len(name) > MAX_NAME_CHARS:
        return f"longer than {MAX_NAME_CHARS} characters", None
    if not name.isascii():
        return "not ASCII", None
    if not name.startswith(prefix):
        return f"does not begin with {PREFIX}, as others in the file do", None
    for pattern, why, remedy in _REASONS:
        if pattern.search(name):
            return why, remedy
    return "not a LoRA factor of a module", None
