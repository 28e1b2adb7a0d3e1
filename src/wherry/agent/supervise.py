"""
Pass the program's bytes on, end it when it must end, and leave nothing of it behind.

Called by ``agent.main`` with what ``agent.program`` has started. When the program has ended, or
must end, everything that descends from it goes too, also what made itself a daemon.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import time
from collections.abc import Callable

from wherry.agent import platform, protocol
from wherry.agent.attach import Terminal, TerminalGone
from wherry.agent.capture import Output
from wherry.agent.program import Program, resize
from wherry.agent.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

_BLOCK = 2**20  #: bytes of one read
_STDIN = 2**24  #: bytes for the program's stdin that may wait
_LINGER = 0.5  #: seconds that descendants may outlive the program on their own
_LOOK = 0.05  #: seconds between two looks at them


class Ended:
    """How it went: the wait status, why it was told to end, and what was left behind."""

    def __init__(self, status: int, why: str, left: list[str]) -> None:
        self.code = os.waitstatus_to_exitcode(status)  #: negative: the signal
        #: "", "stopped", "preempted", "round", "timeout", "oom", "replaced", "gone", "over"
        self.why = why
        self.left = left  #: "PID (NAME)" of processes that the program left behind


class Supervisor:
    """Runs the loop of a started program. ``request_end`` may be called from any thread."""

    def __init__(
        self,
        program: Program,
        capture: Output,
        terminal: Terminal | None,
        wake: Wake,
        *,
        grace: Callable[[], float],
        timeout: float | None,
        warn: Callable[[], None] = lambda: None,
        hangs: bool = False,
    ) -> None:
        """``hangs``: the program ends with its terminal, as below a shell."""
        self._program = program
        self._hangs = hangs
        self._capture = capture
        self._terminal = terminal
        self._wake = wake
        self._grace = grace
        self._warn = warn  # called before the program is asked to end
        self._selector = selectors.DefaultSelector()
        self._stdin = bytearray()
        self._stdin_ends = False
        self._status: int | None = None
        self._why = ""
        self._left: list[str] = []
        self._timeout_at = time.monotonic() + timeout if timeout else None
        self._term_at: float | None = None  # when to ask what the program left behind to end
        self._kill_at: float | None = None  # when to kill all that there is

    # --- the loop
    def run(self) -> Ended:
        """Until nothing is left of the program."""
        self._selector.register(self._wake, selectors.EVENT_READ)
        for fd in self._program.streams:
            self._selector.register(fd, selectors.EVENT_READ)
        if self._terminal:
            self._selector.register(self._terminal, selectors.EVENT_READ)
        while not self._over():
            self._watch_what_matters()
            for key, events in self._selector.select(self._patience()):
                self._serve(key.fileobj, events)
            self._mind_the_clock()
        self._drain()
        self._capture.close()
        self._selector.close()
        assert self._status is not None
        return Ended(self._status, self._why, self._left)

    def _serve(self, source: Any, events: int) -> None:
        if source is self._wake:
            self._wake.clear()
        elif isinstance(source, Terminal):
            self._serve_terminal(events)
        else:
            if events & selectors.EVENT_WRITE:
                self._write_stdin()
            if events & selectors.EVENT_READ and source in self._program.streams:
                self._read(source)

    def _over(self) -> bool:
        """Whether the program has ended and nothing is left of it; moves the end along."""
        ended = platform.reap()
        self._status = ended.get(self._program.pid, self._status)
        if self._status is None:
            return False
        left = self._living()
        if not left:
            return True
        if self._term_at is None:
            now = time.monotonic()
            self._term_at = now if self._why else now + _LINGER
            if self._kill_at is None:
                self._kill_at = self._term_at + min(self._grace(), 2.0)
        return False

    def _living(self) -> list[platform.Process]:
        return [] if platform.childless() else platform.descendants(os.getpid())

    def _patience(self) -> float | None:
        times = [t for t in (self._timeout_at, self._kill_at) if t is not None]
        if self._status is not None:
            return _LOOK
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _mind_the_clock(self) -> None:
        now = time.monotonic()
        if self._wake.why and not self._why:
            self._end(self._wake.why)
        if self._timeout_at is not None and now >= self._timeout_at and self._status is None:
            self._timeout_at = None
            self._end("timeout")
        if self._term_at is not None and now >= self._term_at:
            left = self._living()
            if not self._why:
                self._left += [f"{p.pid} ({p.name})" for p in left]
            platform.kill([p.pid for p in left], signal.SIGTERM)
            self._term_at = float("inf")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None if self._kill() else now + 1.0

    def _end(self, why: str) -> None:
        """The program must end: now where it matters, else after its grace."""
        self._why = why
        if why in ("oom", "replaced"):
            self._kill()
            return
        self._kill_at = time.monotonic() + self._grace()
        self._warn()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._program.pid, signal.SIGHUP if self._hangs else signal.SIGTERM)

    def _kill(self) -> bool:
        statuses: dict[int, int] = {}

        def living() -> list[int]:
            statuses.update(platform.reap())
            return [p.pid for p in self._living()]

        gone = platform.kill_until_gone(living)
        self._status = statuses.get(self._program.pid, self._status)
        return gone

    # --- output
    def _read(self, fd: int) -> bool:
        """Take one block; whether there may be more."""
        try:
            block = os.read(fd, _BLOCK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # a pseudo-terminal that nobody has open any more
                raise
            block = b""
        if not block:
            self._close(fd)
            return False
        stream = self._program.streams[fd]
        if self._terminal:
            with self._while_there():
                self._terminal.output(stream, block)
        self._capture.feed(stream, block)
        return True

    def _drain(self) -> None:
        """Take what the ended program has written and nobody has read."""
        for fd in list(self._program.streams):
            while fd in self._program.streams and self._read(fd):
                pass
            self._close(fd)

    def _close(self, fd: int) -> None:
        if self._program.streams.pop(fd, None) is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(fd)
            os.close(fd)
            if fd == self._program.stdin:
                self._program.stdin = None

    # --- input and the terminal
    def _serve_terminal(self, events: int) -> None:
        if self._terminal is None:  # it went away earlier in this round
            return
        with self._while_there():
            if events & selectors.EVENT_WRITE:
                self._terminal.flush()
            if events & selectors.EVENT_READ:
                for kind, payload in self._terminal.receive():
                    self._obey(kind, payload)

    def _obey(self, kind: int, payload: bytes) -> None:
        if kind == protocol.ATTACH_IN:
            self._stdin += payload
            self._stdin_ends = self._stdin_ends or not payload
            self._write_stdin()
        elif kind == protocol.ATTACH_SIGNAL:
            self._signal(int(json.loads(payload)["signal"]))
        elif kind == protocol.ATTACH_RESIZE and self._program.tty and self._program.stdin:
            size = json.loads(payload)
            resize(self._program.stdin, int(size["rows"]), int(size["cols"]))
        elif kind == protocol.ATTACH_DETACH:
            raise TerminalGone("it said DETACH")

    def _signal(self, number: int) -> None:
        group = self._program.pid
        if self._program.tty and self._program.stdin is not None:
            with contextlib.suppress(OSError):
                group = os.tcgetpgrp(self._program.stdin) or group
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)

    def _write_stdin(self) -> None:
        fd = self._program.stdin
        try:
            while self._stdin and fd is not None:
                del self._stdin[: os.write(fd, self._stdin)]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self._stdin.clear()
            self._stdin_ends = True
        if self._stdin_ends and not self._stdin and fd is not None:
            if self._program.tty:
                self._stdin_ends = False
                self._stdin += b"\x04"
                self._write_stdin()
            else:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(fd)
                os.close(fd)
                self._program.stdin = None

    @contextlib.contextmanager
    def _while_there(self) -> Any:
        """A terminal that goes away leaves the program running, with nobody at its stdin."""
        try:
            yield
        except TerminalGone:
            assert self._terminal
            self._watch(self._terminal, 0)
            self._terminal.close()
            self._terminal = None
            self._stdin_ends = True
            self._write_stdin()
            if self._hangs:
                self._wake.end("gone")

    def _watch_what_matters(self) -> None:
        """Read the program only while its terminal keeps up; write only where something waits."""
        slow = self._terminal is not None and self._terminal.slow
        entry = self._program.stdin
        wanted: dict[Any, int] = {}
        for fd in self._program.streams:
            wanted[fd] = 0 if slow else selectors.EVENT_READ
        if entry is not None and self._stdin:
            wanted[entry] = wanted.get(entry, 0) | selectors.EVENT_WRITE
        if self._terminal:
            reading = len(self._stdin) < _STDIN
            writing = self._terminal.unsent
            wanted[self._terminal] = (selectors.EVENT_READ if reading else 0) | (
                selectors.EVENT_WRITE if writing else 0
            )
        for source in (*self._program.streams, entry, self._terminal):
            if source is not None:
                self._watch(source, wanted.get(source, 0))

    def _watch(self, source: Any, events: int) -> None:
        try:
            now = self._selector.get_key(source).events
        except KeyError:
            now = 0
        if events and not now:
            self._selector.register(source, events)
        elif events and events != now:
            self._selector.modify(source, events)
        elif now and not events:
            self._selector.unregister(source)
