"""The soak's own judgement: what it would call an error, and that a short one runs clean."""

import json

import httpx
import pytest
from typer.testing import CliRunner

from app.bench.engine.soak import Options, SoakResult, judge
from app.cli.bench import bench

CHUNK = 'data: {"model":"first","choices":[]}\n\n'


def answer(text: str, status: int = 200, version: int = 3) -> httpx.Response:
    return httpx.Response(status, text=text, headers={"x-adapter-version": str(version)})


@pytest.mark.parametrize(
    ("given", "stream"),
    [
        (answer('{"model":"first"}'), False),
        (answer(CHUNK + CHUNK + "data: [DONE]\n\n"), True),
        (answer(CHUNK + "data: [DONE]\n\n", version=4), True),
    ],
)
def test_a_good_answer(given: httpx.Response, stream: bool) -> None:
    assert judge(given, "first", 3, stream=stream) is None


@pytest.mark.parametrize(
    ("given", "stream", "said"),
    [
        (answer("no", status=503), False, "503 no"),
        (answer('{"model":"first"}', version=2), False, "version 2 answered after 3"),
        (answer('{"model":"second"}'), False, "answered as"),
        (answer(CHUNK), True, "the stream ended with"),
        (answer("data: [DONE]\n\n"), True, "the stream ended with"),
        (answer(CHUNK + "data: [DONE]\n\n" + CHUNK), True, "the stream ended with"),
    ],
)
def test_a_bad_one(given: httpx.Response, stream: bool, said: str) -> None:
    wrong = judge(given, "first", 3, stream=stream)
    assert wrong is not None
    assert said in wrong


def test_an_error_in_mid_stream_is_one() -> None:
    sent = CHUNK + 'data: {"error":{"message":"x"}}\n\ndata: [DONE]\n\n'
    with pytest.raises(KeyError):  # counted by its kind, as whatever else cannot be read
        judge(answer(sent), "first", 3, stream=True)


def test_memory_is_first_looked_at_when_warm() -> None:
    soaked = SoakResult(Options(minutes=1), memory_mib=[(0.0, 10.0), (5.0, 20.0), (6.0, 30.0), (60.0, 31.0)])
    assert soaked.start_mib == 30.0


@pytest.mark.slow
def test_a_short_soak_replaces_versions_under_load_without_an_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("soak") / "soak.json"
    done = CliRunner().invoke(bench, ["soak", "--minutes", "0.15", "--every", "2", "--rate", "10", "--json", str(file)])
    assert done.exit_code == 0, done.output
    said = json.loads(file.read_text())
    assert said["errors"] == {}
    assert said["requests"] == 90
    assert said["versions_replaced"] >= 1  # the number depends on the machine
    assert 0 < said["memory_end_mib"] < 2 * said["memory_start_mib"]
