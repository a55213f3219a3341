"""Sampling parameters, OpenAI's and vLLM's, and the fields that all kinds of generating requests share."""

import re
from collections.abc import Mapping
from typing import Any, Final

from app.serve.fields.formats import structured_outputs
from app.serve.fields.validators import Check, boolean, integer, limit, list_of, need, number, object_of, one_of, text

MAX_TOKENS: Final = 1 << 20
"""Tokens requested; longer than any context today. The engine's own bound is its context."""

MAX_CHOICES: Final = 16
"""Answers to one prompt (`n`), each with its own place in the engine's batch."""

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
"""Stop strings, and characters of each; OpenAI takes 4 strings."""

MAX_LOGPROBS: Final = 20
"""Log-probabilities per token, of the answer or of the prompt: OpenAI's and vLLM's bound."""

MAX_LOGPROB_IDS: Final = 128
"""Token ids whose log-probabilities are asked for at each token: vLLM's bound."""

MAX_BIASES: Final = 300
"""Entries of logit_bias: OpenAI's bound."""

MAX_TOKEN_LIST: Final = 256
"""Token ids in stop_token_ids and the like."""

MAX_USER_CHARS: Final = 512
"""Characters of labels, such as `user` and the ids of tool calls."""

MAX_TEMPLATE_VALUES: Final = 32
MAX_TEMPLATE_CHARS: Final = 1024
"""Variables of a chat template that a request may set, and characters of the value of each."""

MAX_PATTERN: Final = 64
"""Tokens of a pattern whose repetition ends an answer, and its repetitions: the engine compares them at each token."""

MAX_INTERVAL: Final = 1024
"""Tokens in one event of a stream."""

INT64: Final = 1 << 63
MAX_ID: Final = (1 << 31) - 1

EFFORTS: Final = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")

_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_NOT_VARIABLES: Final = frozenset(
    {
        *(
            "chat_template",
            "conversation",
            "documents",
            "max_length",
            "messages",
            "padding",
            "return_assistant_tokens_mask",
        ),
        *("return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    }
)
"""Parameters of the function that renders templates, which vLLM fills from the same object as a template's variables."""


def stop(value: Any) -> Any:
    """Check stop strings: one, or a list of them."""
    values = [value] if isinstance(value, str) else value
    need(isinstance(values, list), f"must be a string, or a list of at most {MAX_STOPS}")
    list_of(text(MAX_STOP_CHARS), 0, MAX_STOPS)(values)
    need(all(values), "must not hold an empty string")
    return value


def logit_bias(value: Any) -> Any:
    """Check a map from token ids, as JSON keys, to numbers."""
    need(isinstance(value, dict) and len(value) <= MAX_BIASES, f"must be an object of at most {MAX_BIASES} entries")
    for key, bias in value.items():
        need(bool(_TOKEN_ID.fullmatch(key)), "must map token ids to numbers")
        number(-100, 100)(bias)
    return value


def template_values(value: Any) -> Any:
    """Check the variables that a request sets for the model's chat template: plain values, no template, nothing nested."""
    wanted = f"must be an object of at most {MAX_TEMPLATE_VALUES} names with strings, numbers, true or false"
    need(isinstance(value, dict) and len(value) <= MAX_TEMPLATE_VALUES, wanted)
    for key, item in value.items():
        need(bool(_VARIABLE.fullmatch(key)), f"{wanted}; names are 1 to 64 of A-Z a-z 0-9 _")
        need(key not in _NOT_VARIABLES, f"takes no {key!r}, only variables of the model's own template")
        need(item is None or isinstance(item, str | int | float), f"{key}: {wanted}")
        if isinstance(item, str):
            text(MAX_TEMPLATE_CHARS)(item)
        elif item is not None and not isinstance(item, bool):
            number(-INT64, INT64 - 1)(item)
    return value


TOKEN_IDS: Final = list_of(integer(0, MAX_ID), 0, MAX_TOKEN_LIST)

SAMPLING: Final[Mapping[str, Check]] = {
    # OpenAI's
    "model": lambda value: value,  # checked by RoutingTable.resolve
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": stop,
    "stream": boolean,
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": logit_bias,
    "seed": integer(-INT64, INT64 - 1),
    # vLLM's
    "top_k": integer(-1, MAX_TOKENS),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 10),
    "stop_token_ids": TOKEN_IDS,
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "skip_special_tokens": boolean,
    "structured_outputs": structured_outputs,
}
"""Parameters of /v1/chat/completions, /v1/completions and /v1/responses."""

MORE_SAMPLING: Final[Mapping[str, Check]] = {
    # OpenAI's
    "max_tokens": limit(0, MAX_TOKENS),
    "n": integer(1, MAX_CHOICES),
    "stream_options": object_of("stream_options", {"include_usage": boolean, "continuous_usage_stats": boolean}),
    # vLLM's
    "allowed_token_ids": TOKEN_IDS,
    "bad_words": list_of(text(MAX_STOP_CHARS), 0, MAX_STOPS),
    "length_penalty": number(-10, 10),
    "logprob_token_ids": list_of(integer(0, MAX_ID), 0, MAX_LOGPROB_IDS),
    "min_tokens": integer(0, MAX_TOKENS),
    "prompt_logprobs": integer(0, MAX_LOGPROBS),
    "repetition_detection": object_of(
        "repetition_detection",
        {
            "max_pattern_size": integer(0, MAX_PATTERN),
            "min_pattern_size": integer(0, MAX_PATTERN),
            "min_count": integer(0, MAX_PATTERN),
        },
    ),
    "return_token_ids": boolean,
    "return_tokens_as_token_ids": boolean,
    "spaces_between_special_tokens": boolean,
    "stream_interval": integer(1, MAX_INTERVAL),
    "thinking_token_budget": integer(-1, MAX_TOKENS),
    "truncate_prompt_tokens": integer(-1, MAX_TOKENS),
    "truncation_side": one_of("left", "right"),
    "use_beam_search": boolean,
}
"""Parameters of /v1/chat/completions and /v1/completions only."""
