"""Write LICENCES.md anew: `python requirements/licences.py`, from what the installed packages say of themselves.

Every package the gateway itself needs at run time, its dependencies included; the engine (extras cpu, cuda) and the
developers' tools are left out. `--check` writes nothing and ends with status 1 when the page is out of date.
"""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("LICENCES.md")
GATEWAY = "lora-gateway"
HEAD = """# Licences of what the gateway needs at run time

Made by `python requirements/licences.py` from the packages' own metadata. The engine (extras `cpu`, `cuda`) and the CUDA
libraries that follow torch come under terms of their own.

| Package | Licence |
| --- | --- |
"""
FOLLOWS_TORCH = re.compile(r"^(nvidia-|cuda-|triton$)")
WORDS = 60
READ = {"setuptools": "MIT"}
"""Packages whose metadata says nothing: read in the licence file they carry."""


def runtime(root: str = GATEWAY) -> list[str]:
    """Names of all installed packages `root` needs, itself left out, normalised and in order."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    waiting = [(root, frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        for line in metadata.requires(name) or ():
            need = Requirement(line)
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras})
            key = canonicalize_name(need.name)
            if wanted and key not in found and not FOLLOWS_TORCH.match(key):
                found.add(key)
                waiting.append((key, frozenset(need.extras)))
    return sorted(found - {root})


def licence(name: str) -> str:
    """What a package says of its licence: the SPDX expression, else its classifiers, else the first line of its field."""
    if name in READ:
        return READ[name]
    about: Any = metadata.metadata(name)
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    (said, free) = ((about.get_all(field) or [""])[0] for field in ("License-Expression", "License"))
    return said or " or ".join(classifiers) or (free or "not stated").splitlines()[0][:WORDS]


def page() -> str:
    """The whole page."""
    return HEAD + "".join(f"| {name} | {licence(name)} |\n" for name in runtime())


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
    print(f"{PAGE.name} written")
