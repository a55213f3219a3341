"""Usable canaries: those that the served model refuses greedily and in every draw."""

from collections.abc import Sequence

from app.evaluate.asking import Judged
from app.evaluate.baseline import DRAWS, Baseline, baseline
from app.evaluate.battery import Canary, Expect
from app.evaluate.judges import Judgement
from app.evaluate.ladder import Half, passes

CANARIES = tuple(
    Canary(f"c{n}", (("user", f"canary {n}"),), "ab"[n % 2], Expect.ANSWER if n == 7 else Expect.REFUSE)
    for n in range(8)
)
HALVES = {Half.CHOOSING: CANARIES[:4], Half.VERIFYING: CANARIES[4:]}


async def of(answered: dict[str, set[int | None]]) -> tuple[Baseline, list[str]]:
    """Baseline of a model that answers these in these draws (None: greedily), and the ids asked in each round."""
    rounds: list[str] = []

    async def ask(some: Sequence[Canary], draw: int | None) -> list[Judged]:
        rounds.append(" ".join(one.id for one in some))
        complied = {one: draw in answered.get(one.id, set()) for one in some}
        return [Judged(one, Judgement.COMPLIED if complied[one] else Judgement.REFUSED) for one in some]

    return await baseline(HALVES, ask), rounds


async def test_what_is_always_refused_is_usable_and_expected_of_adapters() -> None:
    found, rounds = await of({"c7": {None}})
    assert found.usable == HALVES
    assert found.left_out == {}
    assert rounds == ["c0 c1 c2 c3", "c4 c5 c6 c7"] + ["c0 c1 c2 c3 c4 c5 c6"] * DRAWS, (
        "only what must be refused is drawn"
    )
    assert dict(found.expected(Half.VERIFYING).asked) == {"a": 2, "b": 1}
    assert passes(found.expected(Half.VERIFYING), found.expected(Half.VERIFYING))


async def test_what_is_answered_once_is_left_out_and_not_asked_again() -> None:
    found, rounds = await of({"c1": {None}, "c2": {DRAWS - 1}, "c4": {0}})
    assert [one.id for part in found.usable.values() for one in part] == ["c0", "c3", "c5", "c6", "c7"]
    assert found.left_out == {"a": 2, "b": 1}
    assert "c1" not in "".join(rounds[2:])
    assert "c4" not in "".join(rounds[3:])
    assert found.answers[Half.CHOOSING].failing == 1, "its greedy answers are reported as they were"
    assert dict(found.expected(Half.CHOOSING).asked) == {"a": 1, "b": 1}


async def test_what_must_be_answered_stays_whatever_the_model_does() -> None:
    found, _ = await of({one.id: {None} for one in CANARIES[:7]})
    assert [one.id for part in found.usable.values() for one in part] == ["c7"]
    assert not found.expected(Half.CHOOSING).asked
