"""
``wherry.map`` of 10,000 tasks that do nothing, on two workers, beside others in the same run.

``python -m bench.map [--json] [--rounds N] [--without ray]``. Each round gives every contender a
process of its own, in turn, so that a busy moment hits all alike. ``cold`` is from nothing to all
results, with the start of the workers (Wherry's control plane and Ray's cluster run for the
machine: Wherry's is up, as after the first command; Ray's starts, as ``ray.init()`` does). ``warm``
is the best of five further maps on the same workers. ``multiprocessing.Pool.map`` is the floor: no
network, no record, no second machine. Ray is fetched by uv into an environment that is thrown away.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

TASKS, WORKERS = 10_000, 2

HEAD = f"""
import json, sys, time

TASKS, WORKERS = {TASKS}, {WORKERS}

def nothing(x):
    return x

def report(start, again, end=lambda: None):
    began = time.perf_counter()
    first = start()
    cold = time.perf_counter() - began
    assert list(first) == list(range(TASKS))
    warm = []
    for _ in range(5):
        began = time.perf_counter()
        found = list(again())
        warm.append(time.perf_counter() - began)
        assert found == list(range(TASKS))
    end()
    print(json.dumps({{"cold": cold, "warm": min(warm)}}))
"""

CONTENDERS = {
    "wherry": """
import wherry
if __name__ == "__main__":
    def start():
        global workers
        workers = wherry.Executor(WORKERS)
        return list(wherry.map(nothing, range(TASKS), executor=workers))
    report(
        start,
        lambda: wherry.map(nothing, range(TASKS), executor=workers),
        lambda: workers.shutdown(),
    )
""",
    "wherry submit": """
import wherry
if __name__ == "__main__":
    def start():
        global workers
        workers = wherry.Executor(WORKERS)
        return again()
    def again():
        return [f.result() for f in [workers.submit(nothing, i) for i in range(TASKS)]]
    report(start, again, lambda: workers.shutdown())
""",
    "loky": """
import joblib
if __name__ == "__main__":
    def again():
        return joblib.Parallel(n_jobs=WORKERS)(joblib.delayed(nothing)(i) for i in range(TASKS))
    report(again, again)
""",
    "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    def start():
        global workers
        workers = ProcessPoolExecutor(WORKERS)
        return again()
    def again():
        return [f.result() for f in [workers.submit(nothing, i) for i in range(TASKS)]]
    report(start, again, lambda: workers.shutdown())
""",
    "Pool": """
import multiprocessing
if __name__ == "__main__":
    def start():
        global workers
        workers = multiprocessing.get_context("spawn").Pool(WORKERS)
        return workers.map(nothing, range(TASKS))
    report(start, lambda: workers.map(nothing, range(TASKS)), lambda: workers.terminate())
""",
    "ray": """
import ray
if __name__ == "__main__":
    task = ray.remote(nothing)
    def start():
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        return again()
    def again():
        return ray.get([task.remote(i) for i in range(TASKS)])
    report(start, again, ray.shutdown)
""",
    "ray Pool": """
import ray
from ray.util.multiprocessing import Pool
if __name__ == "__main__":
    def start():
        global workers
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        workers = Pool(WORKERS)
        return workers.map(nothing, range(TASKS))
    report(start, lambda: workers.map(nothing, range(TASKS)), ray.shutdown)
""",
}


def measure(name: str, folder: Path, env: dict[str, str]) -> dict[str, float] | None:
    """The contender's seconds; None where it is not to be had."""
    script = folder / f"bench_{name.replace(' ', '_')}.py"
    script.write_text(HEAD + CONTENDERS[name])
    command = [sys.executable, str(script)]
    if name.startswith("ray"):
        uv = str(Path(sys.executable).with_name("uv"))
        fresh = [uv, "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable]
        command = [*fresh, "--with", "ray", "python", str(script)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: not measured: {done.stderr.strip()[-500:]}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rounds(count: int, without: set[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """What was measured, round by round; the first warms caches and is not told."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "WHERRY_HOME": str(folder / "home"), "RAY_DEDUP_LOGS": "0"}
        project = folder / "project"
        project.mkdir()
        names = [n for n in CONTENDERS if n.split()[0] not in without]
        try:
            for turn in range(count + 1):
                for contender in list(names):
                    found = measure(contender, project, env)
                    if found is None:
                        names.remove(contender)
                    elif turn:
                        yield contender, found
        finally:
            wherry = [sys.executable, "-m", "wherry.cli.main", "down"]
            subprocess.run(wherry, env=env, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", action="append", default=[])
    given = parser.parse_args()
    every: dict[str, list[dict[str, float]]] = {}
    for name, found in rounds(given.rounds, set(given.without)):
        every.setdefault(name, []).append(found)
    figures = {
        f"{name}, {kind}, ms": 1000 * best(f[kind] for f in found)
        for name, found in every.items()
        for kind, best in (("cold", median), ("warm", min))
    }
    if given.json:
        print(json.dumps(figures))
        return
    for label, value in figures.items():
        print(f"{label:34} {value:8.0f}")


if __name__ == "__main__":
    main()
