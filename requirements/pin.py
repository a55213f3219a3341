"""Make the pins anew: `python requirements/pin.py cpu` or `cuda` (uv on PATH or in .venv).

The pins are universal (every platform, Python 3.11 and later) and leave out what follows whichever torch is installed:
the CUDA libraries, and torch's own local versions such as 2.13.0+cpu.
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TORCH = "torch==2.13.0"
FOLLOWS_TORCH = re.compile(r"^(nvidia-|cuda-|torch==)")


def pins(extra: str) -> str:
    """Resolve the extra with the developers' group and return one requirement a line."""
    command: list[str | Path] = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--universal", "--python-version", "3.11"),
        *("--extra", extra, "--group", "dev", "--no-header", "--no-annotate", "--quiet"),
        *("--overrides", HERE / "overrides.txt", "--excludes", HERE / "excludes.txt", "pyproject.toml"),
    ]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    kept = [line for line in out.splitlines() if line and not FOLLOWS_TORCH.match(line)]
    return "\n".join(sorted([*kept, TORCH])) + "\n"


if __name__ == "__main__":
    for name in sys.argv[1:] or ["cpu"]:
        (HERE / f"{name}.txt").write_text(pins(name))
        print(f"requirements/{name}.txt written")
