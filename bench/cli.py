"""
How quick the command line is, against bare Python in the same run.

``python -m bench.cli [--json] [--rounds N]``: each round runs every command once, in turn, so that
a busy moment hits all alike. Bytecode is written first; the control plane is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

WHERRY = [sys.executable, "-m", "wherry.cli.main"]
HELLO = "print('hello', flush=True)\n"


def first_line(argv: list[str], folder: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds to the first line of output, and to the end."""
    began = time.perf_counter()
    process = subprocess.Popen(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    with process.stdout as stdout:
        stdout.readline()
        first = time.perf_counter() - began
        stdout.read()
    assert process.wait() == 0, argv
    return first, time.perf_counter() - began


def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds (best and median) of each command."""
    env = {**os.environ, "WHERRY_HOME": str(folder / "home")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    project = folder / "project"
    project.mkdir()
    (project / "hello.py").write_text(HELLO)
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "--help": [*WHERRY, "--help"],
        "run --detach": [*WHERRY, "run", "--detach", "hello.py"],
        "python hello.py": [sys.executable, "hello.py"],
        "wherry run hello.py": [*WHERRY, "run", "hello.py"],
    }
    firsts: dict[str, list[float]] = {name: [] for name in commands}
    ends: dict[str, list[float]] = {name: [] for name in commands}
    try:
        for turn in range(rounds + 1):
            for name, argv in commands.items():
                first, end = first_line(argv, project, env)
                if turn:  # the first warms bytecode, caches and the control plane
                    firsts[name].append(1000 * first)
                    ends[name].append(1000 * end)
                if name == "run --detach":
                    subprocess.run(
                        [*WHERRY, "logs", "-f"], cwd=project, env=env, check=True,
                        stdout=subprocess.DEVNULL,
                    )  # fmt: skip
    finally:
        subprocess.run([*WHERRY, "down"], cwd=project, env=env, check=True)
    return {
        name: {
            "first_ms": min(firsts[name]),
            "first_median_ms": median(firsts[name]),
            "end_ms": min(ends[name]),
            "end_median_ms": median(ends[name]),
        }
        for name in commands
    }


def report(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures of the budget, best against best; then what they were made of."""
    bare, script = found["bare"]["end_ms"], found["python hello.py"]["first_ms"]
    return {
        "help / bare": found["--help"]["end_ms"] / bare,
        "run --detach / bare": found["run --detach"]["end_ms"] / bare,
        "first line of run, ms over python": found["wherry run hello.py"]["first_ms"] - script,
        "bare, ms": bare,
        "--help, ms": found["--help"]["end_ms"],
        "run --detach, ms": found["run --detach"]["end_ms"],
        "first line of python, ms": script,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.rounds, Path(folder))
    figures = report(found)
    if options.json:
        print(json.dumps(figures))
        return
    for name, row in found.items():
        print(f"{name:22}" + "".join(f"{key} {value:7.1f}  " for key, value in row.items()))
    for name, value in figures.items():
        print(f"{name:36} {value:6.1f}")


if __name__ == "__main__":
    main()
