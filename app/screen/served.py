"""Comparison of a checkpoint on disk with the two from which a reference was built.

A reference records one digest for each of its checkpoints, over every tensor's name, dtype, shape and bytes, so the
distribution of tensors over files does not matter. Configuration, tokenizer and chat template are not included.
"""

import contextlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Final

from app.domain.digest import Digest, digest_of_parts
from app.screen.reference.checkpoint import Checkpoint
from app.screen.reference.manifest import Manifest

CACHE: Final = "checkpoint-digests.json"
"""Name of the file in the data directory that caches digests: a 7B model is 14 GB, too much to read at every start."""

HASHERS: Final = 4
"""Threads that hash tensors: a single one may be slower than a fast disk, and more would overload a small machine."""


def difference(path: Path, manifest: Manifest, cache: Path) -> str | None:
    """Return the reason why the checkpoint at `path` is not the reference's aligned one, without a path; None if it is.

    cache: file of digests of checkpoints whose files have not changed since. Blocking: a checkpoint that is not in it is
    read completely. Raises Unavailable BAD_REFERENCE if there is no readable checkpoint.
    """
    with closing(Checkpoint(path)) as checkpoint:
        if mismatch := _first_mismatch(checkpoint, manifest):
            return mismatch
        digest = _cached_digest(checkpoint, cache)
    if digest == manifest.aligned:
        return None
    if digest == manifest.base:
        return "the model is the reference's base checkpoint, not its aligned one"
    return "the model is neither the reference's aligned checkpoint nor its base; converted or quantised weights differ too"


def _first_mismatch(checkpoint: Checkpoint, manifest: Manifest) -> str | None:
    """Return the first mismatch that shows, before any hashing, that this is another model; None if there is none."""
    for name, info in sorted(manifest.modules.items()):
        part = checkpoint.part(name)
        if part is None:
            return f"the model has no tensor {name}.weight, which the reference's aligned checkpoint has"
        if part.shape != info.shape:
            found, wanted = (f"{one.d_out} × {one.d_in}" for one in (part.shape, info.shape))
            return f"the model's tensor {name}.weight is {found}, in the reference's aligned checkpoint it is {wanted}"
    return None


def _cached_digest(checkpoint: Checkpoint, cache: Path) -> Digest:
    where, fingerprint, known = str(checkpoint.path.resolve()), checkpoint.fingerprint(), _read(cache)
    if where in known and known[where][0] == fingerprint:
        return Digest(known[where][1])
    with ThreadPoolExecutor(HASHERS, thread_name_prefix="hash") as pool:
        digest = digest_of_parts(zip(checkpoint.shapes, pool.map(checkpoint.digest, checkpoint.shapes), strict=True))
    if checkpoint.fingerprint() == fingerprint:  # else it was modified in the meantime
        here = {path: entry for path, entry in known.items() if Path(path).is_dir()}
        _write(cache, here | {where: (fingerprint, digest.hex)})
    return digest


def _read(cache: Path) -> dict[str, tuple[str, str]]:
    """Return checkpoint directory → (fingerprint of its files, digest). Empty if the file is missing or damaged."""
    try:
        found = json.loads(cache.read_bytes())
        return {str(path): (str(fingerprint), Digest(digest).hex) for path, (fingerprint, digest) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(cache: Path, known: dict[str, tuple[str, str]]) -> None:
    """Write the cache, best effort: without it the next start reads the checkpoint again."""
    beside = cache.with_name(f"{cache.name}.{os.getpid()}.new")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(known, indent=1), encoding="utf-8")
        beside.replace(cache)
