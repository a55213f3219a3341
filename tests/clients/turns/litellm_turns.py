"""Two turns by LiteLLM; the answer goes back as the message that it came as."""

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices

from litellm import completion

url, model, first, second = sys.argv[1:]
messages: list[Any] = [{"role": "user", "content": first}]
answers = []
for question in (second, None):
    answer = completion(
        model=f"openai/{model}", api_base=f"{url}/v1", api_key="unused", messages=messages, temperature=0, max_tokens=32
    )
    answers.append(answer.choices[0].message.content)
    messages += [answer.choices[0].message, {"role": "user", "content": question}]
json.dump(answers, sys.stdout)
