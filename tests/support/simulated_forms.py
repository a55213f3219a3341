"""Answers of the simulated engine in a form that a request demands: by a JSON schema, or as the call of a tool.

Only whole answers have them, and only if a test has set the simulator's `form`, which fits every schema here.
"""

from collections.abc import Mapping
from typing import Any


def called_tool(body: Mapping[str, Any]) -> str | None:
    """Return the name of the tool that a request demands, in any of the three APIs; None if it demands none."""
    choice = body.get("tool_choice")
    if choice in ("required", {"type": "any"}):
        tool = body["tools"][0]
        return str(tool.get("function", tool)["name"])
    if isinstance(choice, Mapping) and choice.get("type") in ("function", "tool"):
        return str(choice.get("function", choice)["name"])
    return None


def wants_schema(body: Mapping[str, Any]) -> bool:
    """Return whether a request demands an answer by a JSON schema, in any of the three APIs."""
    forms = (body.get("response_format"), body.get("text"), body.get("output_config"))
    return any("json_schema" in (form.get("type"), (form.get("format") or {}).get("type")) for form in forms if form)
