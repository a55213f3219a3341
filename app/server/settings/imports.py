"""Settings of imports: sources that may be named instead of uploading files, and their servers and credentials."""

from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode

from app.domain.adapter_source import BUCKET, SourcePatterns
from app.domain.outside import Outside, Url
from app.server.settings.parts import comma_separated


class ImportSettings(BaseSettings):
    """Settings of imports."""

    import_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Sources that callers may import, comma-separated, such as `hf://acme/*`, `hf://acme/sql` or "
        "`s3://adapters/{tenant}/*`; default: none",
    )
    import_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        ("https://*.hf.co",),
        description="Origins to which the hub may redirect for a file, comma-separated; and networks that sources' servers "
        "may be in though they are not public, such as 10.1.0.0/16",
    )
    import_hub_url: str = Field("https://huggingface.co", description="Hub that `hf://` sources are on")
    import_hub_token: SecretStr | None = Field(
        None, description="Token that is sent to that hub; default: only public repositories can be read"
    )
    import_storage_endpoint: str | None = Field(
        None, description="S3-compatible storage that `s3://` sources are in; default: AWS's for the region"
    )
    import_storage_region: str = Field("us-east-1", pattern="^[a-z0-9-]{1,40}$", description="Region of that storage")
    import_storage_access_key: str | None = Field(
        None,
        description="Access key for that storage (needs the extra `s3`), other than that of the gateway's own store; "
        "default: only public buckets can be read",
    )
    import_storage_secret_key: SecretStr | None = Field(None, description="Secret key that belongs to the access key")

    _split_imports = field_validator("import_sources", "import_hosts", mode="before")(comma_separated)

    @field_validator("import_sources")
    @classmethod
    def _are_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _ = SourcePatterns.of(value)
        return value

    @field_validator("import_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _ = Outside.of(value)
        return value

    @field_validator("import_hub_url", "import_storage_endpoint")
    @classmethod
    def _is_server(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        path = Url.of(value).path
        if "?" in path or (path != "/" and info.field_name == "import_storage_endpoint"):
            raise ValueError(f"is not the address of a server: {path[:80]!r} is too much")
        return value.rstrip("/")

    @property
    def import_storage_url(self) -> str:
        """Address of the storage that s3:// sources are in."""
        return self.import_storage_endpoint or f"https://s3.{self.import_storage_region}.amazonaws.com"

    def check_imports(self) -> None:
        """Raise ValueError for settings that contradict each other."""
        if (self.import_storage_access_key is None) is not (self.import_storage_secret_key is None):
            raise ValueError("import_storage_access_key and import_storage_secret_key are set together or not at all")
        if self.import_storage_access_key is not None and any(one.startswith(BUCKET) for one in self.import_sources):
            try:
                import obstore  # noqa: F401
            except ImportError as error:
                raise ValueError("s3:// sources with keys need the extra `s3`: pip install '.[s3]'") from error
