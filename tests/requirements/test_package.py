"""The wheel is whole: what it carries, what it asks for, and that it runs away from the sources."""

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from app import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a fresh wheel holds. The installed setuptools builds it: no index is asked."""
    place = tmp_path_factory.mktemp("package")
    source, site = place / "source", place / "site"
    source.mkdir()
    for name in ("pyproject.toml", "README.md"):  # a build writes beside its sources: not into the checkout
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "app", source / "app", ignore=shutil.ignore_patterns("__pycache__"))
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*wheel, "--wheel-dir", str(place), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("lora_gateway-*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", built, site], check=True)
    return site


def files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def test_it_carries_all_that_is_under_app(installed: Path) -> None:
    assert files(installed / "app") == files(ROOT / "app")
    named = {
        "py.typed",
        "demo/assets/reference/reference.json",
        "console/templates/base.html",
        "console/static/chat.js",
    }
    assert named <= files(installed / "app")


def test_it_runs_away_from_the_sources(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.stdout == f"lora-gateway {__version__}\n", done.stderr
    code = (
        "from app.demo.assets import REFERENCE as where; from app.screen.reference.open import open_reference; "
        "print(where, open_reference(where, None).digest)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.stdout.startswith(str(installed)), done.stderr


def test_it_offers_both_engines_and_a_command(installed: Path) -> None:
    (found,) = metadata.distributions(name="lora-gateway", path=[str(installed)])
    assert found.version == __version__
    assert {"cpu", "cuda"} <= set(found.metadata.get_all("Provides-Extra") or ())
    assert [entry.value for entry in found.entry_points if entry.name == "lora-gateway"] == ["app.cli.main:main"]


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licences_page_is_up_to_date() -> None:
    script = ROOT / "requirements" / "licences.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "python requirements/licences.py"
    assert "not stated" not in (ROOT / "requirements" / "LICENCES.md").read_text()
