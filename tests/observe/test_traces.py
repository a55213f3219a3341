"""Traces reach a collector over HTTP, with whose they are and without a word of what was said; else nothing happens."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.support.gateway import KEY, SERVED, OpenHouse, form

SECRET_PROMPT = "what nobody but the engine is to read"


@dataclass
class Collector:
    """A collector on the loopback. bodies: what it was sent, in OTLP's protobuf form."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[dict[str, Any]]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                assert ("service.name", "lora-gateway") in [
                    (a.key, a.value.string_value) for a in resource.resource.attributes
                ]
                for span in (span for scope in resource.scope_spans for span in scope.spans):
                    values = {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
                    found.append(
                        {
                            "name": span.name,
                            "trace": span.trace_id,
                            "id": span.span_id,
                            "parent": span.parent_span_id,
                            "seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                            "failed": span.status.code == 2,
                            **values,
                        }
                    )
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")  # the extra `otel`; vLLM brings it
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            made.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()
        thread.join()


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SECRET_PROMPT}], **more}


async def test_an_upload_and_a_chat_are_each_one_trace(open_gateway: OpenHouse, collector: Collector) -> None:
    async with open_gateway(otlp_endpoint=collector.url) as running:
        sent = await running.http.post("/adapters", files=form("style"), headers={"x-request-id": "upload-1"})
        version = sent.json()
        for request, more in (("chat-1", {}), ("chat-2", {"stream": True})):
            path, headers = "/v1/chat/completions", {"x-request-id": request}
            answer = await running.http.post(path, json=chat("style", **more), headers=headers)
            assert answer.status_code == 200
        await running.http.get("/metrics")
    found = collector.spans()  # closing the gateway sends what waits
    upload = [span for span in found if span["gateway.request"] == "upload-1"]
    (root,) = [span for span in upload if not span["parent"]]
    assert (root["name"], root["http.response.status_code"], root["http.route"]) == ("POST /adapters", 201, "/adapters")
    stages = {span["name"]: span for span in upload if span is not root}
    assert stages.keys() == {"upload", "validate", "screen", "prune", "store", "load"}
    assert {(span["parent"], span["trace"]) for span in stages.values()} == {(root["id"], root["trace"])}
    for name in ("validate", "screen", "prune", "store", "load"):
        assert (stages[name]["gateway.adapter"], stages[name]["gateway.version"]) == ("style", 1)
        assert stages[name]["gateway.outcome"] == "ok"
    assert stages["store"]["gateway.digest"] == stages["load"]["gateway.digest"] == version["digest"]
    assert root["seconds"] >= sum(stages[name]["seconds"] for name in ("validate", "screen", "store"))
    for request in ("chat-1", "chat-2"):
        about = {span["name"]: span for span in found if span["gateway.request"] == request}
        assert about.keys() == {"POST /v1/chat/completions", "serve"}
        served, root = about["serve"], about["POST /v1/chat/completions"]
        assert (served["gateway.adapter"], served["gateway.version"]) == ("style", 1)
        assert (served["gateway.digest"], served["gateway.outcome"]) == (version["digest"], "200")
        assert (served["parent"], served["trace"]) == (root["id"], root["trace"])
    assert len({span["trace"] for span in found}) == 3  # what only looks leaves no trace
    for body in collector.bodies:
        assert SECRET_PROMPT.encode() not in body
        assert KEY.encode() not in body


async def test_what_fails_is_a_failed_span(open_gateway: OpenHouse, collector: Collector) -> None:
    async with open_gateway(otlp_endpoint=collector.url) as running:
        bad = form("bad") | {"config": ("c", b"{}")}
        assert (await running.http.post("/adapters", files=bad)).status_code == 400
    found = {span["name"]: span for span in collector.spans()}
    assert found["validate"]["failed"]
    assert found["validate"]["gateway.outcome"] not in ("ok", "")
    assert (found["POST /adapters"]["http.response.status_code"], found["POST /adapters"]["failed"]) == (400, False)


async def test_a_collector_that_is_away_stops_nothing(open_gateway: OpenHouse) -> None:
    async with asyncio.timeout(30), open_gateway(otlp_endpoint="http://127.0.0.1:9") as running:
        assert (await running.http.post("/adapters", files=form("style"))).status_code == 201
        assert (await running.http.post("/v1/chat/completions", json=chat(SERVED))).status_code == 200


async def test_without_opentelemetry_the_gateway_says_so_and_goes_on(
    open_gateway: OpenHouse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    caplog.set_level(logging.INFO, "gateway")
    async with open_gateway(otlp_endpoint="http://127.0.0.1:9") as running:
        assert (await running.http.post("/adapters", files=form("style"))).status_code == 201
    assert "no_traces" in [record.message for record in caplog.records]
