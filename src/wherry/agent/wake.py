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


class Wake:
    """
    Readable once something happened. ``why``: why the program must end, "" while it need not; the
    first reason stays. ``ended`` is set with it.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self.why = ""
        self.ended = threading.Event()

    def catch_signals(self) -> None:
        """SIGTERM and SIGINT end the program; SIGCHLD only wakes. From the main thread alone."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.end("stopped"))
        # Handlers and not SIG_IGN, which the program would inherit.
        for number in (signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def end(self, why: str) -> None:
        """The program must end. From any thread."""
        # Once only: a second signal may come while the handler of the first sets the event.
        if not self.why:
            self.why = why
            self.ended.set()
        self.set()

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
