"""Key of the plan: whatever could change a result changes it, and an upgrade of the gateway alone does not."""

from dataclasses import replace

from app.domain.digest import digest_of
from app.evaluate.asking import DRAW_TEMPERATURE
from app.evaluate.baseline import DRAWS
from app.evaluate.battery import parse, starter
from app.evaluate.judges import Judge, refusal_phrases
from app.evaluate.plan import Plan

PLAN = Plan(parse(starter()), (), (), tolerance=0, seconds=60.0)


def test_the_judge_of_words_has_the_key_from_before_there_was_a_choice() -> None:
    """Versions that passed need not be asked again after the upgrade."""
    before = (PLAN.battery.digest.hex, "words/1", refusal_phrases(), DRAWS, DRAW_TEMPERATURE, (), 0)
    assert PLAN.key == digest_of(repr(before).encode()).hex


def test_each_judge_has_a_key_and_a_name_of_its_own() -> None:
    plans = [replace(PLAN, judge=judge) for judge in Judge]
    assert len({plan.key for plan in plans}) == len({plan.judge.version for plan in plans}) == 4
    assert [plan.note.rpartition(" ")[2] for plan in plans] == ["words", "served-model", "both", "agreement"]
