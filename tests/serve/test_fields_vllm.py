"""Differential test against vLLM's own request classes: a body that they take is taken, or refused as dangerous by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    *("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest", "AnthropicMessagesRequest"),
    *("AnthropicCountTokensRequest", "TokenizeCompletionRequest", "TokenizeChatRequest", "DetokenizeRequest"),
}


@pytest.mark.engine
@pytest.mark.slow
def test_what_vllm_takes_the_gateway_takes_or_names_as_dangerous() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    program = [sys.executable, "-m", "tests.support.vllm_bodies"]
    done = subprocess.run(program, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == CLASSES
    for name, said in found.items():
        print(name, said["counts"])
        assert said["others"] == [], name
        unseen = ["prompt"] if name == "ResponsesRequest" else []  # vLLM has no stored prompts either
        assert said["unseen"] == unseen, name
        few = name.startswith("Anthropic")  # vLLM takes few of the combinations of roles and blocks
        assert said["counts"]["taken"] > (40 if few else 100), name
