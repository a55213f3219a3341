"""The audit's reading of artefacts that a running gateway removes meanwhile."""

import gc
import os
import shutil
import warnings
from pathlib import Path

import pytest

from app.store.audit import snapshot
from app.store.audit.snapshot import FileSeen, read_blob


def test_one_that_is_removed_while_it_is_read_leaves_no_directory_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "artefact", snapshot._seen
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(b"x")

    def removed_after_the_first(entry: "os.DirEntry[str]") -> FileSeen:
        found = seen(entry)
        shutil.rmtree(folder, ignore_errors=True)
        return found

    monkeypatch.setattr(snapshot, "_seen", removed_after_the_first)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(FileNotFoundError):
            read_blob(folder)
        gc.collect()
    assert [str(one.message) for one in told] == []
