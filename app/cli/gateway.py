"""`python -m app status` and `chat`: a look at a running gateway, and a conversation with one of its models."""

import json
import sys
from typing import Annotated, Any

import httpx
import typer

from app.cli.client import LOCAL, Json, Key, Url, answer_of, client_of, err, out, print_json


def status(url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """Show whether the gateway is ready, part by part, and which models it serves. Exit status 1 if it is not ready."""
    with client_of(url, key) as client:
        response = client.get("/ready")
        ready = response.json() if response.status_code in (200, 503) else answer_of(response)
        models = client.get("/v1/models")
    cards = models.json()["data"] if models.is_success else None
    if as_json:
        print_json({"ready": ready, "models": None if cards is None else [card["id"] for card in cards]})
    else:
        _show(ready, cards)
    sys.exit(0 if response.status_code == 200 else 1)


def _show(ready: dict[str, Any], cards: list[dict[str, Any]] | None) -> None:
    out.print(ready["status"], highlight=False)
    for name, problem in {**ready["parts"], **ready.get("details", {})}.items():
        out.print(f"  {name}: {problem}", highlight=False, soft_wrap=True)
    if cards is None:
        out.print("  models: ask with a key that may chat (GATEWAY_API_KEY)", highlight=False, soft_wrap=True)
    else:
        names = ", ".join(card["id"] for card in cards if "@" not in card["id"])
        out.print(f"  models: {names}", highlight=False, soft_wrap=True)


def chat(
    model: Annotated[str, typer.Argument(help="Adapter, one version (name@3), or the served model")],
    text: Annotated[str | None, typer.Argument(help="One question; without it a conversation, until Ctrl-D")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer")] = 512,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Chat with a model of the gateway; the answer appears as it is written."""
    messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
    with client_of(url, key) as client:
        while (said := text or _asked()) is not None:
            messages.append({"role": "user", "content": said})
            answer = _answer(client, {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": True})
            messages.append({"role": "assistant", "content": answer})
            if text is not None:
                return


def _asked() -> str | None:
    """Return the next line of the user; None at the end of the input."""
    if sys.stdin.isatty():
        err.print("> ", end="", style="bold")
    line = sys.stdin.readline()
    return line.strip() or None


def _answer(client: httpx.Client, body: dict[str, Any]) -> str:
    """Print an answer while it comes, and return it."""
    pieces: list[str] = []
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if not response.is_success:
            response.read()
            answer_of(response)
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if not line.startswith("data: ") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                answer_of(httpx.Response(502, json=event))
            for choice in event.get("choices", ()):
                pieces.append(choice["delta"].get("content") or "")
                sys.stdout.write(pieces[-1])
                sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)
