"""
The person's terminal: raw mode that is always undone, its size, and one line of status.

Called by ``foreground`` and ``beside``. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Self

from wherry.cli.colour import RANKS, is_terminal, paint

STDOUT, STDERR = 1, 2  # the file descriptors; also the streams' numbers in agent.protocol
_LONGEST = 64 * 1024  # a line without an end is shown in pieces of this many bytes


class Terminal:
    """
    Standard input as a terminal, whether or not it is one.

    ``restore`` may be called at any time and again: afterwards the terminal is as it was found.
    """

    def __init__(self, fd: int = 0) -> None:
        self.fd = fd
        self._saved: list[Any] | None = None

    @property
    def raw(self) -> bool:
        """Whether keys arrive one by one, without echo."""
        return self._saved is not None

    def mine(self) -> bool:
        """Whether reading it would not stop us as a background job."""
        try:
            return not os.isatty(self.fd) or os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:
            return False

    def make_raw(self) -> None:
        """Pass every key on. What was typed before is kept. Again: nothing."""
        if self._saved is None:
            self._saved = termios.tcgetattr(self.fd)
            tty.setraw(self.fd, termios.TCSADRAIN)

    def restore(self) -> None:
        """Undo ``make_raw``. Again: nothing."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error, OSError):  # the terminal went away
                termios.tcsetattr(self.fd, termios.TCSADRAIN, saved)

    def size(self) -> dict[str, int]:
        """Rows and columns."""
        try:
            size = os.get_terminal_size(STDOUT)
        except OSError:
            return {"rows": 24, "cols": 80}
        return {"rows": size.lines, "cols": size.columns}


class Signals:
    """
    Signals as something to wait for: readable once one came, or ``wake`` was called.

    A context manager: within it the signals are ours, but for those that were ignored before, as
    nohup asks.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.caught: deque[int] = deque()
        self._numbers = [getattr(signal, name) for name in names]
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._before: dict[int, Any] = {}

    def fileno(self) -> int:
        """For ``select``."""
        return self._near.fileno()

    def wake(self) -> None:
        """Be readable. From any thread."""
        with contextlib.suppress(OSError):  # full: it is awake already
            self._far.send(b"\0")

    def clear(self) -> None:
        """Be readable no more, until the next time."""
        with contextlib.suppress(BlockingIOError):
            self._near.recv(4096)

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, lambda got, _: self.caught.append(got))
            for number in self._numbers
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        self._wakeup = signal.set_wakeup_fd(self._far.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._near.close()
        self._far.close()


def is_tty(fd: int) -> bool:
    """Whether it is a terminal; False where it is closed."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def is_open(fd: int) -> bool:
    """Whether there is such a descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def write_all(fd: int, data: bytes | memoryview) -> None:
    """All of it, also where somebody made the descriptor non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            import select

            select.select([], [fd], [])


class Screen:
    """
    Where the script's output and our own few words go.

    One rank: its bytes as they are. Several: whole lines, ``[rank]`` before each. ``stdout`` is the
    descriptor for the script's standard output (stderr's where stdout is kept for JSON).
    """

    def __init__(self, *, ranks: int, stdout: int, newline: Callable[[], str]) -> None:
        self._fds = {STDOUT: stdout, STDERR: STDERR}
        self._parts: dict[tuple[int, int], bytes] | None = {} if ranks > 1 else None
        self._newline = newline
        self._live = is_terminal(sys.stderr)
        self._status = ""
        self._began = time.monotonic()

    def out(self, rank: int, stream: int, data: memoryview) -> None:
        """Show what a rank wrote. :raises BrokenPipeError: where nobody reads it any more."""
        self.status("")
        fd = self._fds.get(stream, STDERR)
        if self._parts is None:
            write_all(fd, data)
            return
        lines = (self._parts.pop((rank, stream), b"") + data).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LONGEST:
            lines.append(rest)
            rest = b""
        if rest:
            self._parts[rank, stream] = rest
        self._lines(rank, fd, lines)

    def _lines(self, rank: int, fd: int, lines: list[bytes]) -> None:
        colour = RANKS[rank % len(RANKS)]
        stream = sys.stdout if fd == STDOUT else sys.stderr
        prefix = (paint(f"[{rank}]", colour, stream) + " ").encode()
        if lines:
            write_all(fd, b"".join(prefix + line + b"\n" for line in lines))

    def flush(self, rank: int) -> None:
        """Show the last line of a rank although its end is missing."""
        for stream in (STDOUT, STDERR):
            rest = (self._parts or {}).pop((rank, stream), b"")
            if rest:
                self._lines(rank, self._fds[stream], [rest])

    def say(self, text: str) -> None:
        """A line of ours on stderr."""
        self.status("")
        self._stderr(paint(text, "dim", sys.stderr) + self._newline())

    def status(self, text: str) -> None:
        """
        What is being waited for: one line that is overwritten on a terminal, a line for each
        change elsewhere. ``""`` removes it.
        """
        if text == self._status and not (text and self._live):
            return
        if self._live:
            gone = f" ({time.monotonic() - self._began:.0f} s)" if text else ""
            columns = Terminal().size()["cols"] - 1
            shown = (text + gone)[:columns]
            self._stderr("\r\x1b[K" + paint(shown, "dim", sys.stderr))
        elif text:
            self._stderr(text + self._newline())
        self._status = text

    def _stderr(self, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            write_all(STDERR, text.encode(errors="replace"))
