"""
Looking into ranks that run, as a person does: real processes, a real control plane.

One control plane and one run of two ranks for the module; what ends a run has one of its own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import alive
from tests.shell import DEADLINE, WHERRY, Screen, Shell, control_plane
from wherry.errors import NotFound, NotRunning
from wherry.sdk import connect as sdk
from wherry.sdk.beside import dial
from wherry.sdk.runs import Run
from wherry.testing.waiting import eventually

WAITS = """
import os, sys, time

def waits_for_the_gate(gate):
    while not os.path.exists(gate):
        time.sleep(0.05)

print("ready", flush=True)
waits_for_the_gate(sys.argv[1])
"""


class Waiting:
    """A run of two ranks that goes on until its gate is there."""

    def __init__(self, shell: Shell, *options: str) -> None:
        self.shell, self.gate = shell, shell.folder / "gate"
        shell.write("waits.py", WAITS)
        words = ("run", "--detach", "--workers", "2", "--cpu", "0.45", *options)
        started = shell(*words, "waits.py", str(self.gate))
        assert started.returncode == 0, started.stderr
        self.id = started.stdout.decode().strip()
        self.client = sdk.connect()
        eventually(lambda: self.state() == "running", within=DEADLINE)

    def state(self) -> str:
        """Where it is."""
        return self.client.run(self.id).run.state

    def exec(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run something beside it."""
        return self.shell("exec", self.id, *words, stdin=stdin)

    def begin(self, *words: str) -> subprocess.Popen[bytes]:
        """Run something beside it and go on."""
        return subprocess.Popen(
            [*WHERRY, "exec", self.id, *words], cwd=self.shell.folder, env=self.shell.env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with (
        control_plane(tmp_path_factory.mktemp("plane"), heartbeat="0.2") as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("WHERRY_HOME", str(home))
        yield Shell(tmp_path_factory.mktemp("project"), home)


@pytest.fixture(scope="module")
def waiting(shell: Shell) -> Waiting:
    return Waiting(shell)


@pytest.fixture
def own(shell: Shell, tmp_path: Path) -> Shell:
    """Another project folder, for runs that end."""
    return Shell(tmp_path, Path(shell.env["WHERRY_HOME"]))


@pytest.fixture
def handle(waiting: Waiting) -> Run:
    """The run in Python."""
    return Run(waiting.client, waiting.client.run(waiting.id).run)


# --- exec


def test_exec_is_beside_the_program_with_pipes_of_its_own(waiting: Waiting) -> None:
    script = "echo $WHERRY_RANK of $WORLD_SIZE; ls; echo oops >&2; cat; exit 7"
    done = waiting.exec("--rank", "1", "--", "sh", "-c", script, stdin=b"\x00typed")
    assert done.stdout == b"1 of 2\nwaits.py\n\x00typed"
    assert (done.stderr, done.returncode) == (b"oops\n", 7)


@pytest.mark.slow
def test_exec_passes_every_byte_either_way(waiting: Waiting) -> None:
    data = os.urandom(3_000_000)
    assert waiting.exec("--", "cat", stdin=data).stdout == data


def test_execs_exit_status_is_the_programs(waiting: Waiting) -> None:
    assert waiting.exec("--", "true").returncode == 0
    assert waiting.exec("--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = waiting.exec("--", "no-such-program")
    assert missing.returncode == 127
    assert missing.stderr.startswith(b"error: 'no-such-program' cannot be started: No such file")


def test_exec_at_a_terminal_is_a_terminal(waiting: Waiting) -> None:
    screen = Screen(waiting.shell, "exec", waiting.id, "--rank", "1", "--", "sh")
    try:
        screen.see(r"[$#] ")
        screen.press(b"tty; stty size; echo rank $WHERRY_RANK\r")
        screen.see(r"/dev/pts/\d+\r\n30 90\r\nrank 1\r\n")
        termios.tcsetwinsize(screen.slave, (20, 50))
        screen.press(b"while [ \"$(stty size)\" = '30 90' ]; do :; done; stty size\r")
        screen.see("\n20 50\r\n")
        screen.press(b"echo sle''eps; sleep 600\r")
        screen.see("\nsleeps\r\n")
        screen.press(b"\x03")
        screen.see(r"[$#] ")
        screen.press(b"exit 5\r")
        assert screen.end() == 5
        assert termios.tcgetattr(screen.slave) == screen.before
    finally:
        screen.close()


def test_nothing_goes_on_when_whoever_ran_it_is_killed(waiting: Waiting) -> None:
    process = waiting.begin("--", "sh", "-c", "sleep 600 & echo $$ $!; wait")
    assert process.stdout
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill()
    process.communicate()
    eventually(lambda: not any(map(alive, pids)))
    assert waiting.exec("--", "echo", "again").stdout == b"again\n"


def test_exec_in_python_gives_what_a_finished_process_has(handle: Run) -> None:
    done = handle.exec(["sh", "-c", "cat; echo é >&2; exit 3"], rank=1, input="in")
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "é\n")
    assert handle.exec(["printf", "\\377"], text=False).stdout == b"\xff"
    with pytest.raises(subprocess.TimeoutExpired):
        handle.exec(["sleep", "600"], timeout=0.5)


def test_a_rank_that_is_not_there_is_named_with_those_that_are(
    waiting: Waiting, handle: Run
) -> None:
    done = waiting.exec("--rank", "7", "--", "true")
    assert done.returncode == 3
    assert b"has no rank 7\nhint: its ranks are 0 to 1" in done.stderr
    with pytest.raises(NotFound):
        handle.stack(rank=7)
    with pytest.raises(NotRunning, match="attempt 2"):
        dial(handle._client, handle.id, rank=0, attempt=2)


def test_exec_ends_with_its_run_and_then_says_that_it_is_over(own: Shell) -> None:
    run = Waiting(own)
    process = run.begin("--", "sh", "-c", "echo in; sleep 600")
    assert process.stdout and process.stdout.readline() == b"in\n"
    run.gate.touch()
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGHUP
    assert said == b"the rank is over, and with it what ran beside it\n"
    eventually(lambda: run.state() == "succeeded", within=DEADLINE)
    late = run.exec("--", "true")
    assert late.returncode == 4
    assert b"has succeeded\nhint: to look into a failed rank: wherry run --from" in late.stderr


@pytest.mark.slow
def test_exec_survives_no_control_plane_and_comes_back_with_it(own: Shell) -> None:
    run = Waiting(own)
    process = run.begin("--", "sh", "-c", "echo $$; sleep 600")
    assert process.stdout
    pid = int(process.stdout.readline())
    os.kill(own.json("status")["pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 6 and b"hung up" in said
    eventually(lambda: not alive(pid))
    assert run.exec("--", "echo", "again").stdout == b"again\n"
    assert run.state() == "running"
    run.gate.touch()


# --- stack


def test_stack_shows_what_both_ranks_do_once(waiting: Waiting) -> None:
    done = waiting.shell("stack", waiting.id)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("[0-1] ") and lines[1] == "  MainThread"
    assert [line.split()[0] for line in lines[2:]] == ["waits_for_the_gate", "<module>"]


def test_stack_as_data_names_every_call_of_a_rank(waiting: Waiting, handle: Run) -> None:
    (rank,) = waiting.shell.json("stack", waiting.id, "--rank", "1")
    assert rank["rank"] == 1 and rank["problems"] == []
    calls = rank["processes"][0]["threads"][0]["calls"]
    assert [call["name"] for call in calls] == ["waits_for_the_gate", "<module>"]
    assert calls[0]["file"].endswith("/waits.py") and calls[0]["line"] > 1
    native = handle.stack(rank=1, native=True)[0].processes[0].threads[0].calls
    assert len(native) > len(calls)


# --- stalled


@pytest.mark.slow
def test_a_stalled_run_is_flagged_with_its_stacks_until_it_moves_again(own: Shell) -> None:
    own.write(
        "moves.py",
        "import os, sys, time\n"
        "def stuck():\n"
        "    while not os.path.exists(sys.argv[1]): time.sleep(0.2)\n"
        "stuck()\n"
        "while True: print('moves', flush=True); time.sleep(0.1)\n",
    )
    gate = own.folder / "gate"
    words = ("run", "--detach", "--cpu", "0.45", "--stall", "1s", "moves.py", str(gate))
    ref = own(*words).stdout.decode().strip()

    client = sdk.connect()

    def why() -> str:
        return client.run(ref).run.reason

    eventually(lambda: why() != "", within=DEADLINE)
    assert why() == f"rank 0 shows no output, metric or CPU for 1 s: wherry stack {ref}"
    assert why().encode() in own("ps").stdout
    gate.touch()
    eventually(lambda: why() == "", within=DEADLINE)
    shown = client.run(ref)
    told = [event for event in shown.events if event.kind in ("stalled", "moving")]
    assert [event.kind for event in told[-2:]] == ["stalled", "moving"]
    assert "    stuck (" in told[0].message
    assert shown.run.state == "running"
    assert own("stop", ref, "--grace", "0s", "--wait").returncode == 0


HALTS = """
import os, signal, time
def stops():
    os.kill(os.getpid(), signal.SIGSTOP)
if os.environ["RANK"] == "1":
    {fate}
def waits_for_rank_1():
    time.sleep(600)
waits_for_rank_1()
"""


def stalled(own: Shell, fate: str) -> str:
    """A run of two ranks of which one meets its fate while the other waits."""
    own.write("halts.py", HALTS.format(fate=fate))
    words = ("run", "--detach", "--workers", "2", "--cpu", "0.45", "--stall", "1s", "halts.py")
    return own(*words).stdout.decode().strip()


@pytest.mark.slow
def test_a_program_that_a_signal_stopped_is_named_until_it_goes_on(own: Shell) -> None:
    ref = stalled(own, "stops()")
    client = sdk.connect()
    quiet = f"ranks 0-1 show no output, metric or CPU for 1 s: wherry stack {ref}"
    halted = re.compile(r"rank 1 is stopped \(SIGSTOP\): kill -CONT (\d+); " + re.escape(quiet))
    found = eventually(lambda: halted.fullmatch(client.run(ref).run.reason), within=DEADLINE)
    looked = own("stack", ref)
    assert looked.returncode == 0
    assert f"[1] process {found[1]} is stopped (SIGSTOP)".encode() in looked.stderr
    assert b"py-spy" not in looked.stderr and b"Failed" not in looked.stderr
    # What it was doing is read without pausing it.
    assert b"    stops (" in looked.stdout and b"    waits_for_rank_1 (" in looked.stdout
    os.kill(int(found[1]), signal.SIGCONT)
    eventually(lambda: client.run(ref).run.reason == quiet, within=DEADLINE)
    assert own("stop", ref, "--grace", "0s", "--wait").returncode == 0


@pytest.mark.slow
def test_a_rank_that_left_the_others_waiting_is_named(own: Shell) -> None:
    ref = stalled(own, "raise SystemExit(0)")
    client = sdk.connect()
    quiet = "rank 0 shows no output, metric or CPU for 1 s"
    said = f"{quiet}; rank 1 had ended, with status 0: wherry stack {ref}"
    eventually(lambda: client.run(ref).run.reason == said, within=DEADLINE)
    assert own("stop", ref, "--grace", "0s", "--wait").returncode == 0


def test_a_terminal_that_is_closed_ends_what_ran_in_it(waiting: Waiting) -> None:
    screen = Screen(waiting.shell, "exec", waiting.id, "--", "sh")
    screen.see(r"[$#] ")
    screen.press(b"echo pid $$\r")
    pid = int(screen.see(r"\npid (\d+)\r\n")[1])
    screen.close()
    eventually(lambda: not alive(pid))


# --- held


FAILS = """
import os, time
print("rank", os.environ["WHERRY_RANK"], flush=True)
if os.environ["WHERRY_RANK"] == "1":
    open("evidence", "w").write("of rank 1")
    raise SystemExit("no data")
time.sleep(600)
"""


def hold(own: Shell, seconds: str) -> str:
    """A run of two ranks, one of which fails."""
    own.write("fails.py", FAILS)
    words = ("run", "--detach", "--workers", "2", "--cpu", "0.45", "--hold-on-failure", seconds)
    return own(*words, "fails.py").stdout.decode().strip()


def failure_of_rank_1(ref: str) -> None:
    """Wait for the end of the run: it must be this."""
    run = sdk.connect().wait(ref, DEADLINE)
    assert run.state == "failed" and run.verdict is not None
    assert (run.verdict.rank, run.verdict.cause, run.verdict.exit_code) == (1, "exit", 1)
    assert run.verdict.last_lines == ("no data",)


@pytest.mark.slow
def test_a_failed_rank_is_held_alone_to_be_looked_into_and_fails_all_the_same(own: Shell) -> None:
    ref = hold(own, "1h")
    client = sdk.connect()

    def alone() -> bool:
        detail = client.run(ref)
        ranks = detail.attempts[-1].ranks if detail.attempts else ()
        # The rank says that it is held in a report of its own.
        return [r.state for r in ranks] == ["stopped", "ending"] and bool(detail.run.reason)

    try:
        eventually(alone, within=DEADLINE)
    except AssertionError:
        pytest.fail((own("show", ref).stdout + own("ps").stdout).decode())
    run = client.run(ref).run
    said = "rank 1 failed (exited with status 1); held for 1h"
    assert run.state == "running"
    assert run.reason == f"{said}: wherry exec {ref} --rank 1 -- bash"
    looked = own("exec", ref, "--", "sh", "-c", "cat evidence; echo $WHERRY_RANK")
    assert looked.stdout == b"of rank 11\n", looked.stderr
    own("stop", ref)
    failure_of_rank_1(ref)
    assert own("exec", ref, "--", "true").returncode == 4


@pytest.mark.slow
def test_a_rank_is_held_no_longer_than_was_said(own: Shell) -> None:
    failure_of_rank_1(hold(own, "1s"))
