"""How often one key may ask."""

import pytest

from app.api.access import rate_limits
from app.api.access.rate_limits import Kind, Rates
from app.domain.errors import RATE_LIMITED, GatewayError


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def spend(rates: Rates, key: str = "a", kind: Kind = Kind.UPLOAD, most: int = 1000) -> int:
    """Requests taken before the first refusal."""
    for count in range(most):
        try:
            rates.take(key, kind)
        except GatewayError as error:
            assert error.code is RATE_LIMITED
            assert error.retry_after is not None
            assert error.retry_after >= 1
            return count
    return most


def test_a_minutes_share_at_once_and_then_evenly() -> None:
    clock = Clock()
    rates = Rates({Kind.UPLOAD: 30}, clock)
    assert spend(rates) == 30
    clock.now += 1.9
    assert spend(rates) == 0
    clock.now += 0.2
    assert spend(rates) == 1
    clock.now += 3600
    assert spend(rates) == 30  # never more than a minute's share, however long it was quiet


def test_waiting_as_long_as_it_says_helps() -> None:
    clock = Clock()
    rates = Rates({Kind.UPLOAD: 7}, clock)
    for _ in range(50):
        spend(rates)
        with pytest.raises(GatewayError) as refused:
            rates.take("a", Kind.UPLOAD)
        assert refused.value.retry_after is not None
        clock.now += refused.value.retry_after
        rates.take("a", Kind.UPLOAD)


def test_keys_and_kinds_do_not_share() -> None:
    rates = Rates({Kind.UPLOAD: 2, Kind.SCREEN: 3}, Clock())
    assert [spend(rates, key) for key in "ab"] == [2, 2]
    assert spend(rates, "a", Kind.SCREEN) == 3
    assert spend(rates, "a", Kind.CHAT) == 1000  # no limit was set


def test_being_refused_costs_nothing() -> None:
    clock = Clock()
    rates = Rates({Kind.UPLOAD: 60}, clock)
    spend(rates)
    for _ in range(100):
        clock.now += 0.005
        assert spend(rates) == 0
    clock.now += 0.51
    assert spend(rates) == 1


@pytest.mark.hostile("G21")
def test_a_days_share_besides_a_minutes() -> None:
    clock = Clock()
    rates = Rates({Kind.SCREEN: 60}, clock, per_day={Kind.SCREEN: 200})
    taken = 0
    for _ in range(10):
        taken += spend(rates, kind=Kind.SCREEN)
        clock.now += 60
    assert taken == 201  # a day's, and what came back in ten minutes
    with pytest.raises(GatewayError, match="200 screenings a day") as refused:
        rates.take("a", Kind.SCREEN)
    assert refused.value.retry_after is not None
    clock.now += refused.value.retry_after - 1.5
    assert spend(rates, kind=Kind.SCREEN) == 0
    clock.now += 1.5
    assert spend(rates, kind=Kind.SCREEN) == 1
    clock.now += 86_400
    assert spend(rates, kind=Kind.SCREEN) == 60


def test_what_one_bucket_refuses_costs_the_other_nothing() -> None:
    clock = Clock()
    rates = Rates({Kind.SCREEN: 1}, clock, per_day={Kind.SCREEN: 2})
    assert spend(rates, kind=Kind.SCREEN) == 1
    assert spend(rates, kind=Kind.SCREEN) == 0
    clock.now += 60
    assert spend(rates, kind=Kind.SCREEN) == 1


def test_buckets_that_refilled_are_forgotten_once_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bearers of tokens are as many as their issuer has people."""
    monkeypatch.setattr(rate_limits, "MANY", 100)
    clock = Clock()
    rates = Rates({Kind.CHAT: 60}, clock, per_day={Kind.SCREEN: 1})
    assert spend(rates, "busy", Kind.SCREEN) == 1
    for number in range(1000):
        rates.take(f"bearer-{number}", Kind.CHAT)
        clock.now += 1.0
    assert len(rates._buckets) <= 101
    assert spend(rates, "busy", Kind.SCREEN) == 0, "an empty one is not forgotten"
