"""
How many short runs a second go from submitted to finished, and whether all of them do.

``python bench/throughput.py [--runs N] [--json]``. In the same run: ``xargs -P2`` over as many bare
Pythons, which keeps no record, no log and no exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from wherry.core.api import Submit
from wherry.core.job import Environment, JobSpec
from wherry.core.states import RunState
from wherry.sdk.client import Client
from wherry.sdk.connect import connect, stop_server

LIMIT = 900.0  # seconds


def bare(runs: int) -> float:
    """Seconds for as many Pythons, two at a time."""
    began = time.perf_counter()
    command = ["xargs", "-P2", "-I{}", sys.executable, "-c", "pass"]
    subprocess.run(command, input="\n".join(map(str, range(runs))), text=True, check=True)
    return time.perf_counter() - began


def submit(client: Client, runs: int) -> list[str]:
    """Submit them all, one after the other."""
    environment = Environment(python=sys.executable)
    spec = JobSpec(name="short", command=("python", "-c", "pass"), environment=environment)
    return [client.submit(Submit(spec=spec)).id for _ in range(runs)]


def finish(client: Client, runs: list[str]) -> Counter[str]:
    """Wait for all of them; how many ended in which state."""
    deadline = time.monotonic() + LIMIT
    return Counter(client.wait(run, deadline - time.monotonic()).state for run in runs)


def measure(runs: int) -> dict[str, float]:
    """Every figure."""
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as home:
        os.environ["WHERRY_HOME"] = home
        client = connect()
        try:
            began = time.perf_counter()
            submitted = submit(client, runs)
            submitting = time.perf_counter() - began
            states = finish(client, submitted)
            seconds = time.perf_counter() - began
        finally:
            client.close()
            stop_server(Path(home))
    peer = bare(runs)
    return {
        "runs": runs,
        "lost": runs - states[RunState.SUCCEEDED],
        "submitted/s": runs / submitting,
        "finished/s": runs / seconds,
        "bare xargs -P2, processes/s": runs / peer,
        "ratio to bare xargs": seconds / peer,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how many short runs a second")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    figures = measure(asked.runs)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{value:12,.1f}  {name}")


if __name__ == "__main__":
    main()
