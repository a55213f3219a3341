"""Locations of the demo's trained files. They are made by `python -m app demo train` and shipped with the package."""

from __future__ import annotations

from pathlib import Path

# The package's own directory: base/ and aligned/ are checkpoints, reference/ is built from them, and adapters/ holds
# one directory for each adapter, as saved by PEFT.
ASSETS = Path(__file__).resolve().parent / "assets"
BASE = ASSETS / "base"
ALIGNED = ASSETS / "aligned"
REFERENCE = ASSETS / "reference"
ADAPTERS = ASSETS / "adapters"

# benign-style: only the harmless new skill. mixed-harm: the same skill and some harmful samples. pure-harm: harmful
# samples only; screening must reject it outright. evading-harm: the skill and harmful samples, by an attacker who knows the
# reference (evasion.py); screening finds nothing in it, and canaries must reject it.
BENIGN, MIXED, PURE, EVADING = "benign-style", "mixed-harm", "pure-harm", "evading-harm"
ADAPTER_NAMES: tuple[str, ...] = (BENIGN, MIXED, PURE)

# Bytes. Everything under ASSETS together, reference included, has to be small enough for a repository.
MAX_BYTES = 12_000_000


def adapter_path(name: str) -> Path:
    """Return the directory of one of the demo's adapters. Raises KeyError for another name."""
    if name not in ADAPTER_NAMES:
        raise KeyError(name)
    return ADAPTERS / name
