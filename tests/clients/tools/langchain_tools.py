"""A form and a tool by LangChain's ChatOpenAI."""

import sys
from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from price import RESULT, TOOL, Price, tell

url, model, question = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="unused", model=model, temperature=0, max_retries=0)
form: Any = chat.with_structured_output(Price).invoke(question)
asked = HumanMessage(question)
calling = chat.bind_tools([TOOL], tool_choice="any").invoke([asked])
(call,) = calling.tool_calls
after = chat.bind_tools([TOOL]).invoke([asked, calling, ToolMessage(RESULT, tool_call_id=call["id"])])
tell(form.model_dump(), call["args"], after.content)
