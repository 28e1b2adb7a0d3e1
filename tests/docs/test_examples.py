"""Every example does what it shows, with the command that it names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHERRY = [sys.executable, "-m", "wherry.cli.main"]
Wherry = Callable[..., str]


@pytest.fixture
def wherry(tmp_path: Path) -> Iterator[Wherry]:
    """Runs the command line in a home of its own; gives what it printed."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY_", "PYTEST_"))}
    environ["WHERRY_HOME"] = str(tmp_path / "home")

    def call(*words: str) -> str:
        done = subprocess.run(
            [*WHERRY, *words],
            cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, text=True,
            capture_output=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield call
    call("down")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_digits_reaches_its_accuracy_on_any_number_of_workers(
    workers: int, wherry: Wherry, tmp_path: Path
) -> None:
    wherry("run", "--workers", str(workers), "examples/digits_xgboost.py", "--rounds", "30")
    detail = json.loads(wherry("show", "last", "--json"))
    accuracy = [metric["last"] for metric in detail["metrics"] if metric["name"] == "accuracy"]
    assert len(accuracy) == workers
    assert min(accuracy) >= 0.95
    assert max(accuracy) == min(accuracy), "the workers have grown different trees"
    wherry("get", "last", "--to", str(tmp_path / "model"))
    assert (tmp_path / "model" / "digits.ubj").stat().st_size > 10_000


@pytest.mark.slow
def test_the_demo_ends_well_and_leaves_nothing_running(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    (copy / "examples").mkdir(parents=True)
    for example in (ROOT / "examples").glob("*.py"):
        (copy / "examples" / example.name).write_bytes(example.read_bytes())
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "examples/demo.py"],
        cwd=copy, env=environ, stdin=subprocess.DEVNULL, text=True,
        capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    model = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("model"))
    assert (copy / model).is_file()
    status = subprocess.run(
        [*WHERRY, "status"],
        env={**environ, "WHERRY_HOME": str(copy / ".cache/demo-home")},
        capture_output=True, check=False,
    )  # fmt: skip
    assert status.returncode == 6, "the control plane was left running"


def test_every_example_is_tried_above() -> None:
    tried = {"digits_xgboost.py", "demo.py"}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tried
