"""Mutations that keep JSON whole: blind byte flips hardly ever get past the first comma."""

import json
import random
from collections.abc import Callable
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0, 1, -1, 2, 4, 8, 64, 1 << 31, 1 << 53, 1 << 63, 10**18, -0.0, 0.5, 1.0, 1e9, 1e308, 5e-324),
    *(
        "",
        "x",
        "LORA",
        "F32",
        "F16",
        "BF16",
        "F64",
        "none",
        ".*",
        "(a+)+$",
        "../../etc/passwd",
        "\0",
        "\x1b[31m",
        "\u0660",
    ),
    *("model.layers.0.q_proj", "base_model.model.x.lora_A.weight", "__metadata__", "\ud800", "\u202e", "user", "text"),
    *([], {}, [0, 8], [1, 2], [[]], {"a": {}}, [{"role": "user", "content": "x"}]),
)
"""Values that some parser somewhere took for something else."""

KEYS: Final = (
    *("dtype", "shape", "data_offsets", "__metadata__", "a", ""),
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "auto_mapping"),
    *("bias", "task_type", "init_lora_weights", "target_modules", "use_dora", "custom_code", "layers_to_transform"),
    *(
        "model",
        "messages",
        "prompt",
        "n",
        "max_tokens",
        "stop",
        "stream",
        "stream_options",
        "logit_bias",
        "tools",
        "role",
    ),
    *("input", "summary", "annotations", "call_id", "arguments", "parameters", "schema", "properties", "items", "enum"),
    *("$ref", "$defs", "allOf", "anyOf", "pattern", "patternProperties", "maxLength", "minItems"),
    *("content", "type", "text", "response_format", "tool_choice", "logprobs", "top_logprobs", "chat_template", "seed"),
)

Mutator = Callable[[bytes, int, int], bytes]


def _nodes(value: Any, found: list[Any]) -> list[Any]:
    """Every object and list in it."""
    if isinstance(value, dict | list):
        found.append(value)
        for item in value.values() if isinstance(value, dict) else value:
            _nodes(item, found)
    return found


def _copy(value: Any) -> Any:
    """Nothing may hold itself, and what is changed later must not be ODD's own."""
    return json.loads(json.dumps(value))


def _change(value: Any, rng: random.Random) -> Any:
    nodes = _nodes(value, [])
    if not nodes:
        return _copy(rng.choice(ODD))
    node = rng.choice(nodes)
    item = _copy(rng.choice(nodes if rng.random() < 0.2 else ODD))
    if isinstance(node, list):
        at = rng.randrange(len(node) + 1)
        node[at : at + rng.randrange(2)] = [item] * rng.randrange(3)
    elif node and rng.random() < 0.6:
        key = rng.choice(list(node))
        if rng.random() < 0.3:
            node[rng.choice(KEYS)] = node.pop(key)
        elif rng.random() < 0.2:
            del node[key]
        else:
            node[key] = item
    else:
        node[rng.choice(KEYS)] = item
    return value


def _blind(data: bytes, rng: random.Random) -> bytes:
    """Bytes set, inserted, deleted or copied from elsewhere; now and then a whole word."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        at, count = rng.randrange(len(found) + 1), rng.choice((1, 1, 1, 2, 4, 16))
        match rng.randrange(5):
            case 0:
                found[at : at + count] = rng.randbytes(count)
            case 1:
                found[at:at] = rng.randbytes(count)
            case 2:
                del found[at : at + count]
            case 3:
                found[at:at] = json.dumps(rng.choice(ODD if rng.random() < 0.5 else KEYS)).encode()
            case _:
                start = rng.randrange(len(found) + 1)
                found[at:at] = found[start : start + 4 * count]
    return bytes(found)


def json_mutator(prefix: int = 0) -> Mutator:
    """Half the time change a value in the JSON after `prefix` bytes, else bytes anywhere. (Not `atheris.Mutate`: in 3.0.0
    it says that Fuzz() was not called yet.)"""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return _blind(data, rng)[:max_size]
        try:
            value = json.loads(data[prefix:])
            for _ in range(rng.choice((1, 1, 2, 4))):
                value = _change(value, rng)
            made = json.dumps(value, separators=(",", ":"), ensure_ascii=rng.random() < 0.5)
        except (ValueError, RecursionError):
            return _blind(data, rng)[:max_size]
        if rng.random() < 0.05:  # a key twice
            made = made.replace("{", f'{{"{rng.choice(KEYS)}":1,', 1)
        found = data[:prefix] + made.encode("utf-8", "surrogatepass")
        return found if len(found) <= max_size else _blind(data, rng)[:max_size]

    return mutate
