"""Canonical bytes: what the store keeps and the engine reads."""

from dataclasses import dataclass
from typing import Final

from app.domain.digest import Digest, digest_of, digest_of_parts

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MANIFEST_FILE: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class Artefact:
    """Three files under one digest.

    The digest covers what the engine reads (config and weights), so the same sanitised adapter has the same digest
    however it arrived; the manifest records it and says what was received, measured, removed and written. Only
    `prune/canonical.py` makes one.
    """

    digest: Digest
    config: bytes
    weights: bytes
    manifest: bytes


def content_digest_of(config: Digest, weights: Digest) -> Digest:
    """The digest an artefact is kept under, from its two files' digests."""
    return digest_of_parts([(CONFIG_FILE, config), (WEIGHTS_FILE, weights)])


def content_digest(config: bytes, weights: bytes) -> Digest:
    """The digest an artefact is kept under, from its two files' bytes."""
    return content_digest_of(digest_of(config), digest_of(weights))
