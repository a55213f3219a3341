"""Two turns by the openai package for Python; the answer goes back as the object that it came as."""

import json
import sys
from typing import Any

from openai import OpenAI

url, model, first, second = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
messages: list[Any] = [{"role": "user", "content": first}]
answers = []
for question in (second, None):
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=32)
    answers.append(answer.choices[0].message.content)
    messages += [answer.choices[0].message, {"role": "user", "content": question}]
json.dump(answers, sys.stdout)
