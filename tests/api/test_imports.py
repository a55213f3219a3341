"""POST /adapters with a source: the gateway fetches what the operator allowed, and it goes the way of an upload."""

import asyncio
import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import obstore
import pytest
from obstore.store import S3Store
from pydantic import ValidationError

from app.domain.api_keys import Role, new_key
from app.domain.artefact import CONFIG_FILE, WEIGHTS_FILE
from app.domain.shares import Resource
from app.server.settings import Settings
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.hub import COMMIT, REPOSITORY, RunningHub, running_hub, say
from tests.support.s3 import BUCKET, Storage, storage
from tests.support.served import AUTH, line, on_a_port
from tests.support.signing import signing_key
from tests.support.waiting import until

__all__ = ["storage"]

SOURCE: Final = f"hf://{REPOSITORY}"
FILE: Final = f"/{REPOSITORY}/resolve/{COMMIT}/"
TOKEN: Final = "hf_a_secret_token"
TENANTS: Final = {
    tenant: new_key(f"{tenant}-app", [Role.UPLOAD, Role.CHAT], tenant=tenant) for tenant in ("acme", "globex")
}


def files(seed: int = 0) -> dict[str, bytes]:
    """The two files of a valid adapter."""
    parts = form("any", seed)
    return {CONFIG_FILE: parts["config"][1], WEIGHTS_FILE: parts["weights"][1]}


@pytest.fixture
def hub() -> Iterator[RunningHub]:
    extra = {"README.md": b"# x", "adapter_model.bin": b"\x80pickle", "code.py": b"raise SystemExit"}
    nested = {f"second/{name}": data for name, data in files(1).items()}
    link = {f"links/{CONFIG_FILE}": b"../adapter_config.json", f"links/{WEIGHTS_FILE}": files()[WEIGHTS_FILE]}
    with running_hub(files() | extra | nested | link) as made:
        yield made


def allowed(hub: RunningHub, *sources: str, **more: Any) -> dict[str, Any]:
    return {"import_sources": sources or ("hf://someone/*",), "import_hub_url": hub.url, **more}


async def bring(running: Running, source: str, name: str = "first", path: str = "/adapters") -> httpx.Response:
    return await running.http.post(path, json={"name": name, "source": source})


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_an_adapter_of_the_hub_is_fetched_screened_and_served(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub)) as running:
        answer = await bring(running, f"{SOURCE}@v1")
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == "/adapters/first/versions/1"
        version = (await running.http.get("/adapters/first/versions/1")).json()
        assert (version["state"], version["active"]) == ("ready", True)
        assert version["report"]["source"] == {"name": f"{SOURCE}@v1", "pin": {"commit": COMMIT}}
        assert version["report"]["received"]["weights_sha256"] == hashlib.sha256(files()[WEIGHTS_FILE]).hexdigest()
        chat = {"model": "first", "messages": [{"role": "user", "content": "hello"}]}
        assert (await running.http.post("/v1/chat/completions", json=chat)).status_code == 200
        assert {path.rpartition("/")[2] for path, _ in hub.seen} == {"v1", CONFIG_FILE, WEIGHTS_FILE}
        page = (await running.http.get("/console/adapters/first")).text
        assert f"<code>{SOURCE}@v1</code> at <code>{COMMIT}</code>" in page
        again = await running.http.post("/adapters", files=form("first"))
        assert (again.status_code, again.json()["version"]) == (200, 1)  # the same bytes as an upload are the same
        second = await bring(running, f"{SOURCE}/second")
        assert (second.status_code, second.json()["version"]) == (201, 2)


async def test_a_dry_run_of_a_source_stores_nothing(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub)) as running:
        answer = await bring(running, SOURCE, path="/screen")
        assert (answer.status_code, answer.json()["verdict"]["modules_total"]) == (200, 8)
        assert (await running.http.get("/adapters")).json()["adapters"] == []


async def test_an_adapter_in_a_bucket_is_fetched_with_the_imports_own_keys(
    open_gateway: OpenHouse, storage: Storage
) -> None:
    store = S3Store(BUCKET, client_options={"allow_http": True})
    for name, data in files().items():
        obstore.put(store, f"lora/sql/{name}", data)
    keys = {"import_storage_access_key": "import-key", "import_storage_secret_key": "import-secret"}
    settings = {"import_sources": ["s3://bucket/lora/*"], "import_storage_endpoint": storage.endpoint, **keys}
    async with open_gateway(**settings) as running:
        answer = await bring(running, "s3://bucket/lora/sql")
        assert answer.status_code == 201, answer.text
        source = answer.json()["report"]["source"]
        assert source["name"] == "s3://bucket/lora/sql"
        assert set(source["pin"]) == {CONFIG_FILE, WEIGHTS_FILE}
        obstore.put(store, f"lora/sql/{WEIGHTS_FILE}", files(1)[WEIGHTS_FILE])
        assert (await bring(running, "s3://bucket/lora/sql")).json()["version"] == 2
        assert code_of(await bring(running, "s3://bucket/other/sql")) == (403, "source_not_allowed")
        assert code_of(await bring(running, "s3://bucket/lora/nowhere")) == (404, "source_not_found")


async def test_the_origin_stands_in_what_is_made_of_it_later(
    open_gateway: OpenHouse, hub: RunningHub, tmp_path: Path
) -> None:
    """A rescreening of the kept bytes, and a signed statement."""
    more = {"keep_originals": True, "signing_key": signing_key(tmp_path / "key.pem")}
    async with open_gateway(**allowed(hub), **more) as running:
        assert (await bring(running, SOURCE)).status_code == 201
    async with open_gateway(**more, tau=1e9, max_pruned_share=1.0) as running:
        answer = await running.http.post("/adapters/first/rescreen")
        assert answer.json()["version"] == 2, answer.text
        version = (await running.http.get("/adapters/first/versions/2")).json()
        assert version["report"]["source"]["pin"] == {"commit": COMMIT}
        envelope = (await running.http.get("/adapters/first/versions/2/attestation")).json()
        assert json.loads(base64.b64decode(envelope["payload"]))["predicate"]["source"] == version["report"]["source"]


async def test_imports_are_off_unless_the_operator_lists_sources(running: Running) -> None:
    answer = await bring(running, SOURCE)
    assert code_of(answer) == (403, "source_not_allowed")
    assert "imports nothing" in answer.json()["error"]["message"]
    assert "GATEWAY_IMPORT_SOURCES" in answer.json()["error"]["message"]


@pytest.mark.hostile("U28")
@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("hf://someone-else/poems", (403, "source_not_allowed")),
        ("hf://someone/../else/poems", (400, "bad_source")),
        ("https://huggingface.co/someone/poems/resolve/main/adapter_model.safetensors", (400, "bad_source")),
        ("http://169.254.169.254/latest", (400, "bad_source")),
        ("file:///etc/passwd", (400, "bad_source")),
        ("/etc", (400, "bad_source")),
        ("s3://bucket/x", (403, "source_not_allowed")),
        ("oci://registry.example.com/x@sha256:" + "0" * 64, (400, "bad_source")),
    ],
)
async def test_what_is_not_listed_is_not_asked_for(
    open_gateway: OpenHouse, hub: RunningHub, source: str, code: tuple[int, str]
) -> None:
    async with open_gateway(**allowed(hub)) as running:
        assert code_of(await bring(running, source)) == code
        assert not hub.seen
        assert (await running.http.get("/adapters")).json()["adapters"] == []


@pytest.mark.hostile("U28")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"name": "first"}',
        b'{"name": "first", "source": 1}',
        b'{"name": "first", "source": "hf://someone/poems", "token": "x"}',
        b'{"name": "first", "name": "first", "source": "hf://someone/poems"}',
        b'{"name": "../x", "source": "hf://someone/poems"}',
        b'{"name": "first", "source": "hf://someone/poems"' + b" " * 5000 + b"}",
    ],
)
async def test_a_body_of_another_form_is_refused(open_gateway: OpenHouse, hub: RunningHub, body: bytes) -> None:
    async with open_gateway(**allowed(hub)) as running:
        headers = {"Content-Type": "application/json"}
        answer = await running.http.post("/adapters", content=body, headers=headers)
        assert answer.status_code in (400, 413), answer.text
        assert not hub.seen


@pytest.mark.hostile("U28", "T01")
async def test_a_tenant_imports_its_own_sources_only(open_gateway: OpenHouse, hub: RunningHub, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"{stored.line}\n" for _, stored in TENANTS.values()))
    async with open_gateway(**allowed(hub, "hf://{tenant}/*"), api_keys_file=file) as running:
        codes = {}
        for tenant, (key, _) in TENANTS.items():
            body = {"name": "first", "source": "hf://acme/poems"}
            headers = {"Authorization": f"Bearer {key}"}
            codes[tenant] = code_of(await running.http.post("/adapters", json=body, headers=headers))
        assert codes == {"acme": (404, "source_not_found"), "globex": (403, "source_not_allowed")}
        assert len(hub.seen) == 1


async def test_who_may_not_upload_may_not_import(open_gateway: OpenHouse, hub: RunningHub, tmp_path: Path) -> None:
    key, stored = new_key("reader", [Role.CHAT])
    (tmp_path / "keys").write_text(f"{stored.line}\n")
    async with open_gateway(**allowed(hub), api_keys_file=tmp_path / "keys") as running:
        headers = {"Authorization": f"Bearer {key}"}
        answer = await running.http.post("/adapters", json={"name": "a", "source": SOURCE}, headers=headers)
        assert code_of(answer) == (403, "forbidden")
        assert not hub.seen


async def test_a_caller_may_say_which_bytes_it_expects(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub)) as running:
        for digest, status in (("0" * 64, 422), ("x", 422), (hashlib.sha256(files()[WEIGHTS_FILE]).hexdigest(), 201)):
            headers = {"X-Weights-SHA256": digest}
            answer = await running.http.post("/adapters", json={"name": "a", "source": SOURCE}, headers=headers)
            assert answer.status_code == status, answer.text
            assert status == 201 or code_of(answer) == (422, "digest_mismatch")


async def test_imports_count_as_uploads(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub), uploads_per_minute=1) as running:
        assert (await bring(running, SOURCE)).status_code == 201
        assert code_of(await bring(running, SOURCE)) == (429, "rate_limited")
        entry = (await running.http.get("/audit")).json()["entries"][0]
        assert (entry["action"], entry["target"], entry["status"]) == ("POST /adapters", "first", 201)


@pytest.mark.hostile("U29", "U30", "U31", "U32")
@pytest.mark.parametrize("case", ["lies", "elsewhere", "inside", "itself", "too_large", "changed", "gated", "down"])
async def test_a_hostile_source_leaves_nothing(open_gateway: OpenHouse, hub: RunningHub, case: str) -> None:
    weights = files()[WEIGHTS_FILE]
    with running_hub({}) as other:
        other.instead["/x"] = lambda to: say(to, weights, {})
        said: dict[str, tuple[bytes, dict[str, str], int]] = {
            "lies": (weights, {"X-Linked-ETag": f'"{"0" * 64}"'}, 200),
            "elsewhere": (b"", {"Location": f"{other.url}/x"}, 302),
            "inside": (b"", {"Location": "http://169.254.169.254/latest/meta-data"}, 302),
            "itself": (b"", {"Location": FILE + WEIGHTS_FILE}, 302),
            "too_large": (weights, {"X-Linked-Size": str(1 << 40)}, 200),
            "changed": (weights, {"X-Repo-Commit": "d" * 40}, 200),
            "gated": (b"", {"X-Error-Code": "GatedRepo"}, 403),
            "down": (b"", {}, 503),
        }
        codes = {
            "lies": (502, "source_broken"),
            "elsewhere": (403, "source_not_allowed"),
            "inside": (403, "source_not_allowed"),
            "itself": (502, "source_broken"),
            "too_large": (413, "too_large"),
            "changed": (409, "source_changed"),
            "gated": (403, "source_forbidden"),
            "down": (502, "source_unavailable"),
        }
        hub.instead[FILE + WEIGHTS_FILE] = lambda to: say(to, *said[case])
        async with open_gateway(**allowed(hub)) as running:
            assert code_of(await bring(running, SOURCE)) == codes[case]
            assert not other.seen
            assert (await running.http.get("/adapters")).json()["adapters"] == []
            assert running.gateway.context.shares.in_use(Resource.UPLOADS) == 0
            assert list((running.data / "quarantine").iterdir()) == []
            del hub.instead[FILE + WEIGHTS_FILE]
            assert (await bring(running, SOURCE)).status_code == 201  # once the source keeps its word


@pytest.mark.hostile("U32")
async def test_a_link_is_read_as_the_text_that_it_is(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub)) as running:
        assert code_of(await bring(running, f"{SOURCE}/links")) == (400, "bad_config")


@pytest.mark.hostile("P01")
async def test_a_client_that_leaves_ends_its_import(open_gateway: OpenHouse, hub: RunningHub) -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def wait(to: Any) -> None:
        asked.set()
        goes_on.wait()
        say(to, files()[WEIGHTS_FILE], {})

    hub.instead[FILE + WEIGHTS_FILE] = wait
    body = json.dumps({"name": "first", "source": SOURCE}).encode()
    async with open_gateway(**allowed(hub)) as running, on_a_port(running) as port:
        shares = running.gateway.context.shares
        async with line(port) as connection:
            head = b"POST /adapters HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n" + AUTH
            await connection.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await until(asked.is_set)
            assert shares.in_use(Resource.UPLOADS) == 1
        await until(lambda: shares.in_use(Resource.UPLOADS) == 0)
        goes_on.set()
        assert (await running.http.get("/adapters")).json()["adapters"] == []


@pytest.mark.hostile("O07")
async def test_no_credential_stands_in_what_the_gateway_says(
    open_gateway: OpenHouse, hub: RunningHub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    settings = allowed(
        hub, import_hub_token=TOKEN, import_storage_access_key="access", import_storage_secret_key="s3-secret"
    )
    async with open_gateway(**settings) as running:
        answers = [await bring(running, SOURCE), await bring(running, f"{SOURCE}/nowhere", "second")]
        answers += [await running.http.get(path) for path in ("/metrics", "/audit", "/console/settings")]
    said = "".join(answer.text for answer in answers) + caplog.text
    said += "".join(str(vars(record)) for record in caplog.records)
    assert {headers["Authorization"] for _, headers in hub.seen} == {f"Bearer {TOKEN}"}
    assert TOKEN not in said
    assert "s3-secret" not in said
    assert COMMIT in said  # the log line of the stage says which bytes were read


async def test_two_imports_at_once_make_one_version(open_gateway: OpenHouse, hub: RunningHub) -> None:
    async with open_gateway(**allowed(hub)) as running:
        answers = await asyncio.gather(*(bring(running, SOURCE) for _ in range(2)))
        assert {answer.status_code for answer in answers} <= {200, 201}
        assert [one["version"] for one in (await running.http.get("/adapters/first")).json()["versions"]] == [1]


@pytest.mark.hostile("O01")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("import_sources", "https://huggingface.co/*"),
        ("import_sources", "hf://*/sql"),
        ("import_hosts", "https://*.co"),
        ("import_hub_url", "https://user:pw@hub.example.com"),
        ("import_hub_url", "https://hub.example.com/?token=x"),
        ("import_storage_endpoint", "https://s3.example.com/bucket"),
        ("import_storage_access_key", "alone"),
        ("import_storage_region", "eu/../x"),
    ],
)
def test_settings_that_would_be_misread_are_refused(tmp_path: Path, name: str, value: str) -> None:
    given: dict[str, Any] = {"model": "m", "reference": tmp_path, "api_keys": KEY, name: value}
    with pytest.raises(ValidationError, match=name):
        Settings(**given)


async def test_a_gateway_that_takes_signed_uploads_only_fetches_nothing(
    open_gateway: OpenHouse, hub: RunningHub, tmp_path: Path
) -> None:
    public = signing_key(tmp_path / "maker.pem").with_suffix(".pub")
    signed = {"upload_keys": f"default={public}", "require_signed_uploads": True}
    async with open_gateway(**allowed(hub), **signed) as running:
        assert code_of(await bring(running, SOURCE)) == (422, "signature_required")
        assert not hub.seen


async def test_the_environment_of_the_gateways_own_store_does_not_lead_imports_elsewhere(
    open_gateway: OpenHouse, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Store(BUCKET, client_options={"allow_http": True})
    for name, data in files().items():
        obstore.put(store, f"lora/sql/{name}", data)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_S3_EXPRESS", "true")
    keys = {"import_storage_access_key": "import-key", "import_storage_secret_key": "import-secret"}
    settings = {"import_sources": ["s3://bucket/lora/*"], "import_storage_endpoint": storage.endpoint, **keys}
    async with open_gateway(**settings) as running:
        assert (await bring(running, "s3://bucket/lora/sql")).status_code == 201
