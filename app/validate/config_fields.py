"""Fields of adapter_config.json: each is read, must be off, or is inert; the table of docs/adapters.md is made from them.

Fields of PEFT 0.2 to 0.21 and of tools that add their own. *Read* fields determine the meaning of the weights. Fields that
*must be off* change the result in a way that is not served. *Inert* ones tell how training was done: data of bounded size,
never followed, evaluated or written on, because the tensors show which modules are adapted.

A field outside the table is off at null, false, 0, "", [] and {}, as every field of PEFT is; at any other value it may
change the result and is refused by name, text and numbers included.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from app.domain.errors import BAD_CONFIG, BAD_SCALING, UNSUPPORTED_CONFIG, Refused

MAX_TEXT_CHARS: Final = 4096
"""Most characters of base_model_name_or_path and the like; Linux's longest path, since it may be one."""

MAX_ALPHA: Final = 1e9
"""Largest lora_alpha: a larger one is a mistake or an attack, whatever the rank; keeps alpha / r finite in float32."""

TASK_TYPES: Final = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""PEFT's kinds of tasks: they choose the class around the language model, not the update of its linear modules."""

INITS: Final = ("gaussian", "eva", "orthogonal", "lora_ga", "mica")
"""Initialisations that leave the base as it is, as vLLM lists them; pissa, olora, corda and loftq change it."""

EXPERTS: Final = ("gate_up_proj", "down_proj")
"""Experts' parameters in transformers' classes: gate and up together, and down, each of three dimensions."""

ROUTERS: Final = ("gate.weight", "router.weight")
"""Ends of the names of routers' weights, which PEFT adapts as parameters where the class has no linear module for them."""

_MEGATRON = re.compile(r"megatron(\.[a-z_]+)*")

Check = Callable[[str, Any], None]


class Kind(StrEnum):
    """Treatment of a field."""

    READ = "read"
    OFF = "must be off"
    INERT = "inert"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its treatment, the check of its value, and the remedy that a refusal names."""

    kind: Kind
    check: Check
    remedy: str | None = None


def wrong_type(field: str, wanted: str) -> Refused:
    """Return the refusal of a value of another type."""
    return Refused(BAD_CONFIG, f"{field} must be {wanted}", param=field)


def unsupported(field: str, what: str) -> Refused:
    """Return the refusal of a value that is not plain LoRA."""
    return Refused(UNSUPPORTED_CONFIG, f"{field}: {what}", param=field)


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _flag(field: str, value: Any) -> None:
    if value is not None and type(value) is not bool:
        raise wrong_type(field, "true, false or null")


def _off_flag(field: str, value: Any) -> None:
    _flag(field, value)
    if value:
        raise unsupported(field, "true changes the result and is not served")


def _off(field: str, value: Any) -> None:
    if not (value is None or value is False or value == [] or value == {}):
        raise unsupported(field, f"{_shown(value)} changes the result and is not served")


def _text(field: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT_CHARS):
        raise wrong_type(field, f"null or a string of at most {MAX_TEXT_CHARS} characters")


def _one_of(*allowed: Any) -> Check:
    def check(field: str, value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise unsupported(field, f"{_shown(value)}; served: {', '.join(map(repr, allowed))}")

    return check


def _init(field: str, value: Any) -> None:
    named = isinstance(value, str) and value.lower() in INITS
    if not (named or value is None or type(value) is bool):
        raise unsupported(field, f"{_shown(value)} changes the base weights that the adapter belongs to")


def _megatron_core(field: str, value: Any) -> None:
    _text(field, value)
    if value and not _MEGATRON.fullmatch(value):
        raise unsupported(field, f"{_shown(value)} is not a module of Megatron")


def _any(_: str, __: Any) -> None:
    """Accept any value: the configuration's size is bounded, and nothing reads this one."""


def _texts(field: str, value: Any) -> None:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in items):
        raise wrong_type(field, "null, a string or a list of strings")


def _experts(field: str, value: Any) -> None:
    _texts(field, value)
    for name in [value] if isinstance(value, str) else value or ():
        if name.rsplit(".", 1)[-1] not in EXPERTS and ".".join(name.split(".")[-2:]) not in ROUTERS:
            raise unsupported(field, f"{_shown(name)} is not a parameter of experts or a router that is measured")


def _layers(field: str, value: Any) -> None:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and item >= 0 for item in items):
        raise wrong_type(field, "null, a layer's number or a list of them")


def _dropout(field: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and 0.0 <= value <= 1.0):
        raise wrong_type(field, "null or a number from 0 to 1")


def _positive_int(field: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise wrong_type(field, "a whole number of 1 or more")


def _positive_int_or_null(field: str, value: Any) -> None:
    if value is not None:
        _positive_int(field, value)


def _alpha(field: str, value: Any) -> None:
    if not _is_number(value):
        raise wrong_type(field, "a number")
    if not 0 < value <= MAX_ALPHA:
        raise Refused(BAD_SCALING, f"{field} is {value:g}; it must lie above 0 and within {MAX_ALPHA:g}", param=field)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _pattern_of(check: Check) -> Check:
    def checked(field: str, value: Any) -> None:
        if value is None or value == []:
            return
        if not isinstance(value, dict):
            raise wrong_type(field, "null or an object")
        for key, one in value.items():
            check(f"{field}.{key[:200]}", one)

    return checked


def _read(check: Check, remedy: str | None = None) -> Field:
    return Field(Kind.READ, check, remedy)


def _must_be_off(check: Check, remedy: str) -> Field:
    return Field(Kind.OFF, check, remedy)


def _inert(check: Check = _any) -> Field:
    return Field(Kind.INERT, check)


_PLAIN_LORA: Final = "Train a plain LoRA without it."
_NO_EMBEDDINGS: Final = (
    "Train without it: no whole weight of the model is replaced. With an enlarged vocabulary, merge the adapter instead; "
    "where embed_tokens and lm_head were only listed, leave them out."
)

FIELDS: Final[dict[str, Field]] = {
    "peft_type": _read(_one_of("LORA"), "Train a LoRA with PEFT's LoraConfig; other adapter types are not served."),
    "r": _read(_positive_int),
    "lora_alpha": _read(_alpha),
    "use_rslora": _read(_flag),
    "rank_pattern": _read(_pattern_of(_positive_int)),
    "alpha_pattern": _read(_pattern_of(_alpha)),
    "base_model_name_or_path": _read(_text),
    # any other value means another method than plain LoRA, or code and files that the uploader chooses
    "use_dora": _must_be_off(_off_flag, "Train without DoRA (use_dora=False); vLLM does not serve it either."),
    "bias": _must_be_off(_one_of("none", None), 'Train with bias="none": biases cannot be adapted.'),
    "lora_bias": _must_be_off(_off_flag, "Train with lora_bias=False: biases cannot be adapted."),
    "modules_to_save": _must_be_off(_off, _NO_EMBEDDINGS),
    "trainable_token_indices": _must_be_off(_off, _NO_EMBEDDINGS),
    "init_lora_weights": _must_be_off(
        _init,
        "Save it again with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes a plain "
        "LoRA of it.",
    ),
    "fan_in_fan_out": _must_be_off(
        _off_flag, "Train on a model of linear modules: transposed weights (Conv1D, as in GPT-2) are not measured."
    ),
    "target_parameters": _read(
        _experts,
        "Train on linear modules; of parameters, only the experts' gate_up_proj and down_proj and routers are measured.",
    ),
    "layer_replication": _must_be_off(_off, "Train on the served model's own layers, without replicating any."),
    "alora_invocation_tokens": _must_be_off(_off, "Train a plain LoRA: an activated one (aLoRA) is not served."),
    "ensure_weight_tying": _must_be_off(_off_flag, "Train with ensure_weight_tying=False."),
    "enable_lora": _must_be_off(_off, "Train it with a newer PEFT."),
    **dict.fromkeys(("use_qalora",), _must_be_off(_off_flag, _PLAIN_LORA)),
    **dict.fromkeys(
        ("use_bdlora", "loftq_config", "corda_config", "megatron_config", "velora_config", "monteclora_config"),
        _must_be_off(_off, _PLAIN_LORA),
    ),
    **dict.fromkeys(("arrow_config", "kasa_config"), _must_be_off(_off, _PLAIN_LORA)),
    # inert: the tensors show which modules are adapted
    "target_modules": _inert(_texts),
    "exclude_modules": _inert(_texts),
    "layers_to_transform": _inert(_layers),
    "layers_pattern": _inert(_texts),
    "lora_dropout": _inert(_dropout),
    "inference_mode": _inert(_flag),
    "task_type": _inert(_one_of(*TASK_TYPES, None)),
    "revision": _inert(_text),
    "peft_version": _inert(_text),
    "qalora_group_size": _inert(_positive_int_or_null),  # has no effect without use_qalora, which must be off
    "megatron_core": _inert(_megatron_core),  # PEFT writes its default into every file
    "auto_mapping": _inert(),
    "runtime_config": _inert(),
    "eva_config": _inert(),
    "lora_ga_config": _inert(),
    "metadata": _inert(),
    "merge_weights": _inert(_flag),  # PEFT 0.2: about merging at evaluation
    **dict.fromkeys(("unsloth_version", "unsloth_fixed", "transformers_version", "torch_dtype"), _inert()),
    **dict.fromkeys(("swift_version", "swift_type", "lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"), _inert()),
    **dict.fromkeys(("library_name", "license", "author", "description", "tags", "created_at", "base_model"), _inert()),
}  # fmt: skip


def check_field(field: str, value: Any) -> None:
    """Raise Refused unless the field's value is one that is read, off or inert. The refusal's `param` is the field."""
    known = FIELDS.get(field)
    if known is None:
        if value:
            raise Refused(
                UNSUPPORTED_CONFIG,
                f"{field[:200]}: {_shown(value)} in a field that this gateway does not know may change the result",
                param=field,
                remedy="Remove the field if it only tells how training was done; else train without it.",
            )
        return
    try:
        known.check(field, value)
    except Refused as error:
        raise Refused(error.code, error.message, param=error.param, remedy=known.remedy) from None
