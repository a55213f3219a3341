"""Bodies at the caps as vLLM's own request classes read them: all that the gateway passes on is taken, at a bounded price.

Each item that these classes do not take costs them up to a megabyte, in words about every alternative.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GROWTH_MIB = 256
"""Memory that one body may take while it is read; its Python objects are the most of it."""

READER = """
import json, os, sys
from app.domain.errors import GatewayError
from app.serve.request import parse
from tests.support.large_bodies import large_bodies
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeCompletionRequest

CLASSES = {"chat": ChatCompletionRequest, "completions": CompletionRequest, "responses": ResponsesRequest}
CLASSES |= {"messages": AnthropicMessagesRequest, "tokenize": TokenizeCompletionRequest, "detokenize": DetokenizeRequest}

def kib(field):
    return int(open("/proc/self/status").read().split(field + ":")[1].split()[0])

def read(body):  # in a child: memory that was had once is not given back
    try:
        written = parse(body.kind, body.raw).encode("mine")
    except GatewayError:
        os._exit(0)
    open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
    before = kib("VmRSS")
    try:
        CLASSES[body.kind].model_validate(json.loads(written))
        said = "taken"
    except Exception as error:
        said = str(error)[:300]
    os.write(1, (json.dumps([body.name, said, (kib("VmHWM") - before) >> 10]) + "\\n").encode())
    os._exit(0)

running = 0
for body in large_bodies():
    if running == min(os.cpu_count(), 4):
        os.wait()
        running -= 1
    if os.fork() == 0:
        read(body)
    running += 1
while running:
    os.wait()
    running -= 1
"""


@pytest.mark.engine
@pytest.mark.hostile("P13")
def test_what_is_passed_on_at_the_caps_is_taken_by_vllm_at_a_bounded_price() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, "-c", READER], cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True)
    read = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b'["')]
    assert len(read) > 40
    for name, said, grown in read:
        assert said == "taken", name
        assert grown < GROWTH_MIB, name
    print("most:", max(read, key=lambda one: int(one[2])))
