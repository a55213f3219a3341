"""Two gateways on one PostgreSQL and one object storage, and engines that fetch by themselves from either."""

import asyncio
import itertools
from contextlib import AsyncExitStack
from pathlib import Path

from app.store.audit.audit import audit
from tests.load.test_plugin_engine import Fetching, chat, up
from tests.support.gateway import Running, form, gateway
from tests.support.postgres import Server
from tests.support.s3 import Storage, storage
from tests.support.waiting import STUCK_S

__all__ = ["storage"]


class Balanced(Fetching):
    """Asks the gateways in turn, as behind one Service."""

    turn: "itertools.cycle[Running]"

    async def _fetch(self, name: str) -> str | None:
        self.gateway = next(self.turn)
        return await super()._fetch(name)


async def test_what_one_took_in_the_other_serves_and_what_it_deleted_goes_from_the_storage(
    tmp_path: Path, tiny_reference_dir: Path, postgres: Server, storage: Storage
) -> None:
    url = postgres.fresh()
    engines = [Balanced(tmp_path / f"{number}.sock") for number in (1, 2)]
    for engine in engines:
        await engine.start()
    shared = {
        "engine_url": ",".join(engine.url for engine in engines),
        "engine_resolves": True,
        "catalogue_url": url,
        "store_url": storage.url,
    }
    async with AsyncExitStack() as stack:
        opened = [gateway(tmp_path / name, tiny_reference_dir, engines[0], **shared) for name in ("a", "b")]
        one, two = [await stack.enter_async_context(each) for each in opened]
        for engine in engines:
            engine.turn = itertools.cycle((one, two))
        for each in (one, two):
            await up(each, 2)
        digests = {}
        for number, (to, name) in enumerate([(one, "bard"), (two, "clerk"), (one, "judge"), (two, "scribe")]):
            pushed = await to.http.post("/adapters", files=form(name, number))
            assert pushed.status_code in (201, 202), pushed.text  # 202: its engine's gateway did not know it yet
            digests[name] = pushed.json()["digest"]
        for each, name in itertools.product((one, two), digests):
            async with asyncio.timeout(
                STUCK_S
            ):  # the other follows, or a version waits until its engine's gateway knew it
                while await chat(each, name) != 200:
                    await asyncio.sleep(0.1)
        assert not any(engine.loads for engine in engines)
        assert (await two.http.delete("/adapters/bard")).status_code == 204
        async with asyncio.timeout(STUCK_S):
            while await chat(one, "bard") != 404:
                await asyncio.sleep(0.1)
        for each in (one, two):
            found = await asyncio.to_thread(audit, each.data, url, store_url=storage.url)
            assert found.findings == ()
    for engine in engines:
        await engine.stop()
