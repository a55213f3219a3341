"""The table of shared resources: however greedy one caller is, the next finds some; and what is given back is free."""

import random
from contextlib import ExitStack

import pytest

from app.domain.api_keys import Key, Role
from app.domain.errors import SHARE_TAKEN, TOO_MANY_UPLOADS, Refused
from app.domain.shares import SHARED, Holding, Resource, Shares, address_holder

KEYS = [Key(name, frozenset({Role.UPLOAD, Role.CHAT}), name.encode()) for name in ("first", "second")]
STEPS = 64


def greedy(shares: Shares, resource: Resource, who: str, amount: int = 1) -> list[Holding]:
    """All that one caller gets."""
    held: list[Holding] = []
    while True:
        try:
            held.append(shares.take(resource, who, amount))
        except Refused as refused:
            assert refused.code is SHARED[resource].code
            assert refused.code.status == 429
            assert refused.code.retryable
            return held


def test_every_resource_has_a_row_and_every_row_a_reason_to_refuse() -> None:
    assert set(SHARED) == set(Resource)
    assert all(row.limit > 1 and row.unit for row in SHARED.values())
    assert SHARED[Resource.BODIES].code is SHARE_TAKEN


@pytest.mark.parametrize("resource", SHARED)
def test_no_caller_holds_more_than_half_and_the_next_finds_some(resource: Resource) -> None:
    shares, limit = Shares(KEYS), SHARED[resource].limit
    amount = max(1, limit // STEPS)
    first = greedy(shares, resource, "first", amount)
    assert len(first) * amount <= limit / 2 + 1
    assert len(greedy(shares, resource, "second", amount)) >= max(1, len(first) // 3)
    for holding in first:
        holding.close()
        holding.close()
    greedy(shares, resource, "third", amount)
    assert shares.in_use(resource) <= limit


@pytest.mark.parametrize("resource", SHARED)
def test_one_take_of_everything_is_refused_too(resource: Resource) -> None:
    shares = Shares(KEYS)
    with pytest.raises(Refused):
        shares.take(resource, "first", shares.limit(resource))
    with shares.take(resource, "first", shares.limit(resource) // 2):
        assert shares.in_use(resource) == shares.limit(resource) // 2
    assert shares.in_use(resource) == 0


def test_of_four_uploads_a_greedy_key_gets_two_another_one_and_a_third_still_one() -> None:
    shares = Shares(KEYS, {Resource.UPLOADS: 4})
    held = {who: greedy(shares, Resource.UPLOADS, who) for who in ("first", "second", "third")}
    assert [len(each) for each in held.values()] == [2, 1, 1]
    for each in held.values():
        for holding in each:
            holding.close()
    assert shares.in_use(Resource.UPLOADS) == 0
    assert [len(greedy(shares, Resource.UPLOADS, who)) for who in ("second", "first")] == [2, 1]


def test_a_gateway_with_one_key_gives_it_every_place() -> None:
    shares = Shares(KEYS[:1], {Resource.UPLOADS: 4})
    assert len(greedy(shares, Resource.UPLOADS, "first")) == 4


def test_a_refused_caller_keeps_what_it_held() -> None:
    shares = Shares(KEYS, {Resource.UPLOADS: 4})
    holding = shares.take(Resource.UPLOADS, "first")
    with pytest.raises(Refused) as refused:
        holding.more(2)
    assert refused.value.code is TOO_MANY_UPLOADS
    assert shares.in_use(Resource.UPLOADS) == 1
    holding.close()
    assert shares.in_use(Resource.UPLOADS) == 0


def test_callers_that_hold_nothing_are_forgotten() -> None:
    shares, dice = Shares(KEYS), random.Random(0)
    for number in range(1000):
        with ExitStack() as held:
            for resource in Resource:
                held.enter_context(shares.take(resource, f"address:{number}", dice.randint(1, 2)))
    assert all(not held for held in shares._held.values())


@pytest.mark.parametrize(
    ("host", "holder"),
    [
        ("192.0.2.7", "address:192.0.2.7"),
        ("::ffff:192.0.2.7", "address:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::"),
        ("2001:db8:1:2::9", "address:2001:db8:1:2::"),
        ("fe80::1%eth0", "address:fe80::"),
        ("", "address:"),
    ],
)
def test_a_holder_without_a_key_is_its_address_or_network(host: str, holder: str) -> None:
    assert address_holder(host) == holder


def test_of_few_sequences_each_key_finds_one_after_greedy_ones() -> None:
    """Halves of what is left had run out before the last."""
    names = ("a", "b", "c", "d", "last")
    shares = Shares([Key(name, frozenset({Role.CHAT}), name.encode()) for name in names], {Resource.SEQUENCES: 8})
    held = [len(greedy(shares, Resource.SEQUENCES, name)) for name in names]
    assert min(held) == 1
    assert held[0] > 1
    assert sum(held) <= 8


def test_callers_that_are_no_known_keys_leave_what_is_reserved_for_keys() -> None:
    keys = [Key(f"k{number}", frozenset({Role.CHAT}), bytes([number])) for number in range(4)]
    shares = Shares(keys, {Resource.SEQUENCES: 16}, others=True)
    for who in ("oidc.a", "oidc.b", "oidc.c", "oidc.d"):
        greedy(shares, Resource.SEQUENCES, who, 2)
    assert 16 - shares.in_use(Resource.SEQUENCES) >= len(keys)
