"""Translation of engine output: its errors into gateway errors, its answers to the model name of the request."""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import ENGINE_REFUSED, ENGINE_UNAVAILABLE, UPSTREAM_FAILED, GatewayError, Refused, Unavailable
from app.serve.routing_table import Target
from app.serve.sse import dump


def refusal(status: int, message: str) -> GatewayError:
    """Translate an engine's error status and message into a gateway error."""
    if "out of range float" in message.lower():  # vLLM's error for NaN in an answer (hostile.md P12)
        return Unavailable(UPSTREAM_FAILED, "the model's answer is not a number")
    if 400 <= status < 500 and status not in (401, 403):
        return Refused(ENGINE_REFUSED, message)
    if status == 503:
        return Unavailable(ENGINE_UNAVAILABLE, message)
    return Unavailable(UPSTREAM_FAILED, f"the engine failed: {message}")


def relabel(raw: bytes, parsed: Mapping[str, Any], target: Target) -> bytes:
    """Return `raw` (whose JSON is `parsed`) under the model name that the request used.

    Raises Unavailable UPSTREAM_FAILED if another model than the requested one has answered.
    """
    if not _renamed(parsed, target):
        return raw
    # A JSON string holds no unescaped quote, so these bytes can only be a member `model` with that value; vLLM writes
    # the outermost one first.
    old, new = b'"model":' + dump(target.engine_name), b'"model":' + dump(target.asked)
    if raw.count(old) == 1:
        return raw.replace(old, new, 1)
    return dump({**parsed, "model": target.asked})


def relabel_within(raw: bytes, parsed: Mapping[str, Any], key: str, target: Target) -> bytes:
    """Do the same as relabel for an event whose label is in the object under `key`."""
    inner = parsed[key]
    if not isinstance(inner, Mapping):
        raise ValueError(f"{key} is no object")  # noqa: TRY004 - one exception type for every faulty answer
    return dump({**parsed, key: {**inner, "model": target.asked}}) if _renamed(inner, target) else raw


def _renamed(parsed: Mapping[str, Any], target: Target) -> bool:
    """Return whether the answer has another name outside.

    Raises Unavailable if its label is not the requested engine name.
    """
    if parsed.get("model") != target.engine_name:  # the label is not quoted: it may be another tenant's
        raise Unavailable(UPSTREAM_FAILED, f"the engine answered as another model than {target.asked!r}")
    return target.engine_name != target.asked
