"""
Projects that came with no thought of Wherry, and the mistakes that people make with them: through
the command line, in the foreground and as a detached copy.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import World
from tests.unit.package_index import make_index
from wherry.bundle.environment import uv_path

ALPHA = "import alpha; print('alpha', alpha.version)\n"


@pytest.fixture
def world(make_world: Callable[..., World], tmp_path: Path) -> World:
    """A project with git's marks and an index of its own, so that nothing needs the network."""
    made = make_world()
    made.environ |= {
        "UV_DEFAULT_INDEX": make_index(tmp_path / "index"),
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
    }
    made.write(".wherryignore", "")
    made.environ.pop("VIRTUAL_ENV", None)
    return made


def uv(world: World, *words: str) -> None:
    subprocess.run(
        [uv_path(), *words], cwd=world.project, env=world.environ, check=True, capture_output=True
    )


def both(world: World, *words: str) -> list[str]:
    """What the script says in place and as a copy."""
    here = world.cli("run", *words)
    assert here.returncode == 0, here.stderr
    copy = world.detach(*words)
    assert world.until(copy, "succeeded", "failed").state == "succeeded", world.cli("show", copy)
    there = world.cli("logs", copy, "--stream", "stdout")
    return [here.stdout, there.stdout]


def refused(world: World, *words: str) -> str:
    """What is said of a run that is not made."""
    done = world.cli("run", *words)
    assert done.returncode not in (0, 70) and done.stdout == ""
    assert "error:" in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr
    assert world.json("ps", "--all") == []
    return done.stderr


# --- projects


def test_a_module_with_relative_imports_and_arguments(world: World) -> None:
    world.write("pkg/__init__.py", "")
    world.write("pkg/model.py", "def loss(lr): return 1 - lr\n")
    world.write(
        "pkg/train.py",
        "import argparse\nfrom .model import loss\n"
        "parser = argparse.ArgumentParser()\nparser.add_argument('--lr', type=float)\n"
        "print(loss(parser.parse_args().lr))\n",
    )
    assert both(world, "-m", "pkg.train", "--lr", "0.25") == ["0.75\n"] * 2
    assert world.json("show", "last")["params"] == {"lr": 0.25}


@pytest.mark.slow
def test_a_script_that_names_its_packages(world: World) -> None:
    header = '# /// script\n# dependencies = ["alpha==1.0"]\n# ///\n'
    world.write("train.py", header + ALPHA)
    assert both(world, "train.py") == ["alpha 1.0\n"] * 2


@pytest.mark.slow
def test_a_locked_project(world: World) -> None:
    project = '[project]\nname = "digits"\nversion = "1"\nrequires-python = ">=3.11"\n'
    world.write("pyproject.toml", project + 'dependencies = ["alpha<2"]\n')
    world.write("train.py", ALPHA)
    uv(world, "lock")
    assert both(world, "train.py") == ["alpha 1.0\n"] * 2


@pytest.mark.slow
def test_a_lock_that_is_stale_is_refused_with_the_remedy(world: World) -> None:
    project = '[project]\nname = "digits"\nversion = "1"\nrequires-python = ">=3.11"\n'
    world.write("pyproject.toml", project + 'dependencies = ["alpha<2"]\n')
    world.write("train.py", ALPHA)
    uv(world, "lock")
    world.write("pyproject.toml", project + 'dependencies = ["alpha<2", "gamma"]\n')
    assert "uv lock" in refused(world, "--detach", "train.py")


@pytest.mark.slow
def test_a_project_with_requirements_only(world: World) -> None:
    world.write("requirements.txt", "beta==1.0\nalpha==1.0\n")
    world.write("train.py", ALPHA)
    assert both(world, "train.py") == ["alpha 1.0\n"] * 2


@pytest.mark.slow
def test_a_plain_file_in_an_activated_environment(world: World, tmp_path: Path) -> None:
    world.write("train.py", ALPHA + "import sys; print(sys.prefix)\n")
    venv = tmp_path / "venv"
    uv(world, "venv", "--quiet", str(venv))
    uv(world, "pip", "install", "--quiet", "--python", str(venv), "alpha==2.0")
    world.environ |= {
        "VIRTUAL_ENV": str(venv),
        "PATH": f"{venv / 'bin'}:{world.environ['PATH']}",
    }
    assert both(world, "train.py") == [f"alpha 2.0\n{venv}\n"] * 2


@pytest.mark.slow
def test_data_that_git_ignores_is_there_in_place_and_named_in_a_copy(world: World) -> None:
    world.write(".gitignore", "data.csv\n")
    world.write("data.csv", "1,2\n")
    world.write("train.py", "print(open('data.csv').read())\n")
    assert world.cli("run", "train.py").stdout == "1,2\n\n"
    run = world.until(world.detach("train.py"), "failed")
    assert run.verdict is not None
    assert "'data.csv' is not in the bundle's copy" in run.verdict.message
    assert "!data.csv" in run.verdict.hint and ".wherryignore" in run.verdict.hint
    world.write(".wherryignore", "!data.csv\n")
    assert both(world, "train.py") == ["1,2\n\n"] * 2


# --- mistakes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trian.py",), "train.py"),
        (("--detach", "bad.yaml"), "bad.yaml"),
        (("--detach", "typo.yaml"), "workers"),
        (("--detach", "--cpu", "4096", "train.py"), "4096"),
        (("--detach", "--memory", "9000Gi", "train.py"), "8.8Ti"),
        (("--memory", "lots", "train.py"), "lots"),
        (("--detach", "--with", "no-such-package", "train.py"), "no-such-package"),
        (("--detach", "--python", "3.1", "train.py"), "3.1"),
    ],
)
def test_a_mistake_is_named_with_its_remedy_and_makes_no_run(
    world: World, words: tuple[str, ...], said: str
) -> None:
    world.write("train.py", "print('trained')\n")
    world.write("requirements.txt", "alpha==1.0\n")
    world.write("bad.yaml", "command: [python\nworkers: 2\n")
    world.write("typo.yaml", "command: [python, train.py]\nwrokers: 2\n")
    assert said in refused(world, *words)


@pytest.mark.slow
def test_a_file_of_200_mb_stops_a_copy_and_not_a_run_in_place(world: World) -> None:
    world.write("train.py", "print('trained')\n")
    with world.write("weights.bin", "").open("wb") as file:
        file.truncate(200 * 2**20)
    told = refused(world, "--detach", "train.py")
    assert "weights.bin has 200.0Mi" in told and ".wherryignore" in told
    assert world.cli("run", "train.py").stdout == "trained\n"


@pytest.mark.slow
def test_a_link_out_of_the_project_stops_a_copy(world: World) -> None:
    world.write("train.py", "print('trained')\n")
    (world.project / "passwords").symlink_to("/etc/passwd")
    assert "passwords is a link to /etc/passwd" in refused(world, "--detach", "train.py")
    assert world.cli("run", "train.py").stdout == "trained\n"


def test_secrets_stay_here_and_are_named(world: World) -> None:
    world.write("train.py", "import os; print(sorted(os.listdir('.')))\n")
    world.write(".env", "PASSWORD=tiger\n")
    done = world.cli("run", "--detach", "train.py")
    assert done.returncode == 0 and "left out: .env" in done.stderr
    run = world.until(done.stdout.strip(), "succeeded")
    assert ".env" not in world.cli("logs", run.id).stdout
    found = [p for p in (world.home / "blobs").rglob("*") if p.is_file()]
    assert found and not any(b"tiger" in blob.read_bytes() for blob in found)
