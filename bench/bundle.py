"""
How long capturing a project takes: cold, unchanged, and with five files changed.

``python bench/bundle.py [--files N] [--json]``. The project is in git. Beside it, in the same run,
what the parts cost by themselves: ``git ls-files``, and reading and hashing everything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wherry.bundle import capture, write_pack


def make_project(root: Path, files: int) -> int:
    """Sources of 1 to 100 KB in 100 folders; their bytes."""
    chance = random.Random(1)
    total = 0
    for n in range(files):
        file = root / f"package{n % 100}" / f"module{n}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        line = f"value_{n} = {chance.random()}\n"
        text = line * (chance.randrange(1_000, 100_000) // len(line))
        file.write_text(text)
        total += len(text)
    (root / "pyproject.toml").write_text("")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run(["git", "-C", str(root), "add", "-A"], check=True)
    return total


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """The median of some rounds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def measure(files: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as name:
        root, cache = Path(name, "project"), Path(name, "cache")
        size = make_project(root, files)
        sources = sorted(root.rglob("*.py"))
        # Files of the last two seconds are not remembered: let them age.
        time.sleep(2.1)

        def hash_all() -> None:
            for file in sources:
                hashlib.sha256(file.read_bytes()).hexdigest()

        def cold() -> None:
            capture(root, cache=cache / str(time.monotonic_ns()))

        def change_five() -> float:
            for file in sources[:5]:
                file.write_text(f"{time.monotonic_ns()}\n")
            return milliseconds(lambda: capture(root, cache=cache), 1)

        list_files = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
        results = {"files": float(files), "MB": size / 1e6}
        results["git ls-files, ms"] = milliseconds(
            lambda: subprocess.run(list_files, stdout=subprocess.DEVNULL, check=True), 9
        )
        results["read and hash all, ms"] = milliseconds(hash_all, 3)
        results["cold, ms"] = milliseconds(cold, 3)
        capture(root, cache=cache)
        results["unchanged, ms"] = milliseconds(lambda: capture(root, cache=cache), 15)
        results["5 changed, ms"] = statistics.median(change_five() for _ in range(9))
        captured = capture(root, cache=cache)
        results["pack of everything, ms"] = milliseconds(
            lambda: sum(map(len, write_pack(captured, captured.paths))), 3
        )
        code = (
            "from wherry.bundle import capture; from pathlib import Path; "
            f"capture(Path({str(root)!r}), cache=Path({str(cache)!r}))"
        )
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        for label, words in (("bare process, ms", "pass"), ("whole process, unchanged, ms", code)):
            command = [sys.executable, "-c", words]
            results[label] = milliseconds(lambda c=command: subprocess.run(c, env=env), 9)  # type: ignore[misc]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.files)
    if options.json:
        print(json.dumps(results))
        return
    for label, value in results.items():
        print(f"{label:32} {value:10.1f}")


if __name__ == "__main__":
    main()
