"""Settings of the plugin, from the environment. Read once in each process; a wrong value stops vLLM at its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_gateway_vllm.signed import read_keys

if TYPE_CHECKING:
    from lora_gateway_vllm.signed import Key

PREFIX: Final = "LORA_GATEWAY_"
URL: Final = PREFIX + "URL"
"""The gateway's address. Not set: the plugin does nothing."""

MIB: Final = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Settings by which this engine finds adapters.

    url: the gateway, http(s)://host:port. cache: directory of this engine alone. key: of the role `engine`. store: where
    the gateway's artefacts are mounted, None to fetch them over HTTP. cache_bytes: the most that is kept.
    artefact_bytes: the most that one artefact may have. connect_s, ask_s, fetch_s: seconds to connect, for one question,
    for one artefact. forget_s: seconds that "there is no such name" is remembered. public_keys: keys of which one must
    have signed an artefact's statement; none: no statement is asked for.
    """

    url: str
    cache: Path
    key: str | None = field(default=None, repr=False)
    store: Path | None = None
    cache_bytes: int = 8192 * MIB
    artefact_bytes: int = 2048 * MIB
    connect_s: float = 3.0
    ask_s: float = 5.0
    fetch_s: float = 120.0
    forget_s: float = 5.0
    public_keys: tuple[Key, ...] = ()

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """From `LORA_GATEWAY_…`. Raises ValueError naming the variable that is missing or wrong."""
        given = {name.removeprefix(PREFIX): text for name, text in environment.items() if name.startswith(PREFIX)}
        url, cache = given.pop("URL", "").rstrip("/"), given.pop("CACHE", "")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{URL} must be http://… or https://…")
        if not Path(cache).is_absolute():
            raise ValueError(f"{PREFIX}CACHE must be the absolute path of a directory of this engine's own")
        store = given.pop("STORE", None)
        made = cls(
            url=url,
            cache=Path(cache),
            key=_key(given),
            store=Path(store) if store else None,
            cache_bytes=int(_number(given, "CACHE_MIB", 8192) * MIB),
            artefact_bytes=int(_number(given, "ARTEFACT_MIB", 2048) * MIB),
            connect_s=_number(given, "CONNECT_S", cls.connect_s),
            ask_s=_number(given, "ASK_S", cls.ask_s),
            fetch_s=_number(given, "FETCH_S", cls.fetch_s),
            forget_s=_number(given, "FORGET_S", cls.forget_s),
            public_keys=_public_keys(given),
        )
        if given:
            raise ValueError(f"{PREFIX}{min(given)} is no setting of this plugin")
        return made


def _key(given: dict[str, str]) -> str | None:
    file, key = given.pop("KEY_FILE", None), given.pop("KEY", None)
    if not file:
        return key or None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except OSError as error:
        raise ValueError(f"{PREFIX}KEY_FILE: {error.strerror}") from error


def _public_keys(given: dict[str, str]) -> tuple[Key, ...]:
    paths = [Path(part.strip()) for part in given.pop("PUBLIC_KEYS", "").split(",") if part.strip()]
    try:
        return read_keys(paths)
    except ValueError as error:
        raise ValueError(f"{PREFIX}PUBLIC_KEYS: {error}") from error


def _number(given: dict[str, str], name: str, default: float) -> float:
    text = given.pop(name, None)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{PREFIX}{name} must be a number above 0, not {text[:40]!r}")
    return value
