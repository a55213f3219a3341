"""Publishing: names are given, moved back and taken away, and the routing table and the engine follow."""

import asyncio
from typing import NoReturn

import pytest

from app.domain.errors import (
    ENGINE_UNAVAILABLE,
    LOAD_FAILED,
    MODEL_NOT_FOUND,
    STORE_AWAY,
    VERSION_NOT_READY,
    Refused,
    Unavailable,
)
from app.domain.version_state import State
from app.gateway.version_refused import VersionRefused
from tests.gateway.conftest import MakeUseCases, UseCases


def unreadable() -> NoReturn:
    raise Unavailable(STORE_AWAY, "the catalogue's database is away")


async def test_a_stored_version_is_loaded_and_named(use_cases: UseCases) -> None:
    row = await use_cases.publish(1)
    assert row.state is State.READY
    assert use_cases.components.routing_table.resolve("style").engine_name == row.engine_name
    assert use_cases.engine.loaded == {row.engine_name}


async def test_while_the_engine_is_away_it_stays_stored_and_a_later_pass_publishes_it(use_cases: UseCases) -> None:
    use_cases.engine.away = True
    row = await use_cases.publish(1)
    assert row.state is State.STORED
    with pytest.raises(Refused) as refused:
        use_cases.components.routing_table.resolve("style")
    assert refused.value.code is MODEL_NOT_FOUND
    use_cases.engine.away = False
    use_cases.engine.loaded |= use_cases.components.desired.state.waiting  # a pass of the reconciler
    await use_cases.publishing.settle()
    assert use_cases.components.catalogue.version("style", 1).state is State.READY
    assert use_cases.components.routing_table.resolve("style").version == 1


async def test_bytes_that_the_engine_refuses_fail_and_the_name_stays(use_cases: UseCases) -> None:
    await use_cases.publish(1)
    row = use_cases.store(2)
    assert row.engine_name is not None
    use_cases.engine.refuses[row.engine_name] = Unavailable(LOAD_FAILED, "no such layer")
    with pytest.raises(VersionRefused) as refused:
        await use_cases.publishing.load(row)
    assert (refused.value.code, refused.value.row.state) == (LOAD_FAILED, State.FAILED)
    assert use_cases.components.routing_table.resolve("style").version == 1
    assert row.engine_name not in use_cases.components.desired.state.adapters


async def test_two_who_wait_for_the_same_load_publish_it_once(use_cases: UseCases) -> None:
    row = use_cases.store(1)
    rows = await asyncio.gather(*(use_cases.publishing.load(row) for _ in range(4)))
    assert {one.state for one in rows} == {State.READY}
    assert len({one.revision for one in rows}) == 1


async def test_a_rollback_moves_the_name(use_cases: UseCases) -> None:
    await use_cases.publish(1)
    await use_cases.publish(2)
    assert (await use_cases.publishing.rollback("style", None)).number == 1
    assert use_cases.components.routing_table.resolve("style").version == 1


async def test_a_rollback_to_an_unloaded_version_loads_it_first(make_use_cases: MakeUseCases) -> None:
    use_cases = make_use_cases(keep_versions=0)
    first = await use_cases.publish(1)
    await use_cases.publish(2)
    assert first.engine_name is not None
    use_cases.engine.loaded.discard(first.engine_name)  # a pass of the reconciler
    use_cases.engine.refuses[first.engine_name] = Unavailable(ENGINE_UNAVAILABLE, "full")
    with pytest.raises(Unavailable):
        await use_cases.publishing.rollback("style", 1)
    assert use_cases.components.routing_table.resolve("style").version == 2
    assert first.engine_name not in use_cases.components.desired.state.adapters, "no longer recalled"
    use_cases.engine.refuses.clear()
    await use_cases.publishing.rollback("style", 1)
    assert use_cases.components.routing_table.resolve("style").version == 1


async def test_a_rollback_passes_over_withheld_versions_and_refuses_one_by_number(use_cases: UseCases) -> None:
    for seed in (1, 2, 3):
        await use_cases.publish(seed)
    later = use_cases.under("another policy")
    later.objections["style", 2] = "too much"
    await later.follower.refresh()
    with pytest.raises(Refused) as refused:
        await later.publishing.rollback("style", 2)
    assert refused.value.code is VERSION_NOT_READY
    assert (await later.publishing.rollback("style", None)).number == 1


async def test_a_deleted_adapter_is_gone_from_table_and_engine(use_cases: UseCases) -> None:
    row = await use_cases.publish(1)
    await use_cases.publishing.delete("style")
    with pytest.raises(Refused):
        use_cases.components.routing_table.resolve("style")
    assert row.engine_name not in use_cases.components.desired.state.adapters


async def test_bytes_that_came_again_are_tried_again_by_the_engine(use_cases: UseCases) -> None:
    row = use_cases.store(1)
    assert row.engine_name is not None
    use_cases.engine.refuses[row.engine_name] = Unavailable(LOAD_FAILED, "damaged")
    await use_cases.publishing.stored(row)
    assert use_cases.engine.forgiven == [row.engine_name]


async def test_a_published_version_is_in_force_once_the_same_bytes_are_answered(
    use_cases: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database went away between publishing and following; the client sends the same again."""
    row = use_cases.store(1)
    await use_cases.publishing.stored(row)
    catalogue, table = use_cases.components.catalogue, use_cases.components.routing_table
    with monkeypatch.context() as away:
        away.setattr(catalogue, "served", unreadable)
        with pytest.raises(Unavailable):
            await use_cases.publishing.load(row)
    published = catalogue.version("style", 1)
    assert published.state is State.READY
    assert await use_cases.publishing.load(published) == published
    assert table.resolve("style").version == 1


async def test_a_change_that_could_not_be_followed_is_followed_by_the_next_pass(
    use_cases: UseCases, monkeypatch: pytest.MonkeyPatch
) -> None:
    await use_cases.publish(1)
    await use_cases.publish(2)
    catalogue, table = use_cases.components.catalogue, use_cases.components.routing_table
    with monkeypatch.context() as away:
        away.setattr(catalogue, "served", unreadable)
        with pytest.raises(Unavailable):
            await use_cases.publishing.delete("style")
        with pytest.raises(Unavailable):
            await use_cases.publishing.settle()
    await use_cases.publishing.settle()
    with pytest.raises(Refused) as refused:
        table.resolve("style")
    assert refused.value.code is MODEL_NOT_FOUND
