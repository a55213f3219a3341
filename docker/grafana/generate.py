"""Writes the dashboards, or with --check says whether the files are what it would write.

python docker/grafana/generate.py
"""

import json
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from engine import engine
from screening import screening
from serving import serving

OUT: Final = Path(__file__).with_name("dashboards")


def files() -> dict[Path, str]:
    """File → text of every dashboard."""
    made = {"screening": screening(), "serving": serving(), "engine": engine()}
    return {
        OUT / f"{name}.json": json.dumps(board, indent=1, ensure_ascii=False) + "\n" for name, board in made.items()
    }


def main(arguments: list[str]) -> int:
    """Write, or with --check compare: 1 when a file differs."""
    stale = [path for path, text in files().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.name} is not what generate.py writes")
        return 1 if stale else 0
    for path in stale:
        path.write_text(files()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
