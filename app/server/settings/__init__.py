"""Everything an operator can set, once, frozen: `GATEWAY_<FIELD>` in the environment or the flag of the same name."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from app.domain.api_keys import Key, key_for_all, parse_keys
from app.domain.digest import Digest
from app.domain.engine_address import MAX_ENGINES, dns_name
from app.domain.lora import ServingDtype
from app.domain.policy import (
    DEFAULT_ENERGY,
    DEFAULT_TAU,
    DEFAULT_TOP_K,
    Action,
    Comparison,
    Policy,
    Unscorable,
    default_action,
)
from app.server.settings.access import DoorSettings

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_ENGINE_URL = re.compile(r"https?://[^/@\s]+(/[^@\s]*)?|unix:/\S+")
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM 0.32 takes for --max-lora-rank."""


class Settings(DoorSettings):
    """One gateway's settings. The descriptions are the table in docs/settings.md."""

    # the policy
    comparison: Comparison = Field(Comparison.INPUT, description="E-DIEM comparison: input, alignment or projection")
    tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Condemn a module whose E-DIEM is above this (IQRs); default: "
        f"{DEFAULT_TAU[Action.PROJECT]:g} when projecting, {DEFAULT_TAU[Action.PRUNE]:g} when pruning",
    )
    action: Action | None = Field(
        None,
        description="What a condemned module suffers: project (take out what reads or writes where alignment does; needs "
        "the comparison input and tau ≥ 0) or prune (cut out); default: project with input, else prune",
    )
    project_outputs: int = Field(1, ge=0, description="Left singular vectors of V that projecting takes out besides")
    max_removed_share: float = Field(
        0.5, ge=0, le=1, description="Reject when projecting would take a larger share of the update's squared norm"
    )
    max_pruned: int | None = Field(None, ge=0, description="Prune at most this many modules, worst first")
    cap_keeps: bool = Field(False, description="Keep condemned modules the cap spares, instead of rejecting")
    max_pruned_share: float = Field(0.5, ge=0, le=1, description="Reject when a larger share of modules is condemned")
    reject_tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="What scores above this counts towards max-pruned-share; default: what is cut out",
    )
    max_update_ratio: float = Field(
        100.0, gt=0, allow_inf_nan=False, description="Reject a module whose update's norm exceeds this times V's"
    )
    unscorable: Unscorable = Field(Unscorable.REJECT, description="Module without a score: reject, prune or keep")
    energy: float = Field(
        DEFAULT_ENERGY,
        gt=0,
        le=1,
        description="Inputs looked at, and projected out, in a module: the fewest right singular vectors of V that hold "
        "this share of its squared norm; 1: always top-k of them",
    )
    top_k: int = Field(DEFAULT_TOP_K, ge=1, description="At most that many, and at most what the reference keeps")
    max_block_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Reject when a block's kept modules together score more; default: reported",
    )
    max_adapter_score: float | None = Field(
        None, allow_inf_nan=False, description="Reject when all kept modules together score more; default: reported"
    )
    screen_device: str = Field("cpu", description="Where V is kept and multiplied (cuda: untested, no GPU was at hand)")
    screen_seconds: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Longest screening of one adapter, seconds; later it is rejected"
    )
    screen_sandbox: bool = Field(
        True, description="Read and measure each upload in a process of its own, shut away; on a GPU always in ours"
    )
    screen_memory_mib: int = Field(
        8192, ge=64, description="Memory of that process for one upload, beyond the reference, MiB"
    )
    max_scaling: float = Field(64.0, gt=0, allow_inf_nan=False, description="Largest alpha / r (or alpha / sqrt r)")

    # the engine
    engine_url: str | None = Field(
        None,
        description="External vLLM: http://… or unix:/path; several, comma-separated, behind one gateway; "
        "dns+http://name:port alone: all addresses of that name, looked up every few seconds; default: embedded engine",
    )
    requests_url: str | None = Field(
        None,
        description="Inference gateway in front of all those engines (llm-d and its like): requests go there, adapters are "
        "still loaded into each engine of GATEWAY_ENGINE_URL",
    )
    engine_resolves: bool = Field(
        False,
        description="The external engines have the plugin (plugin/) and fetch adapters by name: fill none of them",
    )
    engine_api_key: SecretStr | None = Field(None, description="Key of the external engine, or of each of them")
    dtype: ServingDtype = Field(ServingDtype.BFLOAT16, description="Serving dtype: float32, float16, bfloat16")
    max_loras: int = Field(4, ge=1, description="Adapters in one batch (vLLM --max-loras)")
    max_lora_rank: int = Field(64, description=f"Largest rank (vLLM --max-lora-rank): one of {VLLM_RANKS}")
    max_cpu_loras: int = Field(64, ge=1, description="Adapters kept in host memory (vLLM --max-cpu-loras)")
    max_model_len: int | None = Field(None, ge=1, description="Longest context, tokens; default: the model's")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache of a CPU engine, GiB")
    engine_memory_mib: int | None = Field(
        None,
        ge=1024,
        description="Memory that an embedded engine's processes may hold together, MiB; above it the engine is ended and "
        "started again; default: four fifths of the machine's, or of the container's",
    )
    engine_threads: int | None = Field(None, ge=1, description="Cores of a CPU engine; default: all")
    prompt_logprobs: bool = Field(
        False,
        description="Accept echo together with logprobs on /v1/completions; vLLM 0.32's CPU build ends over those of "
        "several prompts at once, other builds were not tried",
    )
    seeds: bool | None = Field(
        None,
        description="Accept seed together with a temperature above 0; vLLM 0.32's CPU build ends when such a prompt is "
        "read in several steps; default: not with the embedded CPU engine",
    )
    tool_call_parser: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="How an embedded engine's model calls tools (vLLM --tool-call-parser); default: it calls none",
    )
    base_through_noop: bool | None = Field(
        None, description="Send served-model requests through a zero adapter; default: yes with the embedded CPU engine"
    )
    max_sequences: int | None = Field(
        None,
        ge=2,
        description="Sequences (prompts times n) in the engines at the same time; one key of several may hold half of what "
        "is left; default: 256, with several keys and an embedded CPU engine 4 for each core, at least 8",
    )
    engine_step_tokens: int | None = Field(
        None,
        ge=8,
        description="Tokens that an embedded engine computes in one step (vLLM --max-num-batched-tokens; --max-num-seqs is "
        "not above it): with fewer, a long prompt delays others less; default: 16 for each core of a CPU engine, at least "
        "32, otherwise vLLM's",
    )
    reconcile_seconds: float = Field(5.0, gt=0, description="How often engine and catalogue are compared, seconds")
    engine_silent_seconds: float = Field(
        60.0,
        gt=0,
        description="An engine that owes answers, brings no byte of any and stands still by its metrics for so long is "
        "asked for one token; while none comes it counts as away, seconds",
    )

    audit_seconds: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="How often the gateway audits what it keeps (reads every artefact), seconds; 0: never",
    )

    # what is said
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OpenTelemetry collector (OTLP over HTTP, `http://host:4318`) that gets traces; needs the extra `otel`",
    )
    log: Literal["json", "console"] = Field("console", description="Log format")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level")

    @field_validator("api_keys", "base_names", "allowed_hosts", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return _parts(value) or ()

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        _ = [key_for_all(key.get_secret_value(), 0) for key in value]
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _holds_keys(cls, value: Path | None) -> Path | None:
        if value is not None and not _keys_in(value):
            raise ValueError(f"{value} holds no key")
        return value

    @field_validator("reference_digest")
    @classmethod
    def _is_digest(cls, value: str | None) -> str | None:
        return None if value is None else Digest(value.lower()).hex

    @field_validator("engine_url", "requests_url")
    @classmethod
    def _are_urls(cls, value: str | None) -> str | None:
        urls = _parts(value or "")
        for url in urls:
            if not _ENGINE_URL.fullmatch(url) and dns_name(url) is None:
                raise ValueError(
                    "an engine's URL is http://host:port, https://host:port, dns+http://name:port or unix:/path"
                )
        if len(set(urls)) < len(urls):
            raise ValueError("each engine once")
        if len(urls) > 1 and any(map(dns_name, urls)):
            raise ValueError("dns+http://name:port stands alone: it means all engines")
        if len(urls) > MAX_ENGINES:
            raise ValueError(f"at most {MAX_ENGINES} engines")
        return ",".join(urls) or None

    @field_validator("max_lora_rank")
    @classmethod
    def _is_vllm_rank(cls, value: int) -> int:
        if value not in VLLM_RANKS:
            raise ValueError(f"vLLM takes one of {VLLM_RANKS}")
        return value

    @model_validator(mode="after")
    def _guarded_or_open(self) -> "Settings":
        if not self.api_keys and self.api_keys_file is None and not self.open:
            raise ValueError(
                "set GATEWAY_API_KEYS (or --api-keys) or GATEWAY_API_KEYS_FILE, "
                "or ask for an unguarded gateway with GATEWAY_OPEN=true (--open)"
            )
        front = self.requests_url
        if front is not None and (not self.engine_url or "," in front or dns_name(front)):
            raise ValueError("requests_url is one URL, in front of the engines of engine_url")
        if self.engine_resolves and not self.engine_url:
            raise ValueError("engine_resolves is for the engines of engine_url: an embedded one has no plugin")
        if self.max_cpu_loras < self.max_loras:
            raise ValueError("max_cpu_loras must be at least max_loras")
        return self

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every key, those of the file as it is now first. Raises ValueError when the file is no longer one."""
        stored = () if self.api_keys_file is None else _keys_in(self.api_keys_file)
        given = (key_for_all(key.get_secret_value(), number) for number, key in enumerate(self.api_keys, 1))
        return (*stored, *given)

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """External engines, or one name for all; none: the embedded one."""
        return tuple(_parts(self.engine_url or ""))

    @property
    def served_name(self) -> str:
        """The served model's own name, as clients use it."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]

    @property
    def policy(self) -> Policy:
        """The screening policy these settings make."""
        action = self.action or default_action(self.comparison)
        return Policy(
            comparison=self.comparison,
            tau=DEFAULT_TAU[action] if self.tau is None else self.tau,
            max_pruned=self.max_pruned,
            cap_keeps=self.cap_keeps,
            max_pruned_share=self.max_pruned_share,
            max_update_ratio=self.max_update_ratio,
            unscorable=self.unscorable,
            top_k=self.top_k,
            energy=self.energy,
            max_block_score=self.max_block_score,
            max_adapter_score=self.max_adapter_score,
            action=action,
            max_removed_share=self.max_removed_share,
            project_outputs=self.project_outputs,
            reject_tau=self.reject_tau,
        )


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _keys_in(path: Path) -> tuple[Key, ...]:
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
