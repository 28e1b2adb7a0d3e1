"""
Every framework's example, alone and with others, through the command line, on real digits.

Those that are not slow are what every change is tried with; the rest is for ``make test-all``.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import World
from tests.frameworks.conftest import EXAMPLES, Run, built
from wherry.testing.waiting import eventually

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(400)]
slow = pytest.mark.slow
GOAL = 0.93


def learned(accuracies: list[float], count: int) -> None:
    """As many said how well they did, and well enough; whoever shares a model, the same."""
    assert len(accuracies) == count
    assert min(accuracies) >= GOAL
    assert max(accuracies) == min(accuracies), "the ranks have learned different models"


@pytest.mark.parametrize("workers", [pytest.param(1, marks=slow), 2])
@pytest.mark.parametrize(
    ("environment_name", "script"),
    [
        ("main", "torch_ddp.py"),
        ("main", "jax_distributed.py"),
        ("main", "xgboost_collective.py"),
        pytest.param("main", "lightgbm_distributed.py", marks=slow),
        pytest.param("main", "keras_jax.py", marks=slow),
        pytest.param("tensorflow", "tf_multiworker.py", marks=slow),
        pytest.param("tensorflow-2.15", "keras_multiworker.py", marks=slow),
    ],
)
def test_the_same_script_learns_alone_and_with_others(
    run: Run, environment_name: str, script: str, workers: int
) -> None:
    python = ("--python", _python(environment_name)) if _has_header(script) else ()
    learned(run(environment_name, "--workers", str(workers), *python, script), workers)


def test_torchrun_starts_the_processes_of_every_worker(run: Run) -> None:
    words = ("--workers", "2", "--processes", "2", "--", "torchrun", "torch_ddp.py")
    learned(run("main", *words), 4)


@slow
def test_torchrun_on_one_worker(run: Run, world: World) -> None:
    learned(run("main", "--processes", "2", "--", "torchrun", "torch_ddp.py"), 2)
    assert world.json("show", "last")["attempts"][0]["ranks"][0]["exit_code"] == 0


@slow
def test_an_elastic_program_goes_on_where_it_was(run: Run, world: World) -> None:
    environment = built("main")
    world.environ.update(environment.variables)
    words = ("--workers", "1:2", "--restarts", "2", "-e", "EPOCHS=300")
    run_id = world.detach(*words, "--", "torchrun", "torch_elastic.py")
    eventually((world.home / "checkpoints" / run_id / "last.pt").exists, within=120)
    lock = world.home / "attempts" / f"{run_id}-1" / "1" / "lock"
    os.kill(int(lock.read_text().split()[0]), signal.SIGKILL)
    world.until(run_id, "succeeded", within=240)
    said = world.cli("logs", run_id).stdout
    starts = re.findall(r"rank 0 of (\d) starts at epoch (\d+)", said)
    assert starts[0] == ("2", "0")
    assert len(starts) > 1 and all(int(epoch) > 0 for _, epoch in starts[1:])
    assert all(float(found) >= GOAL for found in re.findall(r"accuracy=(\d\.\d+)", said))


@pytest.mark.parametrize("workers", [pytest.param(1, marks=slow), 2])
def test_an_mpi_program(run: Run, mpirun: str, workers: int) -> None:
    words = ("--workers", str(workers), "--", "mpirun", "python", "mpi_digits.py")
    learned(run("main", *words), workers)


@slow
def test_an_mpi_program_without_mpirun_is_alone(run: Run, mpirun: str) -> None:
    learned(run("main", "mpi_digits.py"), 1)


@slow
def test_open_mpi_5_on_one_machine(run: Run, world: World) -> None:
    world.write("who.sh", 'echo "accuracy=0.$OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE"')
    found = run("openmpi-5", "--workers", "2", "--processes", "2", "--", "mpirun", "sh", "who.sh")
    assert sorted(found) == [0.0, 0.1, 0.2, 0.3]


@slow
def test_under_mpirun_jax_finds_everything_by_itself(run: Run, mpirun: str) -> None:
    learned(run("main", "--workers", "2", "--", "mpirun", "python", "jax_distributed.py"), 2)


@slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_program_of_no_framework_in_another_language(run: Run, workers: int) -> None:
    found = run("main", "--workers", str(workers), "--", "sh", "neutral.sh")
    assert len(found) == workers and min(found) >= GOAL


@slow
def test_tensorflows_parameter_servers_alone(run: Run) -> None:
    learned(run("tensorflow", "tf_parameter_server.py"), 1)


@slow
def test_tensorflows_parameter_servers(run: Run, world: World) -> None:
    found = run("tensorflow", "tf_parameter_server.yaml")
    assert found[-1] >= GOAL and len(found) >= 2, "the chief, and the evaluator at least once"
    assert _states(world) == ["succeeded", "stopped", "stopped", "stopped", "succeeded"]


@slow
def test_the_literal_train_and_evaluate_of_estimators_alone(run: Run) -> None:
    learned(run("tensorflow-2.15", "--python", _python("tensorflow-2.15"), "tf_estimator.py"), 1)


@slow
def test_the_literal_train_and_evaluate_of_estimators(run: Run, world: World) -> None:
    python = _python("tensorflow-2.15")
    learned(run("tensorflow-2.15", "--python", python, "tf_estimator.yaml"), 1)
    assert _states(world) == ["succeeded", "succeeded", "stopped", "succeeded"]


@slow
def test_mxnet_alone_and_with_parameter_servers(run: Run, world: World) -> None:
    python = _python("mxnet")
    learned(run("mxnet", "--python", python, "mxnet_dist_sync.py"), 1)
    learned(run("mxnet", "--python", python, "mxnet_dist_sync.yaml"), 2)
    assert _states(world)[2:] == ["succeeded", "succeeded"]


@slow
def test_chainer_over_mpi(run: Run, mpirun: str) -> None:
    python = _python("chainer")
    learned(run("chainer", "--python", python, "chainer_mpi.py"), 1)
    words = ("--python", python, "--workers", "2", "--", "mpirun", "python", "chainer_mpi.py")
    learned(run("chainer", *words), 2)


def test_every_example_is_tried_above_and_is_short() -> None:
    elsewhere = Path(__file__).parents[1] / "docs" / "test_examples.py"
    source = Path(__file__).read_text("utf-8") + elsewhere.read_text("utf-8")
    plain = {"sklearn_search.py", "map_folds.py"}  # wherry.map and its joblib back end themselves
    for path in EXAMPLES.iterdir():
        assert path.name in source, f"{path.name} is not tried"
        assert len(path.read_text("utf-8").splitlines()) < 60, path.name
        imports = "import wherry" in path.read_text("utf-8")
        assert imports is (path.name in plain), path.name


def _python(name: str) -> str:
    return str(built(name).python)


def _has_header(script: str) -> bool:
    return (EXAMPLES / script).read_text("utf-8").startswith("# /// script")


def _states(world: World) -> list[str]:
    ranks = world.json("show", "last")["attempts"][-1]["ranks"]
    return [rank["state"] for rank in ranks]
