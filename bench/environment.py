"""
How long a warm environment takes: everything in uv's cache, no network.

``python bench/environment.py [--packages LIST] [--json]``. In the same run: bare ``uv venv`` and
``uv pip sync`` of the same packages, the ratio to it, and finding an environment that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wherry.agent.environment import Built, build
from wherry.agent.uv import uv_environ
from wherry.bundle.environment import Ask, resolve, uv_path

#: Twenty-five wheels of the kind that a training script brings.
PACKAGES = "numpy pandas scikit-learn pydantic typer rich requests tqdm joblib jinja2"


def measure(packages: list[str], rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as name:
        folder = Path(name)
        ask = Ask(
            root=folder,
            environ=os.environ,
            choice="none",
            python=platform.python_version(),
            with_packages=tuple(packages),
        )
        began = time.perf_counter()
        resolved = resolve(ask, cache=folder / "cache")
        results = {"resolve, s": time.perf_counter() - began}
        began = time.perf_counter()
        resolve(ask, cache=folder / "cache")
        results["resolve again, s"] = time.perf_counter() - began
        (text,) = resolved.blobs.values()
        wanted = {
            "kind": "built",
            "python": resolved.environment.python,
            "requirements": resolved.environment.requirements,
        }

        def ours(cache: str) -> Built:
            return build(
                wanted, cache=cache, uv=uv_path(), fetch=lambda digest: text, note=lambda note: None
            )

        requirements = folder / "requirements.txt"
        requirements.write_bytes(text)
        env = uv_environ(os.environ)

        def bare(venv: Path) -> None:
            uv = [uv_path(), "--quiet", "--offline"]
            make = [*uv, "venv", "--no-project", "--python", sys.executable, str(venv)]
            subprocess.run(make, check=True, env=env)
            sync = [*uv, "pip", "sync", "--require-hashes", "--index-strategy", "unsafe-best-match"]
            subprocess.run([*sync, "--python", str(venv), str(requirements)], check=True, env=env)

        built = ours(str(folder / "first"))  # fills uv's cache where it has to
        wheels = len(list(Path(built.root).glob("lib/python*/site-packages/*.dist-info")))
        results["wheels"] = float(wheels)
        times: dict[str, list[float]] = {"bare uv, s": [], "warm build, s": [], "reuse, s": []}
        for n in range(rounds):
            began = time.perf_counter()
            bare(folder / f"bare{n}")
            times["bare uv, s"].append(time.perf_counter() - began)
            began = time.perf_counter()
            ours(str(folder / f"ours{n}"))
            times["warm build, s"].append(time.perf_counter() - began)
            began = time.perf_counter()
            ours(str(folder / f"ours{n}"))
            times["reuse, s"].append(time.perf_counter() - began)
        results |= {label: statistics.median(values) for label, values in times.items()}
        results["ratio to bare uv"] = results["warm build, s"] / results["bare uv, s"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packages", default=PACKAGES, help="separated by spaces")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.packages.split(), options.rounds)
    if options.json:
        print(json.dumps(results))
        return
    for label, value in results.items():
        print(f"{label:20} {value:10.4f}")


if __name__ == "__main__":
    main()
