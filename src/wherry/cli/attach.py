"""
The terminal's end of the attach protocol (``agent.protocol``): the socket that agents connect to,
and one connected agent.

Called by ``foreground`` and, for the connected agent, ``beside``. Nothing here blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, Self

from wherry.agent import protocol
from wherry.errors import Unavailable

_CHUNK = 1 << 18
_LONGEST_PATH = 100  # bytes of a Unix socket's path: macOS has room for 104


class Listener:
    """A Unix socket in a fresh folder that only this person may enter. A context manager."""

    def __init__(self) -> None:
        self.folder = self.path = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        for base in (os.environ.get("TMPDIR") or "/tmp", "/tmp"):
            folder = os.path.join(os.path.abspath(base), f"wherry-{os.urandom(6).hex()}")
            if len(os.fsencode(folder)) + 2 > _LONGEST_PATH:
                continue
            with contextlib.suppress(OSError):
                os.mkdir(folder, 0o700)
                self.folder, self.path = folder, f"{folder}/a"
                break
        if not self.path:
            raise Unavailable("no folder for a socket", hint="set TMPDIR to a folder to write in")
        self.socket.bind(self.path)
        self.socket.listen(128)
        self.socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for remove, path in ((os.unlink, self.path), (os.rmdir, self.folder)):
            with contextlib.suppress(OSError):
                remove(path)

    def accept(self) -> Peer | None:
        """The next agent that has connected, if one has."""
        try:
            connection, _ = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        return Peer(connection)


class Peer:
    """One agent. ``rank`` is -1 until it has said hello."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.rank = -1
        self.attempt = 0
        self.tty = False  #: whether its program has our terminal
        self.ended: dict[str, Any] | None = None
        self._inbox = bytearray()
        self._outbox = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes that the agent has not taken yet."""
        return len(self._outbox)

    def receive(self) -> bool:
        """Take what has come. False where the agent is gone."""
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._inbox += data
        return bool(data)

    def frames(self) -> Iterator[tuple[int, memoryview]]:
        """``(kind, payload)`` of each whole frame. A payload is valid until the next one."""
        at, header = 0, protocol.ATTACH_HEADER
        whole = bytes(self._inbox)
        view = memoryview(whole)
        while len(view) - at >= header.size:
            length, kind = header.unpack_from(view, at)
            end = at + header.size + length
            if end > len(view):
                break
            yield kind, view[at + header.size : end]
            at = end
        del self._inbox[:at]

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Queue a frame and send what the agent takes now. A dead agent: nothing."""
        self.put(protocol.attach_frame(kind, payload))

    def put(self, frame: bytes) -> None:
        """The same for a whole frame."""
        self._outbox += frame
        self.flush()

    def send_json(self, kind: int, data: Any) -> None:
        """The same for data. What the environment holds beside UTF-8 arrives as it was."""
        self.send(kind, json.dumps(data).encode())

    def flush(self) -> None:
        """Send what the agent takes now."""
        try:
            while self._outbox:
                del self._outbox[: self.socket.send(self._outbox)]
        except BlockingIOError:
            return
        except OSError:
            self._outbox.clear()

    def close(self) -> None:
        """Again: no error."""
        self.socket.close()
