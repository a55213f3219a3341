"""Kept uploads: there byte for byte while a version needs them, out of everybody else's reach, gone afterwards."""

import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from app.domain.digest import Digest, digest_of
from app.domain.errors import ORIGINAL_NOT_KEPT, STORE_FAILED, Refused, Unavailable
from app.domain.lora import Received
from app.store.audit.snapshot import AdapterSeen, CatalogueSeen, VersionSeen
from app.store.audit.uploads import count, originals
from app.store.uploads import KeptUploads
from tests.store.making import noise

CONFIG, WEIGHTS = b'{"r": 4}', noise("weights", 3_000_000)
RECEIVED = Received(digest_of(CONFIG), digest_of(WEIGHTS), len(CONFIG), len(WEIGHTS))
BOTH = frozenset({RECEIVED.config_digest, RECEIVED.weights_digest})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one kept upload, and artefacts beside it."""
    (tmp_path / "artefacts").mkdir()
    KeptUploads(tmp_path / "originals", keep=True).keep(RECEIVED, CONFIG, io.BytesIO(WEIGHTS))
    return tmp_path


def opened(data: Path, *, keep: bool = True) -> KeptUploads:
    return KeptUploads(data / "originals", keep=keep)


def test_what_is_kept_comes_back_byte_for_byte(data: Path) -> None:
    original = opened(data).open(RECEIVED)
    with original.weights as weights:
        assert (original.config, weights.read()) == (CONFIG, WEIGHTS)


def test_it_is_kept_from_any_position_and_twice_is_once(data: Path) -> None:
    reader = io.BytesIO(WEIGHTS)
    reader.seek(17)
    opened(data).keep(RECEIVED, CONFIG, reader)
    assert sorted(os.listdir(data / "originals")) == sorted(digest.hex for digest in BOTH)


def test_nobody_else_may_read_it_and_nobody_may_write_it(data: Path) -> None:
    assert stat.S_IMODE((data / "originals").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (data / "originals").iterdir()} == {0o400}


def test_nothing_is_kept_unless_asked_but_what_is_there_can_be_read_and_removed(data: Path, tmp_path: Path) -> None:
    elsewhere = KeptUploads(tmp_path / "elsewhere", keep=False)
    elsewhere.keep(RECEIVED, CONFIG, io.BytesIO(WEIGHTS))
    assert not elsewhere.root.exists()
    assert not elsewhere.has(RECEIVED)
    assert elsewhere.collect(frozenset) == 0
    with pytest.raises(Refused) as refused:
        elsewhere.open(RECEIVED)
    assert refused.value.code is ORIGINAL_NOT_KEPT
    before = opened(data, keep=False)
    before.open(RECEIVED).weights.close()
    assert before.collect(frozenset) == 2


def test_collect_spares_what_is_needed(data: Path) -> None:
    kept = opened(data)
    assert kept.collect(lambda: BOTH) == 0
    assert kept.collect(lambda: frozenset({RECEIVED.config_digest})) == 1
    assert not kept.has(RECEIVED)
    assert os.listdir(kept.root) == [RECEIVED.config_digest.hex]


def test_what_becomes_needed_while_it_is_collected_stays(data: Path) -> None:
    answers: list[frozenset[Digest]] = [frozenset(), BOTH, BOTH]
    assert opened(data).collect(lambda: answers.pop(0)) == 0


def test_other_bytes_than_arrived_are_not_kept(data: Path) -> None:
    other = Received(RECEIVED.config_digest, digest_of(b"other"), 8, 5)
    with pytest.raises(Unavailable) as failed:
        opened(data).keep(other, CONFIG, io.BytesIO(b"not these"))
    assert failed.value.code is STORE_FAILED
    assert not opened(data).has(other)
    assert len(os.listdir(data / "originals")) == 2


def test_bytes_that_changed_are_not_read(data: Path) -> None:
    path = data / "originals" / RECEIVED.weights_digest.hex
    path.chmod(0o600)
    path.write_bytes(WEIGHTS[:-1] + b"x")
    with pytest.raises(Unavailable) as failed:
        opened(data).open(RECEIVED)
    assert failed.value.code is STORE_FAILED


def test_a_link_is_not_followed(data: Path) -> None:
    path = data / "originals" / RECEIVED.weights_digest.hex
    path.rename(data / "moved")
    path.symlink_to(data / "moved")
    with pytest.raises(Unavailable):
        opened(data).open(RECEIVED)


def test_what_a_kill_left_is_swept(data: Path) -> None:
    (data / "originals" / ".0123.part").write_bytes(b"half")
    opened(data)
    assert len(os.listdir(data / "originals")) == 2


# ---- the auditor -------------------------------------------------------------------------------------------------


def seen(state: str = "ready") -> CatalogueSeen:
    values = dict.fromkeys(VersionSeen.__dataclass_fields__)
    digests = {"config_digest": RECEIVED.config_digest.hex, "weights_digest": RECEIVED.weights_digest.hex}
    row = VersionSeen(**{**values, **digests, "number": 1, "state": state})  # type: ignore[arg-type]
    return CatalogueSeen((1,), (), (AdapterSeen(1, "a", "a", 1, 2, False, (row,)),), ())


def found(data: Path, state: str = "ready", *, gateway_running: bool = True) -> set[str]:
    return {one.invariant for one in originals(data, data / "artefacts", seen(state), gateway_running=gateway_running)}


def among_the_artefacts(data: Path) -> None:
    shutil.move(data / "originals", data / "artefacts" / "originals")
    (data / "originals").symlink_to(data / "artefacts" / "originals")


def weights_of(data: Path) -> Path:
    return data / "originals" / RECEIVED.weights_digest.hex


def other_bytes(data: Path) -> None:
    weights_of(data).chmod(0o600)
    weights_of(data).write_bytes(b"other")
    weights_of(data).chmod(0o400)


BROKEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "an engine sees them": ("I1", among_the_artefacts),
    "others may read the directory": ("I1", lambda d: (d / "originals").chmod(0o755)),
    "others may read a file": ("I1", lambda d: weights_of(d).chmod(0o444)),
    "a file has a name among the artefacts": ("I1", lambda d: os.link(weights_of(d), d / "artefacts" / "weights")),
    "other bytes": ("I6", other_bytes),
    "a directory in place of a file": ("I6", lambda d: (d / "originals" / ("0" * 64)).mkdir()),
    "one nobody needs": ("I10", lambda d: (d / "originals" / ("0" * 64)).touch(0o400)),
}


def test_kept_uploads_in_order_have_no_findings(data: Path) -> None:
    assert found(data) == set()
    assert count(data) == 2


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_found(data: Path, what: str) -> None:
    invariant, breaking = BROKEN[what]
    breaking(data)
    assert invariant in found(data)


@pytest.mark.parametrize("state", ["deleted", "rejected", "failed"])
def test_what_no_version_needs_is_found_beside_a_living_gateway_only(data: Path, state: str) -> None:
    assert found(data, state) == {"I10"}
    assert found(data, state, gateway_running=False) == set()
