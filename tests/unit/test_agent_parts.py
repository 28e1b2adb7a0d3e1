"""The agent's parts by themselves: command lines, event files, what user code calls, ends."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent_rank import interpreters
from wherry.agent import protocol, user
from wherry.agent.argv import after_script, params_from_argv
from wherry.agent.journal import Journal, read_folder
from wherry.agent.outcome import outcome
from wherry.agent.reports import ReportTail
from wherry.agent.tensorboard import EventFiles, scalars

# --- command lines


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--epochs 3 --lr=0.1 --flag -x 1", {"epochs": 3, "lr": 0.1, "flag": True, "x": 1}),
        ("--shift -1 --low -1e-3 -n -.5", {"shift": -1, "low": -0.001, "n": -0.5}),
        ("--a --b", {"a": True, "b": True}),
        ("model.depth=4 +opt=adam file.txt", {"model.depth": 4, "opt": "adam"}),
        ("--name= --on True --none null", {"name": "", "on": True, "none": None}),
        ("--lr 1 --lr 2", {"lr": 2}),
        ("--id 007 --big 123456789012345678901", {"id": 7, "big": 123456789012345678901.0}),
        ("--path a=b", {"path": "a=b"}),
        ("", {}),
    ],
)
def test_parameters_are_read_as_most_parsers_would(words: str, found: dict[str, Any]) -> None:
    assert params_from_argv(words.split()) == found


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("python train.py --a 1", ["--a", "1"]),
        ("python -u -W ignore train.py --a 1", ["--a", "1"]),
        ("/env/bin/python3.11 -m pkg.train --a 1", ["--a", "1"]),
        ("torchrun --nproc 2 train.py --lr 1", ["--lr", "1"]),
        ("python", []),
    ],
)
def test_only_the_words_after_the_script_are_its_parameters(command: str, rest: list[str]) -> None:
    assert after_script(command.split()) == rest


# --- event files, made here byte by byte as the format says


def varint(value: int) -> bytes:
    out = b""
    value &= 2**64 - 1
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | float | bytes, *, single: bool = False) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        kind, code = (5, "<f") if single else (1, "<d")
        return varint(number << 3 | kind) + struct.pack(code, value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def event(tag: str, step: int, *value: bytes, when: float = 5.0) -> bytes:
    summary = field(1, field(1, tag.encode()) + b"".join(value))
    return field(1, when) + field(2, step) + field(5, summary)


def record(data: bytes) -> bytes:
    return struct.pack("<QI", len(data), 0) + data + bytes(4)


SIMPLE = field(2, 0.5, single=True)


def tensor(kind: int, payload: bytes, *shape: int) -> bytes:
    sizes = b"".join(field(2, field(1, size)) for size in shape)
    return field(8, field(1, kind) + field(2, sizes) + payload)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (SIMPLE, 0.5),
        (field(2, 0.0, single=True), 0.0),
        (tensor(1, field(4, struct.pack("<f", 0.25))), 0.25),
        (tensor(2, field(4, struct.pack("<d", 0.1))), 0.1),
        (tensor(1, field(5, struct.pack("<f", 0.75))), 0.75),
        (tensor(9, field(10, -3)), -3.0),
        (tensor(19, field(4, struct.pack("<e", 1.5)), 1), 1.5),
    ],
)
def test_scalars_of_every_writer_are_read(value: bytes, found: float) -> None:
    assert list(scalars(event("loss", -2, value))) == [("loss", -2, 5.0, found)]


def test_what_is_no_scalar_is_left_out() -> None:
    histogram = field(9, field(1, field(1, b"histograms")))
    for value in (
        tensor(1, field(4, struct.pack("<2f", 1, 2)), 2),
        tensor(7, field(8, b"text")),
        SIMPLE + histogram,
    ):
        assert list(scalars(event("x", 1, value))) == []
    assert list(scalars(field(1, 5.0) + field(3, b"brain.Event:2"))) == []


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for kind, _, _, payload in protocol.iter_frames(b"".join(read_folder(folder))):
        if kind == protocol.METRIC:
            for name, steps, _times, values in protocol.unpack_series(payload):
                found.setdefault(name, []).extend(zip(steps, values, strict=True))
    return found


def test_event_files_are_followed_past_a_torn_record(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "logs" / "20991124-103107" / "train"
    folder.mkdir(parents=True)
    file = folder / "events.out.tfevents.4000000000.host.1.0"
    (folder / "events.out.tfevents.1000000000.host.1.0").write_bytes(
        record(event("old", 1, SIMPLE))
    )
    events = EventFiles(Journal(tmp_path, 10**9), [tmp_path / "work"], since=2e9)
    second = record(event("loss", 2, SIMPLE))
    file.write_bytes(record(event("loss", 1, SIMPLE)) + second[:9])
    events.poll(thorough=True)
    assert points(tmp_path) == {"train/loss": [(1, 0.5)]}
    with open(file, "ab") as more:
        more.write(second[9:] + record(b"\xff\xff") + record(event("loss", 3, SIMPLE)))
    events.poll()
    assert points(tmp_path) == {"train/loss": [(1, 0.5), (2, 0.5), (3, 0.5)]}


# --- what user code calls


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The report file of a run that this process pretends to be in."""
    path = tmp_path / "report"
    monkeypatch.setenv("WHERRY_REPORT", str(path))
    for name, value in (("_pid", 0), ("_fd", -1), ("_steps", {}), ("_keys", {})):
        monkeypatch.setattr(user, name, value)
    yield path
    if user._fd >= 0:
        os.close(user._fd)


def test_values_of_any_number_type_are_reported(tmp_path: Path, reported: Path) -> None:
    class Scalar:
        def __float__(self) -> float:
            return 1.5

    user.report(1, a=1, b=True, c=Scalar(), **{'quo"te\n': 2.0})
    user.report(1, n=float("nan"), i=float("inf"), m=float("-inf"))
    user.report(a=3, b=4)
    user.report(a=5)
    ReportTail(reported, Journal(tmp_path, 10**9)).poll()
    found = points(tmp_path)
    assert found["a"] == [(1, 1.0), (0, 3.0), (1, 5.0)]
    assert (found["b"], found["c"], found['quo"te\n']) == (
        [(1, 1.0), (0, 4.0)], [(1, 1.5)], [(1, 2.0)],
    )  # fmt: skip
    assert repr([found[name][0][1] for name in "nim"]) == "[nan, inf, -inf]"


@pytest.mark.parametrize("value", ["0.5", None, [1], 1j, 10**400, b"1"])
def test_a_value_that_is_no_number_is_named_and_nothing_is_kept(
    reported: Path, value: object
) -> None:
    with pytest.raises(TypeError, match="metric 'bad' is not a number but"):
        user.report(1, good=1.0, bad=value)
    assert not reported.exists() or reported.read_bytes() == b""


def test_a_broken_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report"
    good = '{"t":1,"s":%d,"m":{"x":1}}'
    lines = [good % 0, '{"t":1,"s":0,"m":{"x":', "[]", '{"t":1,"s":"a","m":{"x":2}}', "null"]
    path.write_text(
        "\n".join([*lines, '{"t":1,"s":0,"m":3}', '{"r":"/x","e":"E"}', good % 1, good])
    )
    tail = ReportTail(path, Journal(tmp_path, 10**9))
    tail.poll()
    assert points(tmp_path) == {"x": [(0, 1.0), (1, 1.0)]}
    assert (tail.result, tail.error) == ("/x", "E")
    with open(path, "a") as more:
        more.write("\n" + good % 2 + "\n")
    tail.poll()
    assert points(tmp_path)["x"][-1] == (2, 1.0)


@pytest.mark.parametrize("python", interpreters())
def test_outside_a_run_everything_does_something_sensible(python: str, tmp_path: Path) -> None:
    source = Path(user.__file__).parents[2]
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "sys.modules['wherry'] = package = type(sys)('wherry')\n"
        "package.__path__ = [sys.path[0] + '/wherry']\n"
        "from wherry.agent import user\n"
        "user.report(1, loss=1.0); user.report(loss=2)\n"
        "print(user.params(), user.rank(), user.world_size())\n"
        "print(user.checkpoint_dir, user.output_dir)\n"
    )
    command = [python, "-I", "-c", script, str(source), "--lr", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    shown = f"{{'lr': 0.1}} 0 1\n{tmp_path / 'checkpoints'} {tmp_path / 'outputs'}\n"
    assert (done.stdout, done.stderr) == (shown, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "outputs"]


# --- the shim


def test_the_shim_gives_way_to_an_installed_wherry(tmp_path: Path) -> None:
    from wherry.agent import package

    agent = package.unpack(package.build_zip(), tmp_path / "agent").parent
    (tmp_path / "site" / "wherry").mkdir(parents=True)
    (tmp_path / "site" / "wherry" / "__init__.py").write_text("where = __name__ + ' installed'\n")
    (tmp_path / "folder" / "wherry").mkdir(parents=True)
    for path, script, shown in (
        ([agent, tmp_path / "site"], "print(wherry.where)", "wherry installed\n"),
        ([agent, tmp_path / "folder"], "print(wherry.rank())", "0\n"),
        ([agent], "from wherry import report, output_dir; report(x=1); print(1)", "1\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import wherry; {script}"],
            env={"PYTHONPATH": os.pathsep.join(map(str, path))},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == (shown, "")


# --- ends


@pytest.mark.parametrize(
    ("code", "why", "over", "state", "cause"),
    [
        (0, "", {}, "succeeded", ""),
        (1, "", {}, "failed", "exit"),
        (1, "", {"error": "ValueError: no"}, "failed", "exception"),
        (-11, "", {}, "failed", "signal"),
        (-9, "", {"ran_out": True}, "failed", "oom"),
        (-9, "oom", {}, "failed", "oom"),
        (-9, "timeout", {}, "failed", "timeout"),
        (0, "stopped", {}, "stopped", "stopped"),
        (-15, "stopped", {}, "stopped", "stopped"),
        (-2, "", {}, "failed", "signal"),
        (-2, "", {"attached": True}, "stopped", "stopped"),
        (130, "", {"attached": True}, "stopped", "stopped"),
    ],
)
def test_each_end_has_its_cause(
    code: int, why: str, over: dict[str, Any], state: str, cause: str
) -> None:
    known: dict[str, Any] = {"attached": False, "ran_out": False, "error": "", "missing": None}
    known |= {"spec": {"timeout": 2.0}, "peak": 2**20, "last_lines": ["x"], **over}
    end = outcome(code, why, **known)
    assert (end["state"], end["cause"]) == (state, cause)
    assert (end["exit_code"] is None) == (code < 0) == (end["signal"] is not None)
