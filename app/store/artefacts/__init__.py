"""Artefacts: canonical adapters under their digests, on disk or in object storage."""
