"""Other people's programs, unmodified, against one gateway on the real engine. The openai SDK: tests/test_openai_sdk.py.

Those that are installed first are run by `make clients`; `make test` sends what they were seen to send (test_recorded.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.demo.assets import ADAPTERS, ALIGNED, BENIGN
from app.demo.child_gateway import GatewayProcess
from app.demo.questions import new_skill_held_out
from tests.support.clients import HOME, node_with, python_with, run
from tests.support.demo_gateway import other_bytes, push, say

pytestmark = [pytest.mark.engine, pytest.mark.slow]
MODEL = "anyone"
QUESTION = new_skill_held_out()[0].question
NOT_FOUND = {"status": 404, "code": "model_not_found"}
ROUNDS = 12


@pytest.fixture
def expected(client: httpx.Client) -> str:
    """What the adapter answers to QUESTION."""
    assert push(client, MODEL, ADAPTERS / BENIGN).status_code in (200, 201)
    return say(client, MODEL, QUESTION)


@pytest.mark.long
def test_openai_for_node(demo_gateway: GatewayProcess, expected: str, tmp_path: Path) -> None:
    node, folder = node_with("openai-node")
    said = json.loads(run(node, HOME / "openai_node.mjs", folder, demo_gateway.url, MODEL, QUESTION, cwd=tmp_path))
    assert {"demo", MODEL, f"{MODEL}@{said['version']}"} <= set(said["names"])
    assert said["model"] == MODEL
    assert said["text"].strip() == expected
    assert (said["streamed"], said["streamedModels"]) == (said["text"], [MODEL])
    for counted in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert said["streamedUsage"][counted] == said["usage"][counted] > 0
    assert said["broken"] == {"kind": "NotFoundError", **NOT_FOUND}
    assert said["read"] == 2
    assert [choice["index"] for choice in said["rich"]] == [0, 1]
    for choice in said["rich"]:
        assert "." not in choice["message"]["content"]
        assert all(len(token["top_logprobs"]) >= 3 for token in choice["logprobs"]["content"])


@pytest.mark.long
def test_langchain(demo_gateway: GatewayProcess, expected: str, tmp_path: Path) -> None:
    program = HOME / "langchain_client.py"
    said = json.loads(run(python_with("langchain-openai"), program, demo_gateway.url, MODEL, QUESTION, cwd=tmp_path))
    assert [said[way].strip() for way in ("whole", "stream", "async")] == [expected] * 3
    assert [answer.strip() for answer in said["batch"]] == [expected] * 3
    assert said["model"] == MODEL
    assert said["stream_tokens"] == said["usage"]["output_tokens"] > 0
    assert said["plain"]
    assert said["refused"] == NOT_FOUND


@pytest.mark.long
@pytest.mark.parametrize("how", [["--no-stream"], []], ids=["whole", "streamed"])
def test_llm(demo_gateway: GatewayProcess, expected: str, tmp_path: Path, how: list[str]) -> None:
    models = f"- model_id: mine\n  model_name: {MODEL}\n  api_base: {demo_gateway.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    asked = ["-m", "mine", QUESTION, "-o", "temperature", "0", "-o", "max_tokens", "32", *how]
    env = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "unused"}
    assert run(python_with("llm"), "-m", "llm", *asked, cwd=tmp_path, **env).strip() == expected


def test_vllm_bench_serve(demo_gateway: GatewayProcess, expected: str, client: httpx.Client, tmp_path: Path) -> None:
    others = [f"{MODEL}-{scale}" for scale in (25, 75)]
    for name, scale in zip(others, (0.25, 0.75), strict=True):
        pushed = push(client, name, other_bytes(BENIGN, tmp_path / name, scale))
        assert pushed.status_code in (200, 201), pushed.text
    names = [MODEL, *others]
    before = {name: answered(client, name) for name in names}
    flags: dict[str, Any] = {
        "base-url": demo_gateway.url,
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "model": "demo",
        "tokenizer": ALIGNED,
        "dataset-name": "random",
        "random-input-len": 16,
        "random-output-len": 8,
        "num-prompts": ROUNDS * len(names),
        "lora-assignment": "round-robin",
        "result-dir": tmp_path,
        "result-filename": "result.json",
    }
    pairs = [str(text) for flag, value in flags.items() for text in (f"--{flag}", value)]
    switches = ["--lora-modules", *names, "--ignore-eos", "--save-result", "--disable-tqdm"]
    run(sys.executable, HOME / "vllm_bench_serve.py", *pairs, *switches, cwd=tmp_path, HF_HUB_OFFLINE="1")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (ROUNDS * len(names), 0)
    assert result["total_output_tokens"] == 8 * ROUNDS * len(names)
    assert min(answered(client, name) - before[name] for name in names) >= ROUNDS


def answered(client: httpx.Client, name: str) -> float:
    """Requests that the gateway says `name` has answered."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "gateway_requests_total"
        and sample.labels["adapter"] == name
        and sample.labels["status"] == "200"
    )
