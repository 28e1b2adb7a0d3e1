"""The environment ladder: which rung answers, what it locks, and what it refuses with words."""

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.package_index import make_index, served
from wherry.agent.uv import find_python
from wherry.bundle import interpreter
from wherry.bundle.declared import lacking
from wherry.bundle.environment import Ask, Resolved, freeze, resolve, uv_path
from wherry.bundle.interpreter import Package, active_python, inspect, is_activated
from wherry.bundle.versions import choose
from wherry.errors import EnvironmentFailed, StaleLock

HEADER = "# /// script\n# dependencies = [{}]\n# ///\nprint()\n"
PYPROJECT = """
[project]
name = "digits"
version = "0.1"
requires-python = ">=3.9"
dependencies = [{}]
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    make_index(folder)
    return folder


@pytest.fixture
def environ(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [n for n in os.environ if n.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_DEFAULT_INDEX": f"file://{index}/simple",
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
        "UV_PYTHON_DOWNLOADS": "never",
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


class Ladder:
    """Ask, with a cache that stays."""

    def __init__(self, root: Path, environ: dict[str, str]) -> None:
        self.root, self.environ, self.cache = root, environ, root.parent / "cache"

    def __call__(self, **ask: Any) -> Resolved:
        return resolve(Ask(root=self.root, environ=self.environ, **ask), cache=self.cache)

    def pins(self, **ask: Any) -> list[str]:
        return pins(self(**ask))

    def uv(self, *words: str) -> None:
        subprocess.run(
            [uv_path(), *words], cwd=self.root, env=self.environ, check=True, capture_output=True
        )


@pytest.fixture
def ladder(root: Path, environ: dict[str, str]) -> Ladder:
    return Ladder(root, environ)


def pins(resolved: Resolved) -> list[str]:
    digest = resolved.environment.requirements
    if not digest:
        return []
    blob = resolved.blobs[digest]
    assert hashlib.sha256(blob).hexdigest() == digest
    return [line.split()[0] for line in blob.decode().splitlines() if line and line[0] not in " -"]


def write_all_rungs(ladder: Ladder) -> Path:
    root = ladder.root
    (root / "requirements.txt").write_text("gamma\n")
    (root / "pyproject.toml").write_text(PYPROJECT.format('"alpha<2"'))
    ladder.uv("lock")
    (root / "train.py").write_text(HEADER.format('"beta"'))
    return root / "train.py"


def test_the_ladder_of_a_detached_run(ladder: Ladder) -> None:
    script = write_all_rungs(ladder)
    assert ladder.pins(script=script) == ["alpha==2.0", "beta==1.0"]
    script.write_text("print()")
    assert ladder.pins(script=script) == ["alpha==1.0"]
    (ladder.root / "uv.lock").unlink()
    assert ladder.pins(script=script) == ["gamma==1.0"]
    (ladder.root / "requirements.txt").unlink()
    resolved = ladder(script=script)
    assert resolved.environment.kind == "active"
    assert resolved.environment.python == str(active_python(ladder.environ))


def activate(ladder: Ladder, *packages: str) -> Path:
    venv = ladder.root.parent / "venv"
    ladder.uv("venv", "-q", "--python", sys.executable, str(venv))
    if packages:
        ladder.uv("pip", "install", "-q", "--python", str(venv), *packages)
    ladder.environ["VIRTUAL_ENV"] = str(venv)
    return venv


def test_in_the_foreground_an_activated_environment_wins_where_it_has_what_is_declared(
    ladder: Ladder,
) -> None:
    script = write_all_rungs(ladder)
    venv = activate(ladder, "alpha==1.0")
    assert ladder.pins(script=script, foreground=True) == ["alpha==2.0", "beta==1.0"]
    script.write_text("print()")
    environment = ladder(script=script, foreground=True).environment
    assert (environment.kind, environment.python) == ("active", f"{venv}/bin/python")
    assert ladder.pins(script=script) == ["alpha==1.0"]


def test_an_activated_environment_that_lacks_what_is_declared_gives_way(ladder: Ladder) -> None:
    script = write_all_rungs(ladder)
    script.write_text("print()")
    activate(ladder)
    assert ladder.pins(script=script, foreground=True) == ["alpha==1.0"]
    (ladder.root / "uv.lock").unlink()
    assert ladder.pins(script=script, foreground=True) == ["gamma==1.0"]
    (ladder.root / "requirements.txt").unlink()
    assert ladder(script=script, foreground=True).environment.kind == "active"


@pytest.mark.parametrize(
    ("line", "lacks"),
    [
        ("alpha", False),
        ("Alpha>=1,<2  # why", False),
        ("alpha==1.0 --hash=sha256:00", False),
        ("alpha>=2", True),
        ("beta", True),
        ("beta; python_version < '3'", False),
        ("-r more.txt", True),
        ("-e .", False),
        ("--index-url https://example.org", False),
        ("wherry[server]", False),
    ],
)
def test_what_is_declared_is_held_against_what_is_installed(
    tmp_path: Path, line: str, lacks: bool
) -> None:
    (tmp_path / "more.txt").write_text("gamma\n")
    file = tmp_path / "requirements.txt"
    file.write_text(f"# a comment\n{line}\n")
    assert bool(lacking(file, (Package("alpha", "1.0"),))) is lacks


def test_in_the_foreground_nothing_activated_means_the_lock(
    ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = write_all_rungs(ladder)
    script.write_text("print()")
    monkeypatch.setattr(interpreter, "_in_tool", lambda: True)
    assert ladder.pins(script=script, foreground=True) == ["alpha==1.0"]


def test_condas_base_environment_is_nobodys_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_in_tool", lambda: True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    conda = {"CONDA_PREFIX": str(tmp_path), "CONDA_DEFAULT_ENV": "base"}
    assert active_python(conda) == tmp_path / "bin/python"
    assert not is_activated(conda)
    assert is_activated({**conda, "CONDA_DEFAULT_ENV": "train"})


def test_a_tools_own_environment_is_not_the_persons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreter, "_in_tool", lambda: True)
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    path = os.pathsep.join([os.path.dirname(sys.executable), str(tmp_path)])
    assert active_python({"PATH": path}) == tmp_path / "python"


def test_every_package_of_a_rung_is_hashed_and_the_python_is_exact(ladder: Ladder) -> None:
    (ladder.root / "requirements.txt").write_text("beta\n")
    resolved = ladder()
    (blob,) = resolved.blobs.values()
    assert blob.decode().count("--hash=sha256:") == 2
    assert resolved.environment.python == platform.python_version()
    assert resolved.notes == (
        f"environment: requirements.txt, Python {platform.python_version()}, 2 packages",
    )


def test_pips_settings_do_not_make_a_lock_stale(ladder: Ladder) -> None:
    index = ladder.environ.pop("UV_DEFAULT_INDEX")
    table = f'[[tool.uv.index]]\nurl = "{index}"\ndefault = true\n'
    (ladder.root / "pyproject.toml").write_text(PYPROJECT.format('"gamma"') + table)
    ladder.uv("lock")
    ladder.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"
    assert ladder.pins() == ["gamma==1.0"]


def test_the_project_itself_and_wherry_are_left_out_of_a_lock(ladder: Ladder) -> None:
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
    text = PYPROJECT.format('"tool", "gamma", "wherry"') + build
    (ladder.root / "pyproject.toml").write_text(text)
    ladder.uv("lock")
    assert ladder.pins() == ["gamma==1.0", "tool==1.0"]


def test_wherry_is_left_out_of_scripts_and_requirements(ladder: Ladder) -> None:
    script = ladder.root / "train.py"
    script.write_text(HEADER.format('"gamma", "Wherry>=1000"'))
    assert ladder.pins(script=script) == ["gamma==1.0"]
    (ladder.root / "requirements.txt").write_text("wherry[all]==1000\ntool\n")
    assert "wherry" not in " ".join(ladder.pins())


def test_constraints_hold(ladder: Ladder) -> None:
    (ladder.root / "requirements.txt").write_text("-c limits.txt\nalpha\n")
    (ladder.root / "limits.txt").write_text("alpha<2\n")
    assert ladder.pins() == ["alpha==1.0"]


def test_a_stale_lock_is_refused_with_the_command_that_mends_it(ladder: Ladder) -> None:
    script = write_all_rungs(ladder)
    (ladder.root / "pyproject.toml").write_text(PYPROJECT.format('"alpha", "gamma"'))
    script.write_text("")
    with pytest.raises(StaleLock, match=r"uv\.lock does not fit") as caught:
        ladder(script=script)
    assert caught.value.hint == "uv lock"
    ladder.uv("lock")
    assert "gamma==1.0" in ladder.pins(script=script)


def test_a_scripts_own_lock_is_used_and_must_fit(ladder: Ladder) -> None:
    script = ladder.root / "train.py"
    script.write_text(HEADER.format('"alpha<2"'))
    ladder.uv("lock", "--script", "train.py")
    lock = ladder.root / "train.py.lock"
    assert ladder.pins(script=script) == ["alpha==1.0"]
    script.write_text(HEADER.format('"alpha"'))
    with pytest.raises(StaleLock) as caught:
        ladder(script=script)
    assert caught.value.hint == "uv lock --script train.py"
    lock.unlink()
    assert ladder.pins(script=script) == ["alpha==2.0"]


def test_a_scripts_lock_fits_whatever_python_made_it(ladder: Ladder) -> None:
    (ladder.root / "train.py").write_text(HEADER.format('"gamma"'))
    oldest = find_python("3.9", uv_path())
    assert oldest, "this test needs a Python 3.9: uv python install 3.9"
    ladder.uv("lock", "--script", "train.py", "--python", oldest)
    assert ladder.pins(script=ladder.root / "train.py") == ["gamma==1.0"]


def test_a_script_may_name_its_index(ladder: Ladder, index: Path) -> None:
    table = f'# [[tool.uv.index]]\n# name = "own"\n# url = "file://{index}/simple"\n'
    script = ladder.root / "train.py"
    script.write_text('# /// script\n# dependencies = ["gamma"]\n' + table + "# ///\n")
    ladder.environ["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/simple"
    assert ladder.pins(script=script) == ["gamma==1.0"]


def test_the_same_question_again_does_not_start_uv(
    ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ladder.root / "train.py"
    script.write_text(HEADER.format('"beta"'))
    first = ladder(script=script)
    monkeypatch.setenv("WHERRY_UV", "/nonexistent/uv")
    assert ladder(script=script) == first
    script.write_text(HEADER.format('"beta", "gamma"'))
    with pytest.raises(EnvironmentFailed, match="uv cannot be started"):
        ladder(script=script)


def test_packages_on_top_keep_what_the_rung_has_pinned(ladder: Ladder) -> None:
    script = write_all_rungs(ladder)
    script.write_text("")
    extra = ("beta",)
    assert ladder.pins(script=script, with_packages=extra) == ["alpha==1.0", "beta==1.0"]
    assert ladder.pins(choice="none", with_packages=extra) == ["alpha==2.0", "beta==1.0"]
    activate(ladder, "gamma")
    asked = {"choice": "active", "with_packages": ("alpha<2",)}
    assert ladder.pins(**asked) == ["alpha==1.0", "gamma==1.0"]
    assert ladder(choice="none").environment.requirements == ""


def test_another_python_forces_a_built_environment(ladder: Ladder) -> None:
    activate(ladder, "old")
    assert find_python("3.9", uv_path()), "this test needs a Python 3.9: uv python install 3.9"
    resolved = ladder(foreground=True, python="3.9")
    assert resolved.environment.kind == "built"
    assert pins(resolved) == ["gamma==1.0", "old==1.0"]  # what it needs there, not here
    assert resolved.environment.python.startswith("3.9.")


def test_an_interpreter_by_its_path_is_used_where_it_is(ladder: Ladder) -> None:
    venv = activate(ladder)
    del ladder.environ["VIRTUAL_ENV"]
    environment = ladder(python=f"{venv}/bin/python").environment
    assert (environment.kind, environment.python) == ("active", f"{venv}/bin/python")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"with_packages": ("no-such-thing",)}, "no package named no-such-thing"),
        ({"with_packages": ("alpha==7",)}, "no version of alpha==7 fits"),
        ({"with_packages": ("./mine",)}, "'./mine' is a local package"),
        ({"python": "abc"}, "'abc' is neither a version"),
        ({"python": "/no/such/python"}, "/no/such/python does not run"),
        ({"choice": "lock"}, r"no uv\.lock"),
        ({"choice": "script"}, "no header"),
        ({"choice": "requirements"}, r"no requirements\.txt"),
    ],
)
def test_what_cannot_be_had_is_said_with_its_name(
    ladder: Ladder, ask: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnvironmentFailed, match=message) as caught:
        ladder(**{"choice": "none", **ask})
    assert caught.value.hint


def test_an_index_that_cannot_be_reached_is_said(ladder: Ladder) -> None:
    ladder.environ |= {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    with pytest.raises(EnvironmentFailed, match="index cannot be reached"):
        ladder(choice="none", with_packages=("alpha",))


def test_a_python_that_the_project_does_not_allow_is_refused(ladder: Ladder) -> None:
    (ladder.root / "train.py").write_text(
        '# /// script\n# requires-python = ">=3.12"\n# dependencies = []\n# ///\n'
    )
    with pytest.raises(EnvironmentFailed, match=r"3\.9\.\d+ does not satisfy"):
        ladder(script=ladder.root / "train.py", python="3.9")


def test_pips_index_is_used_where_uv_has_none(ladder: Ladder) -> None:
    ladder.environ["PIP_INDEX_URL"] = ladder.environ.pop("UV_DEFAULT_INDEX")
    assert ladder.pins(choice="none", with_packages=("alpha",)) == ["alpha==2.0"]


def test_the_index_travels_and_its_password_does_not(ladder: Ladder, index: Path) -> None:
    with served(index) as url:
        ladder.environ["UV_DEFAULT_INDEX"] = url.replace("//", "//me:hush@")
        resolved = ladder(choice="none", with_packages=("alpha",))
    (blob,) = resolved.blobs.values()
    assert f"--index-url {url}" in blob.decode() and b"hush" not in blob
    assert any("password" in note for note in resolved.notes)


def test_members_of_a_workspace_are_refused_with_words(ladder: Ladder) -> None:
    member = ladder.root / "libs/own"
    member.mkdir(parents=True)
    (member / "pyproject.toml").write_text(
        '[project]\nname = "own"\nversion = "1"\nrequires-python = ">=3.9"\n'
    )
    (ladder.root / "pyproject.toml").write_text(
        PYPROJECT.format('"own"') + '[tool.uv.sources]\nown = {path = "libs/own"}\n'
    )
    ladder.uv("lock")
    with pytest.raises(EnvironmentFailed, match=r"'\./libs/own' is a local package"):
        ladder()


def test_the_active_interpreters_packages_are_recorded_without_wherry(ladder: Ladder) -> None:
    activate(ladder, "beta", "wherry")
    resolved = ladder(choice="active")
    lines = resolved.blobs[resolved.environment.frozen].decode().splitlines()
    python = f"# Python {platform.python_version()}"
    assert lines == [python, "alpha==2.0", "beta==1.0", "delta==1.0"]


def test_a_package_installed_since_is_noticed(
    ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = activate(ladder, "gamma")
    cache, python = ladder.cache, venv / "bin/python"
    assert [p.name for p in inspect(python, cache=cache).packages] == ["gamma"]
    ladder.uv("pip", "install", "-q", "--python", str(venv), "alpha")
    assert [p.name for p in inspect(python, cache=cache).packages] == ["alpha", "gamma"]

    def refuse(python: Path) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(interpreter, "_ask", refuse)
    assert [p.name for p in inspect(python, cache=cache).packages] == ["alpha", "gamma"]


def test_freezing_hashes_what_an_index_has_and_names_what_stays_behind(ladder: Ladder) -> None:
    venv = activate(ladder, "beta")
    (packages,) = venv.glob("lib/python*/site-packages")
    for name, url in (
        ("mine", '{"url": "file:///home/me/mine", "dir_info": {"editable": true}}'),
        ("other", '{"url": "file:///home/me/other", "dir_info": {}}'),
    ):
        (packages / f"{name}-0.1.dist-info").mkdir()
        (packages / f"{name}-0.1.dist-info/direct_url.json").write_text(url)
    text, notes, version = freeze(venv / "bin/python", environ=ladder.environ, cache=ladder.cache)
    assert text.count("--hash=sha256:") == 2 and "mine" not in text
    assert notes == (
        "mine is editable (/home/me/mine) and stays behind",
        "other is local (/home/me/other) and stays behind",
    )
    assert version == platform.python_version()


def test_the_persons_python_is_taken_where_it_is_allowed(
    environ: dict[str, str], tmp_path: Path
) -> None:
    uv, cache = uv_path(), tmp_path
    mine = platform.python_version()
    assert choose(">=3.9", environ, uv=uv, cache=cache)[1] == mine
    assert choose("==3.9.*", environ, uv=uv, cache=cache)[1].startswith("3.9.")
    assert choose(">=3.9", environ, uv=uv, cache=cache, pinned="3.9\n")[1].startswith("3.9.")
    with pytest.raises(EnvironmentFailed, match="no Python satisfies"):
        choose(">=4", environ, uv=uv, cache=cache)
