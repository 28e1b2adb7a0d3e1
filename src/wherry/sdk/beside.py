"""
A program beside a rank's: a socket whose other end is the rank, by way of the control plane.

Called by ``sdk.runs`` (``Run.exec``) and ``cli.exec``. The frames that go through it are described
in ``agent.protocol``, under attaching a terminal. Two streaming requests carry them, each in a
thread of its own, so that whoever holds the socket may use it as any other.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from wherry.agent import protocol
from wherry.core import api
from wherry.errors import InvalidInput, RankUnreachable, WherryError
from wherry.sdk.http import Stream, segment

if TYPE_CHECKING:
    import subprocess

    from wherry.sdk.client import Client

_BLOCK = 1 << 16
_EVER = 10.0**8  # seconds: a program may take its time to read what it is sent


class Line:
    """
    A context manager. ``socket`` is ours to read and write; ``rank`` is who is at its other end.

    Leaving it hangs up, which ends the program there.
    """

    def __init__(self, client: Client, stream: Stream) -> None:
        self.rank = int(stream.headers.get("wherry-rank", "0"))
        self.socket, self._far = socket.socketpair()
        self._client, self._stream = client, stream
        self._channel = stream.headers.get("wherry-channel", "")
        self._hung_up = False
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._receive, self._send)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hung_up = True
        for end in (self.socket, self._far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2.0)
        self.socket.close()
        self._far.close()

    def cut_off(self) -> RankUnreachable:
        """The error for a line that ended before the program did."""
        return RankUnreachable(
            f"rank {self.rank} hung up: its agent, or the control plane, went away",
            hint="wherry ps says what runs",
        )

    def _receive(self) -> None:
        with contextlib.suppress(WherryError, OSError), self._stream as pieces:
            for piece in pieces:
                self._far.sendall(piece)
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_WR)

    def _send(self) -> None:
        path = f"/api/v1/channels/{segment(self._channel)}"
        with contextlib.suppress(WherryError, OSError):
            self._client.http.call(
                "POST", path, body=lambda: iter(self._next, b""), again=False, timeout=_EVER
            )

    def _next(self) -> bytes:
        try:
            return self._far.recv(_BLOCK)
        except OSError:
            return b""


def dial(client: Client, ref: str, *, rank: int | None, attempt: int | None = None) -> Line:
    """
    A line to a rank; START is the first that has to be sent.

    :param rank: None: the one that is held, else 0. :raises NotRunning: :raises NotFound:
    :raises RankUnreachable: where its agent does not come.
    """
    body = api.encode(api.Exec(rank=rank, attempt=attempt))
    path = f"/api/v1/runs/{segment(ref)}/exec"
    return Line(client, client.http.open(path, body=body))


def start(command: Sequence[str], *, tty: dict[str, int] | None, stdin: bool, term: str) -> bytes:
    """The frame that begins it. ``term``: the kind of terminal that the program is to expect."""
    env = {"TERM": term} if tty and term else {}
    said = {"command": list(command), "env": env, "tty": tty, "stdin": stdin}
    return protocol.attach_frame(protocol.ATTACH_START, json.dumps(said).encode())


def status(ended: dict[str, Any]) -> int:
    """The exit status of what ended so; 128 + n where signal n killed it."""
    code, number = ended.get("exit_code"), ended.get("signal")
    return int(code) if code is not None else 128 + int(number or 0)


def run(
    client: Client,
    ref: str,
    command: Sequence[str],
    *,
    rank: int | None,
    input: bytes | None,
    timeout: float | None,
) -> subprocess.CompletedProcess[bytes]:
    """
    Run it beside the rank's program and wait for its end.

    :param timeout: seconds; then ``subprocess.TimeoutExpired`` is raised, and it is ended.
    """
    import select
    import subprocess
    import time

    if isinstance(command, str) or not command:
        raise InvalidInput(f"{command!r} is not a list of words", hint='run.exec(["ls", "-l"])')
    deadline = None if timeout is None else time.monotonic() + timeout
    out: dict[int, list[bytes]] = {protocol.STDOUT: [], protocol.STDERR: []}
    with dial(client, ref, rank=rank) as line:

        def read(size: int) -> bytes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([line.socket], [], [], left)[0]:
                raise subprocess.TimeoutExpired(list(command), timeout or 0.0)
            return line.socket.recv(size)

        threading.Thread(target=_feed, args=(line.socket, command, input), daemon=True).start()
        kind, payload = 0, b""
        while kind != protocol.ATTACH_ENDED:
            try:
                kind, payload = _frame(read)
            except (EOFError, OSError):
                raise line.cut_off() from None
            if kind == protocol.ATTACH_OUT:
                out[payload[0]].append(payload[1:])
    ended = json.loads(payload)
    if ended.get("message"):
        out[protocol.STDERR].append(f"{ended['message']}\n".encode())
    stdout, stderr = (b"".join(out[stream]) for stream in (protocol.STDOUT, protocol.STDERR))
    return subprocess.CompletedProcess(list(command), status(ended), stdout, stderr)


def _feed(to: socket.socket, command: Sequence[str], input: bytes | None) -> None:
    with contextlib.suppress(OSError):
        to.sendall(start(command, tty=None, stdin=input is not None, term=""))
        for at in range(0, len(input or b""), _BLOCK):
            to.sendall(protocol.attach_frame(protocol.ATTACH_IN, (input or b"")[at : at + _BLOCK]))
        to.sendall(protocol.attach_frame(protocol.ATTACH_IN))


def _frame(read: Callable[[int], bytes]) -> tuple[int, bytes]:
    size, kind = protocol.ATTACH_HEADER.unpack(
        protocol.read_exactly(read, protocol.ATTACH_HEADER.size)
    )
    return kind, protocol.read_exactly(read, size)
