"""One line for each stage, and nothing in any line that is not the operator's to see."""

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.printable import printable
from app.observe.log import LOGGER, SERVER, JsonLines, Logfmt, configure, event
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.simulated_chunks import TOKENS

SECRET_PROMPT = "xyzzy-do-not-log-this-prompt"
WRONG_KEY = "wrong-key-that-is-somebodys-password"


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """All that is logged, at the most talkative level, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root, logger = logging.getLogger(), logging.getLogger(LOGGER)
    before = root.level, logger.level, logger.propagate
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logger.setLevel(logging.DEBUG)
    logger.propagate = True
    yield stream
    root.removeHandler(handler)
    root.setLevel(before[0])
    logger.setLevel(before[1])
    logger.propagate = before[2]


def stages(said: io.StringIO) -> list[dict[str, object]]:
    return [line for line in map(json.loads, said.getvalue().splitlines()) if line["event"] == "stage"]


async def chat(running: Running, model: str, **more: object) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": SECRET_PROMPT}], "user": SECRET_PROMPT, **more}
    return (await running.http.post("/v1/chat/completions", json=body)).status_code


async def test_each_stage_of_an_adapters_life_has_one_line(running: Running, said: io.StringIO) -> None:
    version = (await running.http.post("/adapters", files=form("first"))).json()
    assert await chat(running, "first") == 200
    lines = stages(said)
    assert [line["stage"] for line in lines] == ["upload", "validate", "screen", "prune", "store", "load", "serve"]
    assert {line["adapter"] for line in lines} == {"first"}
    assert {line["outcome"] for line in lines} == {"ok", "200"}
    assert all(isinstance(line["seconds"], float) and line["seconds"] >= 0 for line in lines)
    by_stage = {str(line["stage"]): line for line in lines}
    assert {by_stage[stage]["version"] for stage in ("validate", "screen", "prune", "store", "load", "serve")} == {1}
    assert {by_stage[stage]["digest"] for stage in ("store", "load", "serve")} == {version["digest"]}
    assert len({by_stage[stage]["received"] for stage in ("upload", "validate", "screen", "prune", "store")}) == 1


async def test_a_stage_that_refuses_says_with_which_code(open_gateway: OpenHouse, said: io.StringIO) -> None:
    bad = form("second")
    bad["config"] = ("adapter_config.json", b"{")
    async with open_gateway(tau=-1e6, max_pruned_share=0.1) as running:
        await running.http.post("/adapters", files=bad)
        await running.http.post("/adapters", files={"name": (None, b"third")})
        await running.http.post("/adapters", files=form("fourth"))
    outcomes = {(line["stage"], line["outcome"]) for line in stages(said)}
    assert {("validate", "bad_config"), ("upload", "missing_part")} <= outcomes
    refused = [json.loads(line) for line in said.getvalue().splitlines() if '"refused"' in line]
    assert {line["code"] for line in refused} == {"bad_config", "missing_part", "rejected"}


async def test_no_prompt_answer_or_key_is_logged(running: Running, said: io.StringIO) -> None:
    sent = form("first")
    await running.http.post("/adapters", files=sent)
    for stream in (True, False):
        await chat(running, "first", stream=stream)
        await chat(running, "missing", stream=stream)
        await chat(running, "first", stream=stream, temperature=1e9)
    for fault in ("400", "error", "malformed", "nan", "half", "dead-core"):
        running.simulator.faults["chat"] = fault
        await chat(running, "first", stream=fault not in ("400", "dead-core"))
    running.simulator.faults.clear()
    await running.http.post("/v1/chat/completions", content=b'{"model": "' + SECRET_PROMPT.encode())
    await running.http.get("/adapters", headers={"Authorization": f"Bearer {WRONG_KEY}"})
    await running.http.get("/metrics")
    text = said.getvalue()
    assert text.count('"event": "stage"') > 10
    for secret in (KEY, WRONG_KEY, SECRET_PROMPT, "Bearer", "words of first"):
        assert secret not in text, secret


@pytest.mark.ruling("N04", "O07")
def test_a_line_stays_one_line_whatever_is_in_it(said: io.StringIO) -> None:
    event("refused", message="two\nlines \x1b[31m and a colour", path=None)
    (line,) = said.getvalue().splitlines()
    assert json.loads(line)["message"] == "two\nlines \x1b[31m and a colour"
    record = logging.LogRecord(LOGGER, logging.INFO, "", 0, "refused", None, None)
    record.fields = {"message": "two\nlines \x1b[31m"}
    assert "\n" not in Logfmt().format(record)
    assert "\x1b" not in Logfmt().format(record)


def logfmt(line: str) -> dict[str, str]:
    """Fields of a line, by the grammar that Loki and Go's logfmt share."""
    pairs = re.findall(r'(?:^| )([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)', line)
    assert " ".join(f"{key}={value}" for key, value in pairs) == line
    return {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}


def record(name: str, message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "", 0, message, None, None)
    if fields:
        made.fields = fields
    return made


@given(
    st.dictionaries(
        st.sampled_from(["why", "path", "adapter"]), st.text(st.characters(categories=["L", "N", "P", "Zs"]))
    )
)
def test_a_line_of_logfmt_can_be_parsed(fields: dict[str, str]) -> None:
    found = logfmt(Logfmt().format(record(LOGGER, "refused", **{"n": 1, **fields})))
    assert (found["level"], found["event"], found["n"]) == ("warning", "refused", "1")
    assert {key: found[key] for key in fields} == {key: printable(value) for key, value in fields.items()}


def test_a_line_says_when_with_date_and_zone() -> None:
    for line in (logfmt(Logfmt().format(record(LOGGER, "a"))), json.loads(JsonLines().format(record(LOGGER, "a")))):
        at = datetime.fromisoformat(line["time"])
        assert abs((datetime.now(UTC) - at).total_seconds()) < 60


def test_what_the_server_says_has_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(name) for name in (LOGGER, SERVER)]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    try:
        configure("console", "info")
        logging.getLogger("uvicorn.error").error("[Errno 98] in use")
        event("screened", adapter="a b")
        server, ours = map(logfmt, capsys.readouterr().err.splitlines())
    finally:
        for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
            one.handlers[:], one.propagate = handlers, propagate
            one.setLevel(level)
    assert (server["event"], server["level"], server["message"]) == ("server", "error", "[Errno 98] in use")
    assert (ours["event"], ours["adapter"]) == ("screened", "a b")


async def test_what_a_request_causes_names_its_key_and_its_id(running: Running, said: io.StringIO) -> None:
    await running.http.post("/adapters", files=form("first"), headers={"x-request-id": "mine-1"})
    await chat(running, "first")
    await running.http.delete("/adapters/first", headers={"x-request-id": "mine-2"})
    lines = [json.loads(line) for line in said.getvalue().splitlines()]
    caused = [line for line in lines if line.get("request", "").startswith("mine")]
    assert {line["request"] for line in caused} == {"mine-1", "mine-2"}
    assert all(line["key"] for line in caused), caused
    (served,) = [line for line in stages(said) if line["stage"] == "serve"]
    assert served["key"]
    assert (served["prompt_tokens"], served["completion_tokens"]) == (3, TOKENS)


async def test_requests_are_logged_unless_told_otherwise(open_gateway: OpenHouse, said: io.StringIO) -> None:
    async with open_gateway(log_requests=False) as running:
        await running.http.post("/adapters", files=form("first"))
        assert await chat(running, "first") == 200
        metrics = (await running.http.get("/metrics")).text
    assert {line["stage"] for line in stages(said)} >= {"upload", "load"}
    assert "serve" not in {line["stage"] for line in stages(said)}
    assert 'gateway_requests_total{adapter="first",status="200"} 1.0' in metrics
