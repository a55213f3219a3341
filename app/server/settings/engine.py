"""Settings of the engine: external or embedded, its memory, its limits, and its supervision."""

import re
from typing import Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from app.domain.engine_address import MAX_ENGINES, dns_name
from app.domain.lora import ServingDtype
from app.server.settings.parts import parts

_ENGINE_URL: Final = re.compile(r"https?://[^/@\s]+(/[^@\s]*)?|unix:/\S+")

VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM 0.32 accepts for --max-lora-rank."""


class EngineSettings(BaseSettings):
    """Settings of the engines and the adapters they hold."""

    engine_url: str | None = Field(
        None,
        description="External vLLM: http://… or unix:/path. Several engines: comma-separated, or dns+http://name:port "
        "alone for all addresses of that name, looked up every few seconds. Default: embedded engine",
    )
    requests_url: str | None = Field(
        None,
        description="Inference gateway in front of all those engines (llm-d, for example): requests go there; adapters "
        "are still loaded into each engine of GATEWAY_ENGINE_URL",
    )
    engine_resolves: bool = Field(
        False,
        description="The external engines have the plugin (plugin/) and fetch adapters by name; the gateway loads "
        "nothing into them",
    )
    engine_api_key: SecretStr | None = Field(
        None, description="Key of the external engine; several engines have the same key"
    )
    dtype: ServingDtype = Field(ServingDtype.BFLOAT16, description="Serving dtype: float32, float16 or bfloat16")
    max_loras: int = Field(4, ge=1, description="Adapters in one batch (vLLM --max-loras)")
    max_lora_rank: int = Field(64, description=f"Largest rank (vLLM --max-lora-rank): one of {VLLM_RANKS}")
    max_cpu_loras: int = Field(64, ge=1, description="Adapters kept in host memory (vLLM --max-cpu-loras)")
    max_model_len: int | None = Field(None, ge=1, description="Longest context, tokens; default: the model's own")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache of a CPU engine, GiB")
    engine_memory_mib: int | None = Field(
        None,
        ge=1024,
        description="Memory that an embedded engine's processes may use together, MiB; above it the engine is ended and "
        "started again; default: four fifths of the memory of the machine or the container",
    )
    engine_threads: int | None = Field(None, ge=1, description="Cores of a CPU engine; default: all")
    prompt_logprobs: bool = Field(
        False,
        description="Accept requests for log-probabilities of a prompt (prompt_logprobs; echo in a chat; echo with "
        "logprobs in a completion); vLLM 0.32's CPU build crashes on those of several prompts at once, other builds were "
        "not tried",
    )
    seeds: bool | None = Field(
        None,
        description="Accept seed together with a temperature above 0; vLLM 0.32's CPU build crashes if it reads such a "
        "prompt in several steps; default: not with the embedded CPU engine",
    )
    tool_call_parser: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Parser of an embedded engine's tool calls (vLLM --tool-call-parser); default: the model calls no "
        "tools",
    )
    base_through_noop: bool | None = Field(
        None,
        description="Send requests for the served model through an adapter of zeros; default: only with the embedded CPU "
        "engine",
    )
    max_sequences: int | None = Field(
        None,
        ge=2,
        description="Sequences (prompts times n) in the engines at the same time; one of several keys may hold at most "
        "half of what the others leave; default: 256, but 4 for each core and at least 8 with several keys "
        "and an embedded CPU engine",
    )
    engine_step_tokens: int | None = Field(
        None,
        ge=8,
        description="Tokens that an embedded engine computes in one step (vLLM --max-num-batched-tokens; --max-num-seqs "
        "is not above it); fewer tokens make a long prompt delay others less; default: 16 for each core of a "
        "CPU engine, at least 32, otherwise vLLM's",
    )
    reconcile_seconds: float = Field(
        5.0, gt=0, description="Time between two comparisons of engine and catalogue, seconds"
    )
    engine_silent_seconds: float = Field(
        60.0,
        gt=0,
        description="Time after which an engine is asked for one token if it owes answers, sends no byte and shows no "
        "progress in its metrics, seconds; while no token comes it counts as away",
    )

    @field_validator("engine_url", "requests_url")
    @classmethod
    def _are_urls(cls, value: str | None) -> str | None:
        urls = parts(value or "")
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

    @property
    def engine_urls(self) -> tuple[str, ...]:
        """URLs of the external engines, or one DNS name for all of them; empty: the engine is embedded."""
        return tuple(parts(self.engine_url or ""))
