"""The engine's words under our names: its errors as ours, its answers as the model that was asked."""

from collections.abc import Mapping
from typing import Any

from app.domain.errors import ENGINE_REFUSED, ENGINE_UNAVAILABLE, UPSTREAM_FAILED, GatewayError, Refused, Unavailable
from app.serve.routing_table import Target
from app.serve.sse import dump


def refusal(status: int, said: str) -> GatewayError:
    """An engine's error status and words as ours."""
    if "out of range float" in said.lower():  # what NaN in an answer looks like from outside (hostile.md P12)
        return Unavailable(UPSTREAM_FAILED, "the model's answer is not a number")
    if 400 <= status < 500 and status not in (401, 403):
        return Refused(ENGINE_REFUSED, said)
    if status == 503:
        return Unavailable(ENGINE_UNAVAILABLE, said)
    return Unavailable(UPSTREAM_FAILED, f"the engine failed: {said}")


def relabel(raw: bytes, said: Mapping[str, Any], target: Target) -> bytes:
    """`raw` (whose JSON is `said`) under the name the request used.

    Raises Unavailable UPSTREAM_FAILED when another adapter than the one that was asked has answered.
    """
    if not _renamed(said, target):
        return raw
    # In JSON no string holds an unescaped quote, so these bytes can only be a member `model` with that value; vLLM writes
    # the outermost first.
    old, new = b'"model":' + dump(target.engine_name), b'"model":' + dump(target.asked)
    if raw.count(old) == 1:
        return raw.replace(old, new, 1)
    return dump({**said, "model": target.asked})


def relabel_within(raw: bytes, said: Mapping[str, Any], key: str, target: Target) -> bytes:
    """As relabel, for an event whose label stands in the object under `key`."""
    inner = said[key]
    if not isinstance(inner, Mapping):
        raise ValueError(f"{key} is no object")  # noqa: TRY004 - one error for all that is wrong with an answer
    return dump({**said, key: {**inner, "model": target.asked}}) if _renamed(inner, target) else raw


def _renamed(said: Mapping[str, Any], target: Target) -> bool:
    """Whether the answer goes by another name outside. Raises when its label is not that of who was asked."""
    if said.get("model") != target.engine_name:  # who answered is not said: it may be another tenant's
        raise Unavailable(UPSTREAM_FAILED, f"the engine answered as another model than {target.asked!r}")
    return target.engine_name != target.asked
