"""
A control plane that is only the agents' end: it answers ``/agent/v1`` and keeps what it hears.

Used by the tests of the agent and by ``BackendContract``. It can fail in named ways (see
:data:`Mode`) and keeps the rule of the real one: a frame is stored once, in order.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from wherry.agent import protocol

#: refuse: 503. offline: the connection is closed without an answer. stale: 409 ``stale-token``.
#: cut: stored, but the answer never arrives.
Mode = Literal["ok", "refuse", "offline", "stale", "cut"]


class Frame(NamedTuple):
    """One frame as it was stored."""

    kind: int
    seq: int
    time: float
    payload: bytes


class Member(NamedTuple):
    """Whom a token stands for."""

    attempt: str
    rank: int
    incarnation: int


class AgentSink:
    """
    Serves from the moment it is made, on ``127.0.0.1``; ``close()`` ends it, again: no error.

    Tokens are made by :meth:`token`; the attempt's text is anything without a slash. Attempts that
    have more than one rank are announced by :meth:`expect`, else the barrier opens at once.
    ``record=False`` only counts bytes, for benchmarks.
    """

    def __init__(self, *, port: int = 0, record: bool = True) -> None:
        self.mode: Mode = "ok"
        self.record = record
        self.received = 0  #: bytes of reports stored
        self.requests = 0  #: requests of any kind
        self.blobs: dict[str, bytes] = {}
        self.checkpoints: list[dict[str, Any]] = []  #: as they were sent, of any attempt
        self.hellos: dict[tuple[str, int], dict[str, Any]] = {}
        self.acked: dict[tuple[str, int], int] = defaultdict(int)
        self._frames: dict[tuple[str, int], list[Frame]] = defaultdict(list)
        self._world: dict[str, int] = defaultdict(lambda: 1)
        self._stopping: set[str] = set()
        self._changed = threading.Condition()
        self._server = _Server(("127.0.0.1", port), self)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            args=(0.02,),
            name="agent-sink",
            daemon=True,
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving; what was heard stays readable."""
        self._server.shutdown()
        self._server.server_close()

    # --- what a test arranges
    @staticmethod
    def token(attempt: str, rank: int = 0, incarnation: int = 1) -> str:
        """The token of one incarnation of a rank."""
        return f"{attempt}/{rank}/{incarnation}"

    def expect(self, attempt: str, world_size: int) -> None:
        """How many ranks the barrier of this attempt waits for."""
        self._world[attempt] = world_size

    def stop(self, attempt: str) -> None:
        """Answer every report of this attempt with ``stop``."""
        self._stopping.add(attempt)

    def put(self, data: bytes) -> str:
        """Keep a blob; its digest."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    # --- what a test asks
    def frames(self, attempt: str, rank: int = 0) -> list[Frame]:
        """Every frame of a rank, in order."""
        with self._changed:
            return list(self._frames[attempt, rank])

    def payloads(self, kind: int, attempt: str, rank: int = 0) -> list[Any]:
        """The decoded JSON payloads of one kind of frame."""
        return [json.loads(f.payload) for f in self.frames(attempt, rank) if f.kind == kind]

    def log(self, attempt: str, rank: int = 0, stream: int = protocol.STDOUT) -> bytes:
        """What the program wrote to a stream."""
        frames = (f.payload for f in self.frames(attempt, rank) if f.kind == protocol.LOG)
        return b"".join(p[1:] for p in frames if p[0] == stream)

    def metrics(
        self, attempt: str, rank: int = 0, kind: int = protocol.METRIC
    ) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every point by name; ``kind`` may be USAGE."""
        series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for frame in self.frames(attempt, rank):
            if frame.kind == kind:
                for name, steps, _times, values in protocol.unpack_series(frame.payload):
                    series[name].extend(zip(steps, values, strict=True))
        return dict(series)

    def exit(self, attempt: str, rank: int = 0) -> dict[str, Any] | None:
        """The payload of EXIT, once there is one."""
        exits = self.payloads(protocol.EXIT, attempt, rank)
        return exits[-1] if exits else None

    def wait_exit(self, attempt: str, rank: int = 0, timeout: float = 30.0) -> dict[str, Any]:
        """The payload of EXIT. :raises TimeoutError: where none comes in time."""
        self.wait(
            lambda: self.exit(attempt, rank) is not None,
            timeout,
            f"EXIT of rank {rank}",
        )
        found = self.exit(attempt, rank)
        assert found is not None
        return found

    def wait(self, condition: Callable[[], bool], timeout: float = 30.0, what: str = "") -> None:
        """Return once ``condition`` holds, asked after every request. :raises TimeoutError:"""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"did not happen in {timeout} s: {what or condition}")
                self._changed.wait(0.05)

    # --- what agents ask; each returns (status, body)
    def hello(self, member: Member, body: bytes) -> tuple[int, bytes]:
        """POST /hello."""
        with self._changed:
            self.hellos[member.attempt, member.rank] = json.loads(body)
            acked = self.acked[member.attempt, member.rank]
        return 200, _json({"acked": acked, "lease": 30.0})

    def peers(self, member: Member, wait: float) -> tuple[int, bytes]:
        """GET /peers."""
        world = range(self._world[member.attempt])
        deadline = time.monotonic() + wait
        with self._changed:
            while True:
                missing = [r for r in world if (member.attempt, r) not in self.hellos]
                left = deadline - time.monotonic()
                if not missing or left <= 0 or self.mode != "ok":
                    break
                self._changed.wait(min(left, 0.05))
            if missing:
                return 202, _json({"missing": missing})
            told = [self.hellos[member.attempt, r] for r in world]
        peers = [
            {"rank": r, "address": t["address"], "ports": t["ports"], "key": f"{r:064x}"}
            for r, t in enumerate(told)
        ]
        return 200, _json({"round": 0, "peers": peers})

    def reports(self, member: Member, body: bytes) -> tuple[int, bytes]:
        """POST /reports."""
        key = member.attempt, member.rank
        frames = [
            Frame(k, s, t, bytes(p) if self.record else b"")
            for k, s, t, p in protocol.iter_frames(body)
        ]
        with self._changed:
            acked = self.acked[key]
            if frames and frames[-1].seq > acked:
                if [f.seq for f in frames] != list(range(acked + 1, acked + 1 + len(frames))):
                    return 409, _error("conflict", f"send from {acked + 1}")
                self.acked[key] = acked = frames[-1].seq
                self.received += len(body)
                if self.record or frames[-1].kind == protocol.EXIT:
                    self._frames[key] += frames
        stop = member.attempt in self._stopping
        return 200, _json({"acked": acked, "stop": stop, "round": 0})

    def checkpoint(self, sent: dict[str, Any]) -> tuple[int, bytes]:
        """POST /checkpoints."""
        if any(file["digest"] not in self.blobs for file in sent["files"]):
            return 409, _error("conflict", "blobs are missing")
        self.checkpoints.append(sent)
        return 204, b""

    def newest(self) -> tuple[int, bytes]:
        """GET /checkpoints: the last sent of a name, and the last of the program's own files."""
        own = [sent for sent in self.checkpoints if not sent["name"]]
        named = [sent for sent in self.checkpoints if sent["name"]]
        return 200, _json({"parts": [*named[-1:], *own[-1:]]})

    def notify(self) -> None:
        """Wake those who wait: something was heard."""
        with self._changed:
            self.requests += 1
            self._changed.notify_all()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _error(code: str, message: str) -> bytes:
    return _json({"error": {"code": code, "message": message, "hint": ""}})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Agents of a test that has ended must not keep it from closing.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], sink: AgentSink) -> None:
        self.sink = sink
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet an answer: two of them meet Nagle and delayed acknowledgement (40 ms).
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read what was stored, not an access log."""

    def _handle(self) -> None:
        sink = self.server.sink
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if sink.mode == "offline":
            sink.notify()
            self.close_connection = True
            return
        try:
            status, answer = self._answer(sink, body)
        finally:
            sink.notify()
        if sink.mode == "cut":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = _handle

    def _answer(self, sink: AgentSink, body: bytes) -> tuple[int, bytes]:
        if sink.mode == "refuse":
            return 503, _error("unavailable", "not ready")
        if sink.mode == "stale":
            return 409, _error("stale-token", "this incarnation was replaced")
        words = self.headers.get("Authorization", "").removeprefix("Bearer ").split("/")
        if len(words) != 3:
            return 401, _error("unauthorized", "no token")
        member = Member(words[0], int(words[1]), int(words[2]))
        url = urlsplit(self.path)
        call = self.command, url.path.removeprefix("/agent/v1")
        if call == ("POST", "/hello"):
            return sink.hello(member, body)
        if call == ("GET", "/peers"):
            return sink.peers(member, float(parse_qs(url.query).get("wait", ["0"])[0]))
        if call == ("POST", "/reports"):
            return sink.reports(member, body)
        if call == ("POST", "/blobs/fetch"):
            return _pack(sink, json.loads(body)["digests"])
        if url.path == "/agent/v1/checkpoints":
            return sink.checkpoint(json.loads(body)) if body else sink.newest()
        digest = url.path.rpartition("/")[2]
        if self.command == "GET" and digest in sink.blobs:
            return 200, sink.blobs[digest]
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != digest:
                return 400, _error("invalid-input", "the bytes have another digest")
            sink.put(body)
            return 204, b""
        return 404, _error("not-found", self.path)


def _pack(sink: AgentSink, digests: list[str]) -> tuple[int, bytes]:
    pack = io.BytesIO()
    for digest in digests:
        if digest not in sink.blobs:
            return 404, _error("not-found", digest)
        pack.write(protocol.pack_item(digest, len(sink.blobs[digest])) + sink.blobs[digest])
    return 200, pack.getvalue()
