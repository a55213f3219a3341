"""Fields that are refused by name on every route, with the reason: each would endanger other callers or the engine.

They are refused even if they are null: a client that names one of them expects something that it must not get.
"""

from collections.abc import Mapping
from typing import Final

REFUSED: Final[Mapping[str, str]] = {
    "cache_salt": "the gateway sets it, to keep the cached prompts of different callers apart",
    "chat_template": "a template is a program that the engine would run; the model's own is used",
    "ec_transfer_params": "it addresses caches of other engines",
    "kv_transfer_params": "it addresses caches of other engines, and other callers' prompts in them",
    "logits_processors": "it names code that the engine would import",
    "media_io_kwargs": "it steers how the engine loads media; text only is served",
    "mm_payload": "it steers how the engine loads media; text only is served",
    "mm_processor_kwargs": "it steers how the engine loads media; text only is served",
    "previous_input_messages": "the engine does not check the form of this history; send it as `input`",
    "priority": "it would put one caller's requests before those of all others",
    "prompt_embeds": "it is a serialized tensor that the engine would load; send text or token ids",
    "request_id": "the engine tells requests apart by it; send the header X-Request-ID",
    "session_id": "the engine would share state between all requests that name it, whoever sends them",
    "vllm_xargs": "it goes unchecked to whatever extensions the engine has",
    "watermarking": "whether answers are marked is the operator's decision",
}
