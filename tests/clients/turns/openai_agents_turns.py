"""Two turns by OpenAI's Agents SDK over the chat API; the answer goes back as the run's input list."""

import json
import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

url, model, first, second = sys.argv[1:]
set_tracing_disabled(True)
chat = OpenAIChatCompletionsModel(
    model, openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
)
agent = Agent(name="asker", model=chat, model_settings=ModelSettings(temperature=0, max_tokens=32))
one = Runner.run_sync(agent, first)
two = Runner.run_sync(agent, [*one.to_input_list(), {"role": "user", "content": second}])
json.dump([one.final_output, two.final_output], sys.stdout)
