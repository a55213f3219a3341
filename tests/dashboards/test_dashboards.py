"""Every query of every dashboard, asked of a real Prometheus that has watched a real gateway through a scripted burst.

The engine is the simulator; its own metrics are those recorded from vLLM (tests/support/vllm_metrics.py).
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI

from app.observe.metrics import Metrics
from tests.dashboards.picture import draw
from tests.support.gateway import KEY, SERVED, OpenHouse, form
from tests.support.prometheus import ROOT, RULES, Prometheus, Promtool, free_port
from tests.support.prometheus import start as start_prometheus
from tests.support.waiting import STUCK_S

GRAFANA = ROOT / "docker" / "grafana"
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
SUBSTITUTES = {
    "$__rate_interval": "2m",
    "$__range": "5m",
    "$job": ".*",
    "$adapter": ".*",
    "$model_name": ".*",
    "$comparison": "input",
}


ENDS = {"histogram": ("_bucket", "_sum", "_count")}


def board(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def queries() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(which panel, its kind, the target) of every query there is."""
    for path in BOARDS:
        for panel in board(path)["panels"]:
            for target in panel.get("targets", ()):
                yield f"{path.stem}: {panel['title']} {target['refId']}", panel["type"], target


def substituted(expr: str) -> str:
    for name, value in SUBSTITUTES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def test_the_dashboards_are_what_their_generator_writes() -> None:
    done = subprocess.run([sys.executable, GRAFANA / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run: python docker/grafana/generate.py\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_grafana_can_read_it(path: Path) -> None:
    """What Grafana trips over without a word: ids and places twice, data sources and variables that do not exist."""
    found = board(path)
    assert found["schemaVersion"] == 39
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    names = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(found))) - {"__rate_interval", "__range", "__all"}
    assert used <= names
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels if panel["type"] != "row")
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_dashboards_and_rules_ask_only_for_what_is_exported() -> None:
    declared = {f"{one.name}{end}" for one in Metrics().registry.declared for end in ENDS.get(one.kind, ("",))}
    recorded = set(re.findall(r"record: (\S+)", (RULES / "recording.yml").read_text()))
    texts = [target["expr"] for _, _, target in queries()] + [file.read_text() for file in sorted(RULES.glob("*.yml"))]
    asked = {name for text in texts for name in re.findall(r"(?<![\w:])(?:\w+:)?gateway_\w+(?::\w+)*", text)}
    prose = {"gateway_rejected_total", "gateway_request_errors_total"}  # in descriptions of alerts
    assert asked - prose <= declared | recorded | {"gateway_build_info"}
    assert prose <= declared


def test_provisioning_points_to_what_compose_mounts() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/gateway.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert len({board(path)["uid"] for path in BOARDS}) == len(BOARDS) == 3


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The application on a port of loopback; its lifespan is somebody else's."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def watched(folder: Path, gateway: str) -> AsyncIterator[Prometheus]:
    """docker/prometheus over this gateway, with a key file, a scrape a second."""
    await asyncio.to_thread(folder.mkdir)
    changed = {"gateway:8080": gateway, "scrape_interval: 15s": "scrape_interval: 1s"}
    changed |= {
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    }
    file = Promtool.configuration(folder, **changed)
    (folder / "metrics_key").write_text(KEY)
    running = start_prometheus(file)
    prometheus = await asyncio.to_thread(next, running)
    try:
        yield prometheus
    finally:
        await asyncio.to_thread(next, running, None)


async def roll_out(http: httpx.AsyncClient) -> None:
    """A roll-out with a shadow, of versions that screening lets pass."""
    served: list[int] = []
    for seed in range(100, 120):
        answer = await http.post("/adapters", files=form("rolled", seed=seed))
        served += [answer.json()["version"]] if answer.status_code == 201 else []
        if len(served) == 2:
            break
    first, second = served
    weights = {str(first): 50, str(second): 50, "shadow": second}
    assert (await http.put("/adapters/rolled/traffic", json=weights)).status_code == 200


async def burst(http: httpx.AsyncClient, simulator: Any, round_: int) -> None:
    """Uploads that are clean, pruned, rejected and broken; chats that stream, do not, and fail."""
    for seed in range(3):
        await http.post("/adapters", files=form(f"adapter-{round_}-{seed}", seed=10 * round_ + seed))
    broken = form("broken")
    broken["config"] = ("adapter_config.json", b"{")
    assert (await http.post("/adapters", files=broken)).status_code == 400
    assert (await http.post("/screen")).status_code == 429
    names = [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]]
    assert len(names) > 1, "the burst's uploads are all refused"
    for stream in (True, False):
        for model in names:
            body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "x"}]}
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    # of one adapter in every round: a rate needs two scrapes of one series
    body = {"model": names[1], "messages": [{"role": "user", "content": "x"}], "stream": True}
    simulator.faults["chat"] = "slow"  # tokens that come one by one
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            if answer.num_bytes_downloaded > 2000:
                break
    simulator.faults["chat"] = "error"
    await http.post("/v1/chat/completions", json=body)
    simulator.faults.clear()


def looks_like_data(series: list[dict[str, Any]], kind: str) -> bool:
    """A heat map must have a filled cell; all else a number."""
    values = [pair[1] for one in series for pair in one.get("values", [one.get("value")])]
    numbers = [float(value) for value in values if value != "NaN"]
    return any(number > 0 for number in numbers) if kind == "heatmap" else bool(numbers)


def ask(prometheus: Prometheus, target: dict[str, Any], began: float, ended: float) -> list[dict[str, Any]]:
    """As of the burst's end, however long ago that is: a busy machine must not make a window run out."""
    if target["instant"]:
        found = prometheus.get("query", query=substituted(target["expr"]), time=ended)
    else:
        found = prometheus.get("query_range", query=substituted(target["expr"]), start=began, end=ended, step=1)
    return list(found["result"])


async def scraped(prometheus: Prometheus, after: float) -> float:
    """Wait until both jobs were scraped, and rules evaluated, after this time. Returns when that was."""
    seen = "min(timestamp(up{job=~'gateway|engine'} == 1) or timestamp(job:gateway_uploads:increase15m))"
    deadline = time.monotonic() + STUCK_S
    while time.monotonic() < deadline:
        found = (await asyncio.to_thread(prometheus.get, "query", query=seen))["result"]
        if found and float(found[0]["value"][1]) > after:
            return time.time()
        await asyncio.sleep(0.5)
    raise AssertionError("Prometheus does not scrape")


PICTURED = ("Uploads by outcome", "Modules by decision over time")


def draw_panels(prometheus: Prometheus, began: float, ended: float, path: Path) -> None:
    """The panels that docs/operating.md shows."""
    panels = {panel["title"]: panel for one in BOARDS for panel in board(one)["panels"]}
    draw({title: ask(prometheus, panels[title]["targets"][0], began, ended) for title in PICTURED}, path)


@pytest.mark.slow
async def test_every_panel_has_data_after_a_burst(open_gateway: OpenHouse, tmp_path: Path, promtool: Promtool) -> None:
    policy = {
        "tau": -0.3,
        "max_pruned_share": 0.7,
        "max_uploads": 4,
        "audit_seconds": 1,
        "webhook_targets": "http://127.0.0.1:9",
        "webhook_secret": "0123456789abcdef" * 2,
    }  # random adapters: some clean, some cut, some refused
    async with (
        open_gateway(**policy) as running,
        listening(running.app) as address,
        watched(tmp_path / "prometheus", address) as prometheus,
    ):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=f"http://{address}", headers=headers, timeout=60) as http:
            await http.put("/tenants/default/limits", json={"screenings_per_day": 0})
            await http.post("/tenants/default/webhooks", json={"url": "http://127.0.0.1:9/"})  # nobody is there
            await roll_out(http)
            began = await scraped(prometheus, 0)  # counters must be seen before they move
            for round_ in range(3):
                await burst(http, running.simulator, round_)
                await scraped(prometheus, time.time())
            ended = await scraped(prometheus, time.time() + 1)
        empty = {}
        for where, kind, target in queries():
            found = await asyncio.to_thread(ask, prometheus, target, began, ended)
            if not looks_like_data(found, kind):
                empty[where] = substituted(target["expr"])
        assert not empty, json.dumps(empty, indent=1)
        if picture := os.environ.get("PANEL_PICTURE"):
            await asyncio.to_thread(draw_panels, prometheus, began, ended, Path(picture))
        outcomes = await asyncio.to_thread(prometheus.get, "query", query="gateway_uploads_total > 0")
        assert {one["metric"]["outcome"] for one in outcomes["result"]} >= {"pruned", "rejected"}
        await _the_key_is_needed_and_alerts_are_loaded(prometheus)


async def _the_key_is_needed_and_alerts_are_loaded(prometheus: Prometheus) -> None:
    targets = (await asyncio.to_thread(prometheus.get, "targets"))["activeTargets"]
    health = {target["labels"]["job"]: target["health"] for target in targets}
    assert health["gateway"] == health["engine"] == "up"
    groups = (await asyncio.to_thread(prometheus.get, "rules"))["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    dropped = await asyncio.to_thread(prometheus.get, "query", query="vllm:lora_requests_info")
    assert dropped["result"] == []


def test_the_served_models_name_is_in_the_engines_metrics() -> None:
    from tests.support.vllm_metrics import exposition

    assert f'model_name="{SERVED}"' in exposition(1, SERVED)
