"""A form and a tool by pydantic-ai: its agent calls the tool, and the form is the engine's, or a tool of its own."""

import sys
from typing import Any

from price import Price, called, price, tell
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model, question = sys.argv[1:]
chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="unused"))


class CallFirst(AbstractCapability):  # type: ignore[misc]  # its package is not installed beside the tests
    """Has a tool called in the first step."""

    def get_model_settings(self) -> Any:
        return lambda context: {"tool_choice": "required" if context.run_step == 1 else "auto"}


greedy: Any = {"temperature": 0}
form = Agent(chat, output_type=NativeOutput(Price), model_settings=greedy).run_sync(question).output
assert Agent(chat, output_type=Price, model_settings=greedy).run_sync(question).output == form  # by a tool
after = Agent(chat, tools=[price], model_settings=greedy, capabilities=[CallFirst()]).run_sync(question).output
tell(form.model_dump(), called[0], after)
