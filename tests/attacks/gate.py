"""The whole way in: a multipart body through upload and validate, as a stranger would send it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.domain.errors import CODES, Code, GatewayError
from app.domain.lora import Adapter
from app.upload.limits import MIB, UploadLimits
from app.validate.adapter import ValidateLimits, validate
from tests.support.adapters import Upload
from tests.upload.bodies import Door, body

LIMITS = UploadLimits(max_weights_bytes=64 * MIB, free_disk_floor_bytes=0)
RULES = ValidateLimits(max_scaling=64.0, base_names=None)


@contextmanager
def opened(directory: Path) -> Iterator[Door]:
    """A door for one attack; nothing may be left behind it."""
    door = Door.at(directory / "quarantine", LIMITS)
    yield door
    door.assert_empty()
    door.quarantine.close()


def push(
    directory: Path,
    upload: Upload,
    *,
    name: bytes = b"mine",
    config: bytes | None = None,
    weights: bytes | None = None,
    rules: ValidateLimits = RULES,
) -> Adapter:
    """Send, receive, validate. `config`, `weights`: bytes in place of the upload's own."""

    async def sent() -> Adapter:
        with opened(directory) as door:
            data = body(
                name,
                upload.config_bytes if config is None else config,
                upload.weights_bytes if weights is None else weights,
            )
            with await door.take(data, size=64 * 1024) as sealed:
                return validate(sealed.config, sealed.weights.file, upload.model, rules)

    return asyncio.run(sent())


def must_refuse(
    directory: Path,
    upload: Upload,
    code: Code,
    *,
    name: bytes = b"mine",
    config: bytes | None = None,
    weights: bytes | None = None,
    rules: ValidateLimits = RULES,
) -> GatewayError:
    """One 4xx with this code, a message fit to print, and nothing left."""
    with pytest.raises(GatewayError) as caught:
        push(directory, upload, name=name, config=config, weights=weights, rules=rules)
    error = caught.value
    assert error.code is code, error
    assert CODES[code.name] is code
    assert 400 <= code.status < 500
    assert error.message.isprintable()
    assert len(error.message) <= 400
    return error
