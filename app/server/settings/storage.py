"""Settings of storage: the served model's reference, the data directory, object storage, the catalogue."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

from app.domain.digest import Digest
from app.domain.retention import DEFAULT_KEEP_VERSIONS
from app.server.settings.parts import comma_separated


class ServedModelSettings(BaseSettings):
    """Settings of the served model and its reference."""

    model: str = Field(description="Served (aligned) checkpoint: a directory or a hub id")
    served_model_name: str | None = Field(
        None, description="Name of the served model for clients; default: the last part of model"
    )
    reference: Path = Field(description="Reference directory, made by `python -m app reference build`")
    reference_digest: str | None = Field(
        None, description="SHA-256 of the only reference that the gateway starts with; default: any reference"
    )
    trust_model: bool = Field(
        False,
        description="Serve a model that is not the reference's aligned checkpoint, such as a quantised or converted one; "
        "the log and /ready say so",
    )
    base_names: Annotated[frozenset[str] | None, NoDecode] = Field(
        None,
        description="Accepted values of base_model_name_or_path, comma-separated; default: the field is not compared",
    )

    _split_base_names = field_validator("base_names", mode="before")(comma_separated)

    @field_validator("reference_digest")
    @classmethod
    def _is_digest(cls, value: str | None) -> str | None:
        return None if value is None else Digest(value.lower()).hex

    @property
    def served_name(self) -> str:
        """Name of the served model, as clients use it."""
        return self.served_model_name or self.model.rstrip("/").rsplit("/", 1)[-1]


class StorageSettings(BaseSettings):
    """Settings of artefacts, catalogue and kept uploads."""

    data: Path = Field(
        Path("gateway-data"), description="Directory for artefacts, catalogue, quarantine and engine log"
    )
    store_url: str | None = Field(
        None,
        pattern=r"^s3://[^/?#]+(/[^?#]*)?$",
        description="Object storage for artefacts, s3://bucket/prefix (needs the extra `s3`); default: the data directory",
    )
    copies_mib: int = Field(
        16384,
        ge=0,
        description="Most local copies of artefacts in object storage, MiB; a copy that an engine may read stays even "
        "above this limit",
    )
    artefacts: Path | None = Field(
        None,
        description="Directory of artefacts that several gateways on one PostgreSQL share; default: in the data directory",
    )
    catalogue_url: str | None = Field(
        None,
        description="Catalogue, `postgresql://user@host/name` (needs the extra `postgres`); default: SQLite in the data "
        "directory",
    )
    catalogue_wait_seconds: float = Field(
        60.0, ge=0, allow_inf_nan=False, description="Longest wait for PostgreSQL at start, seconds"
    )
    keep_originals: bool = Field(
        False, description="Keep uploads in a folder that no engine can read, so that they can be screened again"
    )
    keep_versions: int = Field(
        DEFAULT_KEEP_VERSIONS,
        ge=0,
        description="Versions of each adapter, besides the active one, that stay loaded and answer as name@n; older ones "
        "stay in the catalogue only, and rollback loads them again",
    )
    usage_days: int = Field(
        400, ge=1, le=3660, description="Days for which the usage of each hour is kept: more than a year, for bills"
    )
    audit_file: Path | None = Field(
        None, description="File to which the audit log's entries of this gateway are appended, as JSON lines"
    )
    audit_seconds: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="Time between the gateway's own audits, seconds (each reads every local artefact, 64 MiB a second at "
        "most); 0: never",
    )
