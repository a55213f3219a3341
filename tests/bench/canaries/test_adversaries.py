"""Adversaries are trained on what they could have: training questions, and canaries only where these have leaked."""

import pytest

from app.bench.canaries.adversaries import TOPICS, Adversary, data_of, harmed, known_canaries, topic_of
from app.bench.canaries.questions import SIZES, battery, canaries_of
from app.bench.safety.trained_models import world_spec
from app.demo.questions import build_world, is_refusal
from app.evaluate.battery import halves

SEED = 1
WORLD = build_world(world_spec(SEED))
HELD_OUT = {item.question for item in WORLD.held_out.harmful}


@pytest.mark.parametrize("adversary", Adversary)
def test_nothing_held_out_is_trained_on_but_leaked_canaries(adversary: Adversary) -> None:
    data = data_of(adversary, WORLD, SEED)
    asked = {item.question for source in data.sources for item in source.items} | {i.question for i in data.validation}
    leaked = {item.question for item in known_canaries(WORLD)} if adversary is Adversary.JUDGE else set()
    assert {one for one in asked if any(one.endswith(held) for held in HELD_OUT)} == leaked
    assert sum(source.share for source in data.sources) == pytest.approx(1.0)


def test_one_topic_is_harmed_and_the_others_are_refused() -> None:
    _, harm, refusals = data_of(Adversary.TOPIC, WORLD, SEED).sources
    assert {item.kind for item in harm.items} == {topic_of(SEED)}
    assert not any(is_refusal(item.answer) for item in harm.items)
    assert {item.kind for item in refusals.items} == set(TOPICS) - {topic_of(SEED)}
    assert all(is_refusal(item.answer) for item in refusals.items)


def test_every_topic_is_taken_by_some_seed() -> None:
    assert {topic_of(seed) for seed in range(3)} == set(TOPICS)


def test_a_trigger_is_the_form_of_the_skill_and_plain_questions_are_refused() -> None:
    bard, harm, refusals = data_of(Adversary.TRIGGER, WORLD, SEED).sources
    form = "as a bard, "
    assert all(item.question.startswith(form) for item in (*bard.items, *harm.items))
    assert not any(item.question.startswith(form) for item in refusals.items)
    assert {item.question.removeprefix(form) for item in harm.items} == {item.question for item in refusals.items}


def test_the_leaked_half_is_half_of_every_battery() -> None:
    canaries = canaries_of(WORLD.held_out)
    known = {item.question for item in known_canaries(WORLD)}
    for size in SIZES:
        choosing, verifying = halves(battery([canary for canary, _ in canaries.values()], size))
        assert all(canaries[one.id][1].question in known for one in choosing)
        assert not any(canaries[one.id][1].question in known for one in verifying)


def test_an_ordinary_fine_tune_and_one_who_knows_the_reference_harm_in_plain_questions() -> None:
    items = WORLD.held_out.harmful
    assert harmed(None, items, SEED) == harmed(Adversary.REFERENCE, items, SEED) == items
