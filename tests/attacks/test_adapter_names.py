"""Names of adapters (hostile.md N), as far as the upload decides: what is reserved or taken is the pipeline's to say."""

from pathlib import Path

import pytest

from app.domain.errors import BAD_NAME, RESERVED_NAME, TOO_LARGE, Code
from tests.attacks.gate import must_refuse, push
from tests.support.adapters import Upload

VALID = Upload.valid()

NAMES: list[tuple[str, bytes, Code]] = [
    ("N01_up", b"../../x", BAD_NAME),
    ("N01_absolute", b"/abs", BAD_NAME),
    ("N01_percent", b"%2e%2e%2f", BAD_NAME),
    ("N01_percent_backslash", b"..%5c", BAD_NAME),
    ("N01_dots", b"..", BAD_NAME),
    ("N02_empty", b"", BAD_NAME),
    ("N02_64", b"a" * 64, BAD_NAME),
    ("N02_million", b"a" * 1_000_000, BAD_NAME),
    ("N02_two_million", b"a" * 2_000_000, TOO_LARGE),
    ("N03_newline", b"good\n", BAD_NAME),
    ("N03_crlf", b"good\r\n", BAD_NAME),
    ("N03_space", b"good ", BAD_NAME),
    ("N04_nul", b"go\0od", BAD_NAME),
    ("N04_escape", b"\x1b[31mred", BAD_NAME),
    ("N04_log_injection", b"a\nlevel=info uploaded", BAD_NAME),
    ("N05_cyrillic", "\u0430dmin".encode(), BAD_NAME),
    ("N05_ligature", "\ufb01ne".encode(), BAD_NAME),
    ("N05_fullwidth", "\uff41dmin".encode(), BAD_NAME),
    ("N05_zero_width", "ad\u200bmin".encode(), BAD_NAME),
    ("N05_rtl", "\u202eadmin".encode(), BAD_NAME),
    ("N05_not_utf8", b"\xff\xfe", BAD_NAME),
    ("N08_models", b"models", RESERVED_NAME),
    ("N08_health", b"Health", RESERVED_NAME),
    ("N08_metrics", b"METRICS", RESERVED_NAME),
    ("N08_base", b"base", RESERVED_NAME),
    ("N08_default", b"default", RESERVED_NAME),
    ("N08_dot", b".", BAD_NAME),
    ("N09_comma", b"a,b", BAD_NAME),
    ("N09_equals", b"a=b", BAD_NAME),
    ("N11_engine_name", b"name@0123456789ab", BAD_NAME),
    ("N11_version", b"name@3", BAD_NAME),
]


@pytest.mark.parametrize(("name", "code"), [n[1:] for n in NAMES], ids=[n[0] for n in NAMES])
@pytest.mark.hostile
def test_refused(tmp_path: Path, name: bytes, code: Code) -> None:
    error = must_refuse(tmp_path, VALID, code, name=name)
    assert error.param == "name"


@pytest.mark.parametrize("name", [b"a", b"my-adapter.v2", b"A" * 63, b"0"])
def test_taken(tmp_path: Path, name: bytes) -> None:
    push(tmp_path, VALID, name=name)
