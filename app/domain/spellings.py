"""Spellings of module names: one model's modules go by several names, which vLLM maps to the same module of the engine.

A multimodal checkpoint of the hub names its decoder `language_model.model.layers` or `model.layers`, transformers since
4.52 `model.language_model.layers`, an adapter trained on the text part alone `model.layers` (Gemma 3 and 4, Qwen2.5-VL,
LLaVA, Mistral Small 3, Qwen3.5); Nemotron-H has `backbone.layers` or `model.layers`. The table is that of vLLM's classes
(`hf_to_vllm_mapper`), read in one direction: names that become one name are one module. A mixture's router is the hub's
`block_sparse_moe.gate` and transformers' `mlp.gate` or `mlp.router`.
"""

import re
from collections.abc import Iterable
from typing import Final

_TEXT: Final = "model."
_PREFIXES: Final = (
    ("model.language_model.", _TEXT),
    ("language_model.model.", _TEXT),
    ("backbone.", _TEXT),
    ("model.vision_tower.vision_model.", "vision_tower."),  # a level that transformers 5 leaves out
    ("vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("model.visual.", "visual."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.embed_vision.", "embed_vision."),
    ("model.audio_tower.", "audio_tower."),
    ("model.embed_audio.", "embed_audio."),
    ("language_model.lm_head", "lm_head"),
)
"""Beginning of a name, and the beginning of the name that stands for all its spellings. The first that fits counts."""


_ROUTERS: Final = (".block_sparse_moe.gate", ".mlp.router")
_TOWER: Final = re.compile(r"(?:model\.)?(?:vision|visual|audio|multi_modal|embed_vision|embed_audio|connector)")


def is_tower(module: str) -> bool:
    """Return whether a module is of a tower or a projector: a multimodal model's outside its language model."""
    return _TOWER.match(module) is not None


def is_router(module: str) -> bool:
    """Return whether a module is a mixture's router, by its name."""
    return common_name(module).endswith(".mlp.gate")


def common_name(module: str) -> str:
    """Return the name that stands for all spellings of a module."""
    for router in _ROUTERS:
        if module.endswith(router):
            module = module.removesuffix(router) + ".mlp.gate"
    for prefix, common in _PREFIXES:
        if module.startswith(prefix):
            return common + module.removeprefix(prefix)
    return module


class Spellings:
    """Index of a model's modules by any of their spellings. A spelling that would fit two modules fits neither."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = frozenset(modules)
        self._by_common: dict[str, str | None] = {}
        for module in self._modules:
            common = common_name(module)
            self._by_common[common] = None if common in self._by_common else module

    def find(self, module: str) -> str | None:
        """Return the model's name for a module; None if it has none, or two that the spelling would fit."""
        return module if module in self._modules else self._by_common.get(common_name(module))
