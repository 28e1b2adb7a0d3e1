"""
One place that wakes the agent's main thread and says why.

Used by ``agent.main`` and ``agent.supervise``; set by signal handlers and by the other threads.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable


class Wake:
    """
    Readable once something happened. ``why``: why the program must end, "" while it need not; the
    first reason stays, but that "round", which only calls the ranks of an elastic group together,
    gives way to any other. ``ended`` is set with every other.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self.why = ""
        self.ended = threading.Event()
        self._deaf = False
        self._missed = ""

    def catch_signals(self, told: Callable[[], bool]) -> None:
        """
        SIGTERM and SIGINT end the program; SIGCHLD only wakes. From the main thread alone.

        A SIGTERM of which nobody was ``told`` comes from the machine: it is about to go.
        """
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: self._told("stopped" if told() else "preempted"))
        signal.signal(signal.SIGINT, lambda *_: self._told("stopped"))
        # Handlers and not SIG_IGN, which the program would inherit.
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def deaf(self) -> None:
        """Signals that end the program wait for ``hear``: nobody reaches this machine."""
        self._deaf = True

    def hear(self) -> None:
        """The opposite. Again: no error."""
        self._deaf = False
        if self._missed:
            self.end(self._missed)

    def _told(self, why: str) -> None:
        if self._deaf:
            self._missed = why
        else:
            self.end(why)

    def end(self, why: str) -> None:
        """The program must end. From any thread."""
        # Once only: a second signal may come while the handler of the first sets the event.
        if not self.why or (self.why == "round" and why != "round"):
            self.why = why
            if why != "round":
                self.ended.set()
        self.set()

    def again(self) -> None:
        """The program was ended for a new round; it may begin again."""
        if self.why == "round":
            self.why = ""

    def set(self) -> None:
        """Wake. From any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def clear(self) -> None:
        """Be readable no more, until the next time."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def wait(self) -> None:
        """Until something happened."""
        select.select([self._read], [], [])
        self.clear()

    def fileno(self) -> int:
        """For ``select``."""
        return self._read
