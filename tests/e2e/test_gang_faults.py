"""
A gang of four of which one comes to grief, each in its own way: the verdict is about that one,
whatever the others say of it, and nothing of them is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

import pytest

from tests.e2e.conftest import World, alive
from wherry.agent import platform
from wherry.testing.waiting import eventually

#: All but rank 2 wait for rank 2, by a connection, as in a collective operation.
GANG = """
import os, signal, socket, sys, time
rank, two = int(os.environ["RANK"]), os.environ["WHERRY_PEERS"].split(",")[2]
host, port = two.rsplit(":", 1)
if rank == 2:
    server = socket.create_server((host, int(port)))
    lines = [server.accept()[0] for _ in range(3)]
    for line in lines:
        line.sendall(b"!")
    {fate}
else:
    while True:
        try:
            line = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    line.recv(1)
    if not line.recv(1):
        raise RuntimeError("Connection closed by peer")
"""


@pytest.mark.parametrize(
    ("fate", "cause", "words"),
    [
        ("raise ValueError('loss is nan')", "exception", "rank 2: ValueError: loss is nan"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "signal",
            "rank 2: killed by SIGKILL",
            marks=pytest.mark.slow,
        ),
        pytest.param("os._exit(7)", "exit", "rank 2: exited with status 7", marks=pytest.mark.slow),
        ("os._exit(0)", "peer", "rank 2 had left, with status 0"),
        pytest.param(
            "block = b'x' * (400 * 2**20); time.sleep(60)",
            "oom",
            "rank 2: the program used more memory than",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_verdict_is_about_the_rank_that_came_to_grief(
    world: World, fate: str, cause: str, words: str
) -> None:
    world.write("gang.py", GANG.format(fate=fate))
    options = ("--workers", "4", "--cpu", "0.2", "--memory", "100Mi")
    run = world.until(world.detach(*options, "gang.py"), "failed", "succeeded", "lost")
    assert run.state == "failed" and run.verdict is not None
    assert run.verdict.cause == cause and words in run.verdict.message, run.verdict
    assert run.verdict.hint
    assert platform.find_marked(f"{run.id}-1/") == []


@pytest.mark.slow
def test_a_frozen_agent_is_missed_and_the_gang_begins_again_without_its_late_word(
    make_world: Callable[..., World],
) -> None:
    world = make_world(lease="1.5", heartbeat="0.2", grace="0.5", backoff="0.1")
    fate = "time.sleep(600 * (os.environ['WHERRY_ATTEMPT'] == '1'))"
    fate += "\n    for line in lines: line.sendall(b'.')"
    world.write("gang.py", GANG.format(fate=fate))
    run = world.detach("--workers", "4", "--cpu", "0.2", "--restarts", "1", "gang.py")
    world.until(run, "running")
    lock = world.home / "attempts" / f"{run}-1" / "2" / "lock"
    agent = int(lock.read_text().split()[0])
    os.kill(agent, signal.SIGSTOP)
    try:
        ended = world.until(run, "succeeded", "failed", "lost")
    finally:
        with contextlib.suppress(ProcessLookupError):  # the back end may have removed it by now
            os.kill(agent, signal.SIGCONT)
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    eventually(lambda: not alive(agent))
    assert "rank 2 was silent for longer than its lease" in world.cli("explain", run).stdout


@pytest.mark.slow
def test_the_verdict_on_a_barrier_is_about_the_rank_that_never_came(
    make_world: Callable[..., World],
) -> None:
    world = make_world(barrier_timeout="2", grace="0.5", backoff="0.1")
    # The second attempt's rank 1 is stuck before it has said a word: its agent reads from a pipe
    # that nobody writes to. Attempt 1 lays it out, then loses an agent.
    world.write(
        "trap.py",
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0':\n"
        "    trap = f\"{sys.argv[1]}/{os.environ['WHERRY_RUN_ID']}-2/1\"\n"
        "    os.makedirs(trap, mode=0o700)\n"
        "    os.mkfifo(f'{trap}/acked')\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "time.sleep(600)\n",
    )
    words = ("--workers", "2", "--cpu", "0.2", "--restarts", "1", "trap.py")
    ref = world.detach(*words, str(world.home / "attempts"))
    ended = world.until(ref, "succeeded", "failed", "lost")
    assert (ended.state, ended.attempt) == ("failed", 2) and ended.verdict is not None
    verdict = ended.verdict
    assert (verdict.cause, verdict.rank) == ("barrier", 1)
    assert verdict.message == "rank 1 did not arrive within 2 s (rank 0 waited)"
    assert f"wherry logs {ref} --rank 1 --stream system" in verdict.hint
    told = world.cli("explain", ref).stdout.partition("attempt 2 began")[2]
    assert "rank 0 failed: rank 1 did not arrive within 2 s" in told
    assert "stopped for it" not in told
    assert platform.find_marked(f"{ref}-2/") == []


def test_a_port_that_was_stolen_costs_a_new_attempt_and_no_restart(world: World) -> None:
    world.write(
        "meet.py",
        "import os, socket\n"
        "address = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])\n"
        "if os.environ['RANK'] == '0':\n"
        "    thief = socket.socket()\n"
        "    if os.environ['WHERRY_ATTEMPT'] == '1':\n"
        "        thief.bind(address); thief.listen()\n"
        "    socket.create_server(address).close()\n",
    )
    ended = world.until(world.detach("--workers", "2", "meet.py"), "succeeded", "failed", "lost")
    assert (ended.state, ended.attempt, ended.restarts_used) == ("succeeded", 2, 0)
    assert "free of charge" in world.cli("explain", ended.id).stdout
