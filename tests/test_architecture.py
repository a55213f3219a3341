"""The house rules that a machine can check (design: rooms, imports, numbers to hold)."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Final

import pytest

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
APP = sorted((ROOT / "app").rglob("*.py"))

FILE_LINES = 400  # more is two ideas in one file; less would breed splinters
FUNCTION_LINES = 60
FUNCTION_LINES_P90 = 28

TOP_LEVEL = {
    *("app", "docker", "tests", "requirements", "plugin", ".ci", "docs", "deploy"),
    *("Dockerfile", "docker-compose.yml", "pyproject.toml", "README.md", "Makefile", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "LICENSE", "SECURITY.md"),
    *(".gitignore", ".dockerignore", ".env.example"),
}
FOREIGN_PATH = re.compile(r"(?<![\w.])/(?:work|root|opt/(?:pypi|wheels)|home/\w+)/")
"""Paths of the machine somebody worked on."""

REGISTRY = re.compile(
    r"(?i)\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|download\.pytorch\.org)\b"
)
"""Registries are reached through their clients' settings, never by an address of ours."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked() -> list[Path]:
    """What git has or would take: committed, or neither committed nor ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git repository")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def functions(path: Path) -> Iterator[tuple[str, Function, bool]]:
    """Each function of a file: where it stands, itself, and whether it is public."""

    def walk(node: ast.AST, prefix: str, public: bool) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", public and not child.name.startswith("_"))
            elif isinstance(child, Function):
                yield f"{prefix}{child.name}", child, public and not child.name.startswith("_")
                yield from walk(child, f"{prefix}{child.name}.", public=False)
            else:
                yield from walk(child, prefix, public)

    where = f"{path.relative_to(ROOT)}:"
    yield from walk(ast.parse(path.read_text(encoding="utf-8")), where, public=True)


def length(function: Function) -> int:
    """Lines from `def` to the last statement, without the docstring."""
    assert function.end_lineno is not None
    doc = function.body[0] if ast.get_docstring(function) is not None else None
    documented = (doc.end_lineno or 0) - doc.lineno + 1 if doc is not None else 0
    return function.end_lineno - function.lineno + 1 - documented


def test_imports_keep_to_the_rooms() -> None:
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_a_broken_rule_would_be_noticed() -> None:
    """Every fence of the design is among the contracts, by the modules it forbids; no contract has an exception."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    floors, *fences = contracts
    assert floors["type"] == "layers"
    assert floors["exhaustive"]
    assert not [contract["name"] for contract in contracts if "ignore_imports" in contract]
    fenced = {module for contract in fences for module in contract["forbidden_modules"]}
    assert fenced >= {"fastapi", "torch", "sqlalchemy", "httpx", "aiohttp", "prometheus_client", "pickle", "tarfile"}
    banned = config["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(banned) >= {"pickle", "torch.load", "tarfile", "zipfile", "peft.PeftModel.from_pretrained"}


PERMITTED: Final = {
    "fastapi": {"server", "console", "api"},
    "uvicorn": {"server", "api"},
    "torch": {"validate", "screen", "prune", "demo", "bench"},
    "transformers": {"screen", "demo", "bench"},
    "peft": {"demo", "bench"},
    "sqlalchemy": {"store"},
    "httpx": {"load", "access", "fetch", "notify", "cli", "demo", "bench"},
    "jwt": {"access"},
    "prometheus_client": {"observe"},
    "pickle": set[str](),
}
"""Third-party module → rooms that may import it."""


@pytest.mark.parametrize("module", PERMITTED)
def test_a_fence_names_every_room_that_may_not(module: str) -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    fence = next(contract for contract in contracts if module in contract.get("forbidden_modules", ()))
    rooms = {path.name for path in (ROOT / "app").iterdir() if (path / "__init__.py").is_file()}
    assert set(fence["source_modules"]) == {f"app.{room}" for room in rooms - PERMITTED[module]}


def test_only_the_map_and_the_entry_stand_at_the_root() -> None:
    assert {path.name for path in (ROOT / "app").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import torch\ntorch.load('x')",
        "import tarfile",
        "import peft\npeft.PeftModel.from_pretrained(1, 'x')",
    ],
)
def test_what_is_banned_is_refused_by_ruff(code: str) -> None:
    command: list[str | Path] = [BIN / "ruff", "check", "--select", "TID251", "--stdin-filename", "app/load/x.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr


def test_blocking_work_runs_in_the_pool_of_its_kind() -> None:
    """The loop's own executor is one queue for everything: a screening in it stops heartbeats and GETs."""
    banned = {"to_thread", "run_in_executor", "set_default_executor"}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in APP
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in banned)
        or (isinstance(node, ast.ImportFrom) and banned.intersection(name.name for name in node.names))
    ]
    assert not found, "use a pool of app/concurrency"


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): n for path in APP if (n := len(path.read_text().splitlines())) > FILE_LINES}
    assert not long


def test_functions_are_short() -> None:
    lengths = {name: length(function) for path in APP for name, function, _ in functions(path)}
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}
    assert quantiles(lengths.values(), n=10)[-1] <= FUNCTION_LINES_P90


def test_public_functions_are_annotated_and_documented() -> None:
    bare = []
    for path in APP:
        for name, function, public in functions(path):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
            if public and (untyped or function.returns is None or not ast.get_docstring(function)):
                bare.append(name)
    assert not bare


def test_modules_say_what_they_are_for() -> None:
    assert not [
        str(path.relative_to(ROOT))
        for path in APP
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_rooms_are_packages() -> None:
    """A folder without __init__.py would be left out of wheels and of the import rules."""
    folders = {path.parent for path in APP}
    assert not [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def test_only_what_belongs_there_stands_at_the_top() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert top <= TOP_LEVEL


def test_no_path_or_registry_of_somebodys_machine_is_written_down() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path != Path(__file__) and (match := FOREIGN_PATH.search(text) or REGISTRY.search(text)):
            found.append(f"{path.relative_to(ROOT)}: {match.group()}")
    assert not found


def test_ci_runs_exactly_what_users_run() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -eu", 'cd "$(dirname "$0")/.."', "make test"]


def test_what_a_wheel_must_carry_is_named() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert config["project"]["scripts"] == {"lora-gateway": "app.cli.main:main"}
    assert "assets/**/*" in config["tool"]["setuptools"]["package-data"]["app.demo"]
    assert (ROOT / "app" / "py.typed").exists()
