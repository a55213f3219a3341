"""An engine is used only if its model is the one the reference is for; where that cannot be known, it is said."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.demo.assets import ALIGNED, BASE
from app.domain.digest import Digest, digest_of
from app.domain.errors import BAD_REFERENCE, ENGINE_UNAVAILABLE, Unavailable
from app.load.client import identity
from app.load.client.engine import HttpEngine
from app.load.client.identity import LIKELIEST, PROMPTS, RECORD, TOLERANCE, Expected, Identity, ModelCheck
from app.load.reconcile.objection import Objection
from tests.support.engine import LiveEngine
from tests.support.simulator import MODEL, Simulator

CHECKPOINT = digest_of(b"aligned")


def unknown(directory: Path) -> str | None:
    raise Unavailable(BAD_REFERENCE, f"{directory}: no safetensors files")


def check(
    tmp_path: Path,
    difference: Callable[[Path], str | None] = unknown,
    *,
    files: Path | None = None,
    trusted: bool = False,
    checkpoint: Digest = CHECKPOINT,
) -> ModelCheck:
    return ModelCheck(Expected(MODEL, checkpoint, difference, tmp_path / "data" / RECORD, files, trusted))


# ---- by its files ------------------------------------------------------------------------------------------------


async def test_a_directory_that_is_here_too_is_compared(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path
) -> None:
    simulator.root = str(tmp_path)
    asked: list[Path] = []

    def same(directory: Path) -> None:
        asked.append(directory)

    found = await check(tmp_path, same).identify(simulated_client)
    assert found == Identity("the reference's aligned checkpoint, by its files", compared=True)
    assert asked == [tmp_path]
    found = await check(tmp_path, lambda _: "it is the base").identify(simulated_client)
    assert found.objection is not None
    assert "it is the base" in found.objection
    assert str(tmp_path) not in f"{found}"  # /ready is read by everybody
    assert not simulator.compared


@pytest.mark.parametrize("root", ["/nowhere/to/be/found", "org/model-7b", ".", ""])
async def test_what_is_no_directory_here_is_not_looked_for(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, root: str
) -> None:
    simulator.root = root
    found = await check(tmp_path, lambda _: "never asked").identify(simulated_client)
    assert found.note.startswith("not compared: its answers were recorded")


async def test_a_directory_without_a_checkpoint_says_nothing_of_an_engine_elsewhere(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path
) -> None:
    simulator.root = str(tmp_path)
    found = await check(tmp_path).identify(simulated_client)
    assert found.objection is None
    assert not found.compared
    own = await check(tmp_path, files=tmp_path).identify(simulated_client)  # our own engine has no other directory
    assert own.objection is not None
    assert "cannot be compared" in own.objection


# ---- by its answers ----------------------------------------------------------------------------------------------


async def test_the_first_model_is_recorded_and_known_again(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path
) -> None:
    first = await check(tmp_path).identify(simulated_client)
    assert (first.compared, first.objection) == (False, None)
    assert first.note.startswith("not compared")
    simulator.rounding = TOLERANCE / 2  # another machine
    again = await check(tmp_path).identify(simulated_client)
    assert (again.compared, again.objection) == (True, None)
    assert (tmp_path / "data").is_dir()
    assert [path.name for path in (tmp_path / "data").iterdir()] == [RECORD]


async def test_another_model_is_objected_to(simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path) -> None:
    await check(tmp_path).identify(simulated_client)
    simulator.checkpoint = "base"
    found = await check(tmp_path).identify(simulated_client)
    assert found.objection is not None
    assert "nats a token apart, allowed 0.1" in found.objection
    assert RECORD in found.objection  # what to do where the first one was wrong
    (tmp_path / "data" / RECORD).unlink()
    assert (await check(tmp_path).identify(simulated_client)).objection is None


async def test_a_record_is_of_one_checkpoint_and_of_these_texts(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await check(tmp_path).identify(simulated_client)
    simulator.checkpoint = "next"
    other = digest_of(b"next")
    assert (await check(tmp_path, checkpoint=other).identify(simulated_client)).note.startswith("not compared")
    assert (await check(tmp_path, checkpoint=other).identify(simulated_client)).compared
    monkeypatch.setattr(identity, "PROMPTS", PROMPTS[:9])
    assert (await check(tmp_path, checkpoint=other).identify(simulated_client)).note.startswith("not compared")


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff"])
async def test_a_damaged_record_is_made_anew(
    simulated_client: HttpEngine, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / RECORD).write_bytes(damage)
    assert (await check(tmp_path).identify(simulated_client)).note.startswith("not compared: its answers were recorded")
    assert "cannot be read and is made anew" in caplog.text
    assert (await check(tmp_path).identify(simulated_client)).compared


async def test_what_tells_no_log_probabilities_is_not_compared_and_said_so(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator.checkpoint = None
    found = await check(tmp_path).identify(simulated_client)
    assert found == Identity("not compared: the engine tells no log-probabilities (logprobs are disabled)")
    simulator.checkpoint = "aligned"
    for numbers in ({}, {"w": float("nan")}, {"w": None}, {"w": "x"}, [0.5], None):
        monkeypatch.setattr(simulator, "_log_probabilities", lambda _, said=numbers: said)
        assert (await check(tmp_path).identify(simulated_client)).note.startswith("not compared: the engine")
    assert not (tmp_path / "data").exists()


async def test_garbage_is_not_compared(simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path) -> None:
    simulator.faults["completions"] = "garbage"
    found = await check(tmp_path).identify(simulated_client)
    assert found.note == "not compared: the engine's log-probabilities cannot be read"


async def test_an_engine_in_trouble_is_asked_again(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fault in ("500", "reset"):
        simulator.faults["completions"] = fault
        with pytest.raises(Unavailable) as caught:
            await check(tmp_path).identify(simulated_client)
        assert caught.value.code is ENGINE_UNAVAILABLE
    monkeypatch.setattr(identity, "ANSWER_S", 0.05)
    simulator.faults["completions"] = "hang"
    with pytest.raises(Unavailable, match="did not answer within"):
        await check(tmp_path).identify(simulated_client)


# ---- trusted, and said -------------------------------------------------------------------------------------------


async def test_a_trusted_model_is_used_and_never_in_silence(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    trusting = Objection(check(tmp_path, trusted=True).identify)
    assert not await trusting.stands(simulated_client)
    assert trusting.model == Identity("trusted, not compared")
    assert not (tmp_path / "data").exists()  # what is trusted is no measure for later
    simulator.root = str(tmp_path)
    trusting = Objection(check(tmp_path, lambda _: "it is the base", trusted=True).identify)
    for _ in range(2):
        assert not await trusting.stands(simulated_client)
    assert trusting.model == Identity("trusted, although it is the base")
    said = [record for record in caplog.records if "it is the base" in record.message]
    assert [record.levelname for record in said] == ["WARNING"]


async def test_an_objection_is_said_once_and_ends_with_its_cause(
    simulator: Simulator, simulated_client: HttpEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gateway")
    simulator.root = str(tmp_path)
    differs = ["it is the base"]
    objection = Objection(check(tmp_path, lambda _: differs[0] if differs else None).identify)
    for _ in range(3):
        assert await objection.stands(simulated_client)
    assert sum("engine not used: it is the base" in record.message for record in caplog.records) == 1
    differs.clear()
    assert not await objection.stands(simulated_client)
    assert objection.why is None
    assert caplog.records[-1].levelname == "INFO"
    assert "by its files" in caplog.records[-1].message


# ---- the tolerance -----------------------------------------------------------------------------------------------


def answers(checkpoint: Path, dtype: torch.dtype) -> identity.Answers:
    """What vLLM tells, computed by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
    found = []
    for prompt in PROMPTS:
        with torch.no_grad():
            told = model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].float().log_softmax(-1)
        likeliest = told.topk(LIKELIEST)
        tokens = (tokenizer.decode([int(token)]) for token in likeliest.indices)
        found.append(dict(zip(tokens, map(float, likeliest.values), strict=True)))
    return tuple(found)


def test_the_tolerance_tells_the_demos_base_from_its_aligned_model_and_no_rounding() -> None:
    exact = {path: answers(path, torch.float32) for path in (BASE, ALIGNED)}
    rounded = {path: answers(path, torch.bfloat16) for path in (BASE, ALIGNED)}
    for numbers in (exact, rounded):
        assert identity.distance(numbers[BASE], numbers[ALIGNED]) > 10 * TOLERANCE
    for path in (BASE, ALIGNED):
        assert identity.distance(exact[path], rounded[path]) < TOLERANCE / 2
        print(f"{path.name}: float32 to bfloat16 {identity.distance(exact[path], rounded[path]):.3f} nats")
    print(f"base to aligned: {identity.distance(exact[BASE], exact[ALIGNED]):.3f} nats")


@pytest.mark.engine
def test_the_real_engine_tells_what_transformers_computes(engine: LiveEngine, tmp_path: Path) -> None:
    async def ask() -> list[Identity]:
        client = HttpEngine(engine.url)
        try:
            by_files = await check(tmp_path, str).identify(client)
            return [by_files, *[await check(tmp_path).identify(client) for _ in range(2)]]
        finally:
            await client.close()

    by_files, first, again = engine.run(ask())
    assert by_files.objection == str(engine.model_dir)  # its `root` is a directory of this machine
    assert first.note.startswith("not compared: its answers were recorded")
    assert again.compared
    recorded = identity._read(tmp_path / "data" / RECORD, CHECKPOINT)
    assert recorded is not None
    assert identity.distance(recorded, answers(engine.model_dir, torch.float32)) < TOLERANCE / 10
