"""Which files a project has: with git, without it, and with ``.wherryignore`` over either."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from wherry.bundle import walk
from wherry.bundle.walk import TooManyFiles, find_root, list_files


def git(folder: Path, *words: str) -> None:
    command = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x", *words]
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(command, check=True, env=env, capture_output=True)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def files(root: Path) -> set[str]:
    return list_files(root, limit=20_000)[0]


@pytest.fixture(params=["git", "no git"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    write(root, {"pyproject.toml": ""})
    if request.param == "git":
        git(root, "init", "-q")
    return root


def test_what_is_ignored_stays_and_the_rest_travels(project: Path) -> None:
    write(
        project,
        {
            ".gitignore": "*.log\ndata/\n!keep.log\n",
            "train.py": "",
            "a.log": "",
            "keep.log": "",
            "data/big.csv": "",
            "pkg/.gitignore": "*.tmp\n/build\n!wanted.log\n",
            "pkg/wanted.log": "",
            "pkg/x.tmp": "",
            "pkg/build/x": "",
            "pkg/deep/build/x": "",
            "pkg/ünïcode \n name.py": "",
        },
    )
    assert files(project) == {
        *(".gitignore", "pyproject.toml", "train.py", "keep.log", "pkg/.gitignore"),
        *("pkg/wanted.log", "pkg/deep/build/x", "pkg/ünïcode \n name.py"),
    }


def test_caches_and_virtual_environments_never_travel(project: Path) -> None:
    names = ("__pycache__/x.pyc", "node_modules/x.js", "a/.mypy_cache/x", "myenv/pyvenv.cfg")
    write(project, dict.fromkeys((*names, "myenv/lib/x.py", "myenvironment.py"), ""))
    assert files(project) == {"pyproject.toml", "myenvironment.py"}


def test_a_project_that_is_itself_a_virtual_environment_is_not_empty(project: Path) -> None:
    write(project, {"pyvenv.cfg": "", "train.py": ""})
    assert "train.py" in files(project)


def test_wherryignore_leaves_out_and_brings_back(project: Path) -> None:
    write(
        project,
        {
            ".gitignore": "data/\n*.npz\n",
            ".wherryignore": "notebooks/\n!data/small.csv\n!weights.npz\n# a comment\n",
            "data/small.csv": "",
            "data/big.csv": "",
            "deep/weights.npz": "",
            "notebooks/a.ipynb": "",
            ".venv/pyvenv.cfg": "",
            ".venv/weights.npz": "",
        },
    )
    paths, wanted = list_files(project, limit=100)
    assert wanted == {"data/small.csv", "deep/weights.npz"}
    assert paths - wanted == {".gitignore", ".wherryignore", "pyproject.toml"}


def test_files_that_git_tracks_can_be_left_out_too(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "", "big.csv": "", ".wherryignore": "*.csv\n"})
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    assert files(tmp_path) == {"a.py", ".wherryignore"}


def test_nested_repositories_and_submodules_travel_file_by_file(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    for folder in (inner, outer):
        write(folder, {"x.py": "", ".gitignore": "hidden\n", "hidden": ""})
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "x")
    allow = ("-c", "protocol.file.allow=always")
    git(outer, *allow, "submodule", "add", "-q", str(inner), "sub")
    write(outer, {"sub/new.py": "", "sub/hidden": "", "nested/y.py": "", "nested/hidden": ""})
    git(outer / "nested", "init", "-q")
    found = files(outer)
    assert {"sub/x.py", "sub/new.py", "nested/y.py"} <= found
    assert not {"sub", "nested", "sub/hidden"} & found
    assert not any("/.git/" in path for path in found)


def test_a_git_that_refuses_does_not_open_the_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.py": "", "secret": "", ".gitignore": "secret\n", "bin/git": "exit 128"})
    git(tmp_path, "init", "-q")
    (tmp_path / "bin/git").write_text("#!/bin/sh\nexit 128\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert files(tmp_path) == {"a.py", ".gitignore", "bin/git"}


def test_the_variables_of_a_git_hook_do_not_misdirect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for folder in (ours, other):
        write(folder, {f"{folder.name}.py": ""})
        git(folder, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert files(ours) == {"ours.py"}


def test_the_root_is_the_work_tree_then_the_pyproject_then_the_folder(tmp_path: Path) -> None:
    deep = tmp_path / "work" / "pkg" / "sub"
    deep.mkdir(parents=True)
    assert find_root(deep) == deep
    (tmp_path / "work" / "pkg" / "pyproject.toml").write_text("")
    assert find_root(deep) == tmp_path / "work" / "pkg"
    (tmp_path / "work" / ".git").mkdir()
    assert find_root(deep) == tmp_path / "work"


def test_a_home_under_git_is_not_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".git").mkdir()
    (tmp_path / "work").mkdir()
    assert find_root(tmp_path / "work") == tmp_path / "work"


def test_a_folder_without_marker_and_with_too_many_files_is_no_project(tmp_path: Path) -> None:
    write(tmp_path, {f"{n}.py": "" for n in range(5)})
    assert len(list_files(tmp_path, limit=5)[0]) == 5
    with pytest.raises(TooManyFiles):
        list_files(tmp_path, limit=4)
    (tmp_path / "pyproject.toml").write_text("")
    assert len(list_files(tmp_path, limit=4)[0]) == 6


NAMES = st.sampled_from(["a", "b", "c.log", "d.py"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
RULES = st.lists(
    st.sampled_from(["a", "/a", "a/", "*.log", "!c.log", "b/*", "!b/d.py", "**/d.py", "a/b", "!a"]),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(paths={"a/a/c.log"}, rules=["*.log"], inner=["!a"])
@example(paths={"a/b/c.log", "b/a"}, rules=["b/*", "!b/**"], inner=["*", "!b", "!*.log"])
@given(paths=st.sets(PATHS, min_size=1, max_size=8), rules=RULES, inner=RULES)
def test_the_walk_agrees_with_git(
    paths: set[str], rules: list[str], inner: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("tree")
    for path in sorted(paths):
        file = root / path
        if not file.exists() and all(not p.is_file() for p in file.parents):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
    (root / ".gitignore").write_text("\n".join(rules) + "\n")
    if (root / "a").is_dir():
        (root / "a" / ".gitignore").write_text("\n".join(inner) + "\n")
    git(root, "init", "-q")
    assert set(walk._walk_files(root)) == walk._git_files(root)
