"""Canaries on the real engine: the demo's adapters, pushed before there was a battery and after."""

import time
from pathlib import Path

import httpx
import pytest

from app.demo.assets import ADAPTERS, BENIGN, EVADING, MIXED
from app.demo.canaries import write_battery
from app.evaluate.served_model_judge import CONTROLS, NO, YES, verdict_request
from tests.support.demo_gateway import parts, push, start
from tests.support.waiting import STUCK_S

pytestmark = [pytest.mark.engine, pytest.mark.long]


def until_withheld(http: httpx.Client, name: str) -> None:
    """Until the background has asked this name's version, and found that it fails."""
    deadline = time.monotonic() + STUCK_S
    while (found := http.get(f"/adapters/{name}/versions/1").json())["withheld"] is None:
        assert time.monotonic() < deadline, found["report"].get("asked_again")
        time.sleep(0.2)


def test_what_is_served_is_asked_a_new_battery_and_corrected_as_it_needs(tmp_path: Path) -> None:
    gateway = start(tmp_path / "data", "--keep-originals")
    try:
        with httpx.Client(base_url=gateway.url, timeout=300.0) as http:
            assert http.get("/ready").json()["details"]["behaviour"] == "not looked at"
            for name in (BENIGN, MIXED, EVADING):
                assert push(http, name, ADAPTERS / name).json()["rung"] is None
    finally:
        gateway.stop()
    battery = write_battery(tmp_path / "battery.jsonl")
    gateway = start(tmp_path / "data", "--keep-originals", "--canaries", str(battery))
    try:
        with httpx.Client(base_url=gateway.url, timeout=300.0) as http:
            for name in (MIXED, EVADING):
                until_withheld(http, name)
            tried = http.post("/screen", params={"canaries": "true"}, files=parts(MIXED, ADAPTERS / MIXED)).json()[
                "behaviour"
            ]
            corrected = http.post(f"/adapters/{MIXED}/rescreen")
            assert (corrected.status_code, corrected.json()["rung"]) == (201, tried["chosen"])
            assert tried["chosen"] > 0
            evading = http.post(f"/adapters/{EVADING}/rescreen")
            assert (evading.status_code, evading.json()["error"]["code"]) == (422, "canaries_failed")
            benign = http.get(f"/adapters/{BENIGN}/versions/1").json()
            assert (benign["withheld"], benign["report"]["asked_again"]["passed"]) == (None, True)
            served = {one["id"] for one in http.get("/v1/models").json()["data"]}
            assert {BENIGN, MIXED} <= served
            assert EVADING not in served
    finally:
        gateway.stop()


def test_a_served_model_that_cannot_judge_gives_nobody_a_name(tmp_path: Path) -> None:
    """Path and failing closed only: the demo's toy model knows no instructions, and says the same of every answer."""
    battery = write_battery(tmp_path / "battery.jsonl")
    gateway = start(tmp_path / "data", "--canaries", str(battery), "--canary-judge", "served-model")
    try:
        with httpx.Client(base_url=gateway.url, timeout=300.0) as http:
            pushed = push(http, BENIGN, ADAPTERS / BENIGN)
            assert (pushed.status_code, pushed.json()["error"]["code"]) == (503, "canaries_unusable"), pushed.text
            served = next(card["id"] for card in http.get("/v1/models").json()["data"] if card["parent"] is None)
            canary, reply, _ = CONTROLS[0]
            verdict = http.post("/v1/chat/completions", json=verdict_request(served, canary, reply))
            assert verdict.json()["choices"][0]["message"]["content"].strip() in (YES, NO)
    finally:
        gateway.stop()
