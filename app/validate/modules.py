"""Modules of an upload, found among the served model's: the refusal of any other says which names there are."""

from collections.abc import Collection, Iterable
from typing import Final

from app.domain.errors import UNKNOWN_MODULE, Refused
from app.domain.lora import TargetModel
from app.domain.spellings import common_name

SHOWN_KINDS: Final = 16
"""Most last names that a refusal lists: a decoder layer has seven to fourteen."""

_NO_HEAD: Final = "Train without lm_head: vLLM loads no LoRA on the head of this class, or the reference leaves it out."


def unknown(module: str, target: TargetModel, tensor: str) -> Refused:
    """Return the refusal of a module that the model has not, or that was not measured; it names the nearest ones."""
    message = f"{target.name} has no adaptable module {module!r}"
    near, tail = nearest(module, target.modules)
    if tail > 1:
        remedy = f"Train on the class that the engine serves (AutoModelForCausalLM), or rename it to {near!r}."
        return Refused(UNKNOWN_MODULE, f"{message}; the nearest is {near!r}", param=tensor, remedy=remedy)
    kinds = sorted(_last_names(target.modules))
    names = ", ".join(kinds[:SHOWN_KINDS]) + (", …" if len(kinds) > SHOWN_KINDS else "")
    remedy = "Train without it (target_modules), or ask the operator for a reference that measures it."
    if common_name(module) == "lm_head":
        remedy = _NO_HEAD
    return Refused(UNKNOWN_MODULE, f"{message}; the reference measures {names}", param=tensor, remedy=remedy)


def nearest(module: str, modules: Collection[str]) -> tuple[str, int]:
    """Return the module with the longest equal end, and the number of dotted parts that are equal."""
    parts = module.split(".")[::-1]
    return max(((name, _shared(parts, name)) for name in modules), key=lambda one: one[1], default=("", 0))


def _shared(parts: list[str], name: str) -> int:
    count = 0
    for ours, theirs in zip(parts, reversed(name.split(".")), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def _last_names(modules: Iterable[str]) -> set[str]:
    return {name.rsplit(".", 1)[-1] for name in modules}
