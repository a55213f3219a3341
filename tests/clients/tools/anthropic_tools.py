"""A form and a tool by Anthropic's SDK."""

import json
import sys
from typing import Any

from anthropic import Anthropic
from price import RESULT, Price, tell

url, model, question = sys.argv[1:]
client = Anthropic(base_url=url, api_key="unused", max_retries=0)
schema = {**Price.model_json_schema(), "additionalProperties": False}
messages: list[Any] = [{"role": "user", "content": question}]
ask: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": 400, "extra_body": {"temperature": 0}}
formed = client.messages.create(**ask, output_config={"format": {"type": "json_schema", "schema": schema}})
tools: Any = [{"name": "price", "description": "A price", "input_schema": schema}]
calling = client.messages.create(**ask, tools=tools, tool_choice={"type": "any"})
(use,) = [block for block in calling.content if block.type == "tool_use"]
result = {"type": "tool_result", "tool_use_id": use.id, "content": RESULT}
messages += [{"role": calling.role, "content": calling.content}, {"role": "user", "content": [result]}]
after = client.messages.create(**ask, tools=tools)
tell(json.loads(formed.content[0].text), use.input, after.content[0].text)
