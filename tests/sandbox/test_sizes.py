"""Configurations of every size class through the real sandbox, each beside another upload in flight."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.digest import digest_of
from app.domain.errors import BAD_CONFIG, Refused
from app.sandbox.client import Sandbox
from app.sandbox.sanitise import Measure
from app.upload.limits import UploadLimits
from tests.support.adapters import Upload
from tests.support.sandboxes import MEMORY, InFlight, sound, through, worker_pid

CAP = UploadLimits().max_config_bytes
POWERS = [1 << power for power in range(17)]
SIZES = sorted({
    *range(1, 12),
    *(size + around for size in POWERS for around in (-1, 0, 1)),
    *range(12, CAP, 1021),
    *range(65_400, CAP + 2),
} - {0})  # fmt: skip
"""Bytes: both sides of each power of two, a sweep, and all from where a message of 128 KiB in hexadecimal ended."""


@pytest.mark.slow
def test_every_size_arrives_whole_beside_another_upload(bad: Sandbox, upload: Upload, tmp_path: Path) -> None:
    with InFlight(bad, upload, tmp_path / "beside") as beside:
        pid = worker_pid(bad)
        for size in SIZES:
            config = (b"digest|" + bytes(range(256)) * (size // 256 + 1))[:size]
            with pytest.raises(Refused) as caught:
                through(bad, upload, tmp_path, config)
            assert caught.value.code is BAD_CONFIG, size
            if size > len(b"digest|"):
                assert caught.value.message == digest_of(config).hex, size
        assert worker_pid(bad) == pid
        assert beside.finished().digest


def test_what_is_right_is_right_up_to_the_cap(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    """With the worker as it is in production: the same artefact whatever the padding, and one byte more is refused."""
    sandbox = Sandbox(measure, tiny_reference_dir, MEMORY)
    config = upload.config_bytes
    sizes = (len(config), 65_431, 65_432, 65_433, CAP - 1, CAP)
    try:
        made = [through(sandbox, upload, tmp_path, config.ljust(size))[0] for size in sizes]
        pid = worker_pid(sandbox)
        with pytest.raises(Refused, match="bytes") as caught:
            through(sandbox, upload, tmp_path, config.ljust(CAP + 1))
        assert worker_pid(sandbox) == pid
    finally:
        sandbox.close()
    assert caught.value.code is BAD_CONFIG
    assert all(made)
    assert len({one.digest for one in made if one}) == 1


def test_base_names_of_any_length_reach_the_worker(
    measure: Measure, tiny_reference_dir: Path, upload: Upload, tmp_path: Path
) -> None:
    names = frozenset(f"{number:0>200}" for number in range(2000)) | {"org/served"}
    long = replace(measure, limits=replace(measure.limits, base_names=names))
    sandbox = Sandbox(long, tiny_reference_dir, MEMORY)
    try:
        sound(sandbox, upload.having(base_model_name_or_path="org/served"), tmp_path)
        with pytest.raises(Refused):
            through(sandbox, upload.having(base_model_name_or_path="org/other"), tmp_path)
    finally:
        sandbox.close()
