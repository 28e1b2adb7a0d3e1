"""Promises of `wherry run`'s own words: what belongs to us, what to the script."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from wherry.cli import main, options
from wherry.cli.run import changes, check, run, until_module
from wherry.core.api import Planned, RunDetail, Submit
from wherry.core.job import JobSpec
from wherry.core.run import Run
from wherry.errors import InvalidInput
from wherry.sdk import submit as sdk
from wherry.sdk.submit import Draft, Prepared


def parsed(*args: str) -> dict[str, Any]:
    context: click.Context = run.make_context("run", list(args))
    return context.params


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--name", "a", "train.py", "--name", "b"], ("train.py", "--name", "b")),
        (["-w2", "-m", "pkg.train", "--name", "b"], ("-m", "pkg.train", "--name", "b")),
        (["-dw", "2", "-m", "pkg", "-h"], ("-m", "pkg", "-h")),
        (["-e", "-m", "x.py", "-m", "y"], ("x.py", "-m", "y")),
        (["--json", "--name=-m", "-mpkg"], ("-mpkg",)),
        (["--", "./program", "--help"], ("./program", "--help")),
        (["x.py", "--", "-é 1"], ("x.py", "--", "-é 1")),
    ],
)
def test_what_follows_the_script_belongs_to_the_script(
    args: list[str], words: tuple[str, ...]
) -> None:
    assert parsed(*args)["words"] == words


def test_only_a_module_ends_the_options() -> None:
    args = ["--tag", "-m", "x.py"]
    assert until_module(args, run.params) == args


def test_options_become_what_a_job_file_would_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "yes")
    given = parsed(
        "-w", "4", "--cpu", "0.5", "--memory", "4Gi", "-e", "A=b=c", "-e", "MINE", "--tag", "x",
        "--metric", "loss=l: ([0-9.]+)=", "--timeout", "2h", "--restarts", "0", "x.py",
    )  # fmt: skip
    assert changes(given) == {
        "workers": 4,
        "resources": {"cpu": 0.5, "memory": "4Gi"},
        "env": {"A": "b=c", "MINE": "yes"},
        "tags": ["x"],
        "metrics": {"loss": "l: ([0-9.]+)="},
        "timeout": "2h",
        "restarts": 0,
    }
    assert changes(parsed("x.py")) == {}


@pytest.mark.parametrize("args", [("-e", "NOT_SET_HERE"), ("--metric", "loss")])
def test_half_an_option_is_refused_with_a_hint(args: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput) as caught:
        changes(parsed(*args, "x.py"))
    assert caught.value.hint


@dataclass
class Plane:
    """Records what was submitted."""

    sent: list[Submit]

    def plan(self, submit: Submit) -> Planned:
        return Planned(spec=submit.spec, backend="local", plan={"ranks": [0]})

    def run(self, ref: str) -> RunDetail:
        made = Run(id="r0", name="", owner="", project="", spec=JobSpec(command=("old",)))
        return RunDetail(run=made, attempts=(), params={}, metrics=(), events=())

    def submit(self, submit: Submit, *, key: str = "") -> Run:
        self.sent.append(submit)
        return Run(id="r1", name=submit.spec.name, owner="", project="", spec=submit.spec)


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Plane:
    made = Plane([])
    monkeypatch.setattr(options, "connect", lambda on="": made)
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))

    def prepare(draft: Draft) -> Prepared:
        assert not draft.foreground
        return Prepared(spec=JobSpec(command=draft.words, name="x"), notes=("a note",))

    monkeypatch.setattr(sdk, "prepare", prepare)
    return made


def test_detached_stdout_is_the_id_alone(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.invoke(["run", "-d", "x.py", "--lr", "é 1"]) == 0
    out, err = capsys.readouterr()
    assert out == "r1\n" and "a note" in err and "wherry logs -f r1" in err
    assert plane.sent[0].spec.command == ("x.py", "--lr", "é 1")
    assert main.invoke(["run", "-d", "--json", "x.py"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "r1"


def test_a_dry_run_sends_nothing(
    plane: Plane, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.invoke(["run", "--dry-run", "-d", "--json", "x.py"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == {"ranks": [0]}
    assert main.invoke(["run", "--dry-run", "-d", "x.py"]) == 0
    assert "x.py" in capsys.readouterr().out
    assert not plane.sent


def test_check_takes_a_command_line_of_run_as_it_is() -> None:
    named = {name for param in run.params for name in param.opts}
    assert named <= {name for param in check.params for name in param.opts}
