"""
The terminal of a person who waits, at the other end of a Unix socket.

Used by ``agent.main``, which connects before the program starts, and by ``agent.supervise``, which
passes bytes both ways. The frames are described in ``agent.protocol``. A terminal that goes away
leaves the program running; one that is slow slows the program, as a real one does.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket

from wherry.agent import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

_CONNECT, _START = 2.0, 5.0  #: seconds to wait for the connection and for START
_SLOW = 2**20  #: bytes on their way to the terminal above which nothing more is read
_BLOCK = 2**16


class TerminalGone(Exception):
    """There is nobody at the other end."""


def connect(path: str, hello: dict[str, Any]) -> Terminal:
    """The terminal that listens at ``path``. :raises TerminalGone: where none starts us in time."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT)
        connection.connect(path)
        connection.sendall(protocol.attach_frame(protocol.ATTACH_HELLO, json.dumps(hello).encode()))
    except OSError as error:
        connection.close()
        raise TerminalGone(str(error)) from None
    return Terminal(connection)


class Terminal:
    """A connection whose START has come. Not thread-safe but for nobody: one thread uses it."""

    def __init__(self, connection: socket.socket, *, patience: float = _START) -> None:
        """Wait for START. :raises TerminalGone: where it does not come in ``patience`` seconds."""
        self._socket = connection
        self._in = bytearray()
        self._out = bytearray()
        try:
            self._socket.settimeout(patience)
            start = self._wait_for_start()
            self._socket.setblocking(False)
        except (OSError, ValueError, EOFError) as error:
            self._socket.close()
            raise TerminalGone(str(error)) from None
        except TerminalGone:
            self._socket.close()
            raise
        self.start = start  #: all that it said
        self.environment: dict[str, str] = start["env"]
        self.stdin = bool(start.get("stdin"))
        size = start.get("tty")
        self.size: tuple[int, int] | None = (size["rows"], size["cols"]) if size else None

    def fileno(self) -> int:
        """For ``select``; -1 once closed."""
        return self._socket.fileno()

    @property
    def slow(self) -> bool:
        """Whether so much is on its way that the program should wait."""
        return len(self._out) > _SLOW

    @property
    def unsent(self) -> bool:
        """Whether ``flush`` has something to do."""
        return bool(self._out)

    def output(self, stream: int, data: bytes) -> None:
        """Show what the program wrote. :raises TerminalGone:"""
        self.send(protocol.ATTACH_OUT, bytes([stream]) + data)

    def note(self, text: str) -> None:
        """Tell the person something. :raises TerminalGone:"""
        self.send(protocol.ATTACH_NOTE, text.encode())

    def ended(self, outcome: dict[str, Any], patience: float = 5.0) -> None:
        """Say how it ended and close, once all is sent, or nobody has read for ``patience`` s."""
        with contextlib.suppress(TerminalGone):
            self.send(protocol.ATTACH_ENDED, json.dumps(outcome).encode())
            while self._out and select.select([], [self._socket], [], patience)[1]:
                self.flush()
        self.close()

    def send(self, kind: int, payload: bytes) -> None:
        """Queue a frame and send what can be sent now. :raises TerminalGone:"""
        self._out += protocol.attach_frame(kind, payload)
        self.flush()

    def flush(self) -> None:
        """Send what can be sent without waiting. :raises TerminalGone:"""
        try:
            while self._out:
                del self._out[: self._socket.send(memoryview(self._out)[:_SLOW].tobytes())]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            raise TerminalGone(str(error)) from None

    def receive(self) -> list[tuple[int, bytes]]:
        """The whole frames that have come. :raises TerminalGone:"""
        try:
            data = self._socket.recv(_BLOCK)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise TerminalGone(str(error)) from None
        if not data:
            raise TerminalGone("the terminal was closed")
        self._in += data
        frames = []
        head = protocol.ATTACH_HEADER
        while len(self._in) >= head.size:
            size, kind = head.unpack_from(self._in)
            if len(self._in) < head.size + size:
                break
            frames.append((kind, bytes(self._in[head.size : head.size + size])))
            del self._in[: head.size + size]
        return frames

    def close(self) -> None:
        """Hang up. Again: no error."""
        self._socket.close()

    def _wait_for_start(self) -> dict[str, Any]:
        """Read START and not a byte more: keys may follow at once, for whoever selects on us."""
        while True:
            head = protocol.read_exactly(self._socket.recv, protocol.ATTACH_HEADER.size)
            size, kind = protocol.ATTACH_HEADER.unpack(head)
            payload = protocol.read_exactly(self._socket.recv, size)
            if kind == protocol.ATTACH_START:
                found: dict[str, Any] = json.loads(payload)
                return found
            if kind == protocol.ATTACH_DETACH:
                raise TerminalGone("the terminal said DETACH")
