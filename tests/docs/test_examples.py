"""Every example does what it shows, with the command that it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.sdk.connect import find_server

ROOT = Path(__file__).parents[2]
Call = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the examples in it, and nothing else."""
    shutil.copytree(ROOT / "examples", tmp_path / "checkout" / "examples")
    return tmp_path / "checkout"


@pytest.fixture
def call(checkout: Path) -> Iterator[Call]:
    """Runs a Python program in the checkout and gives what it printed."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY_", "PYTEST_"))}
    home = checkout / ".cache" / "demo-home"

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=checkout, env={**environ, "WHERRY_HOME": str(home)}, stdin=subprocess.DEVNULL,
            text=True, capture_output=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield call
    call("-m", "wherry.cli.main", "down")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sklearn_search.py", "map_folds.py"])
def test_plain_python_learns_the_same_on_one_process_and_on_two(script: str, call: Call) -> None:
    alone, together = (
        call(f"examples/frameworks/{script}", "--workers", workers) for workers in ("1", "2")
    )
    assert alone == together
    assert float(alone.rpartition("accuracy=")[2]) >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_digits_reaches_its_accuracy_on_any_number_of_workers(
    workers: int, call: Call, checkout: Path
) -> None:
    wherry = ("-m", "wherry.cli.main")
    script = ("examples/digits_xgboost.py", "--rounds", "30")
    call(*wherry, "run", "--workers", str(workers), *script)
    detail = json.loads(call(*wherry, "show", "last", "--json"))
    accuracy = [metric["last"] for metric in detail["metrics"] if metric["name"] == "accuracy"]
    assert len(accuracy) == workers
    assert min(accuracy) >= 0.95
    assert max(accuracy) == min(accuracy), "the workers have grown different trees"
    call(*wherry, "get", "last", "--to", "model")
    assert (checkout / "model" / "digits.ubj").stat().st_size > 10_000


@pytest.mark.slow
def test_the_demo_ends_well_and_leaves_nothing_running(call: Call, checkout: Path) -> None:
    said = call("examples/demo.py")
    model = next(line.split()[1] for line in said.splitlines() if line.startswith("model"))
    assert (checkout / model).is_file()
    assert find_server(checkout / ".cache" / "demo-home") is None


def test_every_example_is_tried_above() -> None:
    tried = {"digits_xgboost.py", "demo.py"}
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == tried
