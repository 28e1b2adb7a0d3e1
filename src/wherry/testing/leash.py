"""
Holds programs on a leash: a test knows how many were started, tells them what to do, and sees when
the last of them is gone.

Used by ``BackendContract``. A program that was made by :func:`program` connects to the test and
keeps the connection open; whatever it forks inherits it. So the connection ends exactly when
nothing of the program is left, on any machine that can reach this one, without looking for pids.
"""

from __future__ import annotations

import contextlib
import socket
import textwrap
import time
from types import TracebackType
from typing import Self

_PRELUDE = """
import os, signal, socket, subprocess, sys, time
line = socket.create_connection(({host!r}, {port}))
line.set_inheritable(True)
line.sendall(os.environ.get("WHERRY_RANK", "?").encode() + b"\\n")

def told():
    return line.recv(1)  # b"" when the test is over

def fork(*, daemon=False, deaf=False):
    pid = os.fork()
    if pid == 0:
        if daemon:
            os.setsid()
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)
    return pid
"""


class Held:
    """One program on the leash."""

    def __init__(self, line: socket.socket, rank: str) -> None:
        self._line = line
        self.rank = rank

    def tell(self) -> None:
        """Let ``told()`` in the program return."""
        self._line.sendall(b".")

    def hear(self, timeout: float = 20.0) -> bytes:
        """One byte that the program sent; b"" where it is gone."""
        self._line.settimeout(timeout)
        return self._line.recv(1)

    def gone(self, timeout: float = 15.0) -> bool:
        """Whether nothing of the program is left, or is within ``timeout`` seconds."""
        try:
            return self.hear(timeout) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def close(self) -> None:
        """Let go. A program that listens ends by itself."""
        self._line.close()


class Leash:
    """Waits for programs on ``host``; ``with`` lets all go at the end."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._server = socket.create_server((host, 0), backlog=64)
        self.host, self.port = self._server.getsockname()[:2]
        self.held: list[Held] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for held in self.held:
            held.close()
        self._server.close()

    def program(self, body: str) -> tuple[str, ...]:
        """A command that runs ``body`` on this leash. It may use ``told()`` and ``fork()``."""
        text = _PRELUDE.format(host=self.host, port=self.port) + textwrap.dedent(body)
        return ("python", "-c", text)

    def catch(self, timeout: float = 20.0) -> Held:
        """The next program to start. :raises TimeoutError: where none does."""
        self._server.settimeout(max(0.001, timeout))
        line, _ = self._server.accept()
        line.settimeout(timeout)
        said = b""
        # Byte by byte: there is nothing behind the newline until the end.
        while not said.endswith(b"\n") and (more := line.recv(1)):
            said += more
        held = Held(line, said.decode().strip())
        self.held.append(held)
        return held

    def catch_all(self, count: int, timeout: float = 20.0) -> list[Held]:
        """The next ``count`` programs, by rank."""
        deadline = time.monotonic() + timeout
        caught = [self.catch(deadline - time.monotonic()) for _ in range(count)]
        return sorted(caught, key=lambda held: held.rank)

    def started(self) -> int:
        """How many programs have ever started."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.catch(0.001)
        return len(self.held)
