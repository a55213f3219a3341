"""A form and a tool by OpenAI's Agents SDK, whose runner calls the tool and goes on by itself."""

import sys

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from price import Price, called, price, tell

url, model, question = sys.argv[1:]
set_tracing_disabled(True)
chat = OpenAIChatCompletionsModel(
    model, openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
)
greedy = ModelSettings(temperature=0)
form = Runner.run_sync(
    Agent(name="former", model=chat, model_settings=greedy, output_type=Price), question
).final_output
must = ModelSettings(temperature=0, tool_choice="required")  # the SDK asks for it in the first turn only
caller = Agent(name="caller", model=chat, model_settings=must, tools=[function_tool(price)])
after = Runner.run_sync(caller, question).final_output
tell(form.model_dump(), called[0], after)
