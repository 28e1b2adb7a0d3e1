"""
Promises of a run in the foreground, with this test as its agents and its control plane.

A driver process attends a run; the test connects to its socket as agents do, and tells through a
file how the run stands.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from wherry.agent import protocol
from wherry.cli.attach import Listener
from wherry.core.job import JobSpec
from wherry.core.run import Run
from wherry.core.states import RunState

DRIVER = """
import fcntl, json, os, sys, termios, time
from pathlib import Path
import msgspec
from wherry.cli.attach import Listener
from wherry.cli.foreground import attend
from wherry.core.run import Run

folder, as_json = Path(sys.argv[1]), sys.argv[2] == "json"
state = folder / "run.json"

if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

def read():
    return msgspec.json.decode(state.read_bytes(), type=Run)

class Plane:
    def wait(self, ref, *, timeout):
        end = time.monotonic() + timeout
        while not read().finished and time.monotonic() < end:
            time.sleep(0.01)
        return read()
    def stop(self, ref):
        (folder / "stopped").touch()
        return read()

with Listener() as listener:
    (folder / "path").write_text(listener.path)
    (folder / "path").rename(folder / "socket")
    seen = attend(listener, read(), Plane, json=as_json)
(folder / "outcome").write_text(json.dumps(
    {"attached": seen.attached, "detached": seen.detached, "status": seen.status,
     "interrupted": seen.interrupted}))
"""
DEADLINE = 20.0


def until(what: Callable[[], Any], why: str) -> Any:
    end = time.monotonic() + DEADLINE
    while not (got := what()):
        assert time.monotonic() < end, why
        time.sleep(0.01)
    return got


class Agent:
    """One rank's agent."""

    made: ClassVar[list[Agent]] = []

    def __init__(self, path: str, rank: int = 0, world_size: int = 1, attempt: int = 1) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.made.append(self)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(path)
        self.say(protocol.ATTACH_HELLO, rank=rank, world_size=world_size, attempt=attempt)
        kind, payload = self.next()
        assert kind == protocol.ATTACH_START
        self.start: dict[str, Any] = json.loads(payload)

    def say(self, kind: int, **data: Any) -> None:
        self.socket.sendall(protocol.attach_frame(kind, json.dumps(data).encode()))

    def out(self, data: bytes, stream: int = protocol.STDOUT) -> None:
        frame = protocol.attach_frame(protocol.ATTACH_OUT, bytes([stream]) + data)
        self.socket.sendall(frame)

    def end(self) -> None:
        self.say(protocol.ATTACH_ENDED, state="succeeded", exit_code=0, signal=None)
        self.socket.close()

    def next(self) -> tuple[int, bytes]:
        size, kind = protocol.ATTACH_HEADER.unpack(self._exactly(protocol.ATTACH_HEADER.size))
        return kind, self._exactly(size)

    def read_until(self, kind: int) -> bytes:
        while True:
            got, payload = self.next()
            if got == kind:
                return payload

    def _exactly(self, size: int) -> bytes:
        return protocol.read_exactly(self.socket.recv, size)


class Driver:
    """The attending process, with pipes or a terminal of its own."""

    def __init__(self, folder: Path, *, ranks: int = 1, tty: bool = False, mode: str = "") -> None:
        self.folder = folder
        self.run = Run(
            id="r1", name="digits", owner="me", project="default",
            spec=JobSpec(command=("x",), workers=ranks), state=RunState.STARTING,
        )  # fmt: skip
        self.set()
        argv = [sys.executable, "-c", DRIVER, str(folder), mode]
        env = {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1"}
        self.master = -1
        if tty:
            self.master, slave = pty.openpty()
            self.slave = slave
            self.before = termios.tcgetattr(slave)

            self.process = subprocess.Popen(
                argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
            )
        else:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        until((folder / "socket").exists, "it never listened")
        self.path = (folder / "socket").read_text()

    def set(self, **fields: Any) -> None:
        """What the control plane says of the run."""
        self.run = msgspec.structs.replace(self.run, **fields)
        part = self.folder / "run.part"
        part.write_bytes(msgspec.json.encode(self.run))
        part.rename(self.folder / "run.json")

    def finish(self, stdin: bytes | None = None) -> tuple[bytes, bytes]:
        """The run is over; what the process wrote."""
        self.set(state="succeeded", exit_code=0)
        return self.left(stdin)

    def left(self, stdin: bytes | None = None) -> tuple[bytes, bytes]:
        if self.master < 0:
            return self.process.communicate(stdin, timeout=DEADLINE)
        seen = self.see("", end=True)
        self.process.wait(DEADLINE)
        return seen, b""

    @property
    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "outcome").read_text())
        return found

    def see(self, text: str, *, end: bool = False) -> bytes:
        """What the terminal shows up to ``text``, or until the process has ended."""
        seen, deadline = b"", time.monotonic() + DEADLINE
        while text.encode() not in seen or end:
            assert time.monotonic() < deadline, f"never saw {text!r}: {seen!r}"
            if select.select([self.master], [], [], 0.02)[0]:
                seen += os.read(self.master, 65536)
            elif end and self.process.poll() is not None:
                break
        return seen

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def make(**options: Any) -> Driver:
        made.append(Driver(tmp_path, **options))
        return made[-1]

    yield make
    while Agent.made:
        Agent.made.pop().socket.close()
    for driver in made:
        with contextlib.suppress(ProcessLookupError):
            driver.process.kill()
        driver.process.wait()
        for stream in (driver.process.stdin, driver.process.stdout, driver.process.stderr):
            if stream:
                stream.close()
        if driver.master >= 0:
            os.close(driver.master)
            os.close(driver.slave)


def test_output_is_byte_exact_and_streams_stay_apart(drive: Callable[..., Driver]) -> None:
    driver = drive()
    agent = Agent(driver.path)
    odd = bytes(range(256)) * 300
    agent.out(odd)
    agent.out(b"half a line", protocol.STDERR)
    agent.end()
    assert driver.finish() == (odd, b"half a line")
    assert driver.outcome == {
        "attached": True, "detached": False, "status": None, "interrupted": False,
    }  # fmt: skip


def test_with_json_stdout_is_left_for_the_document(drive: Callable[..., Driver]) -> None:
    driver = drive(mode="json")
    agent = Agent(driver.path)
    agent.out(b"hello\n")
    agent.end()
    assert driver.finish() == (b"", b"hello\n")


def test_lines_of_several_ranks_are_whole_and_carry_their_rank(
    drive: Callable[..., Driver],
) -> None:
    driver = drive(ranks=2)
    first, second = (Agent(driver.path, rank, 2) for rank in (0, 1))
    first.out(b"hel")
    second.out(b"other\nend")
    first.out(b"lo\n")
    for agent in (first, second):
        agent.end()
    out, _ = driver.finish()
    assert sorted(out.splitlines()) == [b"[0] hello", b"[1] end", b"[1] other"]


def test_stdin_goes_to_rank_0_alone_and_its_end_too(drive: Callable[..., Driver]) -> None:
    driver = drive(ranks=2)
    first, second = (Agent(driver.path, rank, 2) for rank in (0, 1))
    assert (first.start["stdin"], second.start["stdin"]) == (True, False)
    assert driver.process.stdin
    driver.process.stdin.write(b"question\n")
    driver.process.stdin.close()
    driver.process.stdin = None
    assert first.next() == (protocol.ATTACH_IN, b"question\n")
    assert first.next() == (protocol.ATTACH_IN, b"")
    for agent in (first, second):
        agent.end()
    driver.finish()


def test_the_environment_arrives_as_it_is(
    drive: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environb, b"ODD", b"caf\xc3\xa9 \xff")
    driver = drive()
    agent = Agent(driver.path)
    assert os.fsencode(agent.start["env"]["ODD"]) == b"caf\xc3\xa9 \xff"
    assert agent.start["tty"] is None
    agent.end()
    driver.finish()


def test_ctrl_c_is_sigint_for_the_script_and_twice_stops_the_run(
    drive: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = drive()
    agent = Agent(driver.path)
    agent.out(b"ready\n")
    assert driver.process.stdout and driver.process.stdout.readline() == b"ready\n"
    driver.process.send_signal(signal.SIGINT)
    assert json.loads(agent.read_until(protocol.ATTACH_SIGNAL)) == {"signal": signal.SIGINT}
    assert not (tmp_path / "stopped").exists()
    driver.process.send_signal(signal.SIGINT)
    until((tmp_path / "stopped").exists, "the run was never stopped")
    agent.end()
    driver.set(state="stopped")
    driver.left()
    assert driver.outcome["status"] == 130


def test_sigterm_stops_the_run_and_waits_for_its_end(
    drive: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = drive()
    agent = Agent(driver.path)
    driver.process.terminate()
    until((tmp_path / "stopped").exists, "the run was never stopped")
    agent.out(b"saving\n")
    agent.end()
    driver.set(state="stopped")
    assert driver.left()[0] == b"saving\n"
    assert driver.outcome["status"] == 143


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGQUIT, 0), (signal.SIGHUP, 128 + signal.SIGHUP)]
)
def test_detaching_tells_the_agent_and_leaves_the_run(
    drive: Callable[..., Driver], tmp_path: Path, number: int, status: int
) -> None:
    driver = drive()
    agent = Agent(driver.path)
    driver.process.send_signal(number)
    agent.read_until(protocol.ATTACH_DETACH)
    driver.left()
    assert driver.outcome["detached"] and driver.outcome["status"] == status
    assert not (tmp_path / "stopped").exists()


def test_a_reader_that_goes_away_leaves_the_run(drive: Callable[..., Driver]) -> None:
    driver = drive()
    agent = Agent(driver.path)
    assert driver.process.stdout
    driver.process.stdout.close()
    driver.process.stdout = None
    agent.out(b"nobody reads this\n")
    agent.read_until(protocol.ATTACH_DETACH)
    assert b"wherry logs -f r1" in driver.left()[1]
    assert driver.outcome["status"] == 141


def test_a_run_that_ends_without_an_agent_is_not_waited_for(
    drive: Callable[..., Driver],
) -> None:
    driver = drive()
    driver.set(state="failed")
    driver.left()
    assert driver.outcome["attached"] is False


def test_what_is_waited_for_is_said_on_stderr(drive: Callable[..., Driver]) -> None:
    driver = drive()
    driver.set(state="queued", reason="2 of 4 cores are free")
    assert driver.process.stderr
    assert driver.process.stderr.readline() == b"digits is queued: 2 of 4 cores are free\n"
    agent = Agent(driver.path)
    agent.out(b"go\n")
    agent.end()
    assert driver.finish()[0] == b"go\n"


def test_a_new_attempt_attaches_again(drive: Callable[..., Driver]) -> None:
    driver = drive()
    Agent(driver.path).socket.close()  # the agent died
    agent = Agent(driver.path, attempt=2)
    agent.out(b"again\n")
    agent.end()
    out, err = driver.finish()
    assert (out, err) == (b"again\n", b"digits: attempt 2\n")


def test_on_a_terminal_every_key_reaches_the_script_and_it_is_restored(
    drive: Callable[..., Driver],
) -> None:
    driver = drive(tty=True)
    termios.tcsetwinsize(driver.slave, (33, 77))
    agent = Agent(driver.path)
    assert agent.start["tty"] == {"rows": 33, "cols": 77}
    agent.out(b"(Pdb) ")
    driver.see("(Pdb) ")
    driver.press(b"n\t\x04\x1b[A")
    assert agent.next() == (protocol.ATTACH_IN, b"n\t\x04\x1b[A")
    termios.tcsetwinsize(driver.slave, (10, 20))
    driver.process.send_signal(signal.SIGWINCH)
    assert json.loads(agent.read_until(protocol.ATTACH_RESIZE)) == {"rows": 10, "cols": 20}
    agent.end()
    driver.finish()
    assert termios.tcgetattr(driver.slave) == driver.before


def test_ctrl_c_in_a_terminal_is_a_key_for_the_script_and_twice_stops_the_run(
    drive: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = drive(tty=True)
    agent = Agent(driver.path)
    agent.out(b"ready")
    driver.see("ready")
    driver.press(b"\x03")
    assert agent.next() == (protocol.ATTACH_IN, b"\x03")
    assert b"detaches\r\n" in driver.see("detaches\r\n")
    assert not (tmp_path / "stopped").exists()
    driver.press(b"\x03")
    until((tmp_path / "stopped").exists, "the run was never stopped")
    agent.end()
    driver.set(state="stopped")
    driver.left()
    assert driver.outcome["status"] == 130
    assert termios.tcgetattr(driver.slave) == driver.before


def test_even_a_defect_leaves_the_terminal_as_it_was(drive: Callable[..., Driver]) -> None:
    driver = drive(tty=True)
    agent = Agent(driver.path)
    agent.out(b"ready")
    driver.see("ready")
    assert termios.tcgetattr(driver.slave) != driver.before
    agent.socket.sendall(protocol.attach_frame(protocol.ATTACH_HELLO, b"no JSON"))
    assert b"JSONDecodeError" in driver.left()[0]
    assert termios.tcgetattr(driver.slave) == driver.before


def test_ctrl_z_pauses_the_script_and_fg_goes_on(drive: Callable[..., Driver]) -> None:
    driver = drive(tty=True)
    agent = Agent(driver.path)
    agent.out(b"ready")
    driver.see("ready")
    driver.press(b"\x1a")
    assert json.loads(agent.read_until(protocol.ATTACH_SIGNAL)) == {"signal": signal.SIGSTOP}
    os.waitid(os.P_PID, driver.process.pid, os.WSTOPPED)
    assert termios.tcgetattr(driver.slave) == driver.before
    driver.process.send_signal(signal.SIGCONT)
    assert json.loads(agent.read_until(protocol.ATTACH_SIGNAL)) == {"signal": signal.SIGCONT}
    agent.read_until(protocol.ATTACH_RESIZE)
    driver.press(b"x")
    assert agent.next() == (protocol.ATTACH_IN, b"x")
    agent.end()
    driver.finish()


def test_ctrl_backslash_in_a_terminal_detaches_and_restores_it(
    drive: Callable[..., Driver],
) -> None:
    driver = drive(tty=True)
    agent = Agent(driver.path)
    agent.out(b"ready")
    driver.see("ready")
    driver.press(b"\x1c")
    agent.read_until(protocol.ATTACH_DETACH)
    seen, _ = driver.left()
    assert b"the run goes on: wherry logs -f r1" in seen
    assert driver.outcome["detached"]
    assert termios.tcgetattr(driver.slave) == driver.before


def test_the_socket_is_private_short_and_removed(tmp_path: Path) -> None:
    with Listener() as listener:
        assert os.stat(listener.folder).st_mode & 0o777 == 0o700
        assert len(os.fsencode(listener.path)) < 104
    assert not os.path.exists(listener.folder)
