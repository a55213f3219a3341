"""What names mean, and that they never mean anything else (hostile.md N*, P02, P04; I5)."""

import pytest

from app.domain.errors import ENGINE_UNAVAILABLE, MODEL_MISSING, MODEL_NOT_FOUND, Refused, Unavailable
from app.domain.rollout import Rollout, Wanted, all_to, slot_of
from app.domain.tenants import EVERYTHING, Reach
from app.serve.models import model_payload, models_payload
from app.serve.routing_table import Part, RoutingTable, Served, Target

OLD = Served("a", 1, "a@000000000001", "d1", active=False, created=10)
NEW = Served("a", 3, "a@000000000003", "d3", active=True, created=30)
EMPTIED = Served("b", 1, None, None, active=True, created=20)


def routing_table(*, base: str | None = None, loaded: frozenset[str] | None = None) -> RoutingTable:
    made = RoutingTable("served", base=base, loaded=lambda name: loaded is None or name in loaded, created=5)
    made.replace((OLD, NEW, EMPTIED))
    return made


def test_a_name_is_its_active_version() -> None:
    assert routing_table().resolve("a") == Target("a", "a@000000000003", "a", 3, "d3")


def test_a_number_is_that_version() -> None:
    assert routing_table().resolve("a@1") == Target("a@1", "a@000000000001", "a", 1, "d1")
    assert routing_table().resolve("a@3") == Target("a@3", "a@000000000003", "a", 3, "d3")


def test_the_served_model_is_itself_or_what_stands_in_for_it() -> None:
    assert routing_table().resolve("served") == Target("served", "served")
    assert routing_table(base="noop@000000000000").resolve("served") == Target("served", "noop@000000000000")


def test_an_emptied_version_is_answered_by_the_served_model_under_its_own_name() -> None:
    assert routing_table().resolve("b") == Target("b", "served", "b", 1, None)
    assert routing_table(base="noop@000000000000").resolve("b@1") == Target("b@1", "noop@000000000000", "b", 1, None)


@pytest.mark.parametrize("model", [None, ""])
@pytest.mark.hostile("P02")
def test_no_model_is_a_400(model: object) -> None:
    with pytest.raises(Refused) as caught:
        routing_table().resolve(model)
    assert (caught.value.code, caught.value.param) == (MODEL_MISSING, "model")


@pytest.mark.parametrize(
    "model",
    [
        *(
            "nobody",
            "a@2",
            "a@0",
            "a@01",
            "a@-1",
            "a@+1",
            "a@1 ",
            " a",
            "a\n",
            "a@1\n",
            "A",
            "a@",
            "@1",
            "a@1@1",
            "a,b",
        ),
        *("a@000000000003", "a@000000000001", "noop@000000000000", "a@٣", "а", "a\0", "\ud800"),
        *("../../etc/passwd", "/models/served", "http://host/a", "%2e%2e/a", "x" * 1_000_000, "a@" + "9" * 1_000_000),
        *(1, 1.5, True, False, 0, [], ["a"], {}, {"a": 1}),
    ],
)
@pytest.mark.hostile("P04", "N11")
def test_what_is_no_name_of_ours_is_a_404(model: object) -> None:
    with pytest.raises(Refused) as caught:
        routing_table(base="noop@000000000000").resolve(model)
    assert (caught.value.code, caught.value.param) == (MODEL_NOT_FOUND, "model")
    assert len(caught.value.message) < 200


def test_a_version_the_engine_does_not_hold_is_a_503_never_the_served_model() -> None:
    some = routing_table(loaded=frozenset({"a@000000000001"}))
    assert some.resolve("a@1").version == 1
    with pytest.raises(Unavailable) as caught:
        some.resolve("a")
    assert caught.value.code is ENGINE_UNAVAILABLE


def test_the_served_model_needs_no_loading_but_its_stand_in_does() -> None:
    assert routing_table(loaded=frozenset()).resolve("served").engine_name == "served"
    for model in ("served", "b"):
        with pytest.raises(Unavailable):
            routing_table(base="noop@000000000000", loaded=frozenset()).resolve(model)


def test_a_new_table_is_in_force_at_once_and_changes_no_target_given_before() -> None:
    table = routing_table()
    before = table.resolve("a")
    table.replace((OLD,))
    assert before.engine_name == "a@000000000003"
    assert table.resolve("a@1").engine_name == "a@000000000001"
    for gone in ("a", "a@3", "b"):
        with pytest.raises(Refused):
            table.resolve(gone)
    assert table.resolve("served").engine_name == "served"


def test_an_adapter_cannot_take_the_served_models_name() -> None:
    table = RoutingTable("served")
    table.replace((Served("served", 1, "served@000000000009", "d", active=True),))
    assert table.resolve("served").engine_name == "served"


def test_requests_in_flight_are_counted_by_engine_name() -> None:
    table = routing_table()
    assert table.in_flight.idle("x")
    table.in_flight.begin("x")
    table.in_flight.begin("x")
    assert (table.in_flight.count("x"), table.in_flight.idle("x"), table.in_flight.idle("y")) == (2, False, True)
    table.in_flight.end("x")
    assert not table.in_flight.idle("x")
    table.in_flight.end("x")
    assert table.in_flight.idle("x")


def test_the_list_of_models_shows_every_name_and_nothing_of_the_engines() -> None:
    payload = models_payload(routing_table(base="noop@000000000000"))
    assert payload["object"] == "list"
    assert [card["id"] for card in payload["data"]] == ["served", "a", "b", "a@1", "a@3", "b@1"]
    assert [card["parent"] for card in payload["data"]] == [None, *["served"] * 5]
    assert all(card["root"] == card["id"] and card["object"] == "model" for card in payload["data"])
    assert "noop" not in str(payload)
    assert "@0000" not in str(payload)


def test_one_model_of_the_list() -> None:
    card = model_payload(routing_table(), "a")
    assert (card["version"], card["digest"], card["created"]) == (3, "d3", 30)
    with pytest.raises(Refused) as caught:
        model_payload(routing_table(), "a@000000000003")
    assert caught.value.code is MODEL_NOT_FOUND


def rolling_out(shadow: int | None = None, loaded: frozenset[str] | None = None, *, tenant: str = "") -> RoutingTable:
    """`a` at version 1 for half of the conversations, at version 3 for the others."""
    table = RoutingTable("served", loaded=lambda name: loaded is None or name in loaded)
    name = f"{tenant}a"
    served = (
        Served(name, 1, "a@000000000001", "d1", active=True),
        Served(name, 3, "a@000000000003", "d3", active=False),
    )
    table.replace(served, rollouts={name: all_to(1).to(Wanted({1: 50, 3: 50}, shadow), name), "gone": all_to(1)})
    return table


def conversation_at(rollout: Rollout, version: int, name: str = "a") -> bytes:
    found = (f"c{number}".encode() for number in range(1000))
    return next(one for one in found if rollout.slots[slot_of(name, one)] == version)


@pytest.mark.parametrize("version", [1, 3])
def test_during_a_roll_out_the_conversation_decides(version: int) -> None:
    table, rollout = rolling_out(), all_to(1).to(Wanted({1: 50, 3: 50}), "a")
    target = table.resolve("a", conversation=conversation_at(rollout, version))
    assert (target.version, target.asked, target.part) == (version, "a", Part.LIVE)
    assert table.resolve("a").version == 1
    assert table.resolve("a@3", conversation=b"any").part is None
    assert table.split("gone", EVERYTHING) is None


def test_a_tenants_own_name_is_split_as_well() -> None:
    table, rollout = rolling_out(tenant="acme/"), all_to(1).to(Wanted({1: 50, 3: 50}), "acme/a")
    conversation = conversation_at(rollout, 3, "acme/a")
    target = table.resolve("a", Reach("acme"), conversation)
    assert (target.version, target.asked) == (3, "a")
    assert table.split("a", Reach("other")) is None


def test_a_version_that_is_not_loaded_is_not_replaced_by_another() -> None:
    table, rollout = rolling_out(loaded=frozenset({"a@000000000001"})), all_to(1).to(Wanted({1: 50, 3: 50}), "a")
    with pytest.raises(Unavailable) as caught:
        table.resolve("a", conversation=conversation_at(rollout, 3))
    assert caught.value.code is ENGINE_UNAVAILABLE


@pytest.mark.parametrize("model", [None, 7, ["a"], "a" * 1000, "served", "x/y"])
def test_any_other_model_is_not_split(model: object) -> None:
    assert rolling_out().split(model, Reach("default")) is None
