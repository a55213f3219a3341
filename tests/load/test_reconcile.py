"""The reconciler against a simulated engine: what is desired ends up loaded, whatever happens in between."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytest_asyncio

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, STORE_FAILED, Unavailable
from app.load.client.engine import HttpEngine
from app.load.client.model_list import Cards
from app.load.reconcile import reconciler as reconcile_module
from app.load.reconcile.callbacks import Keeping
from app.load.reconcile.reconciler import Reconciler
from tests.support.simulator import MODEL, Simulator
from tests.support.waiting import until

A, B, C = "a@000000000001", "b@000000000002", "c@000000000003"


class House:
    """A reconciler and everything around it that a test may turn."""

    def __init__(self, client: HttpEngine, adapter: Callable[[int], Path]) -> None:
        self.adapter = adapter
        self.desired: dict[str, Path] = {}
        self.busy: set[str] = set()
        self.tampered: set[str] = set()
        self.changes = 0
        self.passes = 0
        self.reconciler = Reconciler(
            client,
            Keeping(
                lambda: self.desired,
                self.verify,
                interval_s=0.05,
                idle=lambda name: name not in self.busy,
                on_change=self.changed,
                after_pass=lambda: self.after_pass(),  # noqa: PLW0108 - a test may put another in its place
            ),
        )

    def want(self, *names: str) -> None:
        self.desired = {name: self.adapter(int(name[-1])) for name in names}

    def verify(self, name: str, path: Path) -> None:
        if name in self.tampered:
            raise Unavailable(STORE_FAILED, f"the bytes of {name} are not those that were stored")

    def changed(self) -> None:
        self.changes += 1

    async def after_pass(self) -> None:
        self.passes += 1


@pytest_asyncio.fixture
async def house(
    simulated_client: HttpEngine, tiny_adapter: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(reconcile_module, "DOWN_S", 0.05)
    monkeypatch.setattr(reconcile_module, "BACKOFF_S", 0.05)
    made = House(simulated_client, tiny_adapter)
    yield made
    await made.reconciler.stop()


async def test_a_pass_loads_what_is_desired(house: House, simulator: Simulator) -> None:
    house.want(A, B)
    await house.reconciler.reconcile()
    assert set(simulator.loaded) == house.reconciler.loaded == {A, B}
    assert house.reconciler.is_loaded(A)
    assert house.reconciler.engine_up
    assert (house.passes, house.reconciler.failures) == (1, {})


async def test_never_in_place_and_by_the_given_path(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    await house.reconciler.reconcile()
    assert simulator.loads == [A]
    assert simulator.loaded == {A: str(house.adapter(1))}


async def test_strays_are_unloaded_but_not_the_engines_own_names(house: House, simulator: Simulator) -> None:
    simulator.loaded = {C: "/somewhere", "static": "/of/the/operator"}
    house.want(A)
    await house.reconciler.reconcile()
    assert set(simulator.loaded) == {A, "static"}


@pytest.mark.ruling("R03")
async def test_a_stray_with_requests_in_flight_stays_until_they_end(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    house.want()
    house.busy = {A}
    await house.reconciler.reconcile()
    assert set(simulator.loaded) == {A}
    assert not house.reconciler.is_loaded(A)  # nothing new may be sent to it
    house.busy = set()
    await house.reconciler.reconcile()
    assert simulator.loaded == {}


async def test_retire_waits_for_the_last_request(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.ensure(A)
    house.want()
    house.busy = {A}
    retiring = asyncio.create_task(house.reconciler.retire(A))
    await asyncio.sleep(0.15)
    assert (set(simulator.loaded), retiring.done()) == ({A}, False)
    house.busy = set()
    await retiring
    assert simulator.loaded == {}


async def test_retire_leaves_what_is_wanted_again(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.ensure(A)
    await house.reconciler.retire(A)
    assert set(simulator.loaded) == {A}


@pytest.mark.ruling("R08")
async def test_after_a_restart_everything_is_loaded_again(house: House, simulator: Simulator) -> None:
    house.want(A, B)
    house.reconciler.start()
    await until(lambda: house.reconciler.loaded == {A, B})
    await simulator.stop()
    await until(lambda: not house.reconciler.engine_up)
    assert not house.reconciler.is_loaded(A)
    await simulator.start()
    await until(lambda: house.reconciler.loaded == {A, B})
    assert set(simulator.loaded) == {A, B}


async def test_a_restart_nobody_saw_is_noticed_by_the_list(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    simulator.loaded.clear()
    await house.reconciler.reconcile()
    assert simulator.loads == [A, A]


async def test_what_the_engine_already_holds_is_probed_before_it_counts(house: House, simulator: Simulator) -> None:
    """A gateway that restarts before an external engine that did not."""
    house.want(A)
    simulator.loaded = {A: str(house.adapter(1))}
    simulator.broken_names.add(A)
    await house.reconciler.reconcile()
    assert not house.reconciler.is_loaded(A)
    assert "not finite" in house.reconciler.failures[A]


@pytest.mark.ruling("R09")
async def test_one_bad_adapter_does_not_stop_the_others(house: House, simulator: Simulator) -> None:
    house.want(A, B, C)
    house.desired[B] = Path("/nowhere")
    await house.reconciler.reconcile()
    assert house.reconciler.loaded == {A, C}
    assert list(house.reconciler.failures) == [B]
    assert "No adapter found" in house.reconciler.failures[B]


async def test_a_failure_is_tried_again_later_and_forgotten_when_it_works(house: House, simulator: Simulator) -> None:
    house.want(A)
    simulator.faults["load"] = "500"
    await house.reconciler.reconcile()
    tried = len(simulator.loads)
    await house.reconciler.reconcile()
    assert len(simulator.loads) == tried  # not yet
    simulator.faults.clear()
    house.reconciler.start()
    await until(lambda: house.reconciler.is_loaded(A))
    assert house.reconciler.failures == {}


async def test_a_failure_of_what_is_not_wanted_any_more_is_forgotten(house: House, simulator: Simulator) -> None:
    house.want(A)
    simulator.faults["load"] = "500"
    await house.reconciler.reconcile()
    house.want()
    await house.reconciler.reconcile()
    assert house.reconciler.failures == {}


async def test_bytes_that_changed_are_never_loaded(house: House, simulator: Simulator) -> None:
    house.want(A)
    house.tampered = {A}
    with pytest.raises(Unavailable) as caught:
        await house.reconciler.ensure(A)
    assert caught.value.code is STORE_FAILED
    assert simulator.loads == []


async def test_what_fails_the_probe_does_not_stay_loaded(house: House, simulator: Simulator) -> None:
    house.want(A)
    simulator.broken_names.add(A)
    with pytest.raises(Unavailable) as caught:
        await house.reconciler.ensure(A)
    assert caught.value.code is LOAD_FAILED
    assert simulator.loaded == {}


async def test_ensure_loads_once_however_many_ask(house: House, simulator: Simulator) -> None:
    house.want(A)
    await asyncio.gather(*(house.reconciler.ensure(A) for _ in range(5)), house.reconciler.reconcile())
    assert simulator.loads == [A]


async def test_ensure_without_an_engine_says_so(house: House, simulator: Simulator) -> None:
    house.want(A)
    await simulator.stop()
    with pytest.raises(Unavailable) as caught:
        await house.reconciler.ensure(A)
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_ensure_of_what_was_deleted_meanwhile_is_refused(house: House) -> None:
    with pytest.raises(Unavailable, match="not wanted now") as caught:
        await house.reconciler.ensure(A)
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_poke_does_not_wait_for_the_interval(house: House, simulator: Simulator) -> None:
    slow = Reconciler(house.reconciler._engine, Keeping(lambda: house.desired, house.verify, interval_s=3600))
    slow.start()
    await until(lambda: slow.engine_up)
    house.want(A)
    slow.poke()
    await until(lambda: slow.is_loaded(A))
    await slow.stop()


async def test_changes_are_told(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    before = house.changes
    await house.reconciler.reconcile()
    assert house.changes == before  # nothing changed, nothing told
    await simulator.stop()
    await house.reconciler.reconcile()
    assert house.changes == before + 1


async def test_a_list_of_models_that_is_garbage_is_an_engine_that_is_down(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    simulator.faults["models"] = "garbage"
    await house.reconciler.reconcile()
    assert not house.reconciler.engine_up
    assert (MODEL in house.reconciler.loaded, house.reconciler.loaded) == (False, frozenset())


async def test_a_slow_moment_costs_no_loading_again(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    simulator.faults["models"] = "500"
    await house.reconciler.reconcile()
    assert not house.reconciler.is_loaded(A)
    simulator.faults.clear()
    await house.reconciler.reconcile()
    assert house.reconciler.is_loaded(A)
    assert simulator.loads == [A]


async def test_what_is_loaded_while_the_list_is_on_its_way_stays_loaded(house: House, simulator: Simulator) -> None:
    house.want(A)
    listing = house.reconciler._engine.cards

    async def late() -> Cards:
        listed = await listing()
        house.reconciler._engine.cards = listing  # type: ignore[method-assign]  # once
        await house.reconciler.ensure(A)
        return listed

    house.reconciler._engine.cards = late  # type: ignore[method-assign]  # the moment between two awaits
    await house.reconciler.reconcile()
    assert house.reconciler.is_loaded(A)
    assert simulator.loads == [A]


async def test_a_bug_in_a_callback_does_not_end_the_watch(house: House, simulator: Simulator) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    house.after_pass = broken  # type: ignore[method-assign]
    house.reconciler.start()
    await until(lambda: house.reconciler.engine_up)
    house.want(A)
    await until(lambda: house.reconciler.is_loaded(A))


async def test_stop_at_any_moment_stops(house: House, simulator: Simulator) -> None:
    house.want(A)
    for ticks in range(40):
        house.reconciler.start()
        for _ in range(ticks):
            await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await house.reconciler.stop()


@pytest.mark.ruling("O06")
async def test_an_engine_with_its_developers_doors_open_is_not_used(house: House, simulator: Simulator) -> None:
    def seen() -> tuple[bool, bool, int]:
        why = house.reconciler.objection.why or ""
        return house.reconciler.engine_up, "VLLM_SERVER_DEV_MODE" in why, len(simulator.loaded)

    simulator.developers = True
    house.want(A)
    await house.reconciler.reconcile()
    assert seen() == (False, True, 0)
    simulator.developers = False
    await house.reconciler.reconcile()
    assert seen() == (True, False, 1)


def caught_up(house: House) -> bool:
    return house.reconciler.caught_up


async def test_caught_up_is_not_said_of_an_engine_that_went_away_while_it_was_being_filled(
    house: House, simulator: Simulator
) -> None:
    house.want(A, B)
    simulator.faults["load"] = "reset"  # the pass begins with an engine that answers, and its loads are cut
    await house.reconciler.reconcile()
    assert house.passes == 1
    assert not caught_up(house)
    simulator.faults.clear()
    for name in (A, B):
        house.reconciler.forget_failure(name)
    await house.reconciler.reconcile()
    assert caught_up(house)
    assert house.reconciler.loaded == {A, B}


async def test_caught_up_is_taken_back_when_the_engine_forgets_or_goes_away(house: House, simulator: Simulator) -> None:
    house.want(A)
    await house.reconciler.reconcile()
    assert caught_up(house)
    simulator.loaded.clear()
    simulator.faults["load"] = "reset"
    await house.reconciler.reconcile()
    assert not caught_up(house)
    simulator.faults.clear()
    house.reconciler.forget_failure(A)
    await house.reconciler.reconcile()
    assert caught_up(house)
    house.reconciler.away()
    assert not caught_up(house)


async def test_an_engine_that_refuses_every_load_never_catches_up(house: House, simulator: Simulator) -> None:
    house.want(A, B, C)
    simulator.faults["load"] = "500"
    await house.reconciler.reconcile()
    assert house.reconciler.failures.keys() == {A, B, C}
    assert not caught_up(house)


async def test_an_engine_that_refuses_one_adapter_of_several_catches_up(house: House, simulator: Simulator) -> None:
    house.want(A, B, C)
    simulator.broken_names = {C}
    await house.reconciler.reconcile()
    assert house.reconciler.failures.keys() == {C}
    assert caught_up(house)


async def test_an_upload_does_not_get_round_what_speaks_against_an_engine(house: House, simulator: Simulator) -> None:
    house.want(A)
    simulator.developers = True  # whoever reaches it can run code in it
    for _ in range(2):  # before the first pass, and after one
        with pytest.raises(Unavailable) as caught:
            await house.reconciler.ensure(A)
        assert caught.value.code is ENGINE_UNAVAILABLE
        assert not simulator.loads
        assert not house.reconciler.engine_up
        await house.reconciler.reconcile()
    simulator.developers = False
    await house.reconciler.ensure(A)
    assert house.reconciler.is_loaded(A)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after each microsecond, not after five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
async def test_other_threads_may_look_at_any_moment(house: House, simulator: Simulator) -> None:
    """Thousands of failures come and go while a thread reads what the metrics and the store's clean-up read."""
    path, names = house.adapter(1), [f"n{number}@{number:012d}" for number in range(2000)]
    house.tampered = set(names)
    stopping, looks = threading.Event(), 0

    def look() -> None:
        nonlocal looks
        while not stopping.wait(1e-4):
            assert len(house.reconciler.failures) <= len(names)
            assert house.reconciler.may_read() >= frozenset()
            looks += 1

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for _ in range(3):
                house.desired = dict.fromkeys(names, path)
                await house.reconciler.reconcile()
                assert len(house.reconciler.failures) == len(names)
                house.desired = {}
                await house.reconciler.reconcile()
                assert not house.reconciler.failures
        finally:
            stopping.set()
        looking.result()
    assert looks
