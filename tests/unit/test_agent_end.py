"""How the agent ends a program, and that nothing of it stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent_rank import Rank, interpreters, until
from wherry.agent import platform, protocol
from wherry.testing.sink import AgentSink

STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            break
        break
print('ready', os.getpid(), flush=True)
while True: time.sleep(1)
"""

DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for fd in (0, 1, 2): os.close(fd)
    open('daemon', 'w').write(str(os.getpid()))
    time.sleep(600)
while not os.path.exists('daemon'): time.sleep(0.01)
"""


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


@pytest.fixture(params=interpreters())
def every(request: pytest.FixtureRequest, tmp_path: Path, sink: AgentSink) -> Iterator[Rank]:
    rank = Rank(tmp_path, sink, python=request.param, grace=0.3)
    yield rank
    rank.kill()


@pytest.fixture
def rank(tmp_path: Path, sink: AgentSink) -> Iterator[Rank]:
    made = Rank(tmp_path, sink, grace=0.3)
    yield made
    made.kill()


def started(rank: Rank) -> int:
    """The program's pid, once the sink knows it."""
    rank.sink.wait(lambda: bool(rank.sink.payloads(protocol.STARTED, rank.attempt)))
    return int(rank.sink.payloads(protocol.STARTED, rank.attempt)[0]["pid"])


def test_a_script_that_forks_and_ignores_sigterm_leaves_nothing(every: Rank) -> None:
    every.start(STUBBORN)
    every.sink.wait(lambda: every.log().count(b"ready") == 7)
    every.stop()
    assert every.wait() == 0
    end = every.sink.wait_exit(every.attempt)
    assert (end["state"], end["cause"]) == ("stopped", "stopped")
    assert every.living() == []


@pytest.mark.slow
def test_a_daemon_of_a_program_that_ended_is_ended_and_named(every: Rank) -> None:
    end = every.run(DAEMON)
    daemon = (every.work / "daemon").read_text()
    assert end["state"] == "succeeded"
    assert every.living() == []
    assert f"{daemon} (" in every.log(protocol.SYSTEM).decode()


def test_a_daemon_is_killed_when_the_run_is_stopped(rank: Rank) -> None:
    rank.start(DAEMON + "time.sleep(600)")
    until(lambda: (rank.work / "daemon").exists())
    rank.stop()
    assert rank.wait() == 0
    assert rank.living() == []


def test_a_program_may_end_in_peace(rank: Rank) -> None:
    rank.config["grace"] = 30
    rank.start(
        "import signal, sys, time\n"
        "def bye(*_): print('saved', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    rank.sink.wait(lambda: rank.log() == b"ready\n")
    rank.stop()
    assert rank.wait() == 0
    assert rank.log() == b"ready\nsaved\n"
    assert rank.sink.wait_exit(rank.attempt)["state"] == "stopped"


def test_the_back_ends_grace_goes_before_the_configs(rank: Rank) -> None:
    rank.config["grace"] = 600
    (rank.folder / "stop").write_text("0.1")
    rank.start(STUBBORN)
    rank.sink.wait(lambda: b"ready" in rank.log())
    rank.stop()
    assert rank.wait() == 0


def test_a_stop_in_the_answer_to_a_report_stops_the_program(rank: Rank) -> None:
    rank.start("import time; time.sleep(600)")
    started(rank)
    rank.sink.stop(rank.attempt)
    assert rank.wait() == 0
    assert rank.sink.wait_exit(rank.attempt)["cause"] == "stopped"


def test_a_stop_before_the_start_starts_nothing(tmp_path: Path, sink: AgentSink) -> None:
    rank = Rank(tmp_path, sink, world_size=2).start("open('ran', 'w')")
    sink.wait(lambda: bool(sink.hellos))
    rank.stop()
    assert rank.wait() == 0
    assert sink.wait_exit(rank.attempt)["state"] == "stopped"
    assert not (rank.work / "ran").exists()


def test_the_timeout_ends_the_program_with_its_own_cause(rank: Rank) -> None:
    rank.config["spec"]["timeout"] = 0.5
    end = rank.run("import time; time.sleep(600)")
    assert (end["state"], end["cause"]) == ("failed", "timeout")
    assert "0.5 s" in end["message"]


def test_the_program_dies_with_its_agent(every: Rank) -> None:
    every.start("import time; time.sleep(600)")
    pid = started(every)
    child = json.loads((every.folder / "child.json").read_text())
    assert child == {"pid": pid, "started": platform.pid_started(pid)}
    assert every.process is not None
    os.kill(every.process.pid, signal.SIGKILL)
    every.process.wait()
    until(lambda: platform.pid_started(pid) is None, "the program is gone")
    assert not (every.folder / "lock").read_text().endswith("left")


# --- an attached terminal


class Person:
    """The terminal's end of the attach protocol."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "s")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.socket: Any = None
        self._inbox = b""
        self.output = b""
        self.ended: dict[str, Any] | None = None

    def accept(self, **start: Any) -> None:
        self._listener.settimeout(20)
        self.socket = self._listener.accept()[0]
        self.socket.settimeout(20)
        words = {"env": {"PATH": os.environ["PATH"], "MINE": "1"}, "tty": None, "stdin": True}
        self.send(protocol.ATTACH_START, json.dumps({**words, **start}).encode())

    def send(self, kind: int, payload: bytes = b"") -> None:
        self.socket.sendall(protocol.attach_frame(kind, payload))

    def until(self, text: bytes) -> None:
        while text not in self.output:
            assert self._receive(), self.output

    def rest(self) -> None:
        while self._receive():
            pass

    def close(self) -> None:
        self._listener.close()
        if self.socket is not None:
            self.socket.close()

    def _receive(self) -> bool:
        data = self.socket.recv(65536)
        self._inbox += data
        head = protocol.ATTACH_HEADER
        while len(self._inbox) >= head.size:
            size, kind = head.unpack_from(self._inbox)
            if len(self._inbox) < head.size + size:
                break
            payload = self._inbox[head.size : head.size + size]
            self._inbox = self._inbox[head.size + size :]
            if kind == protocol.ATTACH_OUT:
                self.output += payload[1:]
            elif kind == protocol.ATTACH_ENDED:
                self.ended = json.loads(payload)
        return bool(data)


@pytest.fixture
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    # A socket's path must be short.
    made = Person(tmp_path_factory.mktemp("p"))
    yield made
    made.close()


@pytest.fixture
def attached(rank: Rank, person: Person) -> Rank:
    rank.config["attach"] = person.path
    return rank


def test_a_prompt_and_its_answer_pass_through_pipes(attached: Rank, person: Person) -> None:
    attached.start("import os; print(input('name? ') + os.environ['MINE'])")
    person.accept()
    person.until(b"name? ")
    person.send(protocol.ATTACH_IN, b"wherry\n")
    person.rest()
    attached.wait()
    assert person.output == b"name? wherry1\n"
    assert person.ended == {"state": "succeeded", "exit_code": 0, "signal": None}
    assert attached.log() == b"name? wherry1\n"


def test_the_end_of_stdin_passes_through(attached: Rank, person: Person) -> None:
    attached.start("import sys; print(len(sys.stdin.buffer.read()))")
    person.accept()
    for _ in range(32):
        person.send(protocol.ATTACH_IN, b"x" * 65536)
    person.send(protocol.ATTACH_IN)
    person.rest()
    assert attached.wait() == 0
    assert person.output == b"2097152\n"


@pytest.mark.parametrize("python", interpreters())
def test_a_breakpoint_works_on_a_terminal(
    python: str, tmp_path: Path, sink: AgentSink, person: Person
) -> None:
    rank = Rank(tmp_path, sink, python=python, attach=person.path)
    rank.start("import os\nx = 20\nbreakpoint()\nprint('x is', x, os.get_terminal_size())\n")
    person.accept(tty={"rows": 40, "cols": 120})
    person.until(b"(Pdb) ")
    person.send(protocol.ATTACH_IN, b"x = 21 * 2\n")
    person.send(protocol.ATTACH_IN, b"c\n")
    person.rest()
    assert rank.wait() == 0
    assert b"x is 42 os.terminal_size(columns=120, lines=40)\r\n" in person.output
    assert b"x is 42 os.terminal_size(columns=120, lines=40)\n" in rank.log()


def test_ctrl_c_on_a_terminal_interrupts_the_program(attached: Rank, person: Person) -> None:
    attached.start("import time\nprint('ready', flush=True)\ntime.sleep(600)\n")
    person.accept(tty={"rows": 24, "cols": 80})
    person.until(b"ready")
    person.send(protocol.ATTACH_IN, b"\x03")
    person.rest()
    assert attached.wait() == 0
    end = attached.sink.wait_exit(attached.attempt)
    assert (end["state"], end["cause"]) == ("stopped", "stopped")
    assert b"KeyboardInterrupt" in person.output


def test_a_forwarded_signal_reaches_the_program(attached: Rank, person: Person) -> None:
    attached.start(
        "import sys, time\ntry:\n    sys.stdout.write('ready\\n'); time.sleep(600)\n"
        "except KeyboardInterrupt: print('caught')\n"
    )
    person.accept()
    person.until(b"ready")
    person.send(protocol.ATTACH_SIGNAL, b'{"signal": 2}')
    person.rest()
    assert attached.wait() == 0
    assert person.output == b"ready\ncaught\n"
    assert attached.sink.wait_exit(attached.attempt)["state"] == "succeeded"


@pytest.mark.parametrize("word", ["detach", "gone"])
def test_a_terminal_that_leaves_leaves_the_program_running(
    attached: Rank, person: Person, word: str
) -> None:
    attached.start(
        "import os, time\nprint('ready', flush=True)\n"
        "while not os.path.exists('go'): time.sleep(0.01)\nprint('done')\n"
    )
    person.accept()
    person.until(b"ready")
    if word == "detach":
        person.send(protocol.ATTACH_DETACH)
    person.socket.close()
    (attached.work / "go").touch()
    assert attached.wait() == 0
    assert attached.sink.wait_exit(attached.attempt)["state"] == "succeeded"
    assert attached.log() == b"ready\ndone\n"


def test_without_its_terminal_a_foreground_run_does_not_start(rank: Rank, tmp_path: Path) -> None:
    rank.config["attach"] = str(tmp_path / "nobody")
    end = rank.run("open('ran', 'w')")
    assert end["cause"] == "start" and "terminal" in end["message"]
    assert not (rank.work / "ran").exists()
