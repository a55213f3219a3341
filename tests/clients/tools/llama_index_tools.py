"""A form and a tool by LlamaIndex's OpenAILike."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from price import RESULT, Price, price, tell

url, model, question = sys.argv[1:]
llm = OpenAILike(
    model=model,
    api_base=f"{url}/v1",
    api_key="unused",
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    temperature=0,
    max_retries=0,
)
form = llm.as_structured_llm(Price).chat([ChatMessage(question)]).raw
tool = FunctionTool.from_defaults(price)
calling = llm.chat_with_tools([tool], user_msg=question, tool_required=True)
(call,) = llm.get_tool_calls_from_response(calling)
result = ChatMessage(role="tool", content=RESULT, additional_kwargs={"tool_call_id": call.tool_id})
after = llm.chat_with_tools([tool], chat_history=[ChatMessage(question), calling.message, result])
tell(form.model_dump(), call.tool_kwargs, after.message.content)
