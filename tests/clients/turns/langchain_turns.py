"""Two turns by LangChain's ChatOpenAI; the answer goes back as the message that it came as."""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

url, model, first, second = sys.argv[1:]
chat = ChatOpenAI(base_url=f"{url}/v1", api_key="unused", model=model, temperature=0, max_tokens=32, max_retries=0)
one = chat.invoke([HumanMessage(first)])
two = chat.invoke([HumanMessage(first), one, HumanMessage(second)])
json.dump([one.content, two.content], sys.stdout)
