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
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import Reconciler
from tests.support.simulator import MODEL, Simulator
from tests.support.waiting import until

A, B, C = "a@000000000001", "b@000000000002", "c@000000000003"


class Gateway:
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
            Callbacks(
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
async def gateway(
    simulated_client: HttpEngine, tiny_adapter: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    monkeypatch.setattr(reconcile_module, "DOWN_S", 0.05)
    monkeypatch.setattr(reconcile_module, "BACKOFF_S", 0.05)
    made = Gateway(simulated_client, tiny_adapter)
    yield made
    await made.reconciler.stop()


async def test_a_pass_loads_what_is_desired(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A, B)
    await gateway.reconciler.reconcile()
    assert set(simulator.loaded) == gateway.reconciler.loaded == {A, B}
    assert gateway.reconciler.is_loaded(A)
    assert gateway.reconciler.engine_up
    assert (gateway.passes, gateway.reconciler.failures) == (1, {})


async def test_never_in_place_and_by_the_given_path(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    await gateway.reconciler.reconcile()
    assert simulator.loads == [A]
    assert simulator.loaded == {A: str(gateway.adapter(1))}


async def test_strays_are_unloaded_but_not_the_engines_own_names(gateway: Gateway, simulator: Simulator) -> None:
    simulator.loaded = {C: "/somewhere", "static": "/of/the/operator"}
    gateway.want(A)
    await gateway.reconciler.reconcile()
    assert set(simulator.loaded) == {A, "static"}


@pytest.mark.ruling("R03")
async def test_a_stray_with_requests_in_flight_stays_until_they_end(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    gateway.want()
    gateway.busy = {A}
    await gateway.reconciler.reconcile()
    assert set(simulator.loaded) == {A}
    assert not gateway.reconciler.is_loaded(A)  # nothing new may be sent to it
    gateway.busy = set()
    await gateway.reconciler.reconcile()
    assert simulator.loaded == {}


async def test_retire_waits_for_the_last_request(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.ensure(A)
    gateway.want()
    gateway.busy = {A}
    retiring = asyncio.create_task(gateway.reconciler.retire(A))
    await asyncio.sleep(0.15)
    assert (set(simulator.loaded), retiring.done()) == ({A}, False)
    gateway.busy = set()
    await retiring
    assert simulator.loaded == {}


async def test_retire_leaves_what_is_wanted_again(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.ensure(A)
    await gateway.reconciler.retire(A)
    assert set(simulator.loaded) == {A}


@pytest.mark.ruling("R08")
async def test_after_a_restart_everything_is_loaded_again(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A, B)
    gateway.reconciler.start()
    await until(lambda: gateway.reconciler.loaded == {A, B})
    await simulator.stop()
    await until(lambda: not gateway.reconciler.engine_up)
    assert not gateway.reconciler.is_loaded(A)
    await simulator.start()
    await until(lambda: gateway.reconciler.loaded == {A, B})
    assert set(simulator.loaded) == {A, B}


async def test_a_restart_nobody_saw_is_noticed_by_the_list(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    simulator.loaded.clear()
    await gateway.reconciler.reconcile()
    assert simulator.loads == [A, A]


async def test_what_the_engine_already_holds_is_probed_before_it_counts(gateway: Gateway, simulator: Simulator) -> None:
    """A gateway that restarts before an external engine that did not."""
    gateway.want(A)
    simulator.loaded = {A: str(gateway.adapter(1))}
    simulator.broken_names.add(A)
    await gateway.reconciler.reconcile()
    assert not gateway.reconciler.is_loaded(A)
    assert "not finite" in gateway.reconciler.failures[A]


@pytest.mark.ruling("R09")
async def test_one_bad_adapter_does_not_stop_the_others(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A, B, C)
    gateway.desired[B] = Path("/nowhere")
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.loaded == {A, C}
    assert list(gateway.reconciler.failures) == [B]
    assert "No adapter found" in gateway.reconciler.failures[B]


async def test_a_failure_is_tried_again_later_and_forgotten_when_it_works(
    gateway: Gateway, simulator: Simulator
) -> None:
    gateway.want(A)
    simulator.faults["load"] = "500"
    await gateway.reconciler.reconcile()
    tried = len(simulator.loads)
    await gateway.reconciler.reconcile()
    assert len(simulator.loads) == tried  # not yet
    simulator.faults.clear()
    gateway.reconciler.start()
    await until(lambda: gateway.reconciler.is_loaded(A))
    assert gateway.reconciler.failures == {}


async def test_a_failure_of_what_is_not_wanted_any_more_is_forgotten(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    simulator.faults["load"] = "500"
    await gateway.reconciler.reconcile()
    gateway.want()
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.failures == {}


async def test_bytes_that_changed_are_never_loaded(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    gateway.tampered = {A}
    with pytest.raises(Unavailable) as caught:
        await gateway.reconciler.ensure(A)
    assert caught.value.code is STORE_FAILED
    assert simulator.loads == []


async def test_what_fails_the_probe_does_not_stay_loaded(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    simulator.broken_names.add(A)
    with pytest.raises(Unavailable) as caught:
        await gateway.reconciler.ensure(A)
    assert caught.value.code is LOAD_FAILED
    assert simulator.loaded == {}


async def test_ensure_loads_once_however_many_ask(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await asyncio.gather(*(gateway.reconciler.ensure(A) for _ in range(5)), gateway.reconciler.reconcile())
    assert simulator.loads == [A]


async def test_ensure_without_an_engine_says_so(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await simulator.stop()
    with pytest.raises(Unavailable) as caught:
        await gateway.reconciler.ensure(A)
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_ensure_of_what_was_deleted_meanwhile_is_refused(gateway: Gateway) -> None:
    with pytest.raises(Unavailable, match="not wanted now") as caught:
        await gateway.reconciler.ensure(A)
    assert caught.value.code is ENGINE_UNAVAILABLE


async def test_poke_does_not_wait_for_the_interval(gateway: Gateway, simulator: Simulator) -> None:
    slow = Reconciler(gateway.reconciler._engine, Callbacks(lambda: gateway.desired, gateway.verify, interval_s=3600))
    slow.start()
    await until(lambda: slow.engine_up)
    gateway.want(A)
    slow.poke()
    await until(lambda: slow.is_loaded(A))
    await slow.stop()


async def test_changes_are_told(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    before = gateway.changes
    await gateway.reconciler.reconcile()
    assert gateway.changes == before  # nothing changed, nothing told
    await simulator.stop()
    await gateway.reconciler.reconcile()
    assert gateway.changes == before + 1


async def test_a_list_of_models_that_is_garbage_is_an_engine_that_is_down(
    gateway: Gateway, simulator: Simulator
) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    simulator.faults["models"] = "garbage"
    await gateway.reconciler.reconcile()
    assert not gateway.reconciler.engine_up
    assert (MODEL in gateway.reconciler.loaded, gateway.reconciler.loaded) == (False, frozenset())


async def test_a_slow_moment_costs_no_loading_again(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    simulator.faults["models"] = "500"
    await gateway.reconciler.reconcile()
    assert not gateway.reconciler.is_loaded(A)
    simulator.faults.clear()
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.is_loaded(A)
    assert simulator.loads == [A]


async def test_what_is_loaded_while_the_list_is_on_its_way_stays_loaded(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    listing = gateway.reconciler._engine.cards

    async def late() -> Cards:
        listed = await listing()
        gateway.reconciler._engine.cards = listing  # type: ignore[method-assign]  # once
        await gateway.reconciler.ensure(A)
        return listed

    gateway.reconciler._engine.cards = late  # type: ignore[method-assign]  # the moment between two awaits
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.is_loaded(A)
    assert simulator.loads == [A]


async def test_a_bug_in_a_callback_does_not_end_the_watch(gateway: Gateway, simulator: Simulator) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    gateway.after_pass = broken  # type: ignore[method-assign]
    gateway.reconciler.start()
    await until(lambda: gateway.reconciler.engine_up)
    gateway.want(A)
    await until(lambda: gateway.reconciler.is_loaded(A))


async def test_stop_at_any_moment_stops(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A)
    for ticks in range(40):
        gateway.reconciler.start()
        for _ in range(ticks):
            await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await gateway.reconciler.stop()


@pytest.mark.ruling("O06")
async def test_an_engine_with_its_developers_doors_open_is_not_used(gateway: Gateway, simulator: Simulator) -> None:
    def seen() -> tuple[bool, bool, int]:
        why = gateway.reconciler.objection.why or ""
        return gateway.reconciler.engine_up, "VLLM_SERVER_DEV_MODE" in why, len(simulator.loaded)

    simulator.developers = True
    gateway.want(A)
    await gateway.reconciler.reconcile()
    assert seen() == (False, True, 0)
    simulator.developers = False
    await gateway.reconciler.reconcile()
    assert seen() == (True, False, 1)


def caught_up(gateway: Gateway) -> bool:
    return gateway.reconciler.caught_up


async def test_caught_up_is_not_said_of_an_engine_that_went_away_while_it_was_being_filled(
    gateway: Gateway, simulator: Simulator
) -> None:
    gateway.want(A, B)
    simulator.faults["load"] = "reset"  # the pass begins with an engine that answers, and its loads are cut
    await gateway.reconciler.reconcile()
    assert gateway.passes == 1
    assert not caught_up(gateway)
    simulator.faults.clear()
    for name in (A, B):
        gateway.reconciler.forget_failure(name)
    await gateway.reconciler.reconcile()
    assert caught_up(gateway)
    assert gateway.reconciler.loaded == {A, B}


async def test_caught_up_is_taken_back_when_the_engine_forgets_or_goes_away(
    gateway: Gateway, simulator: Simulator
) -> None:
    gateway.want(A)
    await gateway.reconciler.reconcile()
    assert caught_up(gateway)
    simulator.loaded.clear()
    simulator.faults["load"] = "reset"
    await gateway.reconciler.reconcile()
    assert not caught_up(gateway)
    simulator.faults.clear()
    gateway.reconciler.forget_failure(A)
    await gateway.reconciler.reconcile()
    assert caught_up(gateway)
    gateway.reconciler.away()
    assert not caught_up(gateway)


async def test_an_engine_that_refuses_every_load_never_catches_up(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A, B, C)
    simulator.faults["load"] = "500"
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.failures.keys() == {A, B, C}
    assert not caught_up(gateway)


async def test_an_engine_that_refuses_one_adapter_of_several_catches_up(gateway: Gateway, simulator: Simulator) -> None:
    gateway.want(A, B, C)
    simulator.broken_names = {C}
    await gateway.reconciler.reconcile()
    assert gateway.reconciler.failures.keys() == {C}
    assert caught_up(gateway)


async def test_an_upload_does_not_get_round_what_speaks_against_an_engine(
    gateway: Gateway, simulator: Simulator
) -> None:
    gateway.want(A)
    simulator.developers = True  # whoever reaches it can run code in it
    for _ in range(2):  # before the first pass, and after one
        with pytest.raises(Unavailable) as caught:
            await gateway.reconciler.ensure(A)
        assert caught.value.code is ENGINE_UNAVAILABLE
        assert not simulator.loads
        assert not gateway.reconciler.engine_up
        await gateway.reconciler.reconcile()
    simulator.developers = False
    await gateway.reconciler.ensure(A)
    assert gateway.reconciler.is_loaded(A)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after each microsecond, not after five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
async def test_other_threads_may_look_at_any_moment(gateway: Gateway, simulator: Simulator) -> None:
    """Thousands of failures come and go while a thread reads what the metrics and the store's clean-up read."""
    path, names = gateway.adapter(1), [f"n{number}@{number:012d}" for number in range(2000)]
    gateway.tampered = set(names)
    stopping, looks = threading.Event(), 0

    def look() -> None:
        nonlocal looks
        while not stopping.wait(1e-4):
            assert len(gateway.reconciler.failures) <= len(names)
            assert gateway.reconciler.may_read() >= frozenset()
            looks += 1

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            for _ in range(3):
                gateway.desired = dict.fromkeys(names, path)
                await gateway.reconciler.reconcile()
                assert len(gateway.reconciler.failures) == len(names)
                gateway.desired = {}
                await gateway.reconciler.reconcile()
                assert not gateway.reconciler.failures
        finally:
            stopping.set()
        looking.result()
    assert looks
