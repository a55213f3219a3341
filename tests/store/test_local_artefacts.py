"""What the directory of artefacts promises while nothing kills it (test_crash.py does)."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.artefact import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from app.domain.digest import Digest, digest_of
from app.domain.errors import NO_SPACE, STORE_BUSY, STORE_FAILED, Code, Unavailable
from app.store.artefacts.local import FILES, STAGING, BlobStore
from tests.store.making import artefact


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    with BlobStore(tmp_path / "store") as opened:
        yield opened


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def staged(store: BlobStore) -> list[str]:
    return os.listdir(store.root / STAGING)


def refused(code: Code, *words: str) -> pytest.RaisesExc[Unavailable]:
    return pytest.raises(Unavailable, match=rf"(?s)^{code.name}: .*" + ".*".join(words))


def corrupt(path: Path, at: int) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def test_put_keeps_the_bytes_read_only_under_their_digest(store: BlobStore) -> None:
    made = artefact(1)
    directory = store.put(made)
    assert directory == store.path(made.digest) == store.root / made.digest.hex
    assert sorted(os.listdir(directory)) == sorted(FILES)
    assert (directory / CONFIG_FILE).read_bytes() == made.config
    assert (directory / WEIGHTS_FILE).read_bytes() == made.weights
    assert store.manifest(made.digest) == made.manifest
    assert mode(directory) == 0o555
    assert [mode(directory / name) for name in FILES] == [0o444] * 3
    assert mode(store.root) & 0o055 == 0o055, "an engine under another user must get in"
    assert mode(store.root / STAGING) == 0o700
    assert staged(store) == []
    assert store.digests() == {made.digest}
    store.verify(made.digest)


def test_put_again_changes_nothing_and_keeps_the_first_manifest(store: BlobStore) -> None:
    made = artefact(1)
    before = (store.put(made) / WEIGHTS_FILE).stat()
    other = replace(made, manifest=made.manifest.replace(b'"seed": 1', b'"seed": 2'))
    assert other.manifest != made.manifest
    after = (store.put(other) / WEIGHTS_FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert store.manifest(made.digest) == made.manifest


def test_an_artefact_with_a_wrong_digest_is_a_bug(store: BlobStore) -> None:
    with pytest.raises(ValueError, match="its digest is not that of its bytes"):
        store.put(replace(artefact(1), digest=digest_of(b"other")))
    assert store.digests() == frozenset()


def test_many_writers_of_the_same_and_of_other_bytes(store: BlobStore) -> None:
    start = threading.Barrier(8)

    def write(seed: int) -> Path:
        start.wait()
        return store.put(artefact(seed, size=100_000))

    for round_ in range(5):
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(write, [round_ * 10] * 4 + [round_ * 10 + 1] * 4))
        assert len(set(paths)) == 2
    assert len(store.digests()) == 10
    assert staged(store) == []
    for digest in store.digests():
        store.verify(digest)
        assert mode(store.path(digest)) == 0o555


@pytest.mark.parametrize(
    ("name", "at"),
    [*((WEIGHTS_FILE, at) for at in (0, 20, -3)), *((CONFIG_FILE, at) for at in (0, 4, -1)), (MANIFEST_FILE, 0)],
)
def test_a_flipped_bit_is_found_and_named(store: BlobStore, name: str, at: int) -> None:
    made = artefact(1)
    corrupt(store.put(made) / name, at)
    with refused(STORE_FAILED, made.digest.short, name):
        store.verify(made.digest)
    store.put(made)
    store.verify(made.digest)
    assert staged(store) == []
    assert mode(store.path(made.digest)) == 0o555


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_foreign_file_is_found_and_named(store: BlobStore, name: str) -> None:
    made = artefact(1)
    directory = store.put(made)
    directory.chmod(0o755)
    (directory / "adapter_model.bin").write_bytes(b"\x80")
    with refused(STORE_FAILED, r"adapter_model\.bin", "does not belong"):
        store.verify(made.digest)
    (directory / "adapter_model.bin").unlink()
    (directory / name).unlink()
    with refused(STORE_FAILED, name, "missing"):
        store.verify(made.digest)


def test_a_link_in_place_of_a_file_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    made = artefact(1)
    directory = store.put(made)
    directory.chmod(0o755)
    (directory / WEIGHTS_FILE).rename(tmp_path / "elsewhere")
    (directory / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere")
    with refused(STORE_FAILED, WEIGHTS_FILE):
        store.verify(made.digest)


@pytest.mark.parametrize("swap", [True, False], ids=["in one step", "where the kernel cannot swap"])
@pytest.mark.parametrize("found", ["half", "file", "link"])
def test_equal_bytes_restore_whatever_is_found_in_their_place(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, swap: bool
) -> None:
    made = artefact(1)
    final = store.path(made.digest)
    if found == "half":
        store.put(made)
        final.chmod(0o755)
        (final / WEIGHTS_FILE).unlink()
    elif found == "file":
        final.write_bytes(b"")
    else:
        (tmp_path / "elsewhere").mkdir()
        final.symlink_to(tmp_path / "elsewhere")
    if not swap:
        monkeypatch.setattr(
            "app.store.artefacts.local.exchange", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "no"))
        )
    store.put(made)
    store.verify(made.digest)
    if found == "link":
        assert list((tmp_path / "elsewhere").iterdir()) == []
    store.close()
    with BlobStore(store.root) as again:
        assert staged(again) == []


def test_what_nobody_needs_or_reads_or_is_about_to_name_is_removed(store: BlobStore) -> None:
    needed, read, claimed, gone = (artefact(seed) for seed in range(4))
    for made in (needed, read, claimed, gone):
        store.put(made)

    def collect() -> tuple[int, int]:
        return store.collect(lambda: frozenset({needed.digest}), lambda digest: digest == read.digest)

    with store.claimed(claimed.digest), store.claimed(claimed.digest):
        assert collect() == (1, 2)
    assert store.digests() == {needed.digest, read.digest, claimed.digest}
    assert collect() == (1, 1)
    assert store.digests() == {needed.digest, read.digest}


def test_what_is_named_between_two_looks_stays(store: BlobStore) -> None:
    made = artefact(1)
    store.put(made)
    answers = iter([frozenset[Digest](), frozenset({made.digest})])
    assert store.collect(lambda: next(answers), lambda _: False) == (0, 0)
    store.verify(made.digest)


def test_another_artefacts_whole_directory_under_this_name_is_found(store: BlobStore) -> None:
    one, two = artefact(1), artefact(2)
    store.put(one)
    store.path(one.digest).chmod(0o755)
    store.path(one.digest).rename(store.path(two.digest))
    with refused(STORE_FAILED, two.digest.short):
        store.verify(two.digest)


@pytest.mark.parametrize("nonsense", [b"", b"[]", b"null", b"[" * 100_000, b'{"digest": 1, "files": 2}', b"\xff"])
def test_a_manifest_that_is_none_is_found(store: BlobStore, nonsense: bytes) -> None:
    made = artefact(1)
    store.put(replace(made, manifest=nonsense))
    with refused(STORE_FAILED, MANIFEST_FILE):
        store.verify(made.digest)


def test_what_is_not_there_is_said_to_be_missing(store: BlobStore) -> None:
    for ask in (store.verify, store.manifest):
        with refused(STORE_FAILED, digest_of(b"none").short, "No such file"):
            ask(digest_of(b"none"))


def test_remove_is_whole_and_may_be_repeated(store: BlobStore) -> None:
    keep, go = artefact(1), artefact(2)
    store.put(keep)
    store.put(go)
    store.remove(go.digest)
    store.remove(go.digest)
    assert store.digests() == {keep.digest}
    assert staged(store) == []
    store.put(go)
    store.verify(go.digest)


def test_foreign_names_in_the_root_are_left_alone(store: BlobStore) -> None:
    (store.root / "lost+found").mkdir()
    (store.root / ("A" * 64)).mkdir()
    assert store.digests() == frozenset()


def test_opening_sweeps_the_staging_and_seals_what_a_kill_left_open(tmp_path: Path) -> None:
    made = artefact(1)
    with BlobStore(tmp_path) as store:
        store.put(made).chmod(0o755)
        half = tmp_path / STAGING / "abc"
        half.mkdir()
        (half / WEIGHTS_FILE).write_bytes(b"half")
        half.chmod(0o555)
        (tmp_path / STAGING / "stray").write_bytes(b"")
    with BlobStore(tmp_path) as store:
        assert staged(store) == []
        assert mode(store.path(made.digest)) == 0o555
        store.verify(made.digest)


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with BlobStore(tmp_path), refused(STORE_BUSY, f"process {os.getpid()}"):
        BlobStore(tmp_path)
    BlobStore(tmp_path).close()
    store = BlobStore(tmp_path)
    store.close()
    store.close()


def test_files_are_on_the_disk_before_the_name_is(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order a power cut cares about: files, their directory, the rename, the root."""
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(fd: int) -> None:
        steps.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def record_rename(source: Path, target: Path) -> None:
        steps.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    made = artefact(1)
    store.put(made)
    kinds = [(kind, Path(path).name) for kind, path in steps]
    assert kinds[:3] == [("fsync", name) for name in FILES]
    assert steps[3][0] == "fsync"
    assert Path(steps[3][1]).parent.name == STAGING
    assert kinds[4:] == [("rename", made.digest.hex), ("fsync", store.root.name)]


@pytest.mark.parametrize("call", ["fsync", "write", "rename", "fchmod"])
@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, STORE_FAILED), (errno.ENOSPC, NO_SPACE), (errno.EDQUOT, NO_SPACE)]
)
def test_a_disk_that_fails_leaves_nothing_behind(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: Code
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with refused(code, os.strerror(number)):
            store.put(artefact(1))
    assert store.digests() == frozenset()
    assert staged(store) == []
    store.verify(Digest(store.put(artefact(1)).name))


def test_short_writes_are_continued(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    store.put(artefact(1))
    store.verify(artefact(1).digest)
