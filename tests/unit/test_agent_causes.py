"""What the last lines of a failed program are taken for: each text as its framework prints it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cause_texts import TEXTS, raised
from wherry.agent import protocol
from wherry.agent.causes import diagnose
from wherry.agent.ranks import Ports
from wherry.control.reports import parse
from wherry.control.tokens import RankIdentity
from wherry.core.run import AttemptId


@pytest.mark.parametrize("name", TEXTS)
def test_each_text_is_taken_for_what_it_is(name: str) -> None:
    code, output, cause, message, hint = TEXTS[name]
    found = diagnose(code, [line for line in output.splitlines() if line.strip()], world=4)
    assert found is not None
    assert found.cause == cause, found
    assert message in found.message, found
    assert hint in found.hint, found


@pytest.mark.parametrize("output", ["", "done\n", "error: something of its own", "ValueError: no"])
def test_what_tells_nothing_is_left_as_it_is(output: str) -> None:
    assert diagnose(1, output.splitlines()) is None


def test_a_handled_symptom_does_not_stand_for_the_exception_that_came_after() -> None:
    lines = [
        *raised("RuntimeError: gloo: Connection closed by peer").splitlines(),
        "WARNING: connection lost, trying again",
        *raised("ZeroDivisionError: division by zero").splitlines(),
        "[W] TCPStore: Connection reset by peer",
    ]
    found = diagnose(1, lines, world=4)
    assert found is not None and (found.cause, found.message[:10]) == ("exception", "ZeroDivisi")


@pytest.mark.parametrize(("world", "cause"), [(4, "peer"), (1, "exception")])
def test_a_lost_connection_is_a_symptom_only_where_there_are_peers(world: int, cause: str) -> None:
    lines = raised("ConnectionResetError: [Errno 104] Connection reset by peer").splitlines()
    found = diagnose(1, lines, world=world)
    assert found is not None and found.cause == cause


IN_USE = "OSError: [Errno 98] Address already in use"
LISTEN = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local "
    "network address. port: 29501, useIpv6: false, code: -98, name: EADDRINUSE, message: address "
    "already in use"
)


@pytest.mark.parametrize(
    ("text", "ports", "taken", "cause"),
    [
        (LISTEN, (29500, 29501), (), "port"),
        (LISTEN, (29500,), (), "exception"),
        (LISTEN, (29500,), (29500,), "exception"),
        (IN_USE, (29500,), (29500,), "port"),
        (IN_USE, (29500,), (), "exception"),
    ],
)
def test_a_stolen_port_is_told_from_one_that_the_program_chose_itself(
    text: str, ports: tuple[int, ...], taken: tuple[int, ...], cause: str
) -> None:
    found = diagnose(1, raised(text).splitlines(), world=2, ports=ports, taken=taken)
    assert found is not None and found.cause == cause


def test_torchrun_is_asked_which_of_its_processes_failed_first_and_why() -> None:
    lines = [
        *("[rank1]: " + line for line in raised("ValueError: of rank 1").splitlines()),
        *("[rank0]: " + line for line in raised("RuntimeError: gloo Broken pipe").splitlines()),
        *raised("torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ").splitlines(),
        "train.py FAILED",
        "Root Cause (first observed failure):",
        "[0]:",
        "  time      : 2026-01-01_10:00:00",
        "  rank      : 1 (local_rank: 1)",
        "  exitcode  : 1 (pid: 4242)",
        "  error_file: <N/A>",
    ]
    found = diagnose(1, lines, world=2)
    assert found is not None
    assert found.cause == "exception"
    assert found.message == "process 1 of torchrun: ValueError: of rank 1, at train.py:12"
    killed = [line.replace("exitcode  : 1", "exitcode  : -9") for line in lines[-6:]]
    found = diagnose(1, ["x.ChildFailedError: ", *killed], world=2)
    assert found is not None and found.cause == "signal" and "SIGKILL" in found.message


def test_a_real_crash_names_the_line_of_the_script(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text("import ctypes\ndef touch():\n    ctypes.string_at(0)\ntouch()\n")
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script)], capture_output=True, text=True
    )
    found = diagnose(done.returncode, done.stderr.splitlines())
    assert found is not None and found.cause == "signal"
    assert found.message.endswith("; in touch, crash.py:3")


def test_a_port_that_somebody_else_has_by_now_is_noticed() -> None:
    ports = Ports(2)
    ports.release()
    assert ports.taken() == []
    with socket.create_server(("", ports.numbers[1])):
        assert ports.taken() == [ports.numbers[1]]


def test_a_rank_ended_when_its_program_did_and_not_when_its_files_were_sent() -> None:
    said = {"state": "failed", "cause": "peer", "message": "closed by peer", "ended": 5.0}
    body = protocol.frame(protocol.EXIT, 1, 9.0, json.dumps(said).encode())
    report = parse(RankIdentity(AttemptId("r1", 1), 0, 1), body)
    assert report is not None and report.exit is not None
    assert (report.exit.time, report.exit.cause) == (5.0, "peer")
