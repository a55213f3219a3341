"""Writes rules.yaml from docker/prometheus/rules, or with --check says whether it is what would be written.

python deploy/kubernetes/monitoring/generate.py
"""

import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCES: Final = HERE.parents[2] / "docker" / "prometheus" / "rules"
OUT: Final = HERE / "rules.yaml"
HEAD: Final = """\
# Written by generate.py from docker/prometheus/rules: change the rules there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gateway
spec:
  groups:
"""
GROUPS: Final = "groups:\n"
"""Line of a rule file after which its groups stand."""


def groups(source: Path) -> str:
    """Groups of a rule file, two columns further in."""
    _, _, body = source.read_text(encoding="utf-8").partition(GROUPS)
    return "".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True))


def text() -> str:
    """Text of rules.yaml: the recording rules first, which the alerts read."""
    return HEAD + "".join(groups(SOURCES / name) for name in ("recording.yml", "alerts.yml"))


def main(arguments: list[str]) -> int:
    """Write, or with --check compare: 1 if the file differs."""
    stale = not OUT.exists() or OUT.read_text(encoding="utf-8") != text()
    if "--check" not in arguments:
        OUT.write_text(text(), encoding="utf-8")
        return 0
    if stale:
        print(f"{OUT.name} is not what generate.py writes")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
