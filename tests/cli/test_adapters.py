"""`adapters`, `status` and `chat` as a user runs them, against a gateway over the simulated engine."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import pytest_asyncio
import uvicorn

from app.cli.client import AS_IT_CAME, CHANGED, NOT_ASKED, REJECTED
from app.domain.digest import digest_of
from tests.support.gateway import KEY, OpenHouse, Running, form
from tests.support.hub import COMMIT, REPOSITORY, hub
from tests.support.signing import signing_key
from tests.support.waiting import STUCK_S

ROOT = Path(__file__).parents[2]
Env = Mapping[str, str]
NO_ENV: Env = MappingProxyType({})


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Shell:
    """Commands against a gateway that listens."""

    running: Running
    address: str
    folder: Path

    async def __call__(self, *args: str, columns: int | None = None, typed: str = "", given: Env = NO_ENV) -> Done:
        env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | dict(given)
        env |= {"GATEWAY_URL": self.address, "GATEWAY_API_KEY": KEY} | ({"COLUMNS": str(columns)} if columns else {})
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", *args), stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd=ROOT
        )
        async with asyncio.timeout(STUCK_S):
            out, err = await process.communicate(typed.encode())
        assert process.returncode is not None
        assert "Traceback" not in err.decode()
        return Done(process.returncode, out.decode(), err.decode())

    def adapter(self, name: str, seed: int = 0) -> str:
        """Directory of a valid adapter."""
        folder = self.folder / name
        folder.mkdir()
        for part in ("config", "weights"):
            file, data = form(name, seed)[part]
            (folder / file).write_bytes(data)
        return str(folder)


@asynccontextmanager
async def listening(running: Running, folder: Path) -> AsyncIterator[Shell]:
    server = uvicorn.Server(uvicorn.Config(running.app, lifespan="off", log_level="warning"))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve([bound]))
        yield Shell(running, f"127.0.0.1:{bound.getsockname()[1]}", folder)  # no scheme: http
        server.should_exit = True
        await serving


@pytest_asyncio.fixture
async def shell(open_gateway: OpenHouse, tmp_path: Path) -> AsyncIterator[Shell]:
    async with open_gateway(tau=1e6) as running, listening(running, tmp_path) as made:
        yield made


async def test_an_adapter_from_its_first_push_to_its_removal(shell: Shell) -> None:
    empty = await shell("adapters", "list")
    assert (empty.status, "no adapters yet" in empty.out) == (0, True)
    first = await shell("adapters", "push", "style", shell.adapter("a"))
    assert (first.status, first.out.splitlines()[-1].split()[:3]) == (AS_IT_CAME, ["style@1", "ready", "clean"])
    second = await shell("adapters", "push", "style", shell.adapter("b", seed=1), "--json")
    assert (second.status, json.loads(second.out)["version"]) == (AS_IT_CAME, 2)
    listed = await shell("adapters", "versions", "style")
    assert [line.split()[:2] for line in listed.out.splitlines() if "@" in line] == [
        ["▶", "style@2"],
        ["style@1", "retired"],
    ]
    assert "outcome" in listed.out
    shown, older = await shell("adapters", "show", "style", "--json"), await shell("adapters", "show", "style", "1")
    assert json.loads(shown.out)["version"] == 2
    assert older.out.startswith("style@1 ")
    back = await shell("adapters", "rollback", "style")
    assert (back.status, back.out.split()[0]) == (0, "style@1")
    assert json.loads((await shell("adapters", "show", "style", "--json")).out)["version"] == 1
    assert [line.split()[-1] for line in (await shell("adapters", "events", "style")).out.splitlines()][-1] == "ready"
    kept = await shell("adapters", "rm", "style")
    assert (kept.status, "--yes" in kept.err) == (2, True)
    assert (await shell.running.http.get("/adapters/style")).status_code == 200
    assert (await shell("adapters", "rm", "style", "--yes")).status == 0
    assert (await shell.running.http.get("/adapters/style")).status_code == 404


async def test_what_the_commands_of_the_operator_print_is_there_as_json_too(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(keep_originals=True, tau=1e6) as running, listening(running, tmp_path) as shell:
        assert (await shell("adapters", "push", "style", shell.adapter("a"))).status == 0
        warm, given, again, every, log = [
            await shell(*command, "--json")
            for command in (
                ("adapters", "warm", "style"),
                ("adapters", "transfer", "style", "ops"),
                ("adapters", "rescreen", "style"),
                ("adapters", "rescreen", "--all"),
                ("audit", "verify"),
            )
        ]
    assert [one.status for one in (warm, given, again, every, log)] == [0] * 5
    assert json.loads(warm.out)["engines"][0]["warm"] is True
    assert json.loads(given.out)["owner"] == "ops"
    assert json.loads(again.out)["name"] == "style"
    *results, counts = map(json.loads, every.out.splitlines())
    assert [one["name"] for one in results] == ["style"]
    assert sum(counts.values()) == 1
    verified = json.loads(log.out)
    assert verified["entries"] == int(verified["last"].partition(":")[0]) > 0


async def test_the_exit_status_of_a_push_says_what_became_of_it(open_gateway: OpenHouse, tmp_path: Path) -> None:
    async with open_gateway(tau=-1e6, max_pruned_share=1.0) as running, listening(running, tmp_path) as shell:
        changed = await shell("adapters", "push", "style", shell.adapter("a"))
        assert (changed.status, "modules pruned" in changed.out) == (CHANGED, True)
        (tmp_path / "a" / "adapter_config.json").write_text("{")
        invalid = await shell("adapters", "push", "style", str(tmp_path / "a"))
        assert (invalid.status, "bad_config" in invalid.err) == (REJECTED, True)


async def test_a_rejected_push_says_why_which_modules_and_where_the_report_is(
    open_gateway: OpenHouse, tmp_path: Path
) -> None:
    async with open_gateway(tau=-1e6, max_pruned_share=0.1) as running, listening(running, tmp_path) as shell:
        done = await shell("adapters", "push", "style", shell.adapter("a"))
        assert done.status == REJECTED
        assert done.err.startswith("error: rejected: ")
        assert "model.layers.0." in done.out
        command = done.out.splitlines()[-1].partition("python -m app ")[2].split()
        report = await shell(*command)
        assert report.status == 0
        assert "rejected" in report.out


async def test_a_gateway_that_cannot_be_asked_is_named(shell: Shell) -> None:
    for args in (("adapters", "list"), ("adapters", "push", "x", shell.adapter("a")), ("status",)):
        done = await shell(*args, "--url", "127.0.0.1:1")
        assert (done.status, "http://127.0.0.1:1" in done.err) == (NOT_ASKED, True)
    wrong = await shell("adapters", "push", "x", str(shell.folder / "a"), "--key", "another-key-than-theirs")
    assert (wrong.status, "unauthorized" in wrong.err) == (NOT_ASKED, True)


async def test_tables_hold_in_80_columns_and_are_not_cut_in_a_pipe(shell: Shell) -> None:
    name = "an-adapter-with-a-name-as-long-as-" + "x" * 20
    assert (await shell("adapters", "push", name, shell.adapter("a"))).status == 0
    narrow = await shell("adapters", "show", name, columns=80)
    assert max(map(len, narrow.out.splitlines())) <= 80
    report = json.loads((await shell("adapters", "show", name, "--json", columns=40)).out)["report"]["verdict"]
    for module in report["modules"]:
        assert f"{module['scores']['input']:.2f}" in narrow.out
    piped = await shell("adapters", "list")
    assert f"{name}@1" in piped.out


async def test_status_and_chat(shell: Shell) -> None:
    await shell("adapters", "push", "style", shell.adapter("a"))
    status = await shell("status")
    assert status.status == 0
    assert status.out.startswith("ready\n")
    assert "style" in status.out
    one = await shell("chat", "style", "hello")
    assert (one.status, one.out.strip()) == (0, "t0 t1 t2 t3 t4")
    more = await shell("chat", "style", "--system", "be brief", typed="hello\nand more\n")
    assert more.status == 0
    assert len(more.out.splitlines()) == 2
    talk = shell.running.simulator.seen[-1]["messages"]
    assert [message["role"] for message in talk] == ["system", "user", "assistant", "user"]
    missing = await shell("chat", "nobody", "hello")
    assert (missing.status, "model_not_found" in missing.err) == (1, True)


@pytest.fixture
def hub_url() -> Iterator[str]:
    """A hub with one adapter at the top of a repository, one in a folder, and a pickle in another."""
    parts, other = form("any"), form("any", seed=1)
    files = dict((parts["config"], parts["weights"]))
    files |= {f"second/{name}": data for name, data in (other["config"], other["weights"])}
    files |= {"old/adapter_config.json": b"{}", "old/adapter_model.bin": b"x", "README.md": b"x"}
    with hub(files) as url:
        yield url


async def test_an_adapter_is_pushed_from_the_hub_at_one_commit(shell: Shell, hub_url: str, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = await shell("adapters", "push", "first", f"hf://{REPOSITORY}", given=env)
    assert done.status in (AS_IT_CAME, CHANGED), done.err
    assert f"{REPOSITORY} at commit {COMMIT}" in done.err
    done = await shell("adapters", "push", "second", f"hf://{REPOSITORY}@v1/second", given=env)
    assert done.status in (AS_IT_CAME, CHANGED), done.err
    received = [
        (await shell.running.http.get(f"/adapters/{name}/versions/1")).json()["report"]["received"]["weights_sha256"]
        for name in ("first", "second")
    ]
    assert received == [digest_of(form("any", seed)["weights"][1]).hex for seed in (0, 1)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"hf://{REPOSITORY}/old", "Pickles (.bin) are not taken"),
        (f"hf://{REPOSITORY}/nowhere", "has no adapter_model.safetensors"),
        ("hf://someone/else", "Check the source's name and revision, and HF_TOKEN"),
        (f"hf://{REPOSITORY}@v9", "Check the source's name and revision"),
        (f"hf://{REPOSITORY}@no-such", "someone/poems@no-such"),
        ("hf://poems", "is not of the form hf://org/repository"),
        ("hf://a/../../etc", "is not of the form hf://org/repository"),
    ],
)
async def test_what_the_hub_does_not_have_is_said_with_what_to_do(
    shell: Shell, hub_url: str, tmp_path: Path, source: str, said: str
) -> None:
    env = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = await shell("adapters", "push", "first", source, given=env, columns=200)
    assert done.status == 1
    assert said in done.err
    assert (await shell.running.http.get("/adapters")).json()["adapters"] == []


async def test_the_gateway_fetches_it_where_that_is_asked_for(
    open_gateway: OpenHouse, hub_url: str, tmp_path: Path
) -> None:
    settings = {"import_sources": ["hf://someone/*"], "import_hub_url": hub_url, "tau": 1e6}
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}  # this machine's own way to the hub
    async with open_gateway(**settings) as running, listening(running, tmp_path) as shell:
        done = await shell("adapters", "push", "first", f"hf://{REPOSITORY}", "--remote", given=nowhere)
        assert done.status == AS_IT_CAME, done.err
        assert f"hf://{REPOSITORY}@main at commit {COMMIT}" in done.err
        report = (await running.http.get("/adapters/first/versions/1")).json()["report"]
        assert report["received"]["weights_sha256"] == digest_of(form("any")["weights"][1]).hex
        for source, status, said in (
            ("hf://else/poems", NOT_ASKED, "source_not_allowed"),
            (f"hf://{REPOSITORY}/nowhere", NOT_ASKED, "source_not_found"),
            (str(tmp_path), 1, "is not of the form"),
        ):
            done = await shell("adapters", "push", "first", source, "--remote", columns=200)
            assert (done.status, said in done.err) == (status, True), done.err
        done = await shell("adapters", "push", "first", "s3://bucket/x", columns=200)
        assert (done.status, "Add --remote." in done.err) == (1, True)


async def test_a_statement_is_printed_as_the_gateway_signed_it(open_gateway: OpenHouse, tmp_path: Path) -> None:
    private = signing_key(tmp_path / "key.pem")
    async with open_gateway(signing_key=private) as running, listening(running, tmp_path) as shell:
        assert (await shell("adapters", "push", "first", shell.adapter("first"))).status in (AS_IT_CAME, CHANGED)
        done = await shell("adapters", "attestation", "first")
        answer = await running.http.get("/adapters/first/versions/1/attestation")
        assert (done.status, json.loads(done.out)) == (0, answer.json())


async def test_a_roll_out_from_the_command_line(shell: Shell) -> None:
    for seed in (1, 2):
        assert (await shell.running.http.post("/adapters", files=form("style", seed))).status_code == 201
    none = await shell("adapters", "traffic", "style")
    assert (none.status, "no_traffic" in none.err) == (1, True)
    begun = await shell("adapters", "traffic", "style", "1=95", "2=5", "--shadow", "2", "--guard")
    assert begun.status == 0, begun.err
    assert [line.split() for line in begun.out.splitlines() if "style@" in line] == [
        ["style@1", "95", "stable"],
        ["style@2", "5", "shadow"],
    ]
    shown = await shell("adapters", "traffic", "style", "--json")
    found = json.loads(shown.out)
    assert (found["weights"], found["shadow"], found["guard"]) == ({"1": 95, "2": 5}, 2, True)
    promoted = await shell("adapters", "promote", "style")
    assert (promoted.status, "style@2  ready" in promoted.out) == (0, True), promoted.err
    await shell("adapters", "traffic", "style", "1=95", "2=5")
    aborted = await shell("adapters", "abort", "style")
    assert (aborted.status, "style@1  ready" in aborted.out) == (0, True), aborted.err


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        (["3:95"], 2, "is not VERSION=PERCENT"),
        (["3=9.5"], 2, "is not VERSION=PERCENT"),
        (["1=50", "1=50"], 2, "each version once"),
        (["--shadow", "2"], 2, "name the weights as well"),
        (["1=95", "2=4"], 1, "bad_weights: the weights add up to 99"),
        (["1=95", "9=5"], 1, "version_not_found"),
    ],
    ids=["a colon", "a fraction", "twice", "a shadow alone", "99 per cent", "an unknown version"],
)
async def test_weights_that_are_none(shell: Shell, given: list[str], status: int, says: str) -> None:
    for seed in (1, 2):
        assert (await shell.running.http.post("/adapters", files=form("style", seed))).status_code == 201
    done = await shell("adapters", "traffic", "style", *given)
    assert (done.status, says in done.err) == (status, True), done.err
