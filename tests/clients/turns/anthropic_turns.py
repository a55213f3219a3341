"""Two turns by Anthropic's SDK, whose key goes in x-api-key; the answer goes back as the blocks that it came as."""

import json
import sys
from typing import Any

from anthropic import Anthropic

url, model, first, second = sys.argv[1:]
client = Anthropic(base_url=url, api_key="unused")
messages: list[Any] = [{"role": "user", "content": first}]
answers = []
for question in (second, None):
    answer = client.messages.create(model=model, messages=messages, max_tokens=32, extra_body={"temperature": 0})
    answers.append("".join(block.text for block in answer.content if block.type == "text"))
    messages += [{"role": answer.role, "content": answer.content}, {"role": "user", "content": question}]
json.dump(answers, sys.stdout)
