"""Turns: one at a time, the holders in rotation, and no turn lost to a caller that went away."""

import asyncio
from collections import Counter

import pytest

from app.concurrency.turns import Turns


async def queue_up(turns: Turns, wanted: str) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Tasks that wait for a turn, one for each letter, its holder; and the order in which they got it."""
    got: list[str] = []

    async def work(holder: str) -> None:
        async with turns.turn(holder):
            got.append(holder)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(work(holder)) for holder in wanted]
    await asyncio.sleep(0)
    return got, tasks


async def test_a_long_queue_of_one_holder_delays_another_by_one_turn() -> None:
    turns = Turns()
    got, tasks = await queue_up(turns, "aaaaaab")
    await asyncio.gather(*tasks)
    assert "".join(got) == "aabaaaa"


async def test_holders_alternate() -> None:
    turns = Turns()
    got, tasks = await queue_up(turns, "aaabbbcc")
    await asyncio.gather(*tasks)
    assert "".join(got) == "aabcabcb"


async def test_never_two_at_once_and_everybody_gets_it() -> None:
    turns, inside, most, served = Turns(), 0, 0, Counter[str]()

    async def work(holder: str) -> None:
        nonlocal inside, most
        async with turns.turn(holder):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            served[holder] += 1

    await asyncio.gather(*(work(holder) for holder in "abcab" * 20))
    assert (most, served) == (1, Counter(a=40, b=40, c=20))


@pytest.mark.parametrize("steps", range(6))
async def test_a_waiter_that_goes_away_at_any_moment_loses_no_turn(steps: int) -> None:
    turns = Turns()
    got, tasks = await queue_up(turns, "abc")
    for _ in range(steps):
        await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {"a", "c"} <= set(got)
    async with asyncio.timeout(5.0), turns.turn("d"):
        pass


async def test_a_turn_that_ends_in_an_error_is_passed_on() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="broken"):
        async with turns.turn("a"):
            raise ValueError("broken")
    async with asyncio.timeout(5.0), turns.turn("b"):
        pass
