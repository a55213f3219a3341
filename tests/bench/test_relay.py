"""The relay benchmark's instruments: a stand-in exact in time, a load that counts, rows that subtract the direct line."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from app.bench.relay.processes import cpu_seconds, family, resident_mib
from app.bench.relay.report import result_json, tables
from app.bench.relay.run import GAP_S, Seen, _row, measure, percentile
from app.bench.relay.targets import MODEL, Missing, Target, _find, stand_in


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with stand_in(tmp_path_factory.mktemp("bench"), GAP_S) as made:
        yield made


def test_the_stand_in_answers_as_the_model_it_was_asked_and_in_time(direct: Target) -> None:
    body = {"model": "any", "messages": [], "max_tokens": 3}
    answer = httpx.post(f"{direct.url}/v1/chat/completions", json=body)
    assert answer.json()["model"] == "any"
    assert answer.elapsed.total_seconds() >= 2 * GAP_S
    stream = httpx.post(f"{direct.url}/v1/chat/completions", json={**body, "stream": True}).text.split("\n\n")
    assert stream[-2:] == ["data: [DONE]", ""]
    times = [int(json.loads(event[6:])["choices"][0]["delta"]["content"]) for event in stream[:-2]]
    gaps = [(later - earlier) / 1e9 for earlier, later in pairwise(times)]
    assert len(gaps) == 2
    assert sum(gaps) >= 2 * GAP_S * 0.95


@pytest.mark.parametrize("mode", ["flat out", "whole", "stream"])
def test_a_load_counts_what_it_got(direct: Target, mode: str) -> None:
    seen = measure(direct, mode, 4, 0.5)
    assert (seen.errors, seen.said) == (0, "")
    assert seen.requests >= 4
    assert len(seen.request) == seen.requests
    assert len(seen.under_way) == (seen.requests * 21 if mode == "stream" else 0)
    assert min(seen.request) > -GAP_S


def test_a_load_counts_refusals_as_errors(direct: Target) -> None:
    """The stand-in breaks the line of whoever sends what is not HTTP; here: a header that is none."""
    seen = measure(Target("t", direct.url, direct.pid, MODEL, ""), "whole", 1, 0.2)
    assert seen.errors == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.bench.relay.run.KEY", "\r\nbroken\x00")
        broken = measure(Target("t", direct.url, direct.pid, MODEL, ""), "whole", 1, 0.2)
    assert (broken.requests, broken.errors) == (0, 1)


def made(request: list[float], under_way: list[float], cpu_s: float = 0.5) -> Seen:
    return Seen(10, 0, "", 20.0, 10.0, cpu_s, 10.0, 12.0, request, request, under_way)


def test_a_row_is_the_target_less_the_direct_line_of_the_same_round() -> None:
    seen = {
        ("direct", 2, "stream"): [made([0.001] * 9, [0.001] * 9), made([0.5] * 9, [0.5] * 9)],
        ("t", 2, "stream"): [made([0.003] * 9, [0.002] * 9), made([0.502] * 9, [0.501] * 9)],
    }
    row = _row(seen, "t", 2, streaming=True)
    assert row.added_p50_ms == pytest.approx(2.0)
    assert row.chunk_p99_ms == pytest.approx(1.0)
    assert row.requests_per_core_s == 20
    assert row.stream_kb == 1024
    assert row.flat_out_per_s is None


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(100), 0.99) == 99


def test_the_use_of_a_process_is_told(direct: Target) -> None:
    assert family(direct.pid) == [direct.pid]
    assert resident_mib(direct.pid) > 5
    assert cpu_seconds(direct.pid) > 0


def test_a_peer_that_is_not_there_is_said_to_be_missing() -> None:
    with pytest.raises(Missing, match="not installed"):
        _find("a-proxy-nobody-has", "nowhere")


def test_tables_and_json_hold_every_row(tmp_path: Path) -> None:
    from rich.console import Console

    from app.bench.relay.run import Result
    from app.bench.screening.machine import Machine

    seen = {
        (name, 1, mode): [made([0.1], [0.1])] for name in ("direct", "t") for mode in ("whole", "stream", "flat out")
    }
    rows = tuple(_row(seen, "t", 1, streaming=streaming) for streaming in (False, True))
    result = Result(Machine("a cpu", 2, 1.0), 0.1, rows, {"other": "not installed"}, {"t": "1"})
    said = json.loads(json.dumps(result_json(result)))
    assert [(row["target"], row["concurrency"], row["streaming"]) for row in said["rows"]] == [
        ("t", 1, False),
        ("t", 1, True),
    ]
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables(result))
    console.file.close()
    assert "other skipped: not installed" in (tmp_path / "out").read_text()
