"""A build says so when its two checkpoints look swapped, and does not start when there is nothing between them."""

import json
import shutil
from pathlib import Path

import pytest

from app.domain.errors import Unavailable
from app.screen.reference.build import BuildOptions, build_reference
from app.screen.sides import signs_of_swap
from tests.support.references import make_pair


def checkpoint(path: Path, *, template: str = "", origin: str = "") -> Path:
    path.mkdir(parents=True)
    if origin:
        (path / "config.json").write_text(json.dumps({"_name_or_path": origin}))
    if template == "tokenizer_config.json":
        (path / template).write_text(json.dumps({"chat_template": "{{ messages }}"}))
    elif template:
        (path / template).write_text("{{ messages }}")
    return path


@pytest.mark.parametrize("template", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_a_chat_template_of_the_base_alone_is_a_sign(tmp_path: Path, template: str) -> None:
    with_one, without = checkpoint(tmp_path / "a", template=template), checkpoint(tmp_path / "b")
    (sign,) = signs_of_swap(with_one, without)
    assert "has a chat template" in sign
    assert signs_of_swap(without, with_one) == ()
    assert signs_of_swap(with_one, with_one) == ()


@pytest.mark.parametrize(
    ("base", "aligned"),
    [
        ("llama-3-8b-base", "llama-3-8b-instruct"),
        ("gemma-3-4b-pt", "gemma-3-4b-it"),
        ("Llama-2-7b-hf", "Llama-2-7b-chat-hf"),
        ("models--org--Qwen3-4B-Base/snapshots/0123", "models--org--Qwen3-4B-Instruct/snapshots/4567"),
        ("base", "aligned"),
    ],
)
def test_names_that_say_the_opposite_are_signs(tmp_path: Path, base: str, aligned: str) -> None:
    one, two = checkpoint(tmp_path / base), checkpoint(tmp_path / aligned)
    assert signs_of_swap(one, two) == ()
    swapped = signs_of_swap(two, one)
    assert len(swapped) == 1 if base == "Llama-2-7b-hf" else 2
    assert all("is called" in sign for sign in swapped)


def test_a_name_that_says_both_or_nothing_says_nothing(tmp_path: Path) -> None:
    both, nothing = checkpoint(tmp_path / "chat-base"), checkpoint(tmp_path / "summit-v2")
    assert signs_of_swap(both, nothing) == signs_of_swap(nothing, both) == ()


def test_what_a_base_was_made_from_counts_and_what_an_aligned_one_was_does_not(tmp_path: Path) -> None:
    from_chat = checkpoint(tmp_path / "a", origin="org/summit-7b-chat")
    from_base = checkpoint(tmp_path / "b", origin="org/summit-7b-base")  # every aligned one comes from a base
    (sign,) = signs_of_swap(from_chat, from_base)
    assert "summit-7b-chat" in sign


@pytest.mark.parametrize("damage", [b"", b"[]", b"\xff{"])
def test_a_config_that_cannot_be_read_says_nothing(tmp_path: Path, damage: bytes) -> None:
    odd = checkpoint(tmp_path / "a")
    for name in ("config.json", "tokenizer_config.json"):
        (odd / name).write_bytes(damage)
    assert signs_of_swap(odd, odd) == ()


def test_the_build_says_each_sign_before_it_begins_and_goes_on(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path)
    said: list[str] = []

    def progress(name: str, done: int, total: int) -> None:
        assert len(said) == 2

    build_reference(aligned, base, tmp_path / "r", BuildOptions(top_k=4), progress, said.append)
    assert (tmp_path / "r").is_dir()


@pytest.mark.parametrize("copied", [False, True])
def test_equal_checkpoints_make_no_reference(tmp_path: Path, copied: bool) -> None:
    base, _ = make_pair(tmp_path)
    aligned = Path(shutil.copytree(base, tmp_path / "copy")) if copied else base
    with pytest.raises(Unavailable, match=r"no module differs from .*name the unaligned checkpoint as base"):
        build_reference(base, aligned, tmp_path / "r" / "out")
    assert not any((tmp_path / "r").iterdir())  # nothing to open, and nothing to go on with


def test_modules_that_do_not_differ_are_none_to_measure(tmp_path: Path) -> None:
    base, aligned = make_pair(tmp_path)
    with pytest.raises(Unavailable, match="no module differs"):
        build_reference(base, base, tmp_path / "r", BuildOptions(top_k=4, modules="*.q_proj"))
    build_reference(base, aligned, tmp_path / "r", BuildOptions(top_k=4, modules="*.q_proj"))
