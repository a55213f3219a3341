"""Nothing of the engine outlives the gateway: with a stand-in family that ignores SIGTERM, and with the real vLLM."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.errors import ENGINE_UNAVAILABLE, Unavailable
from app.load.embedded import command as command_module
from app.load.embedded import orphans as session
from app.load.embedded import supervisor as embedded_module
from app.load.embedded.command import EngineSpec, default_memory
from app.load.embedded.supervisor import SOCKET_DIR_LIMIT, EmbeddedEngine, last_lines, make_private, socket_home
from tests.support.engine import LiveEngine, tiny_spec
from tests.support.waiting import STUCK_S

ROOT = Path(__file__).resolve().parents[2]

FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:  # the server: has a core, which has a worker; says so; lives on
    subprocess.Popen([sys.executable, __file__, "core"])
elif sys.argv[1] == "core":
    subprocess.Popen([sys.executable, __file__, "worker"])
print("running", sys.argv[1:], flush=True)
time.sleep(600)
"""
SERVER_ONLY_DIES = FAMILY.replace("time.sleep(600)", "time.sleep(600 if len(sys.argv) > 1 else 0.5)\nsys.exit(7)")

SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from app.load.embedded import command
from app.load.embedded import supervisor as embedded
from app.load.embedded.command import EngineSpec
model, run, log, fake = sys.argv[1:]
if fake:
    embedded.arguments = lambda spec, socket: [sys.executable, fake]
async def main():
    spec = EngineSpec(model, "tiny-llama", dtype="float32", max_loras=1, max_lora_rank=8, max_cpu_loras=1, threads=1,
                      max_model_len=512, extra=("--enforce-eager",))
    engine = embedded.EmbeddedEngine(spec, Path(run), Path(log))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


AMPLE = str(1 << 40)
GREEDY = """
import subprocess, sys, time
child = "held = bytearray(b'x') * (300 << 20); import time; time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", child]) for _ in range(2)]
time.sleep(600)
"""


def wait_for(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def in_session(leader: int) -> set[int]:
    """Living processes of a session, by their own account; independent of the code under test."""
    listed = subprocess.run(["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid) for pid, sid, state in rows if int(sid) == leader and not state.startswith("Z")}


class Gateway:
    """A process that supervises an engine, to be killed."""

    def __init__(self, root: Path, model: Path | str = "none", fake: Path | str = "") -> None:
        self.run = socket_home(root / "run")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(model), str(self.run), str(root / "engine.log"), str(fake)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.leader = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def clean(self) -> None:
        self.kill()
        for pid in in_session(self.leader):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def family(tmp_path: Path) -> Path:
    script = tmp_path / "fake_vllm.py"
    script.write_text(FAMILY)
    return script


@pytest.fixture
def gateway(tmp_path: Path, family: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    started = Gateway(tmp_path, fake=family)
    log = tmp_path / "engine.log"
    try:
        # Not only there but past its print: one that prints after its wrapper was killed dies of the broken pipe by itself.
        wait_for(lambda: log.exists() and log.read_text().count("running") == 3)
        assert len(in_session(started.leader)) == 4  # wrapper, server, core, worker
        yield started
    finally:
        started.clean()


@pytest.mark.slow
def test_kill_9_of_the_gateway_ends_a_family_that_will_not_listen(gateway: Gateway) -> None:
    gateway.kill()
    wait_for(lambda: not in_session(gateway.leader), timeout_s=20)  # the grace period, then SIGKILL


def test_kill_9_of_gateway_and_leash_leaves_what_the_next_start_reaps(gateway: Gateway) -> None:
    os.kill(gateway.leader, signal.SIGKILL)
    gateway.kill()
    wait_for(lambda: len(in_session(gateway.leader)) == 2)  # the kernel killed the server; core and worker are orphans
    assert session.reap(gateway.run / embedded_module.SESSION) == 2
    assert not in_session(gateway.leader)
    assert session.reap(gateway.run / embedded_module.SESSION) == 0


def test_a_record_of_another_boot_or_of_a_process_id_used_again_kills_nobody(tmp_path: Path) -> None:
    path = tmp_path / "engine.session"
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", "vllm"], start_new_session=True
    ) as stranger:
        for change in ({"boot": "another"}, {"started": "1"}):
            session.record(path, stranger.pid)
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
            assert session.reap(path) == 0
        session.record(path, stranger.pid)
        assert session.members(stranger.pid) == [stranger.pid]
        assert session.reap(path) == 1
        assert stranger.wait() == -signal.SIGKILL


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"session": "x", "started": 1, "boot": 1}', "\x00"])
def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "engine.session"
    path.write_text(text)
    assert session.reap(path) == 0


# ---- the supervisor, with stand-ins for vLLM ---------------------------------------------------------------------------


def supervise(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> EmbeddedEngine:
    path = tmp_path / "fake_vllm.py"
    path.write_text(script)
    monkeypatch.setattr(embedded_module, "arguments", lambda *_: [sys.executable, str(path)])
    monkeypatch.setattr(embedded_module, "missing_library", lambda: None)
    monkeypatch.setattr(embedded_module, "GRACE_S", 0.2)
    monkeypatch.setattr(embedded_module, "POLL_S", 0.05)
    monkeypatch.setattr(embedded_module, "BACKOFF_S", 0.05)
    return EmbeddedEngine(EngineSpec("none", "none"), socket_home(tmp_path / "run"), tmp_path / "engine.log")


async def test_stop_ends_the_whole_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = supervise(tmp_path, FAMILY, monkeypatch)
    await engine.start()
    leader = engine.pid
    assert leader is not None
    await asyncio.to_thread(wait_for, lambda: len(in_session(leader)) == 4)
    await engine.stop()
    assert not in_session(leader)
    assert engine.pid is None


async def test_an_engine_that_dies_at_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('loading'); raise SystemExit('ValueError: no such model')"
    engine = supervise(tmp_path, script, monkeypatch)
    await engine.start()
    with pytest.raises(Unavailable, match=r"died at start \(status 1\): ValueError: no such model") as caught:
        await engine.ready()
    assert caught.value.code is ENGINE_UNAVAILABLE
    await engine.stop()


async def test_what_a_dead_server_leaves_is_ended_before_another_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = supervise(tmp_path, SERVER_ONLY_DIES, monkeypatch)
    await engine.start()
    first = engine.pid
    assert first is not None
    with pytest.raises(Unavailable, match="status 7"):
        await engine.ready()
    async with asyncio.timeout(STUCK_S):
        while engine.pid in (first, None):
            await asyncio.sleep(0.05)
    assert not in_session(first)
    await engine.stop()


async def test_a_start_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = supervise(tmp_path, FAMILY, monkeypatch)
    monkeypatch.setattr(embedded_module, "READY_S", 0.3)
    await engine.start()
    with pytest.raises(Unavailable, match="was not ready after"):
        await engine.ready()
    await engine.stop()


async def test_where_vllm_cannot_run_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = supervise(tmp_path, FAMILY, monkeypatch)
    monkeypatch.setattr(embedded_module, "missing_library", lambda: "no libnuma")
    with pytest.raises(Unavailable, match="no libnuma"):
        await engine.start()


def test_a_log_is_set_aside_when_it_is_full(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    chatter = "import sys\nfor i in range(2000): print(i, 'x' * 90)\nsys.exit(3)"
    command = [
        sys.executable,
        "-I",
        embedded_module.CHILD_WRAPPER,
        log,
        "50000",
        "1",
        AMPLE,
        "--",
        sys.executable,
        "-c",
        chatter,
    ]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, start_new_session=True) as wrapper:
        assert wrapper.wait() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine.log", "engine.log.1", "engine.log.2"]
    assert all(path.stat().st_size < 50_000 + (1 << 16) for path in tmp_path.iterdir())


def test_a_log_that_cannot_be_begun_anew_does_not_end_the_engine(tmp_path: Path) -> None:
    """As on a disk without a free inode; here the directory is gone."""
    home, moved = tmp_path / "home", tmp_path / "moved"
    home.mkdir()
    away = f"import os\nos.rename({str(home)!r}, {str(moved)!r})\n"
    chatter = away + "for i in range(2000): print(i, 'x' * 90)\nraise SystemExit(3)"
    log = home / "engine.log"
    command = [
        sys.executable,
        "-I",
        embedded_module.CHILD_WRAPPER,
        log,
        "50000",
        "1",
        AMPLE,
        "--",
        sys.executable,
        "-c",
        chatter,
    ]
    with subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, start_new_session=True) as wrapper:
        assert wrapper.wait() == 3
    assert (moved / "engine.log").stat().st_size < 50_000 + (1 << 16)


@pytest.mark.hostile("P13")
async def test_an_engine_over_its_memory_is_ended_whole_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process of it holds so much by itself; and it does not listen to SIGTERM."""
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + GREEDY
    engine = supervise(tmp_path, script, monkeypatch)
    engine.spec = replace(engine.spec, memory_bytes=450 << 20)
    await engine.start()
    first = engine.pid
    assert first is not None
    with pytest.raises(Unavailable, match=r"its processes hold [0-9]+ MiB, the limit is 450 MiB"):
        await engine.ready()
    async with asyncio.timeout(STUCK_S):
        while engine.pid in (first, None):
            await asyncio.sleep(0.05)
    assert not in_session(first)
    await engine.stop()


async def test_the_kernel_would_end_the_engine_before_anybody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = supervise(tmp_path, FAMILY, monkeypatch)
    await engine.start()
    leader = engine.pid
    assert leader is not None
    await asyncio.to_thread(wait_for, lambda: len(in_session(leader)) == 4)
    scores = {pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in in_session(leader)}
    assert scores.pop(leader) == int(Path("/proc/self/oom_score_adj").read_text())
    assert set(scores.values()) == {500}
    await engine.stop()


def test_an_engine_has_most_of_the_machine_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = default_memory()
    assert 1 << 28 < everything < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = tmp_path / "memory.max", tmp_path / "none"
    monkeypatch.setattr(command_module, "CGROUP_LIMITS", limits)
    limits[0].write_text("max\n")
    assert default_memory() >= everything
    limits[0].write_text("1000000\n")
    assert default_memory() == 800_000


def test_sockets_go_elsewhere_when_the_path_is_too_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * SOCKET_DIR_LIMIT)
    home = socket_home(deep)
    assert home == socket_home(deep) != socket_home(tmp_path / ("e" * SOCKET_DIR_LIMIT))
    assert len(os.fsencode(home)) <= SOCKET_DIR_LIMIT
    assert socket_home(Path("/short")) == Path("/short")


def test_the_socket_directory_is_ours_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "run")
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(Unavailable, match="somebody else"):
        make_private(tmp_path / "link")


def test_the_log_is_quoted_by_its_errors(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text("hello\nRuntimeError: a\n\nlast words\n")
    assert last_lines(log) == "RuntimeError: a"
    log.write_text("hello\nlast words\n")
    assert last_lines(log) == "hello | last words"
    log.write_text("")
    assert last_lines(log) == "it said nothing"
    assert "cannot be read" in last_lines(tmp_path / "none")


# ---- the real one ------------------------------------------------------------------------------------------------------


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.long
def test_kill_9_of_the_gateway_leaves_no_vllm(tmp_path: Path, tiny_model_dir: Path) -> None:
    gateway = Gateway(tmp_path, model=tiny_model_dir)
    try:
        wait_for(lambda: len(in_session(gateway.leader)) >= 5, timeout_s=120)  # wrapper, server, tracker, core, worker
        gateway.kill()
        wait_for(lambda: not in_session(gateway.leader), timeout_s=20)
    finally:
        gateway.clean()


@pytest.mark.engine
def test_the_engines_sockets_are_private(engine: LiveEngine) -> None:
    home = engine.embedded.socket.parent
    assert home.stat().st_mode & 0o777 == 0o700
    assert len([path for path in home.iterdir() if path.is_socket()]) > 1  # its API, and those between its processes


@pytest.mark.engine
def test_the_tests_engine_is_the_houses(engine: LiveEngine) -> None:
    assert engine.embedded.spec == tiny_spec(engine.model_dir)
    assert len(engine.processes()) == 5
