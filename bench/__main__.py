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
from collections.abc import Iterable, Iterator
from pathlib import Path

from wherry import __version__

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.md"
LIMITS = "## What limits them"  # from here on it is written by hand, and kept


def heading() -> list[str]:
    """What the figures were measured on, and how busy it was before."""
    machine = f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores"
    return [
        f"<!-- `make bench` writes all above {LIMITS!r}; the rest is by hand -->\n",
        "# Figures\n",
        f"Wherry {__version__}, {machine}; load before: {os.getloadavg()[0]:.1f}.\n",
    ]


def table(figures: dict[str, dict[str, float]]) -> Iterator[str]:
    """The figures, a line each."""
    yield "| benchmark | figure | value |\n| --- | --- | ---: |"
    for name, values in figures.items():
        for label, value in values.items():
            shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
            yield f"| `bench/{name}.py` | {label} | {shown} |"


def write(lines: Iterable[str]) -> str:
    """Replace the table; keep what people wrote below it."""
    before = RESULTS.read_text("utf-8") if RESULTS.exists() else ""
    _, found, limits = before.partition(LIMITS)
    text = "\n".join(lines) + "\n" + (f"\n{found}{limits}" if found else "")
    RESULTS.write_text(text, "utf-8")
    return text


def main() -> None:
    """Run them all. Exits with 1 where one of them failed; the others are written."""
    figures: dict[str, dict[str, float]] = {}
    failed = []
    head = heading()
    # Compiled once, as on a person's machine; a figure of a start would be one of compiling.
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for path in sorted(FOLDER.glob("[a-z]*.py")):
        print(f"bench/{path.name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"bench.{path.stem}", "--json"],
            stdout=subprocess.PIPE,
            env=environ,
            check=False,
        )
        if done.returncode:
            failed.append(path.name)
        else:
            figures[path.stem] = json.loads(done.stdout)
    print(write([*head, *table(figures)]))
    if failed:
        sys.exit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
