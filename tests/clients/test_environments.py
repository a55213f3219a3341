"""Environments of other people's clients that cannot be made: an error, or, where that is allowed, a reason to skip."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support import clients


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for environments, beside a client whose lock cannot be read. No registry is asked."""
    folder = tmp_path / "pins" / "broken"
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "x", "dependencies": {"y": "1.0.0"}}))
    (folder / "package-lock.json").write_text("no lock")
    monkeypatch.setenv("npm_config_offline", "true")
    monkeypatch.setattr(clients, "HOME", folder.parent)
    monkeypatch.setattr(clients, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


@pytest.mark.parametrize("allowed", [False, True])
def test_one_that_does_not_install_fails_unless_it_may_lack(
    broken: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    if shutil.which("npm") is None:
        pytest.skip("Node is not installed")
    if allowed:
        monkeypatch.setenv("CLIENTS_MAY_LACK", "1")
    else:
        monkeypatch.delenv("CLIENTS_MAY_LACK", raising=False)
    with pytest.raises(pytest.skip.Exception if allowed else AssertionError, match="npm error") as caught:
        clients.node_with("broken")
    assert ("does not install here" in str(caught.value)) == allowed
    assert not list(broken.glob(f"*/{clients.MADE}")), "the next run tries again"
