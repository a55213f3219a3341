"""Roll-outs of several gateways on one catalogue: they agree on the versions, and on whom each answers."""

import asyncio

from app.domain.version_state import State
from tests.support.gateway import Running
from tests.support.joining import Join
from tests.support.rolling_out import NAME, USERS, chat, push, put, user_of, version, versions, weights_are


async def test_all_gateways_give_a_user_the_same_version(join: Join) -> None:
    first, second = gateways = [await join(), await join()]
    for seed in (1, 2):
        await push(first, seed)
    assert (await put(second, v1=75, v2=25)).status_code == 200
    await weights_are(gateways, v1=75, v2=25)
    for number in range(USERS):
        user = f"user {number}"
        assert await version(first, user) == await version(second, user)
    assert set(await versions(first)) == {1, 2}
    await _promoted(first, gateways)


async def _promoted(at: Running, gateways: list[Running]) -> None:
    user = user_of(at, 1)
    assert (await at.http.post(f"/adapters/{NAME}/traffic/promote")).status_code == 200
    await weights_are(gateways)
    assert [await version(running, user) for running in gateways] == [2, 2]


async def test_an_upload_at_another_gateway_waits_for_a_weight_too(join: Join) -> None:
    first, second = gateways = [await join(), await join()]
    await push(first, 1)
    assert (await put(first, v1=100)).status_code == 200
    assert (await push(second, 2))["state"] == State.RETIRED
    await weights_are(gateways, v1=100)
    assert [await version(running, "ann") for running in gateways] == [1, 1]


async def test_a_gateway_that_joins_later_follows(join: Join) -> None:
    first = await join()
    for seed in (1, 2):
        await push(first, seed)
    await put(first, v1=50, v2=50)
    late = await join()
    users = {number: user_of(first, number) for number in (1, 2)}
    for number, user in users.items():
        while (answer := await chat(late, user)).status_code == 503:  # its engine is being filled
            await asyncio.sleep(0)
        assert answer.headers["x-adapter-version"] == str(number)


async def test_a_gateway_that_has_not_heard_of_the_upload_hears_of_it_when_asked(join: Join) -> None:
    first, second = await join(), await join()
    assert second.gateway.peer_sync is not None
    await second.gateway.peer_sync.stop()  # it learns nothing by itself any more
    for seed in (1, 2):
        await push(first, seed)
    assert (await put(second, v1=75, v2=25)).status_code == 200
    assert set(await versions(second)) == {1, 2}
