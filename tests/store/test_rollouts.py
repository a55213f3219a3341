"""Roll-outs in the catalogue: what begins, changes and ends one, and that the name always points to its stable version."""

from collections.abc import Iterator

import pytest

from app.domain.errors import NO_TRAFFIC, VERSION_NOT_FOUND, VERSION_NOT_READY, Code, Refused
from app.domain.rollout import Wanted
from app.domain.version_state import State
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.rollouts import promoted
from tests.store.making import NAME, published, stored


@pytest.fixture
def catalogue(catalogue_url: str) -> Iterator[Catalogue]:
    opened = Catalogue(catalogue_url)
    for seed in (1, 2, 3):
        published(opened, seed)
    yield opened
    opened.close()


def refuses(code: Code) -> pytest.RaisesExc[Refused]:
    return pytest.RaisesExc(Refused, match=f"^{code.name}: ")


def states(catalogue: Catalogue) -> dict[int, State]:
    return {row.number: row.state for row in catalogue.versions(NAME)}


def test_it_begins_changes_and_is_promoted(catalogue: Catalogue) -> None:
    adapter = catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}, shadow=1))
    assert adapter.active == 2  # most have it: an abort leaves it
    assert states(catalogue) == {1: State.RETIRED, 2: State.READY, 3: State.RETIRED}
    assert adapter.rollout is not None
    assert (adapter.rollout.weights, adapter.rollout.shadow) == ({2: 95, 3: 5}, 1)
    assert catalogue.rollouts() == {"style": adapter.rollout}
    adapter = catalogue.set_traffic(NAME, Wanted({2: 20, 3: 80}))
    assert adapter.active == 2
    assert catalogue.chapter("", 10).adapters[0][0] == adapter == catalogue.adapters()[0]
    assert catalogue.promote(NAME, 3).number == 3
    assert (catalogue.adapter(NAME).active, catalogue.adapter(NAME).rollout, catalogue.rollouts()) == (3, None, {})
    assert states(catalogue) == {1: State.RETIRED, 2: State.RETIRED, 3: State.READY}


def test_an_abort_leaves_the_stable_version(catalogue: Catalogue) -> None:
    catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}))
    adapter = catalogue.abort(NAME)
    assert (adapter.active, adapter.rollout) == (2, None)
    with refuses(NO_TRAFFIC):
        catalogue.abort(NAME)
    with refuses(NO_TRAFFIC):
        catalogue.promote(NAME, 3)


def test_an_abort_of_a_roll_out_that_was_changed_since_does_nothing(catalogue: Catalogue) -> None:
    seen = catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5})).rollout
    now = catalogue.set_traffic(NAME, Wanted({2: 90, 3: 10}))
    with refuses(NO_TRAFFIC):
        catalogue.abort(NAME, seen)
    assert catalogue.adapter(NAME) == now
    assert catalogue.abort(NAME, now.rollout).rollout is None
    with refuses(NO_TRAFFIC):
        catalogue.abort(NAME, now.rollout)


def test_only_published_versions_take_part_and_nothing_changes_otherwise(catalogue: Catalogue) -> None:
    stored(catalogue, 4)
    catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}))
    before = catalogue.adapter(NAME)
    with refuses(VERSION_NOT_READY):
        catalogue.set_traffic(NAME, Wanted({2: 95, 4: 5}))
    with refuses(VERSION_NOT_READY):
        catalogue.set_traffic(NAME, Wanted({1: 100}, shadow=4))
    with refuses(VERSION_NOT_FOUND):
        catalogue.set_traffic(NAME, Wanted({2: 95, 9: 5}))
    assert catalogue.adapter(NAME) == before


def test_what_is_promoted_must_be_named_if_several_could_be(catalogue: Catalogue) -> None:
    catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}, shadow=1))
    with refuses(VERSION_NOT_READY):
        promoted(catalogue.adapter(NAME), None)
    with refuses(VERSION_NOT_READY):
        catalogue.promote(NAME, 9)
    assert catalogue.adapter(NAME).rollout is not None
    assert catalogue.promote(NAME, 1).number == 1


def test_a_new_version_waits_for_a_weight(catalogue: Catalogue) -> None:
    catalogue.set_traffic(NAME, Wanted({3: 100}))
    row = published(catalogue, 4)
    assert (row.state, catalogue.adapter(NAME).active) == (State.RETIRED, 3)
    catalogue.set_traffic(NAME, Wanted({3: 95, 4: 5}))
    assert catalogue.promote(NAME, 4).number == 4
    assert published(catalogue, 5).state is State.READY  # the roll-out has ended


def test_a_roll_back_ends_it(catalogue: Catalogue) -> None:
    for to in (1, 2):
        catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}))
        assert catalogue.rollback(NAME, to).number == to
        assert (catalogue.adapter(NAME).active, catalogue.adapter(NAME).rollout) == (to, None)


def test_a_deletion_ends_it(catalogue: Catalogue) -> None:
    catalogue.set_traffic(NAME, Wanted({2: 95, 3: 5}))
    catalogue.delete(NAME)
    assert catalogue.rollouts() == {}
    published(catalogue, 1)
    assert catalogue.adapter(NAME).rollout is None
