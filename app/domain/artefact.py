"""Artefact: the canonical bytes of an adapter that the store keeps and the engine reads."""

from dataclasses import dataclass
from typing import Final

from app.domain.digest import Digest, digest_of, digest_of_parts

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MANIFEST_FILE: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class Artefact:
    """Three files under one digest.

    The digest covers the files that the engine reads (config and weights), so the same sanitised adapter has the same
    digest however it arrived; the manifest records the digest and describes the upload, its measurements, and the modules
    removed and written. Created by `prune/canonical.py`, and by `sandbox/answer.py` from bytes checked to be of that form.
    """

    digest: Digest
    config: bytes
    weights: bytes
    manifest: bytes


def content_digest_of(config: Digest, weights: Digest) -> Digest:
    """Return the digest an artefact is stored under, from the digests of its two files."""
    return digest_of_parts([(CONFIG_FILE, config), (WEIGHTS_FILE, weights)])


def content_digest(config: bytes, weights: bytes) -> Digest:
    """Return the digest an artefact is stored under, from the bytes of its two files."""
    return content_digest_of(digest_of(config), digest_of(weights))
