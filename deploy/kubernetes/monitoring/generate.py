"""Writes rules.yaml, and the chart's copy of the same groups, from docker/prometheus/rules; with --check it compares.

python deploy/kubernetes/monitoring/generate.py
"""

import sys
import textwrap
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCES: Final = HERE.parents[2] / "docker" / "prometheus" / "rules"
OUT: Final = HERE / "rules.yaml"
CHART: Final = HERE.parents[1] / "helm" / "files" / "rules.yaml"
SOURCE: Final = "# Written by generate.py from docker/prometheus/rules: change the rules there.\n"
HEAD: Final = """\
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gateway
spec:
  groups:
"""
GROUPS: Final = "groups:\n"
"""Line of a rule file after which its groups stand."""


def groups() -> str:
    """Groups of the rule files: the recording rules first, which the alerts read."""
    files = (SOURCES / name for name in ("recording.yml", "alerts.yml"))
    return "".join(file.read_text(encoding="utf-8").partition(GROUPS)[2] for file in files)


def texts() -> dict[Path, str]:
    """Files and their texts."""
    inner = "".join(f"  {line}" if line.strip() else line for line in groups().splitlines(keepends=True))
    return {OUT: SOURCE + HEAD + inner, CHART: SOURCE + textwrap.dedent(groups())}


def main(arguments: list[str]) -> int:
    """Write, or with --check compare: 1 if a file differs."""
    stale = [file for file, text in texts().items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if "--check" in arguments:
            print(f"{file} is not what generate.py writes")
        else:
            file.write_text(texts()[file], encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
