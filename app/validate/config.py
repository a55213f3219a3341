"""Parser of adapter_config.json by the table of its fields; no reference in it is followed or run."""

from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import BAD_CONFIG, UNSUPPORTED_CONFIG, WRONG_BASE, Refused
from app.validate import strict_json
from app.validate.config_fields import EXPERTS, ROUTERS, check_field
from app.validate.faults import Faults
from app.validate.foreign import GIT_LFS, LFS_REMEDY, foreign_config
from app.validate.patterns import MAX_EXPRESSIONS, Pattern, Reading, alphas


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Fields of adapter_config.json that determine how the weights are read.

    rank_pattern, alpha_pattern: ranks and alphas that replace `r` and `lora_alpha` in some modules.
    base_model_name_or_path: as the upload states it; never looked up. experts, routers: whether parameters of experts, or
    of routers, are said to be adapted; the tensors show which.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Pattern
    alpha_pattern: Pattern
    base_model_name_or_path: str | None
    experts: bool = False
    routers: bool = False

    def ranks_of(self, module: str) -> frozenset[float]:
        """Return the ranks that this configuration allows a module, named as in the upload."""
        return frozenset(one.value for one in self.rank_pattern.readings(module, self.r, {}))

    def scaling_of(self, module: str, rank: float) -> float:
        """Return the factor of B·A: alpha / r, or alpha / √r with rsLoRA (arXiv:2312.03732).

        rank: the tensors' rank, one of `ranks_of`. Raises Refused UNSUPPORTED_CONFIG if an expression would have to be
        evaluated to tell the alpha.
        """
        found = alphas(module, rank, (self.rank_pattern, self.r), (self.alpha_pattern, self.lora_alpha))
        if len(found) != 1:
            raise _unsettled(module, found)
        return found[0].value / (rank**0.5 if self.use_rslora else rank)


def _unsettled(module: str, found: tuple[Reading, ...]) -> Refused:
    said = (f"{one.value:g} if {one.key.written[:60]!r} matches" if one.key else f"{one.value:g}" for one in found[:3])
    return Refused(
        UNSUPPORTED_CONFIG,
        f"alpha_pattern: the alpha of {module} is {', else '.join(said)}; no expression is evaluated",
        param="alpha_pattern",
        remedy="Name the modules in alpha_pattern by their full names, or by the end of them from a dot on.",
    )


_REQUIRED: Final = ("peft_type", "r", "lora_alpha")


def read_config(data: bytes, *, max_bytes: int, base_names: frozenset[str] | None) -> AdapterConfig:
    """Parse adapter_config.json and check every field. base_names: accepted values of base_model_name_or_path; None: any.

    Raises Refused BAD_CONFIG (malformed, or a wrong type), UNSUPPORTED_CONFIG (not plain LoRA), BAD_SCALING or
    WRONG_BASE; `param` is the field, `details` names every fault.
    """
    if data.startswith(GIT_LFS):
        raise Refused(BAD_CONFIG, "adapter_config.json is a git-lfs pointer", param="config", remedy=LFS_REMEDY)
    fields = strict_json.parse(data, max_bytes=max_bytes, code=BAD_CONFIG, what="adapter_config.json")
    if not isinstance(fields, dict):
        raise Refused(BAD_CONFIG, "adapter_config.json must hold an object", param="config")
    faults = Faults()
    missing = [required for required in _REQUIRED if required not in fields]
    other = foreign_config(fields)
    if missing and other is not None:
        raise other
    for required in missing:
        faults.add(Refused(BAD_CONFIG, f"{required} is missing", param=required))
    for field, value in fields.items():
        with faults.collected():
            check_field(field, value)
    base = fields.get("base_model_name_or_path")
    if base_names is not None and base not in base_names:
        faults.add(Refused(WRONG_BASE, f"trained on {str(base)[:200]!r}", param="base_model_name_or_path"))
    faults.raise_any()
    return _config(fields)


def _config(fields: dict[str, Any]) -> AdapterConfig:
    """Build the configuration of checked fields."""
    ranks = Pattern.of(fields.get("rank_pattern") or {})
    scales = Pattern.of({key: float(alpha) for key, alpha in (fields.get("alpha_pattern") or {}).items()})
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", scales)):
        if pattern.expressions > MAX_EXPRESSIONS:
            raise Refused(UNSUPPORTED_CONFIG, f"{name}: more than {MAX_EXPRESSIONS} keys are expressions", param=name)
    parameters = fields.get("target_parameters") or ()
    named = [parameters] if isinstance(parameters, str) else parameters
    return AdapterConfig(
        r=fields["r"],
        lora_alpha=float(fields["lora_alpha"]),
        use_rslora=bool(fields.get("use_rslora")),
        rank_pattern=ranks,
        alpha_pattern=scales,
        base_model_name_or_path=fields.get("base_model_name_or_path"),
        experts=any(name.endswith(EXPERTS) for name in named),
        routers=any(name.endswith(ROUTERS) for name in named),
    )
