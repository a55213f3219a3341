"""Signs that the base and the aligned checkpoint of a reference were swapped."""

import json
import re
from pathlib import Path
from typing import Final

_BASE: Final = frozenset({"base", "pt", "pretrain", "pretrained", "foundation", "unaligned"})
_ALIGNED: Final = frozenset({"aligned", "instruct", "it", "chat", "sft", "dpo", "rlhf"})
"""Words in the names of published checkpoints: Llama-2-7b-chat-hf, gemma-2-9b-it, Qwen2.5-7B-Instruct."""

_WORD: Final = re.compile(r"[a-z]+")
_HUB_FOLDER: Final = "models--"
"""Prefix of a repository's directory in the hub's cache: models--owner--name/snapshots/revision."""


def signs_of_swap(base: Path, aligned: Path) -> tuple[str, ...]:
    """Return the signs of a swap, a sentence each. They are not proof: names and templates are freely chosen."""
    found = []
    if _has_chat_template(base) and not _has_chat_template(aligned):
        found.append(f"the base checkpoint ({base}) has a chat template, the aligned one ({aligned}) has none")
    origin = str(_json(base / "config.json").get("_name_or_path") or "")  # an aligned checkpoint's names its base
    found += [f"the base checkpoint ({base}) is called {name}" for name in (_name(base), origin) if _is(name, _ALIGNED)]
    if _is(name := _name(aligned), _BASE):
        found.append(f"the aligned checkpoint ({aligned}) is called {name}")
    return tuple(found)


def _is(name: str, words: frozenset[str]) -> bool:
    """Return whether the name has one of these words, and none of the other side's."""
    found = _ALIGNED.union(_BASE).intersection(_WORD.findall(name.lower()))
    return bool(found) and found <= words


def _name(path: Path) -> str:
    """Return the directory's name, or the repository's name if it lies in the hub's cache."""
    parts = path.absolute().parts
    repositories = [part.rpartition("--")[2] for part in parts if part.startswith(_HUB_FOLDER)]
    return repositories[-1] if repositories else parts[-1]


def _has_chat_template(path: Path) -> bool:
    return any(path.glob("chat_template.*")) or bool(_json(path / "tokenizer_config.json").get("chat_template"))


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
