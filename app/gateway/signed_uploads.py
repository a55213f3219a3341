"""Signatures of uploads: an OpenSSF Model Signing signature by a key that the operator trusts for the caller's tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.concurrency.pools import Pool
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.errors import BAD_SIGNATURE, SIGNATURE_REQUIRED, Refused
from app.domain.lora import Received
from app.domain.model_signing import envelope_in, signed_files
from app.domain.statement import PAYLOAD_TYPE
from app.observe.log import event
from app.store.envelope import PublicKey, key_id, opened_by
from app.upload.limits import SIGNATURE
from app.upload.receive import PendingUpload


@dataclass(frozen=True, slots=True)
class UploadKeys:
    """Keys by tenant that may sign uploads. required: whether an upload without a signature is refused."""

    keys: Mapping[str, Sequence[PublicKey]] = field(default_factory=dict)
    required: bool = False

    def check_unsigned(self) -> None:
        """Raise Refused SIGNATURE_REQUIRED if an upload without a signature is not taken."""
        if self.required:
            raise Refused(SIGNATURE_REQUIRED, "this gateway takes signed uploads only", param=SIGNATURE)

    def check(self, tenant: str, signature: bytes | None, received: Received) -> str | None:
        """Return the id of the key that signed an upload; None if it is unsigned, which is allowed then.

        signature: a Sigstore bundle as `model_signing sign key` writes it; it may cover further files. Raises Refused
        SIGNATURE_REQUIRED or BAD_SIGNATURE. Blocking: each signature is tried with each key.
        """
        if signature is None:
            self.check_unsigned()
            return None
        keys = self.keys.get(tenant, ())
        if not keys:
            raise Refused(BAD_SIGNATURE, "no key is trusted for this tenant: nothing can be checked", param=SIGNATURE)
        try:
            payload, key = opened_by(envelope_in(signature), PAYLOAD_TYPE, keys)
            signed = signed_files(payload)
        except Refused as refused:
            raise Refused(BAD_SIGNATURE, refused.message, param=SIGNATURE) from refused
        for name, digest in ((CONFIG_FILE, received.config_digest), (WEIGHTS_FILE, received.weights_digest)):
            if signed.get(name) != digest:
                how = "covers other bytes of it" if name in signed else "does not cover it"
                raise Refused(BAD_SIGNATURE, f"{name}: the signature {how}", param=SIGNATURE)
        return key_id(key)


async def check_signature(upload: PendingUpload, tenant: str, adapter: str, keys: UploadKeys, pool: Pool) -> None:
    """Check an upload's signature in a thread, and log the key that made it. adapter: its full name.

    Raises Refused SIGNATURE_REQUIRED or BAD_SIGNATURE.
    """
    received = upload.received
    signed_by = await pool(keys.check, tenant, upload.signature, received)
    if signed_by is not None:
        config, weights = received.config_digest.hex, received.weights_digest.hex
        event("upload_signature_verified", adapter=adapter, key=signed_by, config=config, weights=weights)
