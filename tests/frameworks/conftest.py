"""Worlds whose person has a framework installed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import World, make_world, world
from tests.frameworks import environments

__all__ = ["environment", "make_world", "run", "world"]

EXAMPLES = Path(__file__).parents[2] / "examples" / "frameworks"
#: Runs ``wherry run WORDS`` in an environment; the accuracies that it printed.
Run = Callable[..., list[float]]


def built(name: str) -> environments.Built:
    """The environment, or a test that is skipped."""
    try:
        return environments.build(name)
    except environments.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def environment() -> Callable[[str], environments.Built]:
    return built


@pytest.fixture
def run(world: World) -> Run:
    shutil.copytree(EXAMPLES, world.project, dirs_exist_ok=True)

    def run(name: str, *words: str) -> list[float]:
        if name:
            world.environ.update(built(name).variables)
        done = world.cli("run", *words, timeout=280)
        assert done.returncode == 0, done.stdout + done.stderr
        return [float(found) for found in re.findall(r"accuracy=(\d\.\d+)", done.stdout)]

    return run


@pytest.fixture(scope="session")
def mpirun() -> str:
    try:
        return environments.mpirun()
    except environments.Unavailable as error:
        pytest.skip(str(error))
