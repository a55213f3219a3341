"""Settings of signatures: of what the gateway stores, and of what it takes in."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from app.domain.tenants import check_tenant
from app.gateway.signed_uploads import UploadKeys
from app.server.settings.parts import comma_separated
from app.store.artefacts.signatures import Signatures
from app.store.envelope import PublicKey, Signer, read_public_key


class SigningSettings(BaseSettings):
    """Settings of signatures: of what the gateway stores, and of what it takes in."""

    signing_key: Path | None = Field(
        None,
        description="Private key in PEM, Ed25519 or ECDSA P-256, that signs artefacts and statements about versions; read "
        "at start; default: nothing is signed",
    )
    require_signed: bool = Field(
        False,
        description="Let engines read only artefacts that the signing key or one of trusted_keys signed; "
        "`python -m app store sign` signs older ones",
    )
    trusted_keys: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Public keys in PEM that count besides the signing key's own, comma-separated: earlier ones"
    )
    upload_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Public keys in PEM that may sign a tenant's uploads: TENANT=FILE, comma-separated; a tenant may have "
        "several",
    )
    require_signed_uploads: bool = Field(
        False, description="Refuse uploads that are not signed by a key of upload_keys for their tenant"
    )

    @field_validator("signing_key")
    @classmethod
    def _signs(cls, value: Path | None) -> Path | None:
        if value is not None:
            Signer.read(value)
        return value

    _split_trusted_keys = field_validator("trusted_keys", mode="before")(comma_separated)

    @field_validator("trusted_keys")
    @classmethod
    def _are_public_keys(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            read_public_key(path)
        return value

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        if self.require_signed and self.signing_key is None:
            raise ValueError("require_signed needs signing_key: an engine is to read new artefacts, too")
        if self.trusted_keys and not self.require_signed:
            raise ValueError("trusted_keys counts only with require_signed")
        if self.require_signed_uploads and not self.upload_keys:
            raise ValueError("require_signed_uploads needs upload_keys: no upload would be taken")
        return self

    @property
    def signatures(self) -> Signatures:
        """Keys that sign artefacts, and keys that must have, read anew. Raises ValueError if one is not valid any more."""
        signer = self.signer
        if not self.require_signed or signer is None:
            return Signatures(signer)
        return Signatures(signer, (signer.key.public_key(), *map(read_public_key, self.trusted_keys)))

    @property
    def signer(self) -> Signer | None:
        """Signer with the key, which is read anew. Raises ValueError if it is not valid any more."""
        return None if self.signing_key is None else Signer.read(self.signing_key)

    _split_upload_keys = field_validator("upload_keys", mode="before")(comma_separated)

    @field_validator("upload_keys")
    @classmethod
    def _are_upload_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        _ = _by_tenant(value)
        return value

    @property
    def signed_uploads(self) -> UploadKeys:
        """Keys that may sign uploads, read anew. Raises ValueError if one is not valid any more."""
        return UploadKeys(_by_tenant(self.upload_keys), self.require_signed_uploads)


def _by_tenant(entries: tuple[str, ...]) -> dict[str, list[PublicKey]]:
    """Return the keys of entries such as `acme=keys/acme.pub`, by tenant. Raises ValueError."""
    keys: dict[str, list[PublicKey]] = defaultdict(list)
    for entry in entries:
        tenant, given, file = entry.partition("=")
        if not given:
            raise ValueError(f"{entry[:80]!r} is not like acme=keys/acme.pub: a tenant and the file of its public key")
        check_tenant(tenant)
        keys[tenant].append(read_public_key(Path(file)))
    return dict(keys)
