"""
Run every benchmark and write what came out as one table: ``make bench``.

A benchmark is a file of this folder that prints one flat JSON object with ``--json``. Each runs
alone, one after the other.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from wherry import __version__

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.md"


def table(figures: dict[str, dict[str, float]]) -> Iterator[str]:
    """The lines of ``results.md``."""
    machine = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"
    yield "<!-- written by `make bench`; do not edit -->\n"
    yield f"# Figures\n\nWherry {__version__}, {machine}.\n"
    yield "| benchmark | figure | value |\n| --- | --- | ---: |"
    for name, values in figures.items():
        for label, value in values.items():
            shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
            yield f"| `bench/{name}.py` | {label} | {shown} |"


def main() -> None:
    """Run them all. Exits with 1 where one of them failed; the others are written."""
    figures: dict[str, dict[str, float]] = {}
    failed = []
    # Compiled once, as on a person's machine; a figure of a start would be one of compiling.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        print(f"bench/{path.name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, str(path), "--json"], stdout=subprocess.PIPE, env=environ, check=False
        )
        if done.returncode:
            failed.append(path.name)
        else:
            figures[path.stem] = json.loads(done.stdout)
    text = "\n".join(table(figures)) + "\n"
    RESULTS.write_text(text, "utf-8")
    print(text)
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
