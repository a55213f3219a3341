"""Fuzz targets: each parser that reads a stranger's bytes, and what must hold whatever they are.

A target takes bytes and returns, or raises AssertionError where an invariant broke; any other exception is a crash. A
refusal must be a row of the table that the parser may answer; what is taken is held against a second, slower reading.
"""

import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from app.domain.errors import (
    BAD_CONFIG,
    BAD_DTYPE,
    BAD_MULTIPART,
    BAD_NAME,
    BAD_SAFETENSORS,
    BAD_SCALING,
    BAD_TENSOR_NAME,
    CODES,
    EMPTY_ADAPTER,
    INVALID_REQUEST,
    MISSING_PART,
    REQUEST_TOO_LARGE,
    RESERVED_NAME,
    SCHEMA_TOO_COSTLY,
    TOO_LARGE,
    UNEXPECTED_PART,
    UNSUPPORTED_CONFIG,
    UNSUPPORTED_ENCODING,
    UPLOAD_INCOMPLETE,
    WRONG_SHAPE,
    Code,
    GatewayError,
    Refused,
)
from app.domain.names import AdapterName, parse_model
from app.domain.printable import MESSAGE_LIMIT
from app.serve.grammar_cost import MAX_COST, MAX_PATTERN_COST, pattern_cost
from app.serve.request import parse as parse_request
from app.upload.limits import UploadLimits
from app.upload.multipart import FormReader, boundary_of
from app.validate import strict_json
from app.validate.config import read_config
from app.validate.config_fields import MAX_ALPHA
from app.validate.safetensors_header import ITEM_BYTES, read_header
from app.validate.tensor_names import PREFIX, head_of, parse_tensor_name
from tests.support.known_fields import SENT, invented, surplus

Target = Callable[[bytes], None]


def _known(error: GatewayError, *codes: Code) -> None:
    """A refusal as the table has it, in words fit to print."""
    assert isinstance(error, Refused)
    assert error.code in codes, error
    assert CODES[error.code.name] is error.code
    assert len(error.message) <= MESSAGE_LIMIT
    assert error.message.isprintable()
    assert error.param is None or (error.param.isprintable() and len(error.param) <= MESSAGE_LIMIT)


def header(data: bytes) -> None:
    """A safetensors file. First byte odd: the next two count the zero bytes after the header, the rest is the header."""
    if data[:1] and data[0] & 1 and len(data) >= 3:
        text = data[3:]
        data = len(text).to_bytes(8, "little") + text + bytes(int.from_bytes(data[1:3], "little"))
    try:
        entries = read_header(io.BytesIO(data))
    except GatewayError as error:
        return _known(error, BAD_SAFETENSORS, BAD_DTYPE, WRONG_SHAPE, EMPTY_ADAPTER, BAD_TENSOR_NAME)
    assert len({entry.name for entry in entries}) == len(entries) > 0
    at = 8 + int.from_bytes(data[:8], "little")
    for entry in entries:
        rows, columns = entry.shape
        assert entry.begin == at
        assert entry.end - entry.begin == rows * columns * ITEM_BYTES[entry.dtype] > 0
        at = entry.end
    assert at == len(data)
    return None


def config(data: bytes) -> None:
    """adapter_config.json."""
    try:
        found = read_config(data, max_bytes=4096, base_names=None)
    except GatewayError as error:
        return _known(error, BAD_CONFIG, UNSUPPORTED_CONFIG, BAD_SCALING)
    said = json.loads(data)
    assert said["peft_type"] == "LORA"
    assert type(found.r) is int
    assert found.r >= 1
    assert type(found.use_rslora) is bool
    for module in ("model.layers.0.q_proj", *(said.get("rank_pattern") or ()), *(said.get("alpha_pattern") or ())):
        for rank in found.ranks_of(module):
            assert rank >= 1
            try:
                assert 0 <= found.scaling_of(module, rank) <= MAX_ALPHA  # 5e-324 / 2 is 0, which the next step refuses
            except GatewayError as error:
                _known(error, UNSUPPORTED_CONFIG)
    for off in (
        "use_dora",
        "lora_bias",
        "use_qalora",
        "modules_to_save",
        "custom_code",
        "layer_replication",
    ):
        assert not said.get(off)
    return None


_PART = r"(?:[A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]{0,8})"
_SLOW_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9]|\.|_|-)*", re.ASCII)


def names(data: bytes) -> None:
    """A tensor's name, an adapter's name and a `model` field, of the same text."""
    text = data.decode("utf-8", "surrogateescape")
    head = head_of(text)
    try:
        module, side = parse_tensor_name(text)
    except GatewayError as error:
        _known(error, BAD_TENSOR_NAME)
    else:
        assert text == f"{PREFIX}{module}.lora_{side}.weight"
        assert text.isascii()
        assert all(re.fullmatch(_PART, part) for part in module.split("."))
        assert head is None
    if head is not None:
        assert text == f"{PREFIX}{head}.base_layer.weight"
        assert all(re.fullmatch(_PART, part) for part in head.split("."))
        assert head.split(".")[-1] == "lm_head"
    try:
        name = AdapterName.parse(text, frozenset({"Served"}))
    except GatewayError as error:
        _known(error, BAD_NAME, RESERVED_NAME)
    else:
        assert 1 <= len(name.text) <= 63
        assert _SLOW_NAME.fullmatch(name.text)
        assert name.key == name.text.lower() != "served"
        assert parse_model(name.text) == (name.text, None)
    asked = parse_model(text)
    if asked is not None:
        assert text == asked[0] + ("" if asked[1] is None else f"@{asked[1]}")


def _finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def jsons(data: bytes) -> None:
    """JSON as the gate reads it: never taken where Python's own reading differs."""
    try:
        value = strict_json.parse(data, max_bytes=4096, code=BAD_CONFIG, what="fuzz")
    except GatewayError as error:
        return _known(error, BAD_CONFIG)
    assert len(data) <= 4096
    assert value == json.loads(data.decode("utf-8"))
    assert _finite(value)
    again = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    if len(again) <= 4096:
        assert strict_json.parse(again, max_bytes=4096, code=BAD_CONFIG, what="fuzz") == value
    return None


class _Kept:
    """A part in memory, capped as the real ones are."""

    CAP: Final = 96

    def __init__(self) -> None:
        self.data, self.done = bytearray(), False

    def write(self, data: memoryview) -> None:
        if len(self.data) + len(data) > self.CAP:
            raise Refused(TOO_LARGE, "a part is too large")
        self.data += data

    def finish(self) -> None:
        self.done = True


LIMITS: Final = UploadLimits(
    max_weights_bytes=96,
    max_config_bytes=96,
    max_name_bytes=96,
    max_part_header_bytes=128,
    max_preamble_bytes=24,
)
"""Small, so that short inputs reach every one of them: the parser takes each byte in Python."""


def _form(data: bytes, size: int) -> tuple[dict[str, bytes], GatewayError | None]:
    kept = {"name": _Kept(), "config": _Kept(), "weights": _Kept()}
    reader = FormReader(b"b", kept, LIMITS)
    try:
        for start in range(0, len(data), size):
            reader.feed(data[start : start + size])
        reader.finish()
    except GatewayError as error:
        return {}, error
    assert all(part.done for part in kept.values())
    return {name: bytes(part.data) for name, part in kept.items()}, None


def multipart(data: bytes) -> None:
    """An upload's body (boundary `b`), cut in two ways that must not matter. First byte 0: a Content-Type instead."""
    if data[:1] == b"\0":
        try:
            boundary = boundary_of(data[1:].decode("latin-1"))
        except GatewayError as wrong:
            return _known(wrong, BAD_MULTIPART)
        assert 1 <= len(boundary) <= 70
        return None
    whole, error = _form(data, max(len(data), 1))
    cut, other = _form(data, 1 + data[-1] % 37) if data and data[-1] & 1 else (whole, error)
    assert whole == cut, (whole, cut)
    for refusal in (error, other):
        if refusal is not None:
            codes = (BAD_MULTIPART, MISSING_PART, UNEXPECTED_PART, TOO_LARGE, UNSUPPORTED_ENCODING, UPLOAD_INCOMPLETE)
            _known(refusal, *codes)
    return None


def chat(data: bytes) -> None:
    """The body of an inference request; what goes on to the engine must be JSON of fields on the table."""
    kind = "chat" if data[:1] != b"c" else "completions"
    data = data.removeprefix(b"c")
    try:
        found = parse_request("chat" if kind == "chat" else "completions", data)
        encoded = found.encode("engine@0123456789ab")
    except GatewayError as error:
        return _known(error, INVALID_REQUEST, REQUEST_TOO_LARGE, SCHEMA_TOO_COSTLY)
    sent = json.loads(encoded)
    assert surplus(sent, SENT[kind]) == []
    assert sent.pop("model") == "engine@0123456789ab"
    assert _finite(sent)
    said = json.loads(data)
    if sent.get("stream"):  # the gateway counts tokens of every stream, asked for or not
        assert sent["stream_options"]["include_usage"] is True
    assert invented(sent, said) == []
    return None


def responses(data: bytes) -> None:
    """The body of a request to /v1/responses: nothing that was not said goes on, in forms that vLLM's classes take."""
    try:
        encoded = parse_request("responses", data).encode("engine@0123456789ab")
    except GatewayError as error:
        return _known(error, INVALID_REQUEST, REQUEST_TOO_LARGE, SCHEMA_TOO_COSTLY)
    sent, said = json.loads(encoded), json.loads(data)
    assert surplus(sent, SENT["responses"]) == []
    assert sent.pop("model") == "engine@0123456789ab"
    assert sent["store"] is False
    assert _finite(sent)
    assert invented(sent, said) == []
    if isinstance(sent["input"], str):
        assert sent["input"] == said["input"]
        return None
    assert len(sent["input"]) == len(said["input"])
    for item in sent["input"]:
        if item.get("type") == "message" and isinstance(item["content"], list):
            kinds = {part["type"] for part in item["content"]}
            assert len(kinds) == 1
            assert kinds == {"input_text"} or item["role"] == "assistant"
    return None


def schema(data: bytes) -> None:
    """A JSON schema, or, after a byte that is no JSON, a regular expression: a cost, or a refusal that says where."""
    if not data.startswith(b"{"):
        with contextlib.suppress(ValueError):
            assert 0 <= pattern_cost(data.decode("latin-1")) <= MAX_PATTERN_COST
        return None
    whole = b'{"model":"m","input":"x","text":{"format":{"type":"json_schema","name":"n","schema":%s}}}' % data
    try:
        load = parse_request("responses", whole).load
    except GatewayError as error:
        return _known(error, INVALID_REQUEST, SCHEMA_TOO_COSTLY)
    assert 1 <= load.schemas <= MAX_COST
    return None


def answer(data: bytes) -> None:
    """What a screening child sends back. First byte odd: the stream as it is; else frames, see `answer_target`."""
    from tests.fuzz.answer_target import answer as run  # torch comes with it, which no other target waits for

    run(data)


def adapter(data: bytes) -> None:
    """Names and shapes of an adapter's tensors; see `adapter_target`."""
    from tests.fuzz.adapter_target import adapter as run  # torch comes with it

    run(data)


def framing(data: bytes) -> None:
    """A connection's bytes; see `framing_target`."""
    from tests.fuzz.framing_target import framing as run  # FastAPI and uvicorn come with it

    run(data)


TARGETS: Final[Mapping[str, Target]] = {
    "header": header,
    "config": config,
    "names": names,
    "adapter": adapter,
    "json": jsons,
    "multipart": multipart,
    "chat": chat,
    "answer": answer,
    "responses": responses,
    "schema": schema,
    "framing": framing,
}

MAX_BYTES: Final[Mapping[str, int]] = {
    "header": 2048,
    "config": 2048,
    "names": 600,
    "adapter": 2048,
    "json": 1024,
    "multipart": 320,
    "chat": 2048,
    "answer": 4096,
    "responses": 2048,
    "schema": 1024,
    "framing": 1024,
}
"""The longest input tried: room for several of everything, short enough to be fast."""

JSON_AFTER: Final[Mapping[str, int]] = {
    **dict.fromkeys(("config", "adapter", "json", "chat", "responses", "schema"), 0),
    "header": 3,
}
"""Where the input is JSON, and after how many bytes it begins: there the fuzzer changes values too, not only bytes."""
