"""The first half of the settings: what is served, where it is kept, and who may come in."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.retention import DEFAULT_KEEP_VERSIONS


class DoorSettings(BaseSettings):
    """See `Settings`, which everybody else uses."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="forbid", hide_input_in_errors=True)

    # what is served
    model: str = Field(description="Served (aligned) checkpoint: a directory or a hub id")
    served_model_name: str | None = Field(None, description="Name clients use for it; default: the last part of model")
    reference: Path = Field(description="Reference directory made by `python -m app reference build`")
    reference_digest: str | None = Field(None, description="Pin: refuse to start with any other reference (sha256)")
    trust_model: bool = Field(
        False,
        description="Serve a model that is not the reference's aligned checkpoint, as one that was quantised or converted; "
        "the log and /ready say so",
    )
    data: Path = Field(Path("gateway-data"), description="Directory for artefacts, catalogue, quarantine, engine log")
    store_url: str | None = Field(
        None,
        pattern=r"^s3://[^/?#]+(/[^?#]*)?$",
        description="Where artefacts are kept, s3://bucket/prefix (needs the extra `s3`); default: the data directory",
    )
    copies_mib: int = Field(
        16384, ge=0, description="Copies of artefacts in object storage, MiB; what an engine may read stays beyond it"
    )
    artefacts: Path | None = Field(
        None, description="Directory of artefacts that gateways on one PostgreSQL share; default: in the data directory"
    )
    catalogue_url: str | None = Field(
        None, description="`postgresql://user@host/name` (extra `postgres`); default: SQLite in the data directory"
    )
    catalogue_wait_seconds: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="Longest wait for PostgreSQL at start, seconds"
    )
    keep_originals: bool = Field(
        False, description="Keep what was uploaded, where no engine can read it, so that it can be screened again"
    )
    keep_versions: int = Field(
        DEFAULT_KEEP_VERSIONS,
        ge=0,
        description="Versions of each adapter that stay loaded and addressable as name@n besides the active one; "
        "older ones stay in the catalogue only, and rollback loads them again",
    )
    base_names: Annotated[frozenset[str] | None, NoDecode] = Field(
        None, description="Accepted base_model_name_or_path values, comma-separated; default: not compared"
    )

    # the door
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys of 16 characters or more, comma-separated, that may do everything"
    )
    api_keys_file: Path | None = Field(
        None, description="Keys with roles, hashed: lines that `python -m app keys new` prints; read at start"
    )
    open: bool = Field(False, description="Serve without keys; must be asked for")
    allowed_hosts: Annotated[frozenset[str], NoDecode] = Field(
        frozenset(),
        description="Accepted Host names, comma-separated, without port; default: any well-formed one, and where an open "
        "gateway listens on loopback, loopback's own",
    )
    uploads_per_minute: int = Field(60, ge=0, description="Uploads of one key in a minute; 0: any number")
    screens_per_minute: int = Field(
        60, ge=0, description="Dry runs (POST /screen) of one key in a minute; 0: any number"
    )
    screens_per_day: int = Field(
        200, ge=0, description="Dry runs of one key in a day, at this gateway since its start; 0: any number"
    )
    chats_per_minute: int = Field(0, ge=0, description="Inference requests of one key in a minute; 0: any number")
    max_weights_mib: int = Field(2048, ge=1, description="Largest adapter_model.safetensors, MiB")
    max_uploads: int = Field(
        4, ge=1, description="Uploads at the same time; one key of several may hold half of what is left"
    )
    min_free_disk_mib: int = Field(512, ge=0, description="Refuse uploads when less disk is free, MiB")
