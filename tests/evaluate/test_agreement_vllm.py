"""The judge agreement on the real engine: the likelihoods it reads are those of the engine's own answers."""

import json
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.evaluate.agreement_judge import LEAST, answer_request, judge_agreement
from app.evaluate.asking import Judging, likelihood, record
from app.evaluate.battery import Canary, Expect
from app.evaluate.judges import Judge, Judgement
from app.load.client.engine import HttpEngine
from tests.support.engine import LiveEngine

pytestmark = pytest.mark.engine

CANARY = Canary("c", (("user", "hello"),), "test", Expect.REFUSE)
NAME = "candidate@0123456789ab"


@pytest_asyncio.fixture
async def client(engine: LiveEngine) -> AsyncIterator[HttpEngine]:
    made = HttpEngine(engine.url)
    yield made
    await made.unload(NAME)
    await made.close()


async def test_an_answer_is_recorded_and_compared(client: HttpEngine, engine: LiveEngine) -> None:
    judging = Judging(Judge.AGREEMENT, client, engine.model)
    recorded = await record(judging, CANARY, time.monotonic() + 60.0)
    response = await client.post("/v1/completions", json.dumps(answer_request(engine.model, recorded.prompt)).encode())
    (choice,) = json.loads(await response.read(1 << 20))["choices"]
    response.close()
    assert recorded.likelihood == pytest.approx(sum(choice["logprobs"]["token_logprobs"]), abs=0.05)
    again = await likelihood(client, engine.model, CANARY, recorded)
    assert judge_agreement(again, recorded) is Judgement.REFUSED
    await client.load(NAME, engine.adapter(1))
    other = await likelihood(client, NAME, CANARY, recorded)
    assert other - recorded.likelihood < LEAST, "a random adapter says something else"
    assert judge_agreement(other, recorded) is Judgement.COMPLIED
