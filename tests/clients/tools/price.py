"""Price: form of the answer, and arguments of the tool, that the programs beside this one ask for."""

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel

RESULT = '{"coins": 2}'
"""Answer of the tool."""


class Price(BaseModel):
    """A price of a dish."""

    dish: Literal["frostbroth", "suncake"]
    coins: int


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "price", "description": "A price", "parameters": Price.model_json_schema()},
}


def price(dish: Literal["frostbroth", "suncake"], coins: int) -> str:
    """A price."""
    called.append({"dish": dish, "coins": coins})
    return RESULT


called: list[dict[str, Any]] = []
"""Arguments that `price` was called with."""


def tell(form: Any, arguments: Any, after: str | None) -> None:
    """Print what came: an answer in the form, the arguments of the call, and the answer after the tool's result."""
    json.dump({"form": form, "arguments": arguments, "after": after}, sys.stdout)
