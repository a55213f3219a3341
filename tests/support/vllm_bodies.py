"""Bodies made from the fields of vLLM's own request classes, and how the gateway takes those that vLLM takes.

As a program (`python -m tests.support.vllm_bodies`) it prints one line of JSON: the counts of each kind, and bodies that
vLLM takes and the gateway refuses although nothing in them is dangerous. Numbers and lengths stay within the gateway's
caps, which are its own; every field, every member and every form of it is made from vLLM's annotations.
"""

import collections.abc
import dataclasses
import functools
import json
import string
import types
import typing
from collections import Counter
from typing import Any, NotRequired, Required

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

from app.domain.errors import Refused
from app.serve.fields.refused import REFUSED
from app.serve.request import ANTHROPIC, parse
from app.serve.request_load import TOKENIZING, Kind

EXAMPLES = 6
"""Bodies for each field of each class, at least."""

OF_A_CLASS = 320
"""Bodies for each class, at least."""

TEXT = st.text(string.ascii_letters + " é<|>{}", min_size=1, max_size=6)
NAME = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=12)
SCHEMA = st.sampled_from([{}, {"type": "object"}, {"type": "object", "properties": {"a": {"type": "string"}}}])
SCALAR = TEXT | st.integers(-5, 5) | st.booleans() | st.floats(-1, 1)
FORMAT = st.sampled_from(
    [
        {"type": "any_text"},
        {"type": "json_schema", "json_schema": {"type": "object"}},
        {"type": "sequence", "elements": [{"type": "const_string", "value": "a"}, {"type": "regex", "pattern": "b+"}]},
        {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "</a>"},
        {"type": "grammar", "grammar": 'root ::= "a"'},
    ]
)
STRUCTURED = st.sampled_from(
    [
        *({"json": {"type": "object"}}, {"json": '{"type": "object"}'}, {"regex": "a+"}, {"choice": ["a", "b"]}),
        *({"json_object": True}, {"grammar": 'root ::= "a"'}, {"regex": "a", "disable_any_whitespace": True}),
        {"structural_tag": '{"type": "structural_tag", "format": {"type": "any_text"}}'},
        {"json": {}, "whitespace_pattern": " ?", "disable_additional_properties": True},
    ]
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just("m"),
    "n": st.integers(1, 4),
    "top_p": st.floats(0.1, 1),
    "repetition_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(st.integers(0, 99).map(str), st.floats(-100, 100), max_size=3),
    "name": NAME,
    "schema": SCHEMA,
    "parameters": SCHEMA,
    "output_schema": SCHEMA,
    "structured_outputs": STRUCTURED,
    "chat_template_kwargs": st.dictionaries(
        st.text(string.ascii_lowercase, min_size=1, max_size=5) | st.just("chat_template"),
        SCALAR | st.just([1]),
        max_size=3,
    ),
    "max_completion_tokens": st.integers(1, 99),
    "max_output_tokens": st.integers(1, 99),
    "thinking_token_budget": st.integers(-1, 9),
    "stop": TEXT | st.lists(TEXT, max_size=4),
    "namespace": NAME,
    "prompt": TEXT | st.lists(st.integers(0, 9), min_size=1) | st.lists(TEXT, min_size=1, max_size=3),
    "prompt_embeds": TEXT,
}
"""Names, at any depth, of members for which the gateway has a cap or a form of its own."""

MANY = 3
"""Items of a list, at most."""


def made_of(form: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Values that have the form of an annotation."""
    if name in BY_NAME and (name, form) != ("prompt", str):  # a prompt to be tokenized has one form
        return BY_NAME[name]
    origin, within = typing.get_origin(form), typing.get_args(form)
    if origin in (typing.Annotated, Required, NotRequired):
        return made_of(within[0], name)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([made_of(one, name) for one in within if _is_json(one)])
    if origin is typing.Literal:
        return st.sampled_from(within)
    if origin in (list, collections.abc.Iterable, collections.abc.Sequence):
        return st.lists(st.deferred(lambda: made_of(within[0])), max_size=MANY)
    if origin is tuple:
        return st.tuples(*(made_of(one) for one in within)).map(list)
    if origin is dict:
        return st.dictionaries(NAME, made_of(within[1]), max_size=MANY)
    return _simple(form)


@functools.cache
def _simple(form: Any) -> st.SearchStrategy[Any]:
    if is_typeddict(form):
        hints = get_type_hints(form, include_extras=True)
        return _object({key: (hint, _needed(hint, whole=form.__total__)) for key, hint in hints.items()})
    if isinstance(form, type) and issubclass(form, BaseModel):
        fields = form.model_fields
        return _object({field.alias or name: (field.annotation, field.is_required()) for name, field in fields.items()})
    if dataclasses.is_dataclass(form):  # RepetitionDetectionParams, whose members check each other
        return st.just({"max_pattern_size": 4, "min_pattern_size": 1, "min_count": 2})
    simple = {bool: st.booleans(), int: st.integers(0, 9), float: st.floats(0, 1), str: TEXT, type(None): st.none()}
    return simple.get(form, SCALAR)


def _needed(hint: Any, *, whole: bool) -> bool:
    """Return whether a member is required. The class itself does not know, where its annotations are strings."""
    origin = typing.get_origin(hint)
    return origin is Required or (whole and origin is not NotRequired)


def _is_json(form: Any) -> bool:
    return getattr(form, "__module__", "") != "openai_harmony" and form is not bytes


def _object(members: dict[str, tuple[Any, bool]]) -> st.SearchStrategy[Any]:
    def one(key: str) -> st.SearchStrategy[Any]:
        return st.deferred(
            lambda: FORMAT if key == "format" and members[key][0] is Any else made_of(members[key][0], key)
        )

    required = {key: one(key) for key, (_, needed) in members.items() if needed}
    return st.fixed_dictionaries(required, optional={key: one(key) for key in members if key not in required})


MEDIA = ("image", "audio", "video", "file", "embeds", "prompt_embeds")
ITEMS = ("message", "function_call", "function_call_output", "reasoning", "custom_tool_call", "custom_tool_call_output")


def dangers(kind: Kind, body: dict[str, Any]) -> set[str]:
    """Fields of a body that may be refused by name (docs/api.md)."""
    found = set(REFUSED) & set(body)
    kwargs = body.get("chat_template_kwargs") or {}
    if "chat_template" in kwargs or any(isinstance(value, dict | list) for value in kwargs.values()):
        found.add("chat_template_kwargs")
    if "grammar" in (body.get("structured_outputs") or {}):
        found.add("structured_outputs")
    if '"grammar"' in json.dumps(body.get("response_format")):
        found.add("response_format")
    if body.get("use_beam_search"):
        found.add("use_beam_search")
    if kind in ANTHROPIC:
        return found | _anthropic_dangers(body)
    if any(_is_odd(message) for message in body.get("messages", ())):
        found.add("messages")
    if kind == "responses":
        found |= {name for name in ("store", "background", "previous_response_id", "prompt") if body.get(name)}
        found |= _responses_dangers(body)
    return found


def _is_odd(message: dict[str, Any]) -> bool:
    """Media, and calls of tools that vLLM's classes take and its renderer refuses."""
    parts = [part for part in message.get("content") or () if isinstance(part, dict)]
    calls = message.get("tool_calls") or ()
    media = any(word in key for part in parts for key in (*part, str(part.get("type"))) for word in MEDIA)
    untyped = any(part.get("type") is None for part in parts)
    return media or untyped or any(call.get("type") != "function" for call in calls)


def _anthropic_dangers(body: dict[str, Any]) -> set[str]:
    """Media, changes of tools within the conversation, results that are no text, and tools chosen that are not there."""
    places = {"system": [body.get("system")], "messages": [one["content"] for one in body["messages"]]}
    odd = {
        name
        for name, contents in places.items()
        if any(_is_odd_block(block) for one in contents if isinstance(one, list) for block in one)
    }
    chosen, names = body.get("tool_choice") or {}, [tool["name"] for tool in body.get("tools") or ()]
    absent = chosen.get("type") == "any" and not names
    absent |= chosen.get("type") == "tool" and chosen.get("name") not in names
    return odd | ({"tool_choice"} if absent else set())


def _is_odd_block(block: dict[str, Any]) -> bool:
    content = block.get("content")
    within = content if isinstance(content, list) and block["type"] == "tool_result" else ()
    return block["type"] in ("image", "tool_addition", "tool_removal") or any(
        part.get("type") not in ("text", "tool_reference") for part in within
    )


def _responses_dangers(body: dict[str, Any]) -> set[str]:
    found, asked = set(), body.get("input")
    for item in asked if isinstance(asked, list) else ():
        content = item.get("content", item.get("output"))
        parts = content if isinstance(content, list) else ()
        media = any("image" in part["type"] or "file" in part["type"] for part in parts if "type" in part)
        known = item.get("type") in ITEMS or ("role" in item and item.get("type") is None)
        if media or not known:
            found.add("input")
    kinds = {one.get("type") for tool in body.get("tools") or () for one in (tool, *(tool.get("tools") or ()))}
    grammar = any((tool.get("format") or {}).get("type") == "grammar" for tool in body.get("tools") or ())
    if not kinds <= {"function", "custom", "namespace"} or '"grammar"' in json.dumps(body.get("tools")) or grammar:
        found.add("tools")
    chosen = body.get("tool_choice")
    if isinstance(chosen, dict) and chosen["type"] not in ("function", "custom"):
        found.add("tool_choice")
    return found


def compare(kind: Kind, cls: type[BaseModel], given_body: dict[str, Any]) -> tuple[str, str]:
    """Return the verdict of the two on one body, as a word, with the reason."""
    try:
        asked: Any = cls.model_validate(json.loads(json.dumps(given_body)))
        if kind in ANTHROPIC:
            from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

            asked = AnthropicServingMessages.to_chat_completion_request(asked)
        if kind not in TOKENIZING:
            asked.to_sampling_params(16, {})
    except Exception as error:  # noqa: BLE001 - vLLM has several kinds
        return "not vLLM's", str(error)[:100]
    try:
        written = parse(kind, json.dumps(given_body).encode()).encode("m")
    except Refused as error:
        if error.param in dangers(kind, given_body):
            return "named", str(error.param)
        return "refused", f"{error.param}: {error.message} {json.dumps(given_body)[:600]}"
    try:
        cls.model_validate(json.loads(written))
    except Exception as error:  # noqa: BLE001
        return "written otherwise", f"{str(error)[:300]} {written[:300]!r}"
    return "taken", ""


def bodies_of(cls: type[BaseModel], required: str, field: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies with one field of a class, those that must be there, and sometimes a third."""
    forms = {name: model_field.annotation for name, model_field in cls.model_fields.items()}
    needed = {name for name, model_field in cls.model_fields.items() if model_field.is_required()}
    logprobs = True if bool in typing.get_args(forms.get("logprobs")) else 1
    needs: dict[str, dict[str, Any]] = {
        "stream_options": {"stream": True},
        "top_logprobs": {"logprobs": True},
        "logprob_token_ids": {"logprobs": logprobs},
    }

    @st.composite
    def some(draw: st.DrawFn) -> dict[str, Any]:
        third = draw(st.sampled_from(sorted(forms)))
        body = {name: draw(made_of(forms[name], name)) for name in sorted({*needed, required, field, third})}
        for name in set(needs) & set(body):
            body |= needs[name] if forms.keys() >= needs[name].keys() else {}
        return body if body[required] else {**body, required: draw(made_of(forms[required], required).filter(bool))}

    return some()


@dataclasses.dataclass
class Found:
    """Findings about one kind of request. unseen: fields that the two never agreed about."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    others: list[str] = dataclasses.field(default_factory=list)
    unseen: set[str] = dataclasses.field(default_factory=set)


def explore(kind: Kind, cls: type[BaseModel], required: str) -> Found:
    """Compare some bodies for each field of a class."""
    found = Found(unseen=set(cls.model_fields))

    def take(body: dict[str, Any]) -> None:
        how, matter = compare(kind, cls, body)
        found.counts[how] += 1
        if how in ("taken", "named"):
            found.unseen -= body.keys()
        elif how != "not vLLM's":
            found.others.append(f"{how}: {matter}")

    for field in cls.model_fields:
        quick = settings(
            max_examples=max(EXAMPLES, OF_A_CLASS // len(cls.model_fields)),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(0)(quick(given(bodies_of(cls, required, field))(take)))()
    return found


def main() -> None:
    """Compare, and print what was found."""
    from vllm.entrypoints.anthropic.protocol import AnthropicCountTokensRequest, AnthropicMessagesRequest
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.tokenize import protocol as tokens

    cases: list[tuple[Kind, type[BaseModel], str]] = [
        ("chat", ChatCompletionRequest, "messages"),
        ("completions", CompletionRequest, "prompt"),
        ("responses", ResponsesRequest, "input"),
        ("messages", AnthropicMessagesRequest, "messages"),
        ("count_tokens", AnthropicCountTokensRequest, "messages"),
        ("tokenize", tokens.TokenizeCompletionRequest, "prompt"),
        ("tokenize", tokens.TokenizeChatRequest, "messages"),
        ("detokenize", tokens.DetokenizeRequest, "tokens"),
    ]
    said = {cls.__name__: explore(kind, cls, required) for kind, cls, required in cases}
    shown = {k: {"counts": f.counts, "others": f.others[:20], "unseen": sorted(f.unseen)} for k, f in said.items()}
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
