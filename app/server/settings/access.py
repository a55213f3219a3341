"""Settings of access: the address to listen on, keys, rates, and limits of uploads."""

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode

from app.domain.api_keys import Key, key_for_all, parse_keys
from app.domain.tenant_limits import limits_from
from app.server.settings.parts import comma_separated

_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")


def _limits(text: str) -> str:
    limits_from(text)
    return text


class AccessSettings(BaseSettings):
    """Settings of access: the address to listen on, keys, rates, and limits of uploads."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys that may do everything, comma-separated, of 16 characters or more each"
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of hashed keys with roles: the lines that `python -m app keys new` prints; read at start",
    )
    open: bool = Field(False, description="Serve without keys; a gateway without keys starts only if this is set")
    allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Accepted Host names, comma-separated, without port; default: any well-formed name, or only the "
        "names of loopback if an open gateway listens there",
    )
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Origins such as https://chat.example.org, comma-separated, whose pages may call the API from a "
        "browser, with a key (CORS); default: none",
    )
    uploads_per_minute: int = Field(60, ge=0, description="Uploads of one key in a minute; 0: no limit")
    screens_per_minute: int = Field(60, ge=0, description="Dry runs (POST /screen) of one key in a minute; 0: no limit")
    screens_per_day: int = Field(
        200, ge=0, description="Dry runs of one key in a day, counted by this gateway since its start; 0: no limit"
    )
    chats_per_minute: int = Field(0, ge=0, description="Inference requests of one key in a minute; 0: no limit")
    tenant_limits: Annotated[str, AfterValidator(_limits)] = Field(
        "",
        description="Limits of every tenant for which none were set, as name=number, comma-separated "
        "(docs/tenants.md#limits-of-a-tenant): adapters=50,requests_per_minute=600; not of `default`; default: none",
    )
    max_weights_mib: int = Field(2048, ge=1, description="Largest adapter_model.safetensors, MiB")
    max_uploads: int = Field(
        4,
        ge=1,
        description="Uploads at the same time; one of several keys may hold at most half of what the others leave",
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="After SIGTERM: seconds that running requests get to end before they are cut off"
    )
    min_free_disk_mib: int = Field(512, ge=0, description="Free disk space below which uploads are refused, MiB")

    _split_values = field_validator("api_keys", "allowed_hosts", "allowed_origins", mode="before")(comma_separated)

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: frozenset[str]) -> frozenset[str]:
        if wrong := [one for one in value if not _ORIGIN.fullmatch(one)]:
            raise ValueError(
                f"{wrong[0][:80]!r} is not an origin such as https://chat.example.org or http://localhost:3000"
            )
        return value

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

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys, those in the file first, which is read anew. Raises ValueError if the file is not valid any more."""
        stored = () if self.api_keys_file is None else _keys_in(self.api_keys_file)
        given = (key_for_all(key.get_secret_value(), number) for number, key in enumerate(self.api_keys, 1))
        return (*stored, *given)


def _keys_in(path: Path) -> tuple[Key, ...]:
    try:
        return parse_keys(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
