"""Promises of every command, against a control plane of canned answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.cli import main, options
from wherry.cli.main import COMMANDS, cli
from wherry.core import api
from wherry.core.job import JobSpec
from wherry.core.run import Attempt, AttemptId, Event, File, Rank, Run, Series, Verdict
from wherry.core.states import RankState, RunState
from wherry.errors import BY_CODE, NotFound

BYTES = {"model.json": b"{}", "logs/a.txt": b"aaa"}
RUN = Run(
    id="r1", name="digits", owner="me", project="default", state=RunState.FAILED, attempt=1,
    spec=JobSpec(command=("python", "train.py", "--lr", "é 1"), workers=2, tags=("t",)),
    created=1_700_000_000.0, started=1_700_000_001.0, ended=1_700_000_061.0, exit_code=3,
    verdict=Verdict(
        cause="exit", message="rank 1: exited with status 3", hint="look", rank=1, exit_code=3,
        last_lines=("Traceback",),
    ),
)  # fmt: skip
SERIES = Series(
    name="loss", attempt=1, rank=0, count=3, last=math.nan, last_step=2, last_time=3.0,
    min=0.5, max=0.9,
)  # fmt: skip


def digest(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


class FakeClient:
    """Canned answers; ``removed`` and ``asked`` say what was asked for."""

    url = "http://127.0.0.1:1"

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.kept = [
            File(path=path, digest=digest(data), size=len(data), attempt=1)
            for path, data in BYTES.items()
        ]

    def _known(self, ref: str) -> Run:
        if ref not in ("r1", "digits", "last"):
            raise NotFound(f"there is no run {ref!r}", hint="wherry ps")
        return RUN

    def status(self) -> api.Status:
        return api.Status(
            pid=1, url=self.url, version="0", home="/h", started=1.0, schema="1",
            runs={"running": 1}, capacity={"total": {"cpu": 2.0, "memory": 1024, "gpu": 0}},
        )  # fmt: skip

    def runs(self, **query: Any) -> list[Run]:
        self.asked.append(("runs", query))
        return [] if query.get("before") else [RUN]

    def run(self, ref: str) -> api.RunDetail:
        rank = Rank(attempt=AttemptId("r1", 1), rank=0, state=RankState.FAILED, exit_code=3)
        return api.RunDetail(
            run=self._known(ref),
            attempts=(Attempt(id=AttemptId("r1", 1), created=1.0, ranks=(rank,)),),
            params={"lr": 0.1},
            metrics=(SERIES,),
            events=(Event(run="r1", time=1.0, kind="failed"),),
        )

    def stop(self, ref: str, *, grace: float | None = None) -> Run:
        self.asked.append(("stop", (ref, grace)))
        return self._known(ref)

    def wait(self, ref: str, timeout: float | None = None) -> Run:
        return self._known(ref)

    def retry(self, ref: str, *, name: str = "") -> Run:
        return self._known(ref)

    def delete(self, ref: str) -> None:
        self.asked.append(("delete", ref))

    def logs(self, ref: str, **query: Any) -> Iterator[api.LogLine]:
        self.asked.append(("logs", query))
        for rank, text in enumerate(("one é", "two", "three")):
            yield api.LogLine(time=1.5, attempt=1, rank=rank % 2, stream="stdout", text=text)

    def raw_logs(self, ref: str, **query: Any) -> Iterator[bytes]:
        yield b"\x00\xff"

    def metrics(self, ref: str, **query: Any) -> list[api.MetricSeries]:
        return [
            api.MetricSeries(
                name="loss", attempt=1, rank=0, steps=[1, 2], times=[1.0, 2.0],
                values=[0.5, math.nan],
            )
        ]  # fmt: skip

    usage = metrics

    def stack(self, ref: str, **query: Any) -> list[api.RankStack]:
        self.asked.append(("stack", query))
        call = api.Call(name="train", file="train.py", line=3)
        thread = api.ThreadStack(name="MainThread", calls=(call,))
        process = api.ProcessStack(pid=7, command="python train.py", threads=(thread,))
        problem = api.Problem(code="py-spy-missing", message="there is none", hint="get it")
        return [
            api.RankStack(rank=0, processes=(process,)),
            api.RankStack(rank=1, problems=(problem,)),
        ]

    def files(self, ref: str) -> list[File]:
        return self.kept

    def download(self, ref: str, path: str, *, rank: int = 0) -> Iterator[bytes]:
        yield BYTES[path]

    def prune(self, **query: Any) -> api.Pruned:
        self.asked.append(("prune", query))
        return api.Pruned(runs=("r1",), blobs=2, bytes=2048)

    def backup(self, path: Path) -> api.BackupDone:
        return api.BackupDone(path=str(path), bytes=5, runs=1)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(options, "connect", lambda on="": fake)
    monkeypatch.setattr("wherry.sdk.connect.connect", lambda *a, **k: fake)
    monkeypatch.setattr("wherry.sdk.connect.start_server", lambda home: None)
    monkeypatch.setattr("wherry.sdk.connect.stop_server", lambda home: True)
    monkeypatch.setenv("WHERRY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return fake


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(client: FakeClient, capfd: pytest.CaptureFixture[str]) -> Call:
    """A command line: exit status, stdout, stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.invoke(args)
        sys.stdout.flush()
        return (status, *capfd.readouterr())

    return run


#: Each command with arguments that print data.
DATA: dict[str, tuple[str, ...]] = {
    "ps": (), "show": ("r1",), "logs": ("r1",), "metrics": ("r1",), "files": ("r1",),
    "get": ("r1",), "stop": ("r1",), "retry": ("r1",), "rm": ("r1",), "stack": ("r1",),
    "up": (), "down": (),
    "status": (), "prune": (), "backup": ("b.tar",), "version": (), "context list": (),
    "context add": ("there", "http://there:1"), "context use": ("local",),
    "context check": ("local",), "explain": ("r1",),
}  # fmt: skip


def test_every_command_is_tried_here() -> None:
    # What exec prints is the program's.
    elsewhere = {"run", "rehearse", "check", "restore", "completion", "context", "exec"}
    assert {name.split()[0] for name in DATA} | elsewhere == {
        name for rows in COMMANDS.values() for name in rows
    }


@pytest.mark.parametrize("name", DATA)
def test_json_is_one_document_and_nothing_else_is_on_stdout(
    name: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERRY_TOKEN", "secret")
    status, out, _ = call(*name.split(), *DATA[name], "--json")
    assert status == 0
    document = json.loads(out)
    assert isinstance(document, list | dict) and "secret" not in out
    lists = {"ps", "explain", "logs", "metrics", "files", "get", "stop", "rm", "stack"}
    many = name in lists | {"context list"}
    assert isinstance(document, list) is many


@pytest.mark.parametrize("name", DATA)
def test_help_prints_what_the_table_says(name: str, call: Call) -> None:
    status, out, err = call(*name.split(), "-h")
    assert status == 0 and out.startswith("Usage: wherry") and not err


def test_a_run_in_json_has_what_scripts_need(call: Call) -> None:
    _, out, _ = call("ps", "--json")
    run = json.loads(out)[0]
    assert (run["id"], run["name"], run["state"], run["created"]) == (
        "r1", "digits", "failed", 1_700_000_000.0,
    )  # fmt: skip
    _, out, _ = call("show", "r1", "--json")
    shown = json.loads(out)
    assert shown["id"] == "r1" and shown["metrics"][0]["last"] == "NaN"
    _, out, _ = call("status", "--json")
    assert {"pid", "url", "version"} <= set(json.loads(out))


def test_output_for_people_is_plain_text_where_nobody_looks(call: Call) -> None:
    _, out, err = call("ps")
    head, row = out.splitlines()
    assert head.split()[:3] == ["ID", "NAME", "STATE"] and "1m 00s" in row and "\x1b" not in out
    assert not err


def test_no_color_wins_over_force(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    assert "\x1b[31mfailed" in call("ps")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("ps")[1]


def test_show_says_why_and_how_to_repeat(call: Call) -> None:
    out = call("show", "r1")[1]
    for part in ("rank 1: exited with status 3", "hint: look", "Traceback", "lr=0.1", "loss=nan"):
        assert part in out
    assert "python train.py --lr 'é 1'" in out and "wherry run --from r1" in out


def test_an_empty_list_is_no_prose_on_stdout(call: Call, client: FakeClient) -> None:
    client.kept = []
    status, out, err = call("files", "r1")
    assert (status, out) == (0, "") and "hint:" in err
    assert json.loads(call("files", "r1", "--json")[1]) == []


def test_ps_asks_for_all_that_is_active(call: Call, client: FakeClient) -> None:
    call("ps")
    states = {s for _, query in client.asked for s in query.get("states", ())}
    assert states == {"submitted", "queued", "starting", "running"}


# --- errors


def test_an_error_has_a_hint_and_its_exit_status(call: Call) -> None:
    status, out, err = call("show", "nosuch")
    assert (status, out) == (3, "")
    assert err == "error: there is no run 'nosuch'\nhint: wherry ps\n"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("pss",), "did you mean 'ps'?"),
        (("train.py",), "wherry run train.py"),
        (("run", "--wrokers", "2", "x.py"), "--workers"),
        (("run",), "wherry run script.py"),
        (("logs", "r1", "--rank", "x"), "0,3 or 2-5"),
        (("logs", "r1", "--grep", "("), "wherry logs --help"),
        (("logs", "r1", "--invert"), "wherry logs --help"),
        (("prune", "--older-than", "soon"), "1h30m"),
        (("restore", "nosuch.tar"), "wherry backup"),
        (("metrics", "r1", "lss"), "did you mean 'loss'"),
        (("context", "use", "nosuch"), "local"),
    ],
)
def test_a_mistake_exits_with_2_or_3_and_shows_the_way_out(
    call: Call, args: tuple[str, ...], hint: str
) -> None:
    status, out, err = call(*args)
    assert status in (2, 3) and not out
    assert err.startswith("error: ") and hint in err and "Traceback" not in err


def test_a_defect_is_one_line_and_a_file(
    call: Call, client: FakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(client, "files", lambda ref: 1 / 0)
    status, _, err = call("files", "r1")
    assert status == 70 and len(err.splitlines()) == 2 and "ZeroDivisionError" in err
    (report,) = tmp_path.glob("wherry-*.txt")
    assert str(report) in err and "Traceback" in report.read_text()
    monkeypatch.setenv("WHERRY_DEBUG", "1")
    assert "Traceback" in call("files", "r1")[2]


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        argv = [sys.executable, "-m", "wherry.cli.main", "--help"]
        done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_is_quiet(call: Call, client: FakeClient) -> None:
    def interrupted(ref: str) -> list[File]:
        raise KeyboardInterrupt

    client.files = interrupted  # type: ignore[method-assign]
    assert call("files", "r1") == (130, "", "")


def test_every_exit_status_is_documented() -> None:
    assert {cls.exit_status for cls in BY_CODE.values()} <= set(main.EXIT_CODES)


def test_several_are_stopped_although_one_is_not_there(call: Call, client: FakeClient) -> None:
    status, out, err = call("stop", "r1", "nosuch", "digits", "--grace", "5s")
    assert (status, out) == (3, "r1\nr1\n") and "nosuch" in err
    assert client.asked[-1] == ("stop", ("digits", 5.0))


# --- logs and metrics


def test_logs_carry_the_rank_where_there_are_several(call: Call) -> None:
    assert call("logs", "r1")[1] == "[0] one é\n[1] two\n[0] three\n"
    assert call("logs", "r1", "--rank", "1")[1].startswith("one")
    assert call("logs", "r1", "-t", "-r", "0")[1].startswith("1970-01-01T00:00:01.500Z one")


def test_logs_are_filtered_by_what_they_say(call: Call, client: FakeClient) -> None:
    assert call("logs", "r1", "-g", "^t", "-r0")[1] == "two\nthree\n"
    assert call("logs", "r1", "-g", "^t", "-v", "-r0")[1] == "one é\n"
    assert call("logs", "r1", "-g", "^t", "--tail", "1", "-r0")[1] == "three\n"
    assert client.asked[-1][1]["tail"] is None
    call("logs", "r1", "--tail", "1", "-s", "stderr", "--rank", "0,2-3")
    query = client.asked[-1][1]
    assert (query["tail"], query["streams"], query["ranks"]) == (1, ("stderr",), (0, 2, 3))


def test_raw_logs_are_the_bytes(
    client: FakeClient, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main.invoke(("logs", "r1", "--raw")) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"\x00\xff"


def test_metrics_at_a_glance_point_by_point_and_as_csv(call: Call) -> None:
    assert call("metrics", "r1")[1].splitlines()[1].split() == [
        "loss", "0", "nan", "2", "0.5", "0.9", "3",
    ]  # fmt: skip
    assert json.loads(call("metrics", "r1", "loss", "--json")[1])[0]["values"] == [0.5, "NaN"]
    assert call("metrics", "r1", "--csv")[1].splitlines()[2] == "loss,1,0,2,2.000,nan"
    assert json.loads(call("metrics", "r1", "--usage", "--json")[1])[0]["max"] == 0.5


# --- get


def test_get_copies_what_is_named_and_checks_it(
    call: Call, client: FakeClient, tmp_path: Path
) -> None:
    assert call("get", "r1")[0] == 0
    assert (tmp_path / "digits-r1/logs/a.txt").read_bytes() == b"aaa"
    assert call("get", "r1", "logs", "--to", "x")[1] == "x/logs/a.txt\n"
    assert call("get", "r1", "*.json", "--to", "y")[1] == "y/model.json\n"
    assert call("get", "r1", "nosuch")[0] == 3
    (tmp_path / "file").touch()
    assert call("get", "r1", "--to", "file")[0] == 2
    client.kept = [File(path="model.json", digest="0" * 64, size=2, attempt=1)]
    status, _, err = call("get", "r1", "--to", "z")
    assert status == 6 and "damaged" in err and not list((tmp_path / "z").iterdir())


def test_get_replaces_nothing_that_differs_unless_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/model.json").write_text("mine")
    status, _, err = call("get", "r1", "--to", "x")
    assert status == 4 and "--force" in err
    assert (tmp_path / "x/model.json").read_text() == "mine"
    assert not (tmp_path / "x/logs").exists()
    assert call("get", "r1", "--to", "x", "--force")[0] == 0
    assert call("get", "r1", "--to", "x")[0] == 0


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
def test_get_stays_in_its_folder(call: Call, client: FakeClient, tmp_path: Path, path: str) -> None:
    client.kept = [File(path=path, digest=digest(b""), size=0, attempt=1)]
    assert call("get", "r1", "--to", "x")[0] == 2
    assert not (tmp_path / "x").exists()


def test_get_does_not_follow_a_link_out_of_its_folder(call: Call, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x/logs").symlink_to(tmp_path / "elsewhere")
    assert call("get", "r1", "--to", "x", "--force")[0] == 2
    assert not list((tmp_path / "elsewhere").iterdir())


def test_completion_is_a_script(call: Call) -> None:
    for shell in ("bash", "zsh", "fish"):
        status, out, _ = call("completion", shell)
        assert status == 0 and "_WHERRY_COMPLETE" in out
        _, document, _ = call("completion", shell, "--json")
        assert json.loads(document) == {"shell": shell, "script": out}


def test_the_table_says_what_the_commands_are() -> None:
    import click

    for rows in COMMANDS.values():
        for name in rows:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None and command.name == name


def test_stack_shows_what_can_be_seen_and_complains_about_the_rest(
    call: Call, client: FakeClient
) -> None:
    status, out, err = call("stack", "r1", "--rank", "0-1", "--native")
    assert client.asked[-1] == ("stack", {"ranks": (0, 1), "native": True})
    assert out == "[0] python train.py\n  MainThread\n    train (train.py:3)\n"
    assert status == 0 and err == "error: [1] there is none\nhint: get it\n"


def test_a_stack_of_nobody_is_a_failure(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClient, "stack", lambda self, ref, **query: [api.RankStack(rank=0)])
    assert call("stack")[0] == 4


def test_exec_needs_a_program_and_says_how_to_name_one(call: Call) -> None:
    status, _, err = call("exec", "r1")
    assert status == 2 and "hint: wherry exec r1 -- bash" in err
    status, _, err = call("exec", "r1", "ls", "-l")
    assert status == 2 and "no such option" in err.lower()
