"""Stand-in for the engine, so that the engine does not limit a relay: exact timing at almost no cost.

    python -m app.bench.relay.stand_in PORT MODEL GAP_S

Token i of an answer is sent i · GAP_S after the request, in vLLM's format, and its text is the time of sending
(CLOCK_MONOTONIC, ns: one clock for all processes of a machine), so that a reader of the stream can compute each token's
transit time. An answer of max_tokens = 1 is sent at once. Nothing is computed; all fields but `model`, `stream` and
`max_tokens` are ignored. Built on a bare asyncio protocol, uvloop and httptools: about 15 µs of processor time a request.
"""

import asyncio
import json
import sys
import time
from typing import Any, Final, cast

import httptools
import uvloop

SAID: Final = "lora"
HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"

loaded: list[str] = []


def answer(status: int, body: bytes, kind: bytes = b"application/json") -> bytes:
    """Return one complete HTTP response."""
    head = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, kind, len(body))
    return head + body


class Wire(asyncio.Protocol):
    """One connection, with one request at a time, as HTTP clients send them."""

    def __init__(self, model: str, gap_s: float) -> None:
        if model not in loaded:
            loaded.append(model)
        self._gap_s = gap_s
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._url, self._body = b"", b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport (asyncio.Protocol callback)."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has the same methods, but another base class

    def connection_lost(self, _: Exception | None) -> None:
        """Cancel the pending answer of a client that has disconnected."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Feed the parser (asyncio.Protocol callback)."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        """Reset the body (httptools callback)."""
        self._body = b""

    def on_url(self, url: bytes) -> None:
        """Store the URL (httptools callback)."""
        self._url = url

    def on_body(self, body: bytes) -> None:
        """Collect the body (httptools callback)."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer the request (httptools callback)."""
        body: dict[str, Any] = json.loads(self._body) if self._body else {}
        match self._url:
            case b"/v1/chat/completions" | b"/v1/completions":
                self._infer(body, chat=b"chat" in self._url)
            case b"/v1/models":
                cards = [{"id": name, "object": "model", "created": 1, "owned_by": SAID} for name in loaded]
                self._transport.write(answer(200, json.dumps({"object": "list", "data": cards}).encode()))
            case b"/v1/load_lora_adapter":
                loaded.append(body["lora_name"])
                self._transport.write(answer(200, b"Success", b"text/plain"))
            case b"/v1/unload_lora_adapter":
                loaded.remove(body["lora_name"])
                self._transport.write(answer(200, b"Success", b"text/plain"))
            case _:
                self._transport.write(answer(200, b"{}"))

    def _infer(self, body: dict[str, Any], *, chat: bool) -> None:
        tokens, model = int(body.get("max_tokens", 16)), json.dumps(body["model"])
        if not body.get("stream"):
            whole = _complete_answer(model, tokens, chat=chat)
            self._later(self._loop.time() + (tokens - 1) * self._gap_s, lambda: self._transport.write(whole))
            return
        before = f'data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":{model},'
        before += '"choices":[{"index":0,"delta":{"content":"'
        after = '"},"logprobs":null,"finish_reason":null}]}\n\n'
        self._stream(before.encode(), after.encode(), self._loop.time(), 0, tokens)

    def _stream(self, before: bytes, after: bytes, began: float, index: int, tokens: int) -> None:
        """Send token `index`, and schedule the next."""
        event = b"%b%d%b" % (before, time.monotonic_ns(), after)
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        self._transport.write((HEAD if index == 0 else b"") + chunk + (LAST if index == tokens - 1 else b""))
        if index < tokens - 1:
            step = index + 1
            self._later(began + step * self._gap_s, lambda: self._stream(before, after, began, step, tokens))

    def _later(self, when: float, what: Any) -> None:
        if when <= self._loop.time():
            what()
        else:
            self._timer = self._loop.call_at(when, what)


def _complete_answer(model: str, tokens: int, *, chat: bool) -> bytes:
    numbers = '{"tokens":["a"],"token_logprobs":[-1.0],"text_offset":[0],"top_logprobs":null}'
    choice = (
        '"message":{"role":"assistant","content":"said"},"logprobs":null'
        if chat
        else f'"text":"a","logprobs":{numbers}'
    )
    kind = "chat.completion" if chat else "text_completion"
    body = (
        f'{{"id":"chatcmpl-1","object":"{kind}","created":1,"model":{model},"choices":[{{"index":0,{choice},'
        f'"finish_reason":"stop"}}],"usage":{{"prompt_tokens":9,"total_tokens":{9 + tokens},'
        f'"completion_tokens":{tokens}}}}}'
    )
    return answer(200, body.encode())


async def serve(port: int, model: str, gap_s: float) -> None:
    """Serve until the process is terminated."""
    server = await asyncio.get_running_loop().create_server(lambda: Wire(model, gap_s), "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
