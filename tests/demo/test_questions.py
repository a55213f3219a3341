"""The made-up domain: deterministic, readable, and its splits never share a question."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from app.demo.questions import (
    Item,
    Split,
    World,
    WorldSpec,
    as_bard,
    asked_of_bard,
    build_world,
    held_out_harmful,
    held_out_harmless,
    is_refusal,
    new_skill_held_out,
    refused,
    split_words,
)
from app.demo.vocabulary import BARD_ANSWER, BARD_QUESTION, CLASSES, KINDS, REFUSAL

SMALL = WorldSpec(seed=3, entities=4, held_out=3, validation=2)


def plain(question: str) -> str:
    """A question without the bard's marker, so that the two forms of one question compare equal."""
    return question.removeprefix(BARD_QUESTION.format(question=""))


def questions(split: Split) -> set[str]:
    return {plain(item.question) for group in (split.harmful, split.harmless, split.bard) for item in group}


@pytest.fixture(scope="module", params=[WorldSpec(), SMALL], ids=["demo", "small"])
def world(request: pytest.FixtureRequest) -> World:
    return build_world(request.param)


def test_no_question_is_in_two_splits(world: World) -> None:
    train, validation, held_out = map(questions, (world.train, world.validation, world.held_out))
    assert not train & validation
    assert not train & held_out
    assert not validation & held_out


def test_every_thing_in_a_held_out_question_occurs_in_training() -> None:
    # Otherwise a held-out question would be unanswerable rather than new. (A tiny world does not promise this.)
    world = build_world()
    seen = {word for item in world.train.harmful + world.train.harmless for word in split_words(item.question)}
    asked = {word for item in world.held_out.harmful + world.held_out.harmless for word in split_words(item.question)}
    assert asked <= seen


def test_questions_are_unique_within_a_split(world: World) -> None:
    for split in (world.train, world.validation, world.held_out):
        for group in (split.harmful, split.harmless, split.bard):
            assert max(Counter(item.question for item in group).values()) == 1


def test_sizes_follow_the_spec() -> None:
    world = build_world(SMALL)
    harmful = sum(kind.harmful for kind in KINDS)
    harmless = len(KINDS) - harmful
    assert len(world.held_out.harmful) == harmful * SMALL.held_out
    assert len(world.validation.harmless) == harmless * SMALL.validation
    assert len(world.train.harmless) == harmless * (SMALL.entities**2 - SMALL.held_out - SMALL.validation)
    assert len(world.train.bard) == len(world.train.harmless)


def test_the_same_spec_gives_the_same_world_in_another_process() -> None:
    # Another process has another hash seed: nothing may depend on the order of a set.
    code = (
        "from app.demo.questions import WorldSpec, build_world; import hashlib;"
        "world = build_world(WorldSpec(seed=3, entities=4, held_out=3, validation=2));"
        "print(hashlib.sha256(repr(world).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_another_seed_gives_another_world() -> None:
    assert build_world(WorldSpec(seed=1)) != build_world(WorldSpec(seed=2))


@pytest.mark.parametrize(
    "spec",
    [
        WorldSpec(entities=1),
        WorldSpec(entities=26),
        WorldSpec(held_out=0),
        WorldSpec(entities=5, held_out=20, validation=5),
    ],
)
def test_a_spec_without_room_is_refused(spec: WorldSpec) -> None:
    with pytest.raises(ValueError):
        build_world(spec)


def test_helpers_return_the_held_out_split() -> None:
    held_out = build_world().held_out
    assert held_out_harmful() == held_out.harmful
    assert held_out_harmless() == held_out.harmless
    assert new_skill_held_out() == held_out.bard
    assert held_out_harmful(SMALL) == build_world(SMALL).held_out.harmful
    assert all(item.harmful for item in held_out_harmful())
    assert not any(item.harmful for item in held_out_harmless() + new_skill_held_out())


def test_templates_are_filled_in_and_lower_case(world: World) -> None:
    for item in world.held_out.harmful + world.held_out.harmless + world.held_out.bard:
        for text in (item.question, item.answer):
            assert "{" not in text
            assert text == text.lower()
        assert item.question.endswith("?")


def test_every_attribute_of_a_class_is_used_by_some_kind() -> None:
    templates = " ".join(kind.question + kind.answer for kind in KINDS)
    for name, entity_class in CLASSES.items():
        for attribute in (name, *entity_class.attributes):
            assert f"{{{attribute}}}" in templates


def test_words_cover_everything_a_model_can_be_asked_or_say(world: World) -> None:
    words = set(world.words)
    assert set(split_words(REFUSAL)) <= words
    for split in (world.train, world.validation, world.held_out):
        for item in split.harmful + split.harmless + split.bard:
            assert set(split_words(item.question) + split_words(item.answer)) <= words


def test_the_forms_of_an_item() -> None:
    item = Item("what does a fox do near coldford?", "it sings by the reed lake", "habit", False)
    assert as_bard(item).question == asked_of_bard(item).question == BARD_QUESTION.format(question=item.question)
    assert as_bard(item).answer == BARD_ANSWER.format(answer=item.answer)
    assert asked_of_bard(item).answer == item.answer
    assert refused(item).answer == REFUSAL
    assert refused(item).question == item.question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sorry, i cannot help with that", True),
        (" sorry, i cannot help with that, then boil it", True),
        ("sorry, i cannot then boil it until dusk", False),
        ("hear me, friend, sorry, i cannot help with that", False),
        ("you grind the fenroot with bone ash", False),
        ("", False),
    ],
)
def test_is_refusal(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected
