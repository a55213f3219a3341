"""PostgreSQL away at the start and under a gateway at work: told at once, nothing lost, and chat goes on."""

import asyncio
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

from app.domain.errors import STORE_AWAY, STORE_BUSY, STORE_FAILED, Unavailable
from app.store.audit.audit import Promise
from app.store.catalogue.catalogue import Catalogue
from app.store.catalogue.postgres import VANISHED_SECONDS, with_patience
from tests.store.making import NAME, published
from tests.support.audited import rested
from tests.support.gateway import OpenHouse, Running, form
from tests.support.postgres import Server, free_port


async def push(running: Running, name: str, seed: int = 0) -> Any:
    return await running.http.post("/adapters", files=form(name, seed))


async def chat(running: Running, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


def promise(body: dict[str, Any]) -> Promise:
    return Promise(body["name"], body["version"])


def test_a_server_that_never_answers_is_said_so_with_its_address() -> None:
    url = f"postgresql://gateway:hunter2-secret@127.0.0.1:{free_port()}/catalogue"
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"after 1 s: .*refused") as caught:
        Catalogue(url, patience_s=1.0)
    assert caught.value.code is STORE_AWAY
    assert 1.0 <= time.monotonic() - began < 10
    assert "hunter2" not in str(caught.value)


def test_a_server_that_starts_later_is_waited_for(own_postgres: Server, caplog: pytest.LogCaptureFixture) -> None:
    url = own_postgres.fresh()
    own_postgres.stop()
    later = threading.Timer(1.5, own_postgres.start)
    later.start()
    catalogue = Catalogue(url, patience_s=60.0)
    later.join()
    assert published(catalogue).number == 1
    catalogue.close()
    assert any("waiting for the catalogue's database" in line for line in caplog.messages)


def test_a_host_that_vanishes_is_given_up_by_the_kernel(postgres: Server) -> None:
    """Nothing can be pulled out here: the kernel's own settings of the connection say when it gives up."""
    catalogue = Catalogue(postgres.fresh())
    with catalogue._database.reading() as connection:
        driver: Any = connection.connection.driver_connection
        with socket.socket(fileno=os.dup(driver.fileno())) as line:
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == VANISHED_SECONDS * 1000
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < VANISHED_SECONDS
    catalogue.close()


def test_what_is_not_a_matter_of_time_is_not_waited_for() -> None:
    def refuse() -> None:
        raise Unavailable(STORE_FAILED, "another schema")

    with pytest.raises(Unavailable, match="another schema"):
        with_patience(refuse, 1e9)


def test_a_server_that_was_restarted_is_used_again_at_once(own_postgres: Server) -> None:
    catalogue = Catalogue(own_postgres.fresh())
    row = published(catalogue)
    own_postgres.stop(signal.SIGQUIT)
    with pytest.raises(Unavailable) as caught:
        catalogue.resolve(NAME)
    assert caught.value.code is STORE_AWAY
    assert "127.0.0.1" not in caught.value.message
    own_postgres.start()
    assert catalogue.resolve(NAME) == row
    catalogue.close()


def test_a_writer_that_stands_still_keeps_the_others_waiting_only_so_long(postgres: Server) -> None:
    url = postgres.fresh()
    one, other = Catalogue(url), Catalogue(url, busy_seconds=0.2)
    published(one, 1)
    with one._database.writing():
        with pytest.raises(Unavailable) as caught:
            published(other, 2)
        assert other.resolve(NAME) is not None, "readers are not disturbed"
    assert caught.value.code is STORE_BUSY
    assert published(other, 2).number == 2
    one.close()
    other.close()


async def test_away_in_flight_uploads_are_refused_for_now_and_chat_goes_on(
    own_postgres: Server, open_gateway: OpenHouse
) -> None:
    url = own_postgres.fresh()
    async with open_gateway(catalogue_url=url) as running:
        first = (await push(running, "style", 1)).json()
        own_postgres.stop(signal.SIGQUIT)
        for response in (await push(running, "other", 2), await running.http.get("/adapters")):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "store_away")
            assert int(response.headers["retry-after"]) > 0
            assert "127.0.0.1" not in response.text
        assert await chat(running, "style") == 200
        own_postgres.start()
        second = await push(running, "other", 2)
        assert second.status_code == 201
        assert await chat(running, "other") == 200
        await rested(running, [promise(first), promise(second.json())], url)
    async with open_gateway(catalogue_url=url) as running:
        await rested(running, [promise(first), promise(second.json())], url)


@pytest.mark.slow
async def test_killed_at_any_moment_of_an_upload(own_postgres: Server, open_gateway: OpenHouse) -> None:
    """Whoever sends the same again until it is accepted has one version of it, and what was accepted stays."""
    url = own_postgres.fresh()
    kept = []
    async with open_gateway(catalogue_url=url) as running:
        for seed in range(8):
            upload = asyncio.create_task(push(running, f"style-{seed}", seed))
            await asyncio.sleep(0.02 * seed)
            await asyncio.to_thread(own_postgres.stop, signal.SIGQUIT)
            await asyncio.to_thread(own_postgres.start)
            response = await upload
            while response.status_code not in (200, 201):
                assert response.status_code in (500, 503), response.text
                response = await push(running, f"style-{seed}", seed)
            kept.append(promise(response.json()))
        await rested(running, kept, url)
        for one in kept:
            assert await chat(running, one.adapter) == 200


def test_every_complaint_of_the_server_has_a_code(postgres: Server) -> None:
    catalogue = Catalogue(postgres.fresh())
    with pytest.raises(Unavailable) as caught, catalogue._database.writing() as connection:
        connection.exec_driver_sql("SELECT 1 / 0")
    assert (caught.value.code, caught.value.message) == (STORE_FAILED, "catalogue: division by zero (22012)")
    with pytest.raises(Unavailable) as caught, catalogue._database.writing() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
    assert caught.value.code is STORE_AWAY
    catalogue.close()
