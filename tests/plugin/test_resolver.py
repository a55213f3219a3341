"""The vLLM plugin against a real gateway on a port, and against servers that are none."""

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from fastapi import HTTPException

from app.domain.artefact import Artefact, content_digest
from app.domain.statement import PAYLOAD_TYPE, Statement
from app.store.artefacts.signatures import Signatures, statement_in
from app.store.envelope import Signer
from lora_gateway_vllm.artefact import FILES
from lora_gateway_vllm.resolver import UNKNOWN_LIMIT, GatewayResolver
from lora_gateway_vllm.settings import Settings
from lora_gateway_vllm.signed import objection, read_keys
from tests.store.test_signatures import made
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.served import on_a_port
from tests.support.signing import signing_key

BASE = "served"


@asynccontextmanager
async def resolver_for(settings: Settings) -> AsyncIterator[GatewayResolver]:
    made = GatewayResolver(settings)
    yield made
    await made.close()


async def given(resolver: GatewayResolver, name: str) -> Any:
    """What vLLM gets: a LoRARequest."""
    found = await resolver.resolve_lora(BASE, name)
    assert found is not None
    return found


async def home_of(resolver: GatewayResolver, name: str) -> Path:
    return Path((await given(resolver, name)).lora_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest_asyncio.fixture
async def settings(running: Running, cache: Path) -> AsyncIterator[Settings]:
    """Of an engine beside a gateway that has published bard@1."""
    assert (await running.http.post("/adapters", files=form("bard"))).status_code == 201
    async with on_a_port(running) as port:
        yield Settings(f"http://127.0.0.1:{port}", cache, KEY)


async def test_a_published_version_is_found_by_number_and_by_digest(running: Running, settings: Settings) -> None:
    digest = (await running.http.get("/resolve/bard@1")).json()["digest"]
    async with resolver_for(settings) as resolver:
        for asked in ("bard@1", f"bard@{digest[:12]}"):
            found = await given(resolver, asked)
            assert found.lora_name == f"bard@{digest[:12]}"
            home = Path(found.lora_path)
            assert home == settings.cache / digest
            config, weights = ((home / name).read_bytes() for name in FILES)
            assert content_digest(config, weights).hex == digest
        for path in (home, *home.iterdir()):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o222


async def test_a_tenants_version_is_found_by_the_engines_name(running: Running, settings: Settings) -> None:
    pushed = await running.http.post("/adapters?tenant=acme", files=form("bard", 1))
    name = f"acme~bard@{pushed.json()['digest'][:12]}"
    assert name in running.simulator.loaded
    async with resolver_for(settings) as resolver:
        found = await given(resolver, name)
        assert found.lora_name == name
        assert Path(found.lora_path).name == pushed.json()["digest"]
        for asked in ("acme/bard@1", "acme~bard", f"globex~bard@{pushed.json()['digest'][:12]}", "acme~~bard@1"):
            assert await resolver.resolve_lora(BASE, asked) is None


async def test_what_is_not_published_is_not_found(running: Running, settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        asked = ("bard", "bard@2", "nobody@1", BASE, "bard@000000000000", "../bard@1", "bard@1/../..", "", "a" * 9999)
        assert [await resolver.resolve_lora(BASE, name) for name in asked] == [None] * len(asked)
    assert not settings.cache.exists()  # nothing is made before there is something to keep


async def test_a_deleted_version_is_not_found_though_its_bytes_are_cached(running: Running, settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        assert await resolver.resolve_lora(BASE, "bard@1") is not None
        assert (await running.http.delete("/adapters/bard")).status_code == 204
        assert await resolver.resolve_lora(BASE, "bard@1") is None


async def test_a_wrong_key_is_trouble_not_an_unknown_name(settings: Settings) -> None:
    async with resolver_for(replace(settings, key="a-key-of-somebody-else")) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503


async def test_an_artefact_tampered_with_in_the_store_is_refused(running: Running, settings: Settings) -> None:
    digest = (await running.http.get("/resolve/bard@1")).json()["digest"]
    weights = running.data / "artefacts" / digest / FILES[1]
    weights.chmod(0o644)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for mounted in (None, running.data / "artefacts"):
        async with resolver_for(replace(settings, store=mounted)) as resolver:
            with pytest.raises(HTTPException) as raised:
                await resolver.resolve_lora(BASE, "bard@1")
        assert raised.value.status_code == 502
        assert not (settings.cache / digest).exists()
    weights.write_bytes(whole)
    async with resolver_for(settings) as resolver:
        assert await resolver.resolve_lora(BASE, "bard@1") is not None


async def test_an_artefact_tampered_with_in_the_cache_is_fetched_anew(settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        home = await home_of(resolver, "bard@1")
    config = home / FILES[0]
    right = config.read_bytes()
    config.chmod(0o644)
    config.write_bytes(right.replace(b"LORA", b"IA3 "))
    async with resolver_for(settings) as resolver:
        assert await home_of(resolver, "bard@1") == home
    assert config.read_bytes() == right


async def test_a_file_too_many_in_the_cache_is_not_given_to_vllm(settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        home = await home_of(resolver, "bard@1")
    home.chmod(0o755)
    (home / "new_embeddings.safetensors").write_bytes(b"")
    async with resolver_for(settings) as resolver:
        assert await resolver.resolve_lora(BASE, "bard@1") is not None
    assert {path.name for path in home.iterdir()} == set(FILES)


async def test_after_a_restart_the_cache_is_used_and_the_gateway_still_asked(settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        home = await home_of(resolver, "bard@1")
    written = (home / FILES[1]).stat().st_ino
    async with resolver_for(settings) as resolver:
        assert await resolver.resolve_lora(BASE, "bard@1") is not None
    assert (home / FILES[1]).stat().st_ino == written
    async with resolver_for(replace(settings, url="http://127.0.0.1:9")) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503


async def test_a_mounted_store_is_copied_from(running: Running, settings: Settings) -> None:
    store = running.data / "artefacts"
    async with resolver_for(replace(settings, store=store)) as resolver:
        found = await given(resolver, "bard@1")
    assert Path(found.lora_path).parent == settings.cache
    async with resolver_for(replace(settings, store=running.data, cache=settings.cache.with_name("other"))) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503


async def test_a_symlink_in_the_mounted_store_is_not_followed(
    running: Running, settings: Settings, tmp_path: Path
) -> None:
    digest = (await running.http.get("/resolve/bard@1")).json()["digest"]
    mount = tmp_path / "mount"
    (mount / digest).mkdir(parents=True)
    for name in FILES:
        (mount / digest / name).symlink_to(running.data / "artefacts" / digest / name)
    async with resolver_for(replace(settings, store=mount)) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503


async def test_two_engines_do_not_share_a_cache(settings: Settings) -> None:
    async with resolver_for(settings) as one, resolver_for(settings) as other:
        assert await one.resolve_lora(BASE, "bard@1") is not None
        with pytest.raises(HTTPException, match="another engine"):
            await other.resolve_lora(BASE, "bard@1")


async def test_the_cache_is_bounded_and_spares_what_vllm_may_read(running: Running, settings: Settings) -> None:
    for seed in (1, 2):
        await running.http.post("/adapters", files=form("bard", seed=seed))
    size = sum((await running.http.get("/resolve/bard@1")).json()["bytes"].values())
    tight = replace(settings, cache_bytes=int(size * 2.5))
    async with resolver_for(tight) as resolver:
        homes = [await home_of(resolver, f"bard@{number}") for number in (1, 2)]
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@3")
        assert raised.value.status_code == 507
        assert all(home.is_dir() for home in homes)
    async with resolver_for(tight) as resolver:  # vLLM knows none of them any more: the longest unused one goes
        for home, when in zip(homes, (2, 1), strict=True):
            os.utime(home, (when, when))
        assert await resolver.resolve_lora(BASE, "bard@3") is not None
        assert [home.exists() for home in homes] == [True, False]


async def test_ten_who_ask_at_once_fetch_once_and_leaving_breaks_nothing(settings: Settings) -> None:
    async with resolver_for(settings) as resolver:
        waiting = [asyncio.create_task(given(resolver, "bard@1")) for _ in range(10)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        found = await asyncio.gather(*waiting[1:])
        assert len({one.lora_path for one in found}) == 1
        assert {path.name for path in Path(found[0].lora_path).iterdir()} == set(FILES)
        assert not list((settings.cache / ".staging").iterdir())


# ---- what is not the gateway ---------------------------------------------------------------------------------------

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
RIGHT: dict[str, Any] = {"engine_name": f"bard@{'a' * 12}", "digest": "a" * 64, "bytes": dict.fromkeys(FILES, 4)}


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def saying(told: object, status: int = 200) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=told if isinstance(told, bytes) else json.dumps(told).encode(), status=status)

    return answer


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (b"", 200),
        (b"<html>", 200),
        (b"[" * 5000, 200),
        (b"x" * 200_000, 200),
        ([], 200),
        (RIGHT | {"digest": "../../etc"}, 200),
        (RIGHT | {"engine_name": "bard@bbbbbbbbbbbb"}, 200),
        (RIGHT | {"engine_name": "../bard@aaaaaaaaaaaa"}, 200),
        (RIGHT | {"bytes": {FILES[0]: 4}}, 200),
        (RIGHT | {"bytes": dict.fromkeys(FILES, -1)}, 200),
        (RIGHT | {"bytes": dict.fromkeys(FILES, True)}, 200),
        (RIGHT | {"bytes": {**dict.fromkeys(FILES, 4), "evil.py": 4}}, 200),
        (RIGHT, 500),
        (RIGHT, 302),
        ({"detail": "Not Found"}, 404),  # a proxy's, not the gateway's
    ],
)
async def test_an_answer_that_cannot_be_right_is_trouble(cache: Path, told: object, status: int) -> None:
    async with answering(saying(told, status)) as url, resolver_for(Settings(url, cache)) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503
    assert not cache.exists()


async def test_a_gateway_that_is_slow_is_waited_for_a_stated_time(cache: Path) -> None:
    async def slowly(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with answering(slowly) as url, resolver_for(Settings(url, cache, ask_s=0.2)) as resolver:
        async with asyncio.timeout(5):
            with pytest.raises(HTTPException) as raised:
                await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 503


@pytest.mark.parametrize(("sent", "status"), [(b"xxxx", 502), (b"xxx", 502), (b"x" * 5_000_000, 502)])
async def test_other_bytes_more_and_fewer_than_promised_are_refused(cache: Path, sent: bytes, status: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=sent) if "/artefacts/" in request.path else web.json_response(RIGHT)

    async with answering(answer) as url, resolver_for(Settings(url, cache)) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == status
    assert {path.name for path in cache.iterdir()} == {".lock", ".staging"}
    assert not list((cache / ".staging").iterdir())


async def test_an_artefact_larger_than_allowed_is_not_begun(cache: Path) -> None:
    told = RIGHT | {"bytes": {FILES[0]: 4, FILES[1]: 1 << 40}}
    async with answering(saying(told)) as url, resolver_for(Settings(url, cache)) as resolver:
        with pytest.raises(HTTPException) as raised:
            await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 507


async def test_unknown_names_are_remembered_for_a_while_and_never_too_many(cache: Path) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({"error": {"code": "model_not_found"}}, status=404)

    async with answering(answer) as url, resolver_for(Settings(url, cache, forget_s=0.3)) as resolver:
        for _ in range(5):
            assert await resolver.resolve_lora(BASE, "nobody@1") is None
        assert asked == ["/resolve/nobody@1"]
        await asyncio.sleep(0.4)
        await resolver.resolve_lora(BASE, "nobody@1")
        assert len(asked) == 2
        for number in range(UNKNOWN_LIMIT + 10):
            resolver._remember_unknown(f"x@{number}")
        assert len(resolver._unknown) == UNKNOWN_LIMIT


async def test_an_engine_that_asks_for_signatures_serves_only_what_a_key_of_its_own_signed(
    open_gateway: OpenHouse, cache: Path, tmp_path: Path
) -> None:
    key, another = (signing_key(tmp_path / f"{name}.pem") for name in ("ours", "theirs"))
    async with open_gateway(signing_key=key) as running:
        assert (await running.http.post("/adapters", files=form("bard"))).status_code == 201
        async with on_a_port(running) as port:
            given = {
                "LORA_GATEWAY_URL": f"http://127.0.0.1:{port}",
                "LORA_GATEWAY_KEY": KEY,
                "LORA_GATEWAY_CACHE": str(cache),
            }
            both = ",".join(str(one.with_suffix(".pub")) for one in (another, key))
            async with resolver_for(Settings.read({**given, "LORA_GATEWAY_PUBLIC_KEYS": both})) as resolver:
                assert await resolver.resolve_lora(BASE, "bard@1") is not None
            theirs = {**given, "LORA_GATEWAY_PUBLIC_KEYS": str(another.with_suffix(".pub"))}
            async with resolver_for(Settings.read(theirs)) as resolver:
                with pytest.raises(HTTPException, match="no trusted key") as raised:  # though it is in the cache
                    await resolver.resolve_lora(BASE, "bard@1")
    assert raised.value.status_code == 502


async def test_an_unsigned_artefact_is_refused_by_an_engine_that_asks_for_signatures(
    running: Running, settings: Settings, tmp_path: Path
) -> None:
    public = signing_key(tmp_path / "key.pem").with_suffix(".pub")
    async with resolver_for(replace(settings, public_keys=read_keys([public]))) as resolver:
        with pytest.raises(HTTPException, match="no signed statement"):
            await resolver.resolve_lora(BASE, "bard@1")
    assert not settings.cache.exists()


def _signed_for(key: Path, one: Artefact) -> dict[str, Any] | None:
    return statement_in(Signatures(Signer.read(key)).signed(one.manifest))


def test_a_statement_counts_for_its_own_artefact_only(tmp_path: Path) -> None:
    key = signing_key(tmp_path / "key.pem")
    keys, one, other = read_keys([key.with_suffix(".pub")]), made(1), made(2)
    right = _signed_for(key, one)
    assert objection(right, one.digest.hex, keys) is None
    assert "something else" in str(objection(right, other.digest.hex, keys))
    version = Signer.read(key).sign(Statement({}, {}).encode(), PAYLOAD_TYPE)
    assert "something else" in str(objection(version, one.digest.hex, keys))
    oddities: list[object] = [{}, [], "x", 1, {"payload": "!", "payloadType": "", "signatures": []}]
    oddities.append({"payload": "", "payloadType": "\ud800", "signatures": [{"sig": ""}]})
    for odd in (*oddities, {**(right or {}), "signatures": [1]}):
        assert objection(odd, one.digest.hex, keys) is not None
    assert "no trusted key" in str(objection({**(right or {}), "signatures": []}, one.digest.hex, keys))


def test_a_public_key_that_is_none_stops_the_engine_at_its_start(tmp_path: Path) -> None:
    given = {"LORA_GATEWAY_URL": "http://g", "LORA_GATEWAY_CACHE": "/cache"}
    with pytest.raises(ValueError, match=r"PUBLIC_KEYS: .*No such file"):
        Settings.read({**given, "LORA_GATEWAY_PUBLIC_KEYS": str(tmp_path / "missing.pub")})
    private = signing_key(tmp_path / "key.pem")
    with pytest.raises(ValueError, match=r"PUBLIC_KEYS: .*no public key"):
        Settings.read({**given, "LORA_GATEWAY_PUBLIC_KEYS": str(private)})


@pytest.mark.parametrize("asked", ["judge@1", "bard@000000000000", "acme~bard@1"])
async def test_an_answer_about_another_artefact_than_was_asked_for_is_not_taken(
    running: Running, settings: Settings, asked: str
) -> None:
    told = (await running.http.get("/resolve/bard@1")).json()

    async def lie(_: web.Request) -> web.Response:
        return web.json_response(told)

    async with answering(lie) as url, resolver_for(replace(settings, url=url)) as resolver:
        with pytest.raises(HTTPException, match="cannot be read: it is about"):
            await resolver.resolve_lora(BASE, asked)
