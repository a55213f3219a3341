"""Oracle of the tests of bodies: the fields that may reach the engine, written down a second time and by hand.

A dict is an object with these members and no others, a list is a list of what it holds, a tuple is one of several forms,
SCALAR is a string, a number, true or false, FREE is anything.
"""

import json
from collections.abc import Iterator
from typing import Any

SCALAR = "scalar"
FREE = "free"


def _leaves(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, SCALAR)


FUNCTION = {**_leaves("name", "description", "strict", "defer_loading"), "parameters": FREE}
TOOL = {**_leaves("type", "defer_loading"), "function": FUNCTION}
PART = (
    _leaves("type", "text"),
    _leaves("type", "refusal"),
    _leaves("type", "thinking", "closed"),
    _leaves("type", "name"),
)
CALL = {**_leaves("id", "type"), "function": _leaves("name", "arguments")}
MESSAGE = {
    **_leaves("role", "name", "tool_call_id", "refusal", "reasoning", "task"),
    "content": (SCALAR, [PART]),
    "tool_calls": [CALL],
    "tools": [TOOL],
}
RESPONSE_FORMAT = (
    {"type": SCALAR, "json_schema": {**_leaves("name", "description", "strict"), "schema": FREE}},
    {"type": SCALAR, "triggers": [SCALAR], "structures": [{**_leaves("begin", "end"), "schema": FREE}]},
    {"type": SCALAR, "format": FREE},  # its members: tests/serve/test_formats.py
)
STRUCTURED = {
    **_leaves("regex", "json_object", "structural_tag", "whitespace_pattern"),
    **_leaves("disable_any_whitespace", "disable_additional_properties"),
    "json": FREE,
    "choice": [SCALAR],
}
GENERATION: dict[str, Any] = {
    **_leaves("temperature", "top_p", "stream", "presence_penalty", "frequency_penalty", "seed", "top_k", "min_p"),
    **_leaves("repetition_penalty", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens"),
    "stop": (SCALAR, [SCALAR]),
    "stop_token_ids": [SCALAR],
    "logit_bias": FREE,
    "structured_outputs": STRUCTURED,
}
BOTH: dict[str, Any] = {
    **GENERATION,
    **_leaves("max_tokens", "n", "length_penalty", "min_tokens", "prompt_logprobs", "return_token_ids", "echo"),
    **_leaves("return_tokens_as_token_ids", "spaces_between_special_tokens", "stream_interval", "logprobs"),
    **_leaves("thinking_token_budget", "truncate_prompt_tokens", "truncation_side", "use_beam_search"),
    **_leaves("add_special_tokens"),
    "allowed_token_ids": [SCALAR],
    "bad_words": [SCALAR],
    "logprob_token_ids": [SCALAR],
    "stream_options": _leaves("include_usage", "continuous_usage_stats"),
    "repetition_detection": _leaves("max_pattern_size", "min_pattern_size", "min_count"),
    "response_format": RESPONSE_FORMAT,
}
NAMED = ({"type": SCALAR, "function": _leaves("name")}, SCALAR)
CHAT: dict[str, Any] = {
    **BOTH,
    **_leaves("max_completion_tokens", "top_logprobs", "parallel_tool_calls", "reasoning_effort", "include_reasoning"),
    **_leaves("add_generation_prompt", "continue_final_message", "return_prompt_text"),
    "messages": [MESSAGE],
    "tools": [TOOL],
    "tool_choice": NAMED,
    "chat_template_kwargs": FREE,
    "documents": [FREE],
}
PROMPT = (SCALAR, [(SCALAR, [SCALAR])])
COMPLETIONS: dict[str, Any] = {**BOTH, "suffix": SCALAR, "prompt": PROMPT}

OUTPUT = (SCALAR, [_leaves("type", "text")])
ITEM = (
    {
        **_leaves("type", "id", "status", "role", "phase"),
        "content": (SCALAR, [{**_leaves("type", "text"), "annotations": []}]),
    },
    _leaves("type", "id", "status", "call_id", "name", "namespace", "arguments"),
    {**_leaves("type", "id", "status", "call_id"), "output": OUTPUT},
    _leaves("type", "id", "call_id", "name", "input"),
    {**_leaves("type", "id", "status"), "summary": [_leaves("type", "text")], "content": [_leaves("type", "text")]},
)
FLAT_TOOL = (
    {"type": SCALAR, **FUNCTION},
    {**_leaves("type", "name", "description", "defer_loading"), "format": _leaves("type")},
)
RESPONSES: dict[str, Any] = {
    **GENERATION,
    **_leaves(
        "instructions", "max_output_tokens", "max_tool_calls", "parallel_tool_calls", "top_logprobs", "truncation"
    ),
    **_leaves("include_reasoning", "enable_response_messages", "store"),
    "input": (SCALAR, [ITEM]),
    "tools": [(*FLAT_TOOL, {**_leaves("type", "name", "description"), "tools": [FLAT_TOOL]})],
    "tool_choice": (SCALAR, _leaves("type", "name"), {**_leaves("type", "mode"), "tools": [_leaves("type", "name")]}),
    "text": {"verbosity": SCALAR, "format": {**_leaves("type", "name", "description", "strict"), "schema": FREE}},
    "reasoning": _leaves("effort", "summary", "generate_summary"),
    "include": [SCALAR],
    "chat_template_kwargs": FREE,
}
EMBEDDINGS: dict[str, Any] = {
    **_leaves("encoding_format", "dimensions", "truncate_prompt_tokens", "truncation_side", "add_special_tokens"),
    "use_activation": SCALAR,
    "input": PROMPT,
}
IN_RESULT = (_leaves("type", "text"), _leaves("type", "tool_name", "name"))
BLOCKS = (
    SCALAR,
    [
        (
            *IN_RESULT,
            _leaves("type", "thinking", "signature"),
            _leaves("type", "data"),
            {**_leaves("type", "id", "name"), "input": FREE},
            {**_leaves("type", "tool_use_id", "is_error"), "content": (SCALAR, [IN_RESULT])},
        )
    ],
)
ANTHROPIC: dict[str, Any] = {
    **_leaves("max_tokens", "stream", "temperature", "top_k", "top_p"),
    "messages": [{"role": SCALAR, "content": BLOCKS}],
    "system": BLOCKS,
    "stop_sequences": [SCALAR],
    "tools": [{**_leaves("name", "description", "strict", "defer_loading"), "input_schema": FREE}],
    "tool_choice": _leaves("type", "name", "disable_parallel_tool_use"),
    "thinking": _leaves("type", "budget_tokens", "display"),
    "output_config": {"effort": SCALAR, "format": {"type": SCALAR, "schema": FREE}},
    "chat_template_kwargs": FREE,
}
COUNT_TOKENS = {
    name: ANTHROPIC[name]
    for name in ("messages", "system", "tools", "tool_choice", "thinking", "output_config", "chat_template_kwargs")
}
TOKENIZE: dict[str, Any] = {
    **_leaves("prompt", "add_special_tokens", "return_token_strs", "add_generation_prompt", "continue_final_message"),
    "messages": [MESSAGE],
    "chat_template_kwargs": FREE,
    "tools": [TOOL],
}
DETOKENIZE: dict[str, Any] = {"tokens": [SCALAR]}
SENT: dict[str, dict[str, Any]] = {
    kind: {"model": SCALAR, **fields}
    for kind, fields in {
        "chat": CHAT,
        "completions": COMPLETIONS,
        "responses": RESPONSES,
        "embeddings": EMBEDDINGS,
        "messages": ANTHROPIC,
        "count_tokens": COUNT_TOKENS,
        "tokenize": TOKENIZE,
        "detokenize": DETOKENIZE,
    }.items()
}
"""Of each kind: what the engine may receive."""


def surplus(value: Any, form: Any, path: str = "") -> list[str]:
    """Paths in `value` that `form` does not have."""
    if form == FREE:
        return []
    if isinstance(form, tuple):
        return min((surplus(value, one, path) for one in form), key=len)
    if isinstance(form, dict) and isinstance(value, dict):
        return [
            found
            for key, item in value.items()
            for found in (surplus(item, form[key], f"{path}.{key}") if key in form else [f"{path}.{key}"])
        ]
    if isinstance(form, list) and isinstance(value, list):
        return [found for item in value for found in surplus(item, form[0] if form else {}, f"{path}[]")]
    return [] if form == SCALAR and not isinstance(value, dict | list) else [path]


ADDED = frozenset(
    {"", "function", "text", "output_text", "message", "msg", "completed", "rs", "structural_tag", True, False}
)
"""Values that the gateway writes of its own accord: ids, types and states that vLLM wants, `store` and the counts."""


def invented(sent: Any, said: Any) -> list[Any]:
    """Strings and numbers that were sent on although nobody said them."""
    known = set(_leaves_of(said)) | ADDED
    return [leaf for leaf in _leaves_of(sent) if leaf not in known]


def _leaves_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves_of(item)
        return
    inner = _decoded(value) if isinstance(value, str) and "{" in value else None
    if inner is not None:
        yield from _leaves_of(inner)
    if not (isinstance(inner, dict) and inner.get("type") == "structural_tag"):  # that is written anew
        yield value


def _decoded(text: str) -> Any:
    """A JSON object in a string, as vLLM takes schemas and structural tags."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
