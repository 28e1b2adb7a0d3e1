"""Mistakes found before a run, and failures told after it, through the command line."""

from __future__ import annotations

import json
import os
import re

import pytest

from tests.e2e.conftest import World

#: Rank 0 waits for what rank 1 never sends; only the test's argument says how rank 1 ends.
GANG = """
import os, signal, socket, sys, time
rank, peers = int(os.environ["RANK"]), os.environ["WHERRY_PEERS"].split(",")
host, port = peers[0].rsplit(":", 1)
if rank == 0:
    with socket.create_server((host, int(port))) as server:
        connection, _ = server.accept()
        if connection.recv(1) == b"":
            raise ConnectionResetError(104, "Connection reset by peer")
elif rank == 1:
    while True:
        try:
            connection = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    if sys.argv[1] == "raise":
        raise ValueError("bad batch")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "leave":
        os._exit(0)
    if sys.argv[1] == "crashed":
        import ctypes
        ctypes.string_at(0)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "cause", "words"),
    [
        ("raise", "exception", r"rank 1: ValueError: bad batch, at gang\.py:18"),
        pytest.param("killed", "signal", r"rank 1: killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param(
            "crashed",
            "signal",
            r"rank 1: killed by SIGSEGV, a segmentation fault.*gang\.py:25",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_verdict_is_on_the_rank_that_failed_and_not_on_the_one_that_noticed(
    how: str, cause: str, words: str, world: World
) -> None:
    world.write("gang.py", GANG)
    run = world.detach("--workers", "3", "gang.py", how)
    verdict = world.until(run, "failed").verdict
    assert verdict is not None
    assert (verdict.rank, verdict.cause) == (1, cause)
    assert re.match(words, verdict.message), verdict.message
    told = world.cli("explain", run).stdout
    assert re.search(r"rank 1 failed( first)?: ", told) and "not tried again" in told


@pytest.mark.slow
def test_a_symptom_alone_is_named_with_the_rank_that_had_left(world: World) -> None:
    world.write("gang.py", GANG)
    run = world.detach("--workers", "2", "gang.py", "leave")
    verdict = world.until(run, "failed").verdict
    assert verdict is not None and (verdict.rank, verdict.cause) == (0, "peer")
    assert verdict.message.endswith("; rank 1 had left, with status 0")


@pytest.mark.slow
def test_mistakes_stop_a_run_before_anything_is_queued(world: World) -> None:
    world.write("train.py", "import nope_pkg\nimport hidden\n")
    world.write("hidden.py", "def broken(:\n")
    done = world.cli("run", "--detach", "train.py")
    assert done.returncode == 2 and done.stdout == ""
    assert "2 errors found before anything was queued" in done.stderr
    assert "train.py:1: the module 'nope_pkg'" in done.stderr
    assert "hidden.py:1: it does not compile" in done.stderr
    assert "hint: --no-preflight" in done.stderr
    assert world.json("ps", "--all") == []
    assert world.detach("--no-preflight", "train.py")


@pytest.mark.slow
def test_check_takes_what_run_takes_and_runs_nothing(world: World) -> None:
    world.write("train.py", "import os\nos.environ['WANTED_KEY']\n")
    done = world.cli("check", "--json", "--workers", "2", "train.py", "--epochs", "3")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert [(f["level"], f["code"], f["file"], f["line"]) for f in found] == [
        ("warning", "env", "train.py", 2)
    ]
    too_much = world.cli("check", "--gpu", "4096", "--env", "WANTED_KEY=1", "train.py")
    assert too_much.returncode == 2 and "[unsatisfiable-resources]" in too_much.stdout
    assert world.cli("check", "--env", "WANTED_KEY=1", "train.py").returncode == 0
    assert world.json("ps", "--all") == []


@pytest.mark.slow
def test_explain_tells_of_the_wait_and_of_the_place(world: World) -> None:
    world.write("second.py", "print('here')\n")
    cores = str(os.cpu_count() or 1)
    world.write("first.py", "import time; time.sleep(600)\n")
    first = world.detach("--cpu", cores, "first.py")
    second = world.detach("--cpu", cores, "second.py")
    world.until(second, "queued")
    assert "it waits: needs" in world.cli("explain", second).stdout
    assert world.cli("stop", first).returncode == 0
    assert world.until(second, "succeeded").verdict is None
    told = world.cli("explain", second).stdout
    assert re.search(r"waited \d.* s: needs \d+ cores", told), told
    assert "a person asked it to stop" in world.cli("explain", first).stdout
    assert "this machine: no --on was given" in told and "succeeded after" in told
