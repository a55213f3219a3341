"""Two turns by LlamaIndex's OpenAILike; the answer goes back as the message that it came as."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

url, model, first, second = sys.argv[1:]
llm = OpenAILike(
    model=model, api_base=f"{url}/v1", api_key="unused", is_chat_model=True, temperature=0, max_tokens=32, max_retries=0
)
one = llm.chat([ChatMessage(first)]).message
two = llm.chat([ChatMessage(first), one, ChatMessage(second)]).message
json.dump([one.content, two.content], sys.stdout)
