"""Pages for operators: engines, the last audit, settings in force."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from app.server.settings import Settings
from app.server.settings.in_force import settings_in_force
from tests.support.gateway import KEY, SERVED, OpenHouse, Running, form
from tests.support.waiting import STUCK_S

TAG = re.compile(r"<[^>]*>|\s+")


async def words_of(running: Running, path: str) -> str:
    answer = await running.http.get(path)
    assert answer.status_code == 200, answer.text
    return re.sub(" +", " ", TAG.sub(" ", answer.text))


async def until_it_says(running: Running, path: str, text: str) -> str:
    async with asyncio.timeout(STUCK_S):
        while text not in (page := await words_of(running, path)):
            await asyncio.sleep(0.02)
    return page


async def test_the_engines_page_follows_what_the_engine_does(running: Running) -> None:
    page = await words_of(running, "/console/engines")
    assert "There is nothing to load yet." in page
    assert "none since the start" in page
    first = (await running.http.post("/adapters", files=form("style"))).json()
    (name,) = running.simulator.loaded
    page = await words_of(running, "/console/engines")
    assert "1 answers" in page
    assert f"style v1 {name} every engine 0" in page
    body = {"model": first["model"], "messages": [{"role": "user", "content": "hello"}]}
    assert "not since the start" in page
    assert (await running.http.post("/adapters?tenant=acme", files=form("style", seed=5))).status_code == 201
    links = re.findall('href="(/console/adapters/[^"]*)"', (await running.http.get("/console/engines")).text)
    assert sorted(links) == ["/console/adapters/style?version=1", "/console/adapters/style?version=1&amp;tenant=acme"]
    for link in links:
        assert "style v1" in await words_of(running, link.replace("&amp;", "&"))
    assert (await running.http.delete("/adapters/style?tenant=acme")).status_code == 204
    assert (await running.http.post("/v1/chat/completions", json=body)).status_code == 200
    assert "not since the start" not in await words_of(running, "/console/engines")

    running.simulator.faults["load"] = "500"
    refused = await running.http.post("/adapters", files=form("style", seed=1))
    assert refused.status_code == 502, refused.text
    page = await words_of(running, "/console/engines")
    assert "just now style@" in page, "the last error, and when"
    del running.simulator.faults["load"]
    await running.simulator.stop()
    page = await until_it_says(running, "/console/engines", "starting or away")
    assert "no engine" in page
    await running.simulator.start()
    await until_it_says(running, "/console/engines", "1 answers")


async def test_the_last_audit_says_what_was_looked_at_and_what_was_found(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.gateway.audit_job.PATIENCE_S", 0.01)
    made = (await running.http.post("/adapters", files=form("style"))).json()
    assert "No audit has ended since the start." in await words_of(running, "/console/audit")
    assert "every 1 h." in await words_of(running, "/console/audit")
    await asyncio.to_thread(running.gateway.auditor.look)
    page = await words_of(running, "/console/audit")
    assert "nothing broken" in page
    assert "versions 1" in page
    assert "Not looked at" in page
    weights = running.data / "artefacts" / made["digest"] / "adapter_model.safetensors"
    mode = weights.stat().st_mode
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    weights.chmod(mode)
    await asyncio.to_thread(running.gateway.auditor.look)
    page = await words_of(running, "/console/audit")
    assert re.search("[1-9] broken", page)
    assert "I2 every acknowledged version is stored, intact style@1" in page


async def test_without_audits_the_page_says_so(open_gateway: OpenHouse) -> None:
    async with open_gateway(audit_seconds=0) as running:
        assert "It does so never" in await words_of(running, "/console/audit")


def test_settings_in_force_hold_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ops admin sha256:{'0' * 64}\n")
    given: dict[str, Any] = {
        "model": "m",
        "reference": tmp_path,
        "api_keys": "a-secret-of-the-operator,another-secret-of-theirs",
        "api_keys_file": file,
        "engine_url": "http://engine:8000",
        "engine_api_key": "secret-key-of-engine",
        "catalogue_url": "postgresql://gateway:secret-of-catalogue@db/gateway?password=secret-again",
        "store_url": "s3://key:secret-of-store@bucket/prefix",
        "otlp_endpoint": "https://user:secret-of-collector@collector:4318",
        "tau": 1.5,
    }
    settings = Settings(**given)
    shown = settings_in_force(settings)
    assert [one.name for one in shown] == [f"GATEWAY_{name.upper()}" for name in Settings.model_fields]
    assert "secret" not in "".join(one.value for one in shown)
    values = {one.name: one.value for one in shown}
    assert values["GATEWAY_CATALOGUE_URL"] == "postgresql://…db/gateway…"
    assert values["GATEWAY_ENGINE_URL"] == "http://engine:8000"
    assert values["GATEWAY_API_KEYS"] == values["GATEWAY_ENGINE_API_KEY"] == "set, not shown"
    assert values["GATEWAY_API_KEYS_FILE"] == str(file)
    assert (values["GATEWAY_TAU"], values["GATEWAY_ACTION"]) == ("1.5", "project")
    assert {one.name.removeprefix("GATEWAY_").lower() for one in shown if not one.is_default} == given.keys()


async def test_the_settings_page_shows_them_and_no_key(running: Running) -> None:
    page = await words_of(running, "/console/settings")
    assert KEY not in page
    assert f"GATEWAY_MODEL {SERVED} no" in page
    assert "GATEWAY_PORT 8080 yes" in page
    assert page.index("GATEWAY_TAU") < page.index("GATEWAY_PORT"), "what was set comes first"
