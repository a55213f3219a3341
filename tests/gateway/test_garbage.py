"""Garbage collection: never under an engine's feet, never while a version needs it, never forgotten."""

import asyncio

from app.domain.artefact import Artefact
from tests.gateway.conftest import UseCases
from tests.store.making import artefact


def lost(use_cases: UseCases, seed: int = 9) -> Artefact:
    """An artefact that no version needs."""
    made = artefact(seed)
    use_cases.components.blobs.put(made)
    return made


async def test_an_artefact_that_no_version_needs_is_removed_and_others_are_not(use_cases: UseCases) -> None:
    row = await use_cases.publish(1)
    lost(use_cases)
    assert use_cases.garbage.collect() is False
    assert use_cases.components.blobs.digests() == {row.artefact}


async def test_one_that_an_engine_may_read_is_spared_and_looked_at_again(use_cases: UseCases) -> None:
    made = lost(use_cases)
    use_cases.engine.loaded = {f"gone@{made.digest.short}"}
    assert use_cases.garbage.collect() is True
    assert use_cases.components.blobs.digests() == {made.digest}
    use_cases.engine.loaded = set()
    assert use_cases.garbage.collect() is False
    assert not use_cases.components.blobs.digests()


async def test_nothing_is_removed_while_an_engine_does_not_say_what_it_holds(use_cases: UseCases) -> None:
    made = lost(use_cases)
    use_cases.engine.away = True
    assert use_cases.garbage.held() is None
    assert use_cases.garbage.collect() is True
    assert use_cases.components.blobs.digests() == {made.digest}


async def ended(use_cases: UseCases) -> None:
    running = use_cases.garbage._running
    assert running is not None
    await asyncio.wait({running})
    await asyncio.sleep(0)  # its callback


async def test_it_runs_when_something_was_suspected_and_not_otherwise(use_cases: UseCases) -> None:
    use_cases.garbage.start_if_due()  # an earlier stop may have left something
    await ended(use_cases)
    first = use_cases.garbage._running
    use_cases.garbage.start_if_due()
    assert use_cases.garbage._running is first, "nothing is due"
    lost(use_cases)
    use_cases.garbage.suspect()
    use_cases.garbage.start_if_due()
    await ended(use_cases)
    assert not use_cases.components.blobs.digests()


async def test_what_is_suspected_while_one_runs_is_looked_for_afterwards(use_cases: UseCases) -> None:
    use_cases.garbage.start_if_due()
    use_cases.garbage.suspect()
    lost(use_cases)
    await ended(use_cases)
    use_cases.garbage.start_if_due()
    await ended(use_cases)
    assert not use_cases.components.blobs.digests()
