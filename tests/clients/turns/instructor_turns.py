"""Two turns by instructor, without a form for the answers; the answer goes back with every member that it has."""

import json
import sys
from typing import Any

import instructor
from openai import OpenAI

url, model, first, second = sys.argv[1:]
client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0))
messages: list[Any] = [{"role": "user", "content": first}]
answers = []
for question in (second, None):
    answer = client.chat.completions.create(
        model=model, messages=messages, response_model=None, temperature=0, max_tokens=32
    )
    answers.append(answer.choices[0].message.content)
    messages += [answer.choices[0].message.model_dump(), {"role": "user", "content": question}]
json.dump(answers, sys.stdout)
