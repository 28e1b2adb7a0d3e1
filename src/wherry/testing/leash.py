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

    def __init__(self, line: socket.socket, rank: str, patience: float) -> None:
        self._line = line
        self.rank = rank
        self._patience = patience

    def tell(self) -> None:
        """Let ``told()`` in the program return."""
        self._line.sendall(b".")

    def hear(self, timeout: float | None = None) -> bytes:
        """One byte that the program sent; b"" where it is gone. :raises TimeoutError:"""
        self._line.settimeout(self._patience if timeout is None else timeout)
        return self._line.recv(1)

    def gone(self, timeout: float | None = None) -> bool:
        """Whether nothing of the program is left, now or within ``timeout`` seconds."""
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
    """Waits for programs on ``host``, ``patience`` seconds; ``with`` lets all go at the end."""

    def __init__(self, host: str = "127.0.0.1", *, patience: float = 20.0) -> None:
        self._patience = patience
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

    def catch(self, timeout: float | None = None) -> Held:
        """The next program to start. :raises TimeoutError: where none does."""
        timeout = self._patience if timeout is None else timeout
        self._server.settimeout(timeout)
        line, _ = self._server.accept()
        line.settimeout(self._patience)
        said = b""
        # Byte by byte: there is nothing behind the newline until the end.
        while not said.endswith(b"\n") and (more := line.recv(1)):
            said += more
        held = Held(line, said.decode().strip(), self._patience)
        self.held.append(held)
        return held

    def catch_all(self, count: int) -> list[Held]:
        """The next ``count`` programs, by rank."""
        return sorted((self.catch() for _ in range(count)), key=lambda held: held.rank)

    def started(self) -> int:
        """How many programs have ever started."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.catch(0.001)
        return len(self.held)
