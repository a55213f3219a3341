"""LangChain's ChatOpenAI as anyone uses it: prints what it saw as one JSON object."""

import asyncio
import json
import sys

import openai
from langchain_openai import ChatOpenAI, OpenAI

URL, MODEL, QUESTION = sys.argv[1:4]


def chat(**more: object) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{URL}/v1", api_key="unused", model=MODEL, temperature=0, max_tokens=32, max_retries=0, **more
    )


async def streamed() -> list[str]:
    return [chunk.content async for chunk in chat(stream_usage=True).astream(QUESTION) if chunk.content]


def refused() -> dict[str, object]:
    try:
        chat().bind(model="nobody").invoke("hello")
    except openai.NotFoundError as error:
        return {"status": error.status_code, "code": error.code}
    return {}


whole = chat().invoke([("system", "be brief"), ("user", QUESTION)])
stream = list(chat(stream_usage=True).stream(QUESTION))
batch = chat().batch([QUESTION, QUESTION, QUESTION])
plain = OpenAI(base_url=f"{URL}/v1", api_key="unused", model=MODEL, temperature=0, max_tokens=4, max_retries=0)
said = {
    "whole": whole.content,
    "model": whole.response_metadata["model_name"],
    "usage": whole.usage_metadata,
    "stream": "".join(chunk.content for chunk in stream),
    "stream_tokens": sum(chunk.usage_metadata["output_tokens"] for chunk in stream if chunk.usage_metadata),
    "async": "".join(asyncio.run(streamed())),
    "batch": [answer.content for answer in batch],
    "plain": plain.invoke("<user> hello <assistant>"),
    "refused": refused(),
}
json.dump(said, sys.stdout)
