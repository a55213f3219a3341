"""A form by instructor, as a tool that must be called and as the engine's own; it has no conversations with tools."""

import sys
from typing import Any

import instructor
from openai import OpenAI
from price import Price, tell

url, model, question = sys.argv[1:]
ask: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0}
found = []
for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0), mode=mode)
    found.append(client.chat.completions.create(**ask, response_model=Price, max_retries=0).model_dump())
tell(*found, None)
