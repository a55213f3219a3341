"""Every route against its own description: Schemathesis makes requests out of it, right ones and wrong ones."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.access.rules import ROUTES
from app.domain.errors import CODES
from app.domain.policy_override import FIELDS as POLICY_FIELDS
from tests.console.conftest import serving
from tests.support.gateway import form
from tests.support.hub import REPOSITORY, running_hub
from tests.support.signing import P256, signing_key

EXAMPLES: Final = int(os.environ.get("EXAMPLES", "12"))
"""Requests of each kind a route gets: `make test EXAMPLES=…` for more."""

DESCRIBED: Final = sorted(
    (method, path)
    for method, path in ROUTES
    if path != "/" and not path.startswith(("/console", "/docs", "/openapi", "/healthz", "/readyz"))
)
AnyCase = Case[Any]
BODIES: Final[dict[str, dict[str, Any]]] = {
    "messages": {"model": "known", "messages": [{"role": "user", "content": "x"}], "max_tokens": 8},
    "prompt": {"model": "known", "prompt": "x"},
    "input": {"model": "known", "input": "x"},
    "tokens": {"model": "known", "tokens": [65]},
    "roles": {"name": "known", "roles": ["chat"]},
    "versions": {"versions": 1000},
    **{field: {"max_removed_share": 0.25} for field in POLICY_FIELDS},
    "url": {"url": "http://127.0.0.1:9/"},
    "source": {"name": "known", "source": f"hf://{REPOSITORY}"},
    "weights": {part: data for part, (_, data) in form("known").items()},
}
"""A right body, by the field that tells which it is."""

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(tiny_reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An open gateway on a port, over the simulated engine."""
    unbounded: dict[str, Any] = {
        "keep_originals": True,
        "uploads_per_minute": 0,
        "screens_per_minute": 0,
        "screens_per_day": 0,
        "chats_per_minute": 0,
        "screen_sandbox": False,
    }
    files = [form("known")[part] for part in ("config", "weights")]
    unbounded |= {"webhook_targets": ["http://127.0.0.1:9"], "webhook_secret": "0123456789abcdef" * 2}
    unbounded["signing_key"] = signing_key(tmp_path_factory.mktemp("keys") / "key.pem", P256)
    with running_hub(dict(files)) as hub:
        unbounded |= {"import_sources": ["hf://someone/*"], "import_hub_url": hub.url}
        with serving(tmp_path_factory.mktemp("openapi"), tiny_reference_dir, open=True, **unbounded) as found:
            yield found


@pytest.fixture(scope="module")
def described(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_it_describes_every_route(described: Any) -> None:
    found = {(op.ok().method.upper(), op.ok().path) for op in described.get_all_operations()}
    assert found == set(DESCRIBED)
    for method, path in found:
        answers = described.raw_schema["paths"][path][method.lower()]["responses"]
        assert any(status.startswith("2") for status in answers), f"app/api/openapi.py says nothing of {method} {path}"


@pytest.mark.parametrize(("method", "path"), DESCRIBED, ids=[f"{m} {p}" for m, p in DESCRIBED])
@pytest.mark.parametrize("right", [True, False], ids=["as described", "otherwise"])
def test_it_answers_as_described(url: str, described: Any, method: str, path: str, right: bool) -> None:
    """No 5xx, no undescribed status, type or shape; every refusal a row of the table."""
    operation = described[path][method]
    mode = schemathesis.GenerationMode.POSITIVE if right else schemathesis.GenerationMode.NEGATIVE
    if not right and not (operation.query or operation.path_parameters or operation.body):
        pytest.skip("there is nothing to say otherwise")

    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def asked(case: AnyCase, known: bool) -> None:
        if known:
            _about_what_exists(url, case)
        if path.endswith("/events"):
            case.query = {}  # else it waits for what is to come, as it should
        answer = case.call()
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 400 and path != "/ready":
            error = answer.json()["error"]
            assert CODES[error["code"]].status == answer.status_code

    statuses: set[int] = set()
    asked()
    # this engine serves a model that makes no embeddings, and this gateway asks no canaries
    refused_only = not right or (method, path) in {("POST", "/v1/embeddings"), ("PUT", "/tenants/{tenant}/canaries")}
    assert refused_only or min(statuses) < 300, "nothing of what is described was answered"
    assert httpx.get(f"{url}/health").status_code == 200


def _known_of_tenant(url: str, asked: dict[str, Any]) -> dict[str, str]:
    """The tenant, and the key or webhook if one is asked about, which is then there."""
    if "webhook" in asked:
        there = httpx.get(f"{url}/tenants/known/webhooks").json()["webhooks"]
        made = there[0] if there else httpx.post(f"{url}/tenants/known/webhooks", json=BODIES["url"]).json()
        return {"tenant": "known", "webhook": made["id"]}
    if "key" not in asked:
        return {"tenant": "known"}
    httpx.post(f"{url}/tenants/known/keys", json=BODIES["roles"])
    return {"tenant": "known", "key": "known"}


def _rolling_out(url: str, case: AnyCase, version: int) -> None:
    """Ask about a roll-out that is under way, in which this version has all weight."""
    weights: Any = {str(version): 100}
    if isinstance(case.body, dict):
        case.body = weights
    else:
        assert httpx.put(f"{url}/adapters/known/traffic", json=weights).status_code == 200
    if case.path.endswith("/promote"):
        case.query = {"version": version}


def _about_what_exists(url: str, case: AnyCase) -> None:
    """Ask it of an adapter that is there, with an earlier version to go back to."""
    if httpx.get(f"{url}/adapters/known").status_code == 404:
        for seed in (1, 0):
            assert httpx.post(f"{url}/adapters", files=form("known", seed), timeout=60).status_code == 201
    there = httpx.get(f"{url}/adapters/known").json()["versions"]
    parameters = case.path_parameters or {}
    newest = {"name": "known", "model": there[0]["model"], "number": there[0]["version"]}
    newest |= {"digest": there[0]["digest"], "file": "adapter_config.json"}
    parameters |= {gap: word for gap, word in newest.items() if gap in parameters}
    if "tenant" in parameters:
        parameters |= _known_of_tenant(url, parameters)
    if case.path.endswith("/rollback"):
        case.query = {"to": there[-1]["version"]}
    if "/traffic" in case.path:
        _rolling_out(url, case, there[-1]["version"])
    elif isinstance(case.body, dict):
        case.body = next((body for field, body in BODIES.items() if field in case.body), case.body)
