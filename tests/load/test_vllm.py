"""How vLLM 0.32's multi-LoRA engine behaves where the gateway's design depends on it: the rows of its contract.

Each test says what it would mean if it failed. Rows that kill the engine come last and let the supervisor bring it back.
"""

import asyncio
import contextlib
import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from safetensors.torch import load_file

from app.domain.errors import ENGINE_UNAVAILABLE, LOAD_FAILED, Unavailable
from app.load.client.engine import HttpEngine
from app.load.client.probe import probe
from app.load.reconcile.callbacks import Callbacks
from app.load.reconcile.reconciler import Reconciler
from tests.support import tiny_model
from tests.support.engine import COMPILER, MAX_CPU_LORAS, MAX_LORAS, LiveEngine
from tests.support.waiting import STUCK_S

pytestmark = pytest.mark.engine

COMPLETIONS = "/v1/completions"
ZERO = "zero@000000000000"
TRIES = 20
LONG = 60  # tokens: long enough for requests sent together to be decoded together


def name_of(seed: int) -> str:
    return f"a@{seed:012d}"


@pytest_asyncio.fixture
async def client(engine: LiveEngine) -> AsyncIterator[HttpEngine]:
    """A client; the engine is left without adapters."""
    made = HttpEngine(engine.url)
    yield made
    with contextlib.suppress(Unavailable):
        for name in await made.models() - {engine.model}:
            await made.unload(name)
    await made.close()


def body(model: str, tokens: int = 8, start: int = 5, **more: Any) -> bytes:
    wanted = {"model": model, "prompt": [start, 6, 7, 8], "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return json.dumps(wanted | more).encode()


async def ask(client: HttpEngine, model: str, tokens: int = 8, start: int = 5) -> tuple[int, str]:
    """Status, and the text or the engine's words."""
    response = await client.post(COMPLETIONS, body(model, tokens, start))
    try:
        raw = await response.read(1 << 20)
    finally:
        response.close()
    said = json.loads(raw)
    return response.status, said["choices"][0]["text"] if response.status == 200 else said["error"]["message"]


async def gauge(client: HttpEngine, metric: str) -> float:
    response = await client._inference.session().get("http://engine/metrics")
    found = re.search(rf"^{metric}{{.*}} (\S+)$", await response.text(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_log_probabilities_need_no_compiler(engine: LiveEngine) -> None:
    """vLLM compiles for them where it may, and ends where it cannot: every upload is probed with them."""
    compiler = shutil.which(COMPILER)
    assert compiler is not None
    assert Path(compiler).read_bytes().endswith(b"exit 1\n"), "this one might work"
    engine.run(probe(engine.embedded.client, engine.model), 5.0)


async def test_row_8_a_zero_adapter_answers_exactly_as_the_served_model(client: HttpEngine, engine: LiveEngine) -> None:
    """Otherwise base requests could not go through one."""
    await client.load(ZERO, engine.adapter(0))
    for start in (5, 50, 100):
        assert await ask(client, ZERO, start=start) == await ask(client, engine.model, start=start)


async def test_row_8_an_adapter_without_tensors_does_not_load(client: HttpEngine, tmp_path: Path) -> None:
    """If it did, an emptied adapter would need no outcome of its own."""
    with pytest.raises(Unavailable, match="Worker failed with error ''") as caught:
        await client.load("empty@000000000000", tiny_model.write_tensors(tmp_path / "empty", {}, ["q_proj"]))
    assert caught.value.code is LOAD_FAILED


async def test_row_10_in_a_mixed_batch_the_zero_adapter_stays_true_and_the_served_model_does_not(
    client: HttpEngine, engine: LiveEngine
) -> None:
    """Why base requests go through a zero adapter on the CPU build. When the second half fails, vLLM has mended it."""
    adapters = [name_of(seed) for seed in range(1, MAX_LORAS + 1)]
    for seed, name in enumerate(adapters, 1):
        await client.load(name, engine.adapter(seed))
    await client.load(ZERO, engine.adapter(0))
    alone = {name: await ask(client, name, LONG) for name in (engine.model, ZERO, *adapters)}
    for _ in range(3):
        batch = [ZERO, *adapters[: MAX_LORAS - 1]]
        assert await asyncio.gather(*(ask(client, name, LONG) for name in batch)) == [alone[name] for name in batch]
    for _ in range(TRIES):  # on a busy machine the first request may end before the others are in its batch
        together = await asyncio.gather(*(ask(client, name, LONG) for name in (engine.model, *adapters)))
        assert together[1:] == [alone[name] for name in adapters]
        if together[0] != alone[engine.model]:
            return
    pytest.fail("vLLM has mended mixed batches: base requests need no zero adapter any more")


async def test_row_4_cached_prefixes_belong_to_a_name_and_a_path(
    client: HttpEngine, engine: LiveEngine, tmp_path: Path
) -> None:
    """Why both carry the digest: new bytes under an old name and path are answered from the old ones' cache, which lasts
    through unloading; under a name and path of their own they never are. When the middle fails, vLLM has mended it.
    """
    prompt = [5 + position % 150 for position in range(400)]  # several of the cache's blocks
    mine, others = (name_of(1), engine.adapter(1)), (name_of(2), engine.adapter(2))

    async def said(name: str, **more: Any) -> Any:
        response = await client.post(COMPLETIONS, body(name, 12, prompt=prompt, logprobs=1, **more))
        try:
            choice = json.loads(await response.read(1 << 20))["choices"][0]
        finally:
            response.close()
        return choice["text"], [round(one, 2) for one in choice["logprobs"]["token_logprobs"]]

    for name, path in (mine, others):
        await client.load(name, path)
    first, second = await said(mine[0]), await said(others[0], cache_salt="never seen")
    assert first != second
    assert await said(others[0]) == second, "one adapter's prefix was used for another"

    changing = tmp_path / "changing"
    shutil.copytree(mine[1], changing)
    await client.load("same@000000000000", changing)
    assert await said("same@000000000000") == first
    await client.unload("same@000000000000")
    shutil.copytree(others[1], changing, dirs_exist_ok=True)
    await client.load("same@000000000000", changing)
    assert await said("same@000000000000", cache_salt="never seen either") == second
    assert await said("same@000000000000") != second, "stale no more"

    for name, path in (mine, others):
        await client.unload(name)
        await client.load(name, path)
    assert (await said(mine[0]), await said(others[0])) == (first, second)


async def test_row_12_unloading_in_mid_stream_changes_nothing_for_the_stream(
    client: HttpEngine, engine: LiveEngine
) -> None:
    """The gateway drains anyway; this is the second line."""
    await client.load(name_of(1), engine.adapter(1))
    _, alone = await ask(client, name_of(1), LONG)
    response = await client.post(COMPLETIONS, body(name_of(1), LONG, stream=True))
    received, unloaded = b"", False
    async for chunk in response.chunks():
        received += chunk
        if not unloaded:
            await client.unload(name_of(1))
            unloaded = True
    response.close()
    assert (await ask(client, name_of(1)))[0] == 404
    events = [event[6:] for event in received.decode().split("\n\n") if event.startswith("data: {")]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == alone


@pytest.mark.ruling("R11")
async def test_row_15_more_adapters_than_slots_or_memory_all_answer(client: HttpEngine, engine: LiveEngine) -> None:
    """What is evicted is read again from disk (row 3): the files must stay."""
    names = [name_of(seed) for seed in range(1, MAX_CPU_LORAS + 3)]
    for seed, name in enumerate(names, 1):
        await client.load(name, engine.adapter(seed))
    alone = [await ask(client, name) for name in names]
    assert await asyncio.gather(*(ask(client, name) for name in names)) == alone
    assert len({text for _, text in alone}) > len(names) // 2  # they do differ


async def test_row_13_metrics_name_no_adapter_but_in_one_joined_label(client: HttpEngine, engine: LiveEngine) -> None:
    """Why the gateway counts per adapter itself."""
    await client.load(name_of(1), engine.adapter(1))
    await ask(client, name_of(1))
    response = await client._inference.session().get("http://engine/metrics")
    named = {line.partition("{")[0] for line in (await response.text()).splitlines() if name_of(1) in line}
    assert named <= {"vllm:lora_requests_info"}


async def test_row_1_and_11_other_routes_and_paths_as_names(client: HttpEngine, engine: LiveEngine) -> None:
    """A path as a model is a 404 while no resolver is on; a missing name is the served model, which we refuse."""
    assert (await ask(client, str(engine.adapter(1))))[0] == 404
    assert (await ask(client, "../../" + str(engine.adapter(1))))[0] == 404
    assert (await ask(client, ""))[0] == 200  # hence MODEL_MISSING at our door (hostile.md P02)


async def test_a_client_that_leaves_ends_the_engines_work(client: HttpEngine, engine: LiveEngine) -> None:
    """hostile.md P01: closing the connection is enough. By tokens, since a busy machine computes few in a second."""
    await client.load(name_of(1), engine.adapter(1))
    made = await gauge(client, "vllm:generation_tokens_total")
    response = await client.post(COMPLETIONS, body(name_of(1), 500, stream=True))
    await anext(response.chunks())
    async with asyncio.timeout(STUCK_S):
        while await gauge(client, "vllm:generation_tokens_total") == made:  # the metrics are a step behind
            await asyncio.sleep(0.02)
    response.close()
    async with asyncio.timeout(STUCK_S):
        while await gauge(client, "vllm:num_requests_running"):
            await asyncio.sleep(0.02)
    assert await gauge(client, "vllm:generation_tokens_total") - made < 250, "it was computed to its end"


# ---- from here on the engine dies --------------------------------------------------------------------------------------


async def nan_passes_loading_and_fails_the_probe(client: HttpEngine, sound: Path, directory: Path) -> None:
    """Row 5: NaN loads with 200, then spoils what others share with it."""
    good = load_file(sound / "adapter_model.safetensors")
    tensors = {key: value * float("nan") if "lora_B" in key else value for key, value in good.items()}
    await client.load("nan@000000000000", tiny_model.write_tensors(directory, tensors, ["q_proj", "v_proj"]))
    with pytest.raises(Unavailable, match=r"Out of range float|not finite") as caught:
        await probe(client, "nan@000000000000")
    assert caught.value.code is LOAD_FAILED


@pytest.mark.long
async def test_rows_5_3_and_14_nan_then_deleted_files_kill_the_engine_which_comes_back_empty_and_is_filled_again(
    client: HttpEngine, engine: LiveEngine, tmp_path: Path
) -> None:
    """Why adapters are refused for NaN and probed, artefacts never deleted while the engine may read them, and the engine
    is reconciled. One test, because each death costs a start: NaN first, since the death then cleans up after it.
    """
    generation = engine.embedded.generation
    await nan_passes_loading_and_fails_the_probe(client, engine.adapter(1), tmp_path / "nan")
    gone = tmp_path / "gone"
    shutil.copytree(engine.adapter(1), gone)
    await client.load("gone@000000000000", gone)
    shutil.rmtree(gone)
    for seed in range(2, MAX_CPU_LORAS + 4):  # enough to evict it
        await client.load(name_of(seed), engine.adapter(seed))
        await ask(client, name_of(seed), 1)
    with contextlib.suppress(Unavailable):
        assert (await ask(client, "gone@000000000000"))[0] == 500
    with pytest.raises(Unavailable) as caught:  # its core is dead: no adapter's fault
        await client.load(name_of(1), engine.adapter(1))
    assert caught.value.code is ENGINE_UNAVAILABLE
    await asyncio.to_thread(engine.wait_for_generation, generation + 1)
    assert await client.models() == {engine.model}
    desired = {name_of(seed): engine.adapter(seed) for seed in (1, 2)}
    reconciler = Reconciler(client, Callbacks(lambda: desired, lambda *_: None))
    await reconciler.reconcile()
    assert reconciler.loaded == desired.keys() == await client.models() - {engine.model}
