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
    served_model_name: str | None = Field(None, description="Name clients use for it; default: the last part of model")
    reference: Path = Field(description="Reference directory made by `python -m app reference build`")
    reference_digest: str | None = Field(None, description="Pin: refuse to start with any other reference (sha256)")
    trust_model: bool = Field(
        False,
        description="Serve a model that is not the reference's aligned checkpoint, as one that was quantised or converted; "
        "the log and /ready say so",
    )
    base_names: Annotated[frozenset[str] | None, NoDecode] = Field(
        None, description="Accepted base_model_name_or_path values, comma-separated; default: not compared"
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
    audit_seconds: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="How often the gateway audits what it keeps (reads every artefact), seconds; 0: never",
    )
