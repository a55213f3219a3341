"""A form and a tool by the openai package for Python, with its own parsing of both."""

import sys
from typing import Any

import openai
from price import RESULT, Price, tell

url, model, question = sys.argv[1:]
client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
messages: list[Any] = [{"role": "user", "content": question}]
ask: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0}
form = client.chat.completions.parse(**ask, response_format=Price).choices[0].message.parsed
tools = [openai.pydantic_function_tool(Price, name="price")]
calling = client.chat.completions.parse(**ask, tools=tools, tool_choice="required").choices[0].message
assert calling.tool_calls
(call,) = calling.tool_calls
messages += [calling, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
after = client.chat.completions.create(**ask, tools=tools).choices[0].message
arguments = call.function.parsed_arguments
assert form is not None
assert isinstance(arguments, Price)
tell(form.model_dump(), arguments.model_dump(), after.content)
