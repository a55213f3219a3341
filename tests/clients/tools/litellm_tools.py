"""A form and a tool by LiteLLM."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices

from litellm import completion
from price import RESULT, TOOL, Price, tell

url, model, question = sys.argv[1:]
messages: list[Any] = [{"role": "user", "content": question}]
ask: dict[str, Any] = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "unused", "temperature": 0}
formed = completion(**ask, messages=messages, response_format=Price).choices[0].message
calling = completion(**ask, messages=messages, tools=[TOOL], tool_choice="required").choices[0].message
(call,) = calling.tool_calls
messages += [calling, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
after = completion(**ask, messages=messages, tools=[TOOL]).choices[0].message
tell(json.loads(formed.content), json.loads(call.function.arguments), after.content)
