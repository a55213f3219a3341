"""The process strangers' tensors are read in: whatever ends it ends one upload, and the next one finds all as before."""

import os
import resource
import signal
import socket
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from app.domain.errors import (
    BAD_CONFIG,
    SCREENING_FAILED,
    SCREENING_KILLED,
    SCREENING_TIMEOUT,
    Refused,
    Stage,
    Unavailable,
)
from app.domain.lora import ServingDtype, TargetModel
from app.domain.policy import Policy
from app.domain.policy_override import PolicyOverride
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure, sanitise
from app.screen.reference.open import open_reference
from app.validate.adapter import ValidateLimits
from tests.support.adapters import Upload
from tests.support.references import make_reference
from tests.support.sandboxes import (
    BOUND_S,
    MEMORY,
    WALL_S,
    InFlight,
    children,
    refused,
    sound,
    sound_in_the_end,
    through,
    worker_pid,
)

# ---- the same answer, elsewhere ----------------------------------------------------------------------------------------


def test_it_gives_what_this_process_would_give(measure: Measure, bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    here, at_home = through(partial(sanitise, measure), upload, tmp_path)
    there, abroad = through(bad, upload, tmp_path)
    assert here is not None
    assert there is not None
    assert (there.digest, there.config, there.weights) == (here.digest, here.config, here.weights)
    assert at_home.verdict is not None
    assert abroad.verdict is not None
    assert abroad.verdict.id == at_home.verdict.id
    assert [one.scores for one in abroad.verdict.modules] == [one.scores for one in at_home.verdict.modules]
    assert abroad.stages == at_home.stages == [Stage.VALIDATE, Stage.SCREEN, Stage.PRUNE]


@pytest.mark.slow
def test_a_reference_of_as_many_files_as_a_real_models(tmp_path: Path) -> None:
    directory = make_reference(tmp_path, layers=32)  # 128 modules; Llama-2-7B has 224
    reference = open_reference(directory, None)
    target = TargetModel("served", reference.modules, ServingDtype.FLOAT32, 16)
    measure = Measure(target, ValidateLimits(), reference, Policy(tau=1e9, max_update_ratio=1e9), 60.0)
    sandbox = Sandbox(measure, directory, MEMORY, wall_seconds=BOUND_S, module="tests.support.mapped_sandbox_worker")
    sandbox.start()
    try:
        sound(sandbox, Upload.valid(target, seed=1), tmp_path)
    finally:
        sandbox.close()
        reference.close()


def test_it_refuses_in_the_same_words(measure: Measure, bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    for spoiled in (upload.having(use_dora=True), upload.having(lora_alpha=1e30), upload.having(r=3)):
        told = []
        for how in (partial(sanitise, measure), bad):
            with pytest.raises(Refused) as caught:
                through(how, spoiled, tmp_path)
            told.append((caught.value.code, caught.value.message, caught.value.param))
        assert told[0] == told[1]


def test_a_tenants_override_holds_for_its_upload_and_no_other(
    measure: Measure, bad: Sandbox, upload: Upload, tmp_path: Path
) -> None:
    override = PolicyOverride(tau=-1e6, max_pruned_share=0.5)
    for how in (partial(sanitise, measure, override=override), partial(bad, override=override)):
        artefact, heard = through(how, upload, tmp_path)
        assert artefact is None
        assert heard.verdict is not None
        assert (heard.verdict.outcome, heard.verdict.policy.tau) == ("rejected", -1e6)
    sound(bad, upload, tmp_path)


def test_a_rejection_comes_with_its_verdict(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    strict = Measure(measure.target, measure.limits, measure.reference, Policy(tau=-1e9, max_pruned_share=0.0), 60.0)
    sandbox = Sandbox(strict, tiny_reference_dir, MEMORY)
    try:
        artefact, heard = through(sandbox, upload, tmp_path)
    finally:
        sandbox.close()
    assert artefact is None
    assert heard.verdict is not None
    assert heard.verdict.outcome == "rejected"


# ---- how a child may end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_killed_it_refuses_one_upload(bad: Sandbox, upload: Upload, tmp_path: Path, number: int) -> None:
    error = refused(bad, upload, tmp_path, f"signal:{int(number)}")
    assert error.code is SCREENING_KILLED
    assert str(-number) in error.message
    sound(bad, upload, tmp_path)


@pytest.mark.parametrize("how", ["memory", "torch memory"])
def test_out_of_memory_it_refuses_one_upload(bad: Sandbox, upload: Upload, tmp_path: Path, how: str) -> None:
    assert refused(bad, upload, tmp_path, f"{how}:{2 * MEMORY}").code is SCREENING_KILLED
    sound(bad, upload, tmp_path)


def test_half_of_its_memory_it_may_have(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """The limit counts from what it was born with, the reference among it."""
    error = refused(bad, upload, tmp_path, f"memory:{MEMORY // 2}")
    assert "not in form" in error.message, "it came through, to say what was not to be said"


@pytest.mark.parametrize("how", ["sleep", "spin", f"signal:{int(signal.SIGSTOP)}"])
def test_too_slow_it_refuses_one_upload(
    hasty: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    sound_in_the_end(hasty, upload, tmp_path)
    assert (worker := hasty._worker) is not None
    monkeypatch.setattr("app.sandbox.client.GRACE_S", 0.5)
    began = time.monotonic()
    assert refused(hasty, upload, tmp_path, how).code is SCREENING_TIMEOUT
    assert time.monotonic() - began < WALL_S + 5
    sound_in_the_end(hasty, upload, tmp_path)
    assert hasty._worker is worker, "one upload's time is up, not its worker's"


def test_a_file_cut_short_while_it_is_mapped_ends_one_upload(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    with InFlight(bad, upload, tmp_path / "cut", "cut short") as mapped:
        os.truncate(tmp_path / "cut" / "weights", 0)
        with pytest.raises(Refused) as caught:
            mapped.finished()
    assert caught.value.code is SCREENING_KILLED
    assert str(-signal.SIGBUS) in caught.value.message
    sound(bad, upload, tmp_path)


def test_it_writes_no_file(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    assert refused(bad, upload, tmp_path, f"write:{tmp_path / 'left'}").code is SCREENING_KILLED
    assert (tmp_path / "left").stat().st_size == 0


def test_it_reaches_nobody(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = refused(bad, upload, tmp_path, f"connect:{server.getsockname()[1]}")
        assert error.code is SCREENING_KILLED
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_it_holds_and_knows_nothing_of_ours(
    bad: Sandbox, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_API_KEYS", "secret")
    error = refused(bad, upload, tmp_path, "look:environment")
    assert error.code is BAD_CONFIG
    assert not [name for name in error.message.split() if name.startswith(("GATEWAY", "PYTEST", "AWS", "HF_"))]
    files = refused(bad, upload, tmp_path, "look:files").message.split()
    kinds = [kind for kind in files if not kind.startswith("/proc")]
    assert 1 <= len(kinds) <= 3, "its upload, its line, and what lists them"
    assert not [kind for kind in kinds if "catalogue" in kind or ".lock" in kind or "artefacts" in kind]


FORGED = [
    *("noise", "endless", "no object", "deep", "unasked", "a code nobody knows", "another policy"),
    *("a module nobody has", "a number that is none", "another outcome", "another tensor", "longer"),
    *("another configuration", "far too long", "never done"),
    *("a duration beyond all floats", "a duration below zero"),
]


@pytest.mark.parametrize("kind", FORGED)
def test_what_comes_back_out_of_form_is_refused(bad: Sandbox, upload: Upload, tmp_path: Path, kind: str) -> None:
    assert refused(bad, upload, tmp_path, f"forge:{kind}").code is SCREENING_KILLED
    sound(bad, upload, tmp_path)


# ---- the process the children come from --------------------------------------------------------------------------------


def test_the_process_itself_killed_is_started_again(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    sound(bad, upload, tmp_path)
    assert bad._worker is not None
    process = bad._worker.process
    process.kill()
    process.wait()
    sound(bad, upload, tmp_path)


def test_killed_with_a_child_at_work_it_is_our_failure(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    sound(bad, upload, tmp_path)
    assert bad._worker is not None
    process = bad._worker.process
    with InFlight(bad, upload, tmp_path / "killed") as flight:
        process.kill()
        with pytest.raises(Unavailable) as caught:
            flight.finished()
    assert caught.value.code is SCREENING_FAILED
    sound(bad, upload, tmp_path)


def test_killed_before_a_new_child_could_ask_to_die_with_it_no_child_is_left(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY, wall_seconds=600, module="tests.support.late_sandbox_worker")
    sandbox.start()
    sandbox.warm()
    parent, found = worker_pid(sandbox), list[int]()

    def kill() -> None:
        while not found:
            found.extend(children(parent))
            time.sleep(0.01)
        os.kill(parent, signal.SIGKILL)

    killing = threading.Thread(target=kill)
    killing.start()
    assert refused(sandbox, upload, tmp_path, "sleep").code is SCREENING_FAILED
    killing.join()
    while Path(f"/proc/{found[0]}").exists():  # the test would not end
        time.sleep(0.01)
    sandbox.close()


def test_a_gateway_with_thousands_of_connections(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """Each is an open file: a child's end is noticed by files of any number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert refused(bad, upload, tmp_path, "signal:9").code is SCREENING_KILLED
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_at_once(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    """One dies, the others do not."""
    results: dict[int, str] = {}

    def one(number: int) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        if number % 2:
            results[number] = refused(bad, upload, directory, "signal:9").code.name
        else:
            sound(bad, upload, directory)
            results[number] = "sound"

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: "screening_killed" if number % 2 else "sound" for number in range(6)}


def test_closed_it_takes_nothing_and_leaves_nobody(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY)
    sandbox.start()
    assert sandbox._worker is not None
    process = sandbox._worker.process
    sandbox.close()
    assert process.poll() is not None
    with pytest.raises(Unavailable):
        through(sandbox, upload, tmp_path)


def test_a_reference_that_changed_is_not_opened(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    sandbox = Sandbox(measure, tmp_path / "nowhere", MEMORY)
    with pytest.raises(Unavailable, match="does not start") as caught:
        through(sandbox, upload, tmp_path)
    assert caught.value.code is SCREENING_FAILED


def test_what_it_costs(measure: Measure, bad: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, and bounded generously: a fork and a copy, not a start."""
    upload = Upload.valid(measure.target, seed=3)
    sound(bad, upload, tmp_path)
    took: dict[str, float] = {}
    for name, how in (("here", partial(sanitise, measure)), ("shut away", bad)):
        seconds = []
        for _ in range(10):
            began = time.perf_counter()
            through(how, upload, tmp_path)
            seconds.append(time.perf_counter() - began)
        took[name] = median(seconds)
    added = took["shut away"] - took["here"]
    with capsys.disabled():
        print(f"\none upload: {took['here'] * 1e3:.1f} ms here, {took['shut away'] * 1e3:.1f} ms shut away")
    assert added < 1.0
