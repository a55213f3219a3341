"""Two turns by pydantic-ai; the answer goes back as the messages that the run returned."""

import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model, first, second = sys.argv[1:]
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="unused")
agent = Agent(OpenAIChatModel(model, provider=provider), model_settings={"temperature": 0, "max_tokens": 32})
one = agent.run_sync(first)
two = agent.run_sync(second, message_history=one.all_messages())
json.dump([one.output, two.output], sys.stdout)
