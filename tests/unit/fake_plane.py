"""
A control plane made of scripted answers, for tests of the SDK: real sockets, imagined content.

Each path has a list of answers that are given in turn, the last one for ever.
"""

from __future__ import annotations

import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from wherry.sdk.client import Client
from wherry.sdk.http import Endpoint, Http


@dataclass
class Answer:
    """What to say. ``cut``: hang up after the pieces instead of ending the body."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    cut: bool = False


@dataclass
class Seen:
    """A request that arrived."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


def json(value: Any, status: int = 200) -> Answer:
    """An answer that holds a value."""
    return Answer(msgspec.json.encode(value), status)


def lines(*values: Any, cut: bool = False) -> Answer:
    """An answer of NDJSON; None is a blank line."""
    pieces = [b"\n" if v is None else msgspec.json.encode(v) + b"\n" for v in values]
    return Answer(pieces, cut=cut)


@dataclass
class FakePlane:
    """Answers by "METHOD path"; ``seen`` has what came."""

    answers: dict[str, list[Answer | Callable[[Seen], Answer]]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    server: Any = None

    def on(self, route: str, *answers: Answer | Callable[[Seen], Answer]) -> None:
        """Answer ``route`` so."""
        self.answers[route] = list(answers)

    def counts(self) -> dict[str, int]:
        """How often each route was called."""
        found: dict[str, int] = defaultdict(int)
        for seen in self.seen:
            found[f"{seen.method} {seen.path}"] += 1
        return dict(found)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def http(self, **options: Any) -> Http:
        return Http(Endpoint(self.url, "secret"), **options)

    def client(self, **options: Any) -> Client:
        return Client(self.http(**options))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    plane: FakePlane

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def get_request(self) -> Any:
        self.plane.connections += 1
        return super().get_request()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def do_GET(self) -> None:
        plane = self.server.plane
        path, _, query = self.path.partition("?")
        headers = {k.lower(): v for k, v in self.headers.items()}
        seen = Seen(self.command, path, query, headers, self._body())
        plane.seen.append(seen)
        script = plane.answers.get(f"{self.command} {path}")
        if script is None:
            answer = json({"error": {"code": "not-found", "message": f"no {path}"}}, 404)
        else:
            step = script.pop(0) if len(script) > 1 else script[0]
            answer = step(seen) if callable(step) else step
        self.send_response(answer.status)
        if isinstance(answer.body, bytes) and not answer.cut:
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = [answer.body] if isinstance(answer.body, bytes) else answer.body
        for piece in pieces:
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
        if answer.cut:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(b"0\r\n\r\n")

    do_POST = do_DELETE = do_GET


@contextmanager
def serving(plane: FakePlane | None = None, port: int = 0) -> Iterator[FakePlane]:
    """The plane on a port of its own, or again on the one it had."""
    plane = plane or FakePlane()
    server = _Server(("127.0.0.1", port), _Handler)
    server.plane = plane
    plane.server = server
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield plane
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RawServer:
    """Sends prepared bytes, whatever is asked; for answers that no good server gives."""

    def __init__(self, *answers: bytes) -> None:
        self.asked: list[bytes] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            with suppress(OSError):
                connection, _ = self._listener.accept()
                with connection:
                    self.asked.append(connection.recv(65536))
                    connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)
