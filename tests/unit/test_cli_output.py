"""What a terminal is given: it shows what others wrote and obeys none of it; tables fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.test_cli_commands import RUN, Call, FakeClient, call, client
from wherry.cli import main, output, server, words
from wherry.cli.colour import visible
from wherry.core.run import Run, Verdict

__all__ = ["call", "client"]  # fixtures

EVIL = "\x1b]0;owned\x07\x1b[2Jx"


def with_run(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(FakeClient, "_known", lambda self, ref: run)
    monkeypatch.setattr(FakeClient, "runs", lambda self, **query: [run])


def test_control_characters_of_others_are_written_out(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = msgspec.structs.replace(RUN.spec, tags=(EVIL,), note=EVIL)
    with_run(monkeypatch, msgspec.structs.replace(RUN, name=EVIL, spec=spec, reason=EVIL))
    for command in (("ps",), ("show", "r1")):
        status, out, _ = call(*command)
        assert status == 0 and "\x1b" not in out and "\x07" not in out
        assert r"\x1b]0;owned\x07" in out


def test_messages_are_shown_without_obeying_them(capsys: pytest.CaptureFixture[str]) -> None:
    output.note(EVIL)
    output.hint(EVIL)
    main.complain(EVIL, EVIL)
    assert "\x1b]" not in capsys.readouterr().err


def test_colours_go_and_lines_stay() -> None:
    assert visible("\x1b[1;31mloss\x1b[0m\n\t1é 実\r\u202e") == "loss\n\t1é 実\\r\\u202e"


def test_get_stays_here_whatever_the_run_is_called(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_run(monkeypatch, msgspec.structs.replace(RUN, name="../evil/x"))
    status, out, err = call("get", "r1")
    assert status == 0, err
    assert not (tmp_path.parent / "evil").exists()
    assert (tmp_path / "evil-x-r1/model.json").exists(), out


@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_costs_words_and_never_an_id_or_a_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    verdict = Verdict(cause="exit", message="rank 0: " + "a long reason " * 20)
    spec = msgspec.structs.replace(RUN.spec, tags=("baseline", "a-second-long-tag"))
    runs = [
        msgspec.structs.replace(
            RUN, id=f"rngb4syyc{n:03d}", name="a-name-that-is-long", verdict=verdict, spec=spec
        )
        for n in range(3)
    ]
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", str(width))
    output.table(runs, words.columns(RUN.created + 7200))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for run, line in zip(runs, lines[1:], strict=True):
        cells = line.split()
        assert cells[0] == run.id and "failed" in cells and "2 h ago  1m 00s" in line, line
    if width == 80:
        assert all(len(line.rstrip()) <= width for line in lines)


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        ({"cpu": 0.731445, "memory": 0}, "0.73 cores  0B"),
        ({"cpu": 1.0, "memory": 0, "gpu": 1}, "1 core  0B  1 GPU"),
        ({"cpu": 10.0, "memory": 0, "gpu": 2}, "10 cores  0B  2 GPUs"),
    ],
)
def test_what_is_free_is_counted_as_one_speaks(amount: dict[str, Any], words: str) -> None:
    assert server._amount(amount) == words
