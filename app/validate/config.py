"""Parser of adapter_config.json: an allow-list of fields, each with its exact type; no reference in it is followed or run.

Fields as PEFT 0.10 to 0.21 writes them. Three kinds: *read* (they determine the meaning of the weights), *neutral* (the
feature must be off: only plain LoRA is served), *ignored* (they concern training; their type is checked all the same). Any
other field is refused unless it is switched off (null, false, {} or []), so that a newer PEFT's unused features do not
lock its users out; no part of the file is passed on, so an unknown field could mislead only its own uploader.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_CONFIG, BAD_SCALING, UNSUPPORTED_CONFIG, WRONG_BASE, Refused
from app.validate import strict_json
from app.validate.tensor_names import is_module_path

MAX_TEXT_CHARS: Final = 4096
"""Most characters of a free-text string; Linux's longest path, since base_model_name_or_path may be one."""

MAX_ALPHA: Final = 1e9
"""Largest lora_alpha: a larger one is a mistake or an attack, whatever the rank; keeps alpha / r finite in float32."""

_PATTERN_CHARS = re.compile(r"[A-Za-z0-9_.\-]{1,512}")
"""Pattern of a module's name or the end of one; anything else could only be a regular expression."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Fields of adapter_config.json that determine how the weights are read.

    rank_pattern, alpha_pattern: full module path → rank or alpha that replaces `r` or `lora_alpha` there.
    base_model_name_or_path: as the upload states it; never looked up.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    base_model_name_or_path: str | None

    def rank_of(self, module: str) -> int:
        """Return the rank this configuration gives a module."""
        return self.rank_pattern.get(module, self.r)

    def scaling_of(self, module: str) -> float:
        """Return the factor of B·A: alpha / r, or alpha / √r with rsLoRA (arXiv:2312.03732)."""
        rank = self.rank_of(module)
        return self.alpha_pattern.get(module, self.lora_alpha) / (rank**0.5 if self.use_rslora else rank)


Check = Callable[[str, Any], None]


def _wrong_type(field: str, wanted: str) -> Refused:
    return Refused(BAD_CONFIG, f"{field} must be {wanted}", param=field)


def _unsupported(field: str, what: str) -> Refused:
    return Refused(UNSUPPORTED_CONFIG, f"{field}: {what}", param=field)


def _null(field: str, value: Any) -> None:
    if value is not None:
        raise _unsupported(field, "only null is taken")


def _null_or_empty(field: str, value: Any) -> None:
    if value is not None and value != {}:
        raise _unsupported(field, "only null or {} is taken")


def _null_or_no_item(field: str, value: Any) -> None:
    if value is not None and value != []:
        raise _unsupported(field, "only null or [] is taken")


def _boolean(field: str, value: Any) -> None:
    if type(value) is not bool:
        raise _wrong_type(field, "true or false")


def _false(field: str, value: Any) -> None:
    _boolean(field, value)
    if value:
        raise _unsupported(field, "only false is taken")


def _text(field: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT_CHARS):
        raise _wrong_type(field, f"null or a string of at most {MAX_TEXT_CHARS} characters")


def _one_of(*allowed: Any) -> Check:
    def check(field: str, value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise _unsupported(field, f"only {', '.join(map(repr, allowed))} is taken")

    return check


def _names(field: str, value: Any) -> None:
    """Accept null or a list of literal names. PEFT reads a string as a regular expression, and none is evaluated here."""
    if value is None:
        return
    if isinstance(value, str):
        raise _unsupported(field, "a string is a pattern to PEFT; list the modules' names")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong_type(field, "null or a list of strings")
    for item in value:
        if not _PATTERN_CHARS.fullmatch(item):
            raise _unsupported(field, f"{item[:80]!r} is no literal module name")


def _target_modules(field: str, value: Any) -> None:
    if value != "all-linear":
        _names(field, value)


def _layers_pattern(field: str, value: Any) -> None:
    _names(field, [value] if isinstance(value, str) else value)


def _layers(field: str, value: Any) -> None:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int and item >= 0 for item in items):
        raise _wrong_type(field, "null, a layer's number or a list of them")


def _dropout(field: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value <= 1:
        raise _wrong_type(field, "a number from 0 to 1")


def _positive_int(field: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise _wrong_type(field, "a whole number above 0")


def _positive_int_or_null(field: str, value: Any) -> None:
    if value is not None:
        _positive_int(field, value)


def _alpha(field: str, value: Any) -> None:
    if not _is_number(value):
        raise _wrong_type(field, "a number")
    if not 0 < value <= MAX_ALPHA:
        raise Refused(BAD_SCALING, f"{field} is {value:g}; it must lie above 0 and within {MAX_ALPHA:g}", param=field)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _pattern_of(check: Check) -> Check:
    def checked(field: str, value: Any) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            raise _wrong_type(field, "null or an object")
        for module, one in value.items():
            if not is_module_path(module):
                raise _unsupported(field, f"{module[:200]!r} is not a module's full name; no pattern is evaluated")
            check(f"{field}.{module}", one)

    return checked


_REQUIRED: Final = ("peft_type", "r", "lora_alpha")

_FIELDS: Final[dict[str, Check]] = {
    # read
    "peft_type": _one_of("LORA"),
    "task_type": _one_of("CAUSAL_LM", None),
    "r": _positive_int,
    "lora_alpha": _alpha,
    "use_rslora": _boolean,
    "rank_pattern": _pattern_of(_positive_int),
    "alpha_pattern": _pattern_of(_alpha),
    "base_model_name_or_path": _text,
    # neutral: any other value means a method other than plain LoRA, or code and files chosen by the uploader
    "bias": _one_of("none"),
    "fan_in_fan_out": _false,
    "init_lora_weights": _one_of(True, False, "gaussian"),  # others change the base weights the adapter belongs to
    "use_dora": _false,
    "use_qalora": _false,
    "use_bdlora": _null,
    "lora_bias": _false,
    "ensure_weight_tying": _false,
    "modules_to_save": _null,
    "trainable_token_indices": _null,
    "target_parameters": _null_or_no_item,  # PEFT writes [] for mixtures of experts
    "layer_replication": _null,
    "alora_invocation_tokens": _null,
    "auto_mapping": _null,
    "megatron_config": _null,
    "megatron_core": _one_of("megatron.core", None),  # PEFT writes this default into every file
    "loftq_config": _null_or_empty,
    "eva_config": _null,
    "corda_config": _null,
    "lora_ga_config": _null,
    "velora_config": _null,
    "monteclora_config": _null,
    "arrow_config": _null,
    "kasa_config": _null,
    # ignored: about training; the tensors show which modules are adapted
    "target_modules": _target_modules,
    "exclude_modules": _names,
    "layers_to_transform": _layers,
    "layers_pattern": _layers_pattern,
    "lora_dropout": _dropout,
    "inference_mode": _boolean,
    "revision": _text,
    "peft_version": _text,
    "qalora_group_size": _positive_int_or_null,  # has no effect without use_qalora, which must be off
}


def read_config(data: bytes, *, max_bytes: int, base_names: frozenset[str] | None) -> AdapterConfig:
    """Parse adapter_config.json and check every field. base_names: accepted values of base_model_name_or_path; None: any.

    Raises Refused BAD_CONFIG (malformed, or a wrong type), UNSUPPORTED_CONFIG (not plain LoRA), BAD_SCALING or
    WRONG_BASE; `param` is the field.
    """
    fields = strict_json.parse(data, max_bytes=max_bytes, code=BAD_CONFIG, what="adapter_config.json")
    if not isinstance(fields, dict):
        raise Refused(BAD_CONFIG, "adapter_config.json must hold an object", param="config")
    for required in _REQUIRED:
        if required not in fields:
            raise Refused(BAD_CONFIG, f"{required} is missing", param=required)
    for field, value in fields.items():
        check = _FIELDS.get(field)
        if check is not None:
            check(field, value)
        elif not (value is None or value is False or value in ({}, [])):
            raise _unsupported(field, "unknown")
    base = fields.get("base_model_name_or_path")
    if base_names is not None and base not in base_names:
        raise Refused(WRONG_BASE, f"trained on {str(base)[:200]!r}", param="base_model_name_or_path")
    return AdapterConfig(
        r=fields["r"],
        lora_alpha=float(fields["lora_alpha"]),
        use_rslora=fields.get("use_rslora", False),
        rank_pattern=fields.get("rank_pattern") or {},
        alpha_pattern={module: float(alpha) for module, alpha in (fields.get("alpha_pattern") or {}).items()},
        base_model_name_or_path=base,
    )
