"""What people write wrong is said with the value and a way out, and no run is recorded of it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from wherry.agent import uv
from wherry.cli import main
from wherry.sdk import connect

PYPROJECT = """[project]
name = "digits"
version = "1"
scripts = {digits-train = "digits.cli:main"}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg/__init__.py").write_text("")
    (folder / "plain").mkdir()
    (folder / "plain/train.py").write_text("")
    (folder / "train.py").write_text("")
    (folder / "two.yaml").write_text("command: python train.py\nworkers: two\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)

    def never(home: Path, **options: object) -> None:
        raise AssertionError("it was submitted")

    monkeypatch.setattr(connect, "start_server", never)
    return folder


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nope.py", "hint: wherry run takes a Python file"),
        ("two.yaml", "hint: for example  workers: 2"),
        ("--workers 0 train.py", "hint: for example  workers: 2"),
        ("--restarts -1 train.py", "hint: for example  restarts: 2"),
        ("--metric 'loss=(' train.py", "hint: a regular expression with the number in parentheses"),
        ("--env =3 train.py", "hint: write NAME=VALUE"),
        (".", "'.' is a folder"),
        ("pkg", "hint: a package without __main__.py: wherry run -m pkg."),
        ("plain", "hint: name a script in it: wherry run plain/train.py"),
        ("-- nosuchprog", "there is no program 'nosuchprog' on PATH"),
        ("-- digits-train", "python -c 'from digits.cli import main; main()'"),
        ("-- digits-trian", "did you mean 'digits-train'?"),
    ],
)
def test_a_mistake_has_a_way_out_and_makes_no_run(
    project: Path, capfd: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    status = main.invoke(["run", *shlex.split(line)])
    said = capfd.readouterr().err
    assert status == 2 and words in said and "\nhint: " in said, said


def test_what_uv_says_always_has_a_way_out() -> None:
    for said in (
        "error: it broke",
        "",
        "x No solution found: because there is no version of six==99",
    ):
        message, hint = uv.explain(said)
        assert message and hint


def test_what_is_no_backup_is_said_in_our_words(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main.invoke(["restore", "-y", "train.py"]) == 2
    said = capfd.readouterr().err
    assert "is no backup" in said and "wherry backup writes one" in said and "gz" not in said
