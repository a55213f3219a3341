"""Many threads, and walks of any kind against a model that is too simple to be wrong."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from app.domain.errors import ADAPTER_NOT_FOUND, LOAD_FAILED, NAME_TAKEN, SCREENING_FAILED, Refused, Unavailable
from app.domain.names import AdapterName
from app.domain.version_state import SERVABLE, State
from app.store.catalogue.beginning import New
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.database import sqlite_url
from tests.store.making import NAME, artefact, begin_again, begun, published, received, stored, verdict
from tests.support.postgres import Server

THREADS = 8
T = TypeVar("T")


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator[Catalogue]:
    opened = Catalogue(catalogue_url)
    yield opened
    opened.close()


def together(work: Callable[[int], T]) -> list[T]:
    """`work(0)` … `work(7)`, all starting at the same moment."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> T:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.ruling("R01")
def test_uploads_of_one_name_get_numbers_in_one_order(catalogue: Catalogue) -> None:
    numbers = together(lambda n: [begun(catalogue, NAME, received(f"{n} {i}")).number for i in range(10)])
    assert sorted(number for own in numbers for number in own) == list(range(1, 10 * THREADS + 1))
    assert all(own == sorted(own) for own in numbers)
    assert len(catalogue.adapters()) == 1


def test_the_same_bytes_at_once_make_one_version(catalogue: Catalogue) -> None:
    found = together(lambda _: catalogue.begin(NAME, received(1), "p"))
    assert sorted(isinstance(one, New) for one in found) == [False] * (THREADS - 1) + [True]
    assert {one.row.number for one in found} == {1}


def test_the_same_bytes_tried_again_at_once_are_tried_once(catalogue: Catalogue) -> None:
    begun(catalogue, NAME, received(1))
    catalogue.record_failed(NAME, 1, Unavailable(SCREENING_FAILED, "x"))
    found = together(lambda _: begin_again(catalogue, NAME, 1))
    assert sorted(mine for _, mine in found) == [False] * (THREADS - 1) + [True]
    assert {row.number for row, _ in found} == {1}


def test_whole_uploads_at_once_leave_the_name_on_the_latest(catalogue: Catalogue) -> None:
    rows = together(lambda n: published(catalogue, n))
    assert sorted(row.number for row in rows) == list(range(1, THREADS + 1))
    states = {row.number: row.state for row in catalogue.versions(NAME)}
    assert states == {n: State.READY if n == THREADS else State.RETIRED for n in range(1, THREADS + 1)}
    assert catalogue.adapter(NAME).active == THREADS


@pytest.mark.ruling("R02")
def test_the_same_artefact_under_many_names_at_once(catalogue: Catalogue) -> None:
    digest = artefact(1).digest
    rows = together(lambda n: stored(catalogue, n, AdapterName(f"name-{n % 4}"), digest=digest))
    assert len({row.engine_name for row in rows}) == THREADS


def test_names_that_differ_in_case_at_once_make_one_adapter(catalogue: Catalogue) -> None:
    def store(number: int) -> str:
        name = AdapterName("abcdefgh"[:number] + "ABCDEFGH"[number:])
        try:
            return stored(catalogue, 1, name).name.text
        except Refused as refused:
            assert refused.code is NAME_TAKEN
            return ""

    names = [name for name in together(store) if name]
    assert [row.name.text for row in catalogue.adapters()] == names
    assert len(names) == 1


def test_readers_see_exactly_one_active_version_while_it_moves(catalogue: Catalogue) -> None:
    published(catalogue, "first")
    stop = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            for seed in range(30):
                published(catalogue, seed)
                catalogue.rollback(NAME)
            stop.set()
            return 0
        looks = 0
        while not stop.is_set():
            row = catalogue.resolve(NAME)
            assert row is not None
            assert row.state is State.READY
            assert sum(other.state is State.READY for other in catalogue.versions(NAME)) == 1
            looks += 1
        return looks

    assert min(together(work)[1:]) > 0


@pytest.mark.ruling("R04")
def test_deleting_while_uploading_ends_in_one_of_two_ways(catalogue: Catalogue) -> None:
    def work(number: int) -> None:
        for seed in range(5):
            try:
                if number % 2:
                    published(catalogue, f"{number} {seed}")
                else:
                    catalogue.delete(NAME)
            except Refused as refused:
                assert refused.code.status == 404

    together(work)
    active = [adapter.active for adapter in catalogue.adapters()]
    ready = [
        row.number for name in catalogue.adapters() for row in catalogue.versions(name.name) if row.state == "ready"
    ]
    assert ready == [number for number in active if number is not None]


class Walk(RuleBasedStateMachine):
    """Random calls; the model is a dictionary of numbers to states per name."""

    uploads = Bundle("uploads")
    waiting = Bundle("waiting")
    names = st.sampled_from([AdapterName("a"), AdapterName("b"), AdapterName("B")])

    def __init__(self) -> None:
        super().__init__()
        self.home = TemporaryDirectory()
        self.url = self.new_url()
        self.catalogue = Catalogue(self.url)
        self.model: dict[AdapterName, dict[int, str]] = {}
        self.highest: dict[str, int] = defaultdict(int)
        self.engine_names: set[str] = set()
        self.seeds: dict[tuple[AdapterName, int], int] = {}
        self.bound: set[AdapterName] = set()

    def new_url(self) -> str:
        return sqlite_url(Path(self.home.name) / "c.db")

    def teardown(self) -> None:
        self.catalogue.close()
        self.home.cleanup()

    @rule(target=uploads, name=names, seed=st.integers(0, 3))
    def begin(self, name: AdapterName, seed: int) -> object:
        other = next((other for other in self.model if other.key == name.key and other != name), None)
        if other in self.bound:
            with pytest.raises(Refused, match="name_taken"):
                begun(self.catalogue, name, received(seed))
            return multiple()
        if other is not None:  # nothing was stored: the adapter is spelled as last asked
            self.model[name] = self.model.pop(other)
        row = begun(self.catalogue, name, received(seed))
        self.highest[name.key] += 1
        assert row.number == self.highest[name.key]
        self.model.setdefault(name, {})[row.number] = "received"
        self.seeds[name, row.number] = seed
        return name, row.number, seed

    @rule(target=waiting, upload=consumes(uploads))
    def store(self, upload: tuple[AdapterName, int, int]) -> object:
        name, number, seed = upload
        now = next((other for other in self.model if other.key == name.key), name)
        if self.model.get(now, {}).get(number) != "received":
            return multiple()
        self.catalogue.record_validated(name, number)
        self.catalogue.record_screened(name, number, verdict(), "{}")
        if now != name and now in self.bound:
            with pytest.raises(Refused, match="name_taken") as refused:
                self.catalogue.record_stored(name, number, artefact(seed).digest)
            self.catalogue.record_rejected(name, number, refused.value)
            self.model[now][number] = "rejected"
            return multiple()
        row = self.catalogue.record_stored(name, number, artefact(seed).digest)
        self.model[name] = self.model.pop(now)
        self.bound.add(name)
        assert row.engine_name not in self.engine_names
        self.engine_names.add(str(row.engine_name))
        self.model[name][number] = "stored"
        return name, number

    @rule(version=waiting)
    def refuse(self, version: tuple[AdapterName, int]) -> None:
        """The engine, while it waits."""
        name, number = version
        if self.model.get(name, {}).get(number) == "stored":
            self.catalogue.record_failed(name, number, Unavailable(LOAD_FAILED, "no"))
            self.model[name][number] = "failed"

    @rule(target=waiting, version=consumes(waiting))
    def try_again(self, version: tuple[AdapterName, int]) -> object:
        """With its artefact there."""
        name, number = version
        versions = self.model.get(name, {})
        if number not in versions:
            return multiple()
        same = [n for n in sorted(versions) if self.seeds.get((name, n)) == self.seeds[name, number]]
        latest = ([n for n in same if versions[n] not in {"failed", "rejected"}] or same)[-1]
        later = {versions[n] for n in versions if n > number}
        overtaken = (self.active(name) or 0) > number or bool(later & {"received", "stored"})
        row, mine = begin_again(self.catalogue, name, number, intact=True)
        assert mine is (latest == number and versions[number] == "failed")
        if not mine:
            assert row.number == latest
        elif overtaken:
            self.highest[name.key] += 1
            assert row.number == self.highest[name.key]
            self.seeds[name, row.number] = self.seeds[name, number]
            versions[row.number] = "received"
        else:
            versions[number] = "stored"
        return name, number

    @rule(version=waiting)
    def activate(self, version: tuple[AdapterName, int]) -> None:
        name, number = version
        versions = self.model.get(name, {})
        if number not in versions:
            with pytest.raises(Refused, match="not_found"):
                self.catalogue.activate(name, number)
            return
        if versions[number] == "failed":
            with pytest.raises(Refused, match="not_ready"):
                self.catalogue.activate(name, number)
            return
        row = self.catalogue.activate(name, number)
        if versions[number] == "stored":
            active = self.active(name)
            if active is None or active < number:
                self.point(name, number)
            else:
                versions[number] = "retired"
        assert row.state == versions[number]

    @rule(name=names, to=st.none() | st.integers(1, 6))
    def rollback(self, name: AdapterName, to: int | None) -> None:
        versions, active = self.model.get(name, {}), self.active(name)
        if to is None:
            to = max((n for n in versions if versions[n] == "retired" and n < (active or 0)), default=None)
        if to is None or versions.get(to) not in {"ready", "retired"}:
            with pytest.raises(Refused):
                self.catalogue.rollback(name, to)
            return
        assert self.catalogue.rollback(name, to).number == to
        if to != active:  # who goes back does not want what still waits
            versions.update({n: "retired" for n, state in versions.items() if state == "stored"})
        self.point(name, to)

    @rule(name=names)
    def delete(self, name: AdapterName) -> None:
        if self.model.pop(name, None) is None:
            with pytest.raises(Refused, match=ADAPTER_NOT_FOUND.name):
                self.catalogue.delete(name)
        else:
            self.catalogue.delete(name)
            self.bound.discard(name)

    @rule()
    def restart(self) -> None:
        self.catalogue.close()
        self.catalogue = Catalogue(self.url)
        self.catalogue.recover()
        for versions in self.model.values():
            versions.update({n: "failed" for n, state in versions.items() if state == "received"})

    @invariant()
    def the_catalogue_says_what_the_model_says(self) -> None:
        adapters = {row.name: row.active for row in self.catalogue.adapters()}
        assert adapters == {name: self.active(name) for name in self.model}
        for name, expected in self.model.items():
            assert {row.number: row.state for row in self.catalogue.versions(name)} == expected
            row, active = self.catalogue.resolve(name), self.active(name)
            assert (row.number if row else None) == active
        servable = {(row.name, row.number) for row in self.catalogue.servable()}
        assert servable == {(name, n) for name, v in self.model.items() for n in v if v[n] in SERVABLE}

    def active(self, name: AdapterName) -> int | None:
        """The model's ready version."""
        return next((n for n, state in self.model.get(name, {}).items() if state == "ready"), None)

    def point(self, name: AdapterName, number: int) -> None:
        """Move the model's alias."""
        versions = self.model[name]
        versions.update({n: "retired" for n, state in versions.items() if state == "ready"})
        versions[number] = "ready"


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class PostgresWalk(Walk):
    """The same walks over PostgreSQL."""

    server: ClassVar[Server]

    def new_url(self) -> str:
        return self.server.fresh()


@pytest.mark.slow
def test_walks_over_postgresql(postgres: Server) -> None:
    PostgresWalk.server = postgres
    run_state_machine_as_test(PostgresWalk, settings=settings(TestWalk.settings, max_examples=15))
