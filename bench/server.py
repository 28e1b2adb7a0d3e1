"""
How soon a fresh control plane is ready, and how much memory it takes.

``python bench/server.py [--rounds N] [--json]``. In the same run: a bare Python's start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wherry.sdk.connect import connect, find_server, stop_server


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Rss:")) * 1024 / 1e6


def start(home: str) -> tuple[float, float]:
    """Seconds until a new home answers, and the megabytes that it holds then."""
    os.environ["WHERRY_HOME"] = home
    began = time.perf_counter()
    client = connect()
    seconds = time.perf_counter() - began
    client.close()
    server = find_server(Path(home))
    assert server is not None
    memory = resident(server.pid)
    stop_server(Path(home))
    return seconds, memory


def bare() -> float:
    """Seconds of a Python that does nothing."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, float]:
    """Every figure: medians."""
    fresh, warm, memory, pythons = [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="wherry-bench-") as home:
            seconds, held = start(home)
            fresh.append(seconds)
            memory.append(held)
            warm.append(start(home)[0])
        pythons.append(bare())
    return {
        "ready, new home, s": statistics.median(fresh),
        "ready, home that exists, s": statistics.median(warm),
        "memory, MB": statistics.median(memory),
        "bare python, s": statistics.median(pythons),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how soon the control plane is ready")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    figures = measure(asked.rounds)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{value:10.3f}  {name}")


if __name__ == "__main__":
    main()
