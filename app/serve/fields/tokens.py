"""Fields of vLLM's /tokenize and /detokenize requests, in tables like those of chat.py."""

from collections.abc import Mapping
from typing import Final

from app.serve.fields.messages import messages
from app.serve.fields.sampling import MAX_ID, template_values
from app.serve.fields.tools import chat_tool, tools_of
from app.serve.fields.validators import Check, boolean, integer, list_of, text
from app.serve.json_body import MAX_VALUES

MAX_TOKENIZED_BYTES: Final = 1 << 19
"""Bytes of a request to be tokenized: some 128,000 tokens of English, and at worst a token for each byte.

vLLM bounds prompts by its context, but not on this route. The answer is a list of all token ids, which the gateway decodes
in one call that holds the interpreter lock."""

TOKENIZE: Final[Mapping[str, Check]] = {
    "model": lambda value: value,  # checked by RoutingTable.resolve
    "prompt": text(),
    "messages": messages,
    "add_special_tokens": boolean,
    "return_token_strs": boolean,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "chat_template_kwargs": template_values,
    "tools": tools_of(chat_tool),
}

DETOKENIZE: Final[Mapping[str, Check]] = {
    "model": lambda value: value,
    "tokens": list_of(integer(0, MAX_ID), 0, MAX_VALUES),
}
