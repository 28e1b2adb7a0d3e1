"""
HTTP/1.1 over one socket: just what ``sdk.http`` needs.

``http.client`` would do, but brings the e-mail parser and TLS: 33 ms of imports, three times a
bare Python's start, paid by every command. This knows the three framings of a body (length, chunks,
until the end) and imports TLS only for ``https``.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, cast
from urllib.parse import urlsplit

PIECE = 1 << 16
_LINE = 1 << 16
_HEADERS = 100

Body = bytes | Iterable[bytes]


class Refused(ConnectionError):
    """No connection was made, so nothing was sent."""


class Broken(ConnectionError):
    """The connection failed after something was sent: it may or may not have been done."""


class Connection:
    """A connection that one request at a time may use. Not for several threads at once."""

    def __init__(self, url: str, *, timeout: float) -> None:
        """:raises Refused: where nobody answers there."""
        self.url = url
        parts = urlsplit(url)
        self._host = parts.netloc
        self._base = parts.path.rstrip("/")
        tls = parts.scheme == "https"
        address = (parts.hostname or "", parts.port or (443 if tls else 80))
        try:
            self._socket = socket.create_connection(address, timeout=timeout)
            if tls:
                import ssl

                context = ssl.create_default_context()
                self._socket = context.wrap_socket(self._socket, server_hostname=address[0])
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raise Refused(str(error)) from error
        self._file = cast(BinaryIO, self._socket.makefile("rb", PIECE))

    def __del__(self) -> None:
        # People drop a client without closing it; that is no mistake to be warned of.
        if hasattr(self, "_file"):
            self.close()

    def idle(self) -> bool:
        """Whether it can be used again: a peer that left, or talks unasked, makes it readable."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """Again: no error."""
        self._file.close()
        self._socket.close()

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body = b"",
        *,
        timeout: float,
    ) -> Response:
        """
        Send a request and read the answer's head.

        :param timeout: seconds of silence that are taken for the end of the connection.
        :raises Broken: where the connection fails.
        """
        self._socket.settimeout(timeout)
        whole = isinstance(body, bytes)
        lines = [f"{method} {self._base}{target} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not whole:
            lines.append("Transfer-Encoding: chunked")
        elif body or method != "GET":
            lines.append(f"Content-Length: {len(cast(bytes, body))}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        try:
            try:
                if whole:
                    self._socket.sendall(head + cast(bytes, body))
                else:
                    self._socket.sendall(head)
                    self._send_chunks(cast(Iterable[bytes], body))
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses a long body answers and hangs up: the answer has the reason.
                pass
            return self._response()
        except Broken:
            raise
        except OSError as error:
            raise Broken(str(error) or type(error).__name__) from error

    def _send_chunks(self, body: Iterable[bytes]) -> None:
        for piece in body:
            if piece:
                self._socket.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
        self._socket.sendall(b"0\r\n\r\n")

    def _response(self) -> Response:
        while True:
            words = self._line().split(None, 2)
            if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
                raise Broken(f"not an answer of HTTP: {' '.join(words)[:80]!r}")
            headers: dict[str, str] = {}
            while line := self._line():
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
                if len(headers) > _HEADERS:
                    raise Broken("too many headers")
            status = int(words[1])
            if status >= 200:  # 1xx: the real answer follows
                return Response(status, headers, self._file)

    def _line(self) -> str:
        line = self._file.readline(_LINE)
        if not line.endswith(b"\n"):
            raise Broken("the server hung up" if len(line) < _LINE else "a header is too long")
        return line.decode("latin-1").rstrip("\r\n")


class Response:
    """An answer. ``whole`` tells whether its body was read to the end, so that more may follow."""

    def __init__(self, status: int, headers: dict[str, str], file: BinaryIO) -> None:
        self.status = status
        self.headers = headers
        self._file = file
        self.whole = False

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request."""
        return self.whole and self.headers.get("connection", "").lower() != "close"

    def pieces(self) -> Iterator[bytes]:
        """
        The body as it arrives, in pieces of at most 64 KiB.

        :raises Broken: where it is cut off.
        """
        try:
            if self.status in (204, 304):
                pass
            elif "chunked" in self.headers.get("transfer-encoding", "").lower():
                yield from self._chunks()
            elif "content-length" in self.headers:
                yield from self._exactly(int(self.headers["content-length"]))
            else:
                self.headers["connection"] = "close"
                while piece := self._read(PIECE):
                    yield piece
            self.whole = True
        except Broken:
            raise
        except (OSError, ValueError) as error:
            raise Broken(str(error) or type(error).__name__) from error

    def _chunks(self) -> Iterator[bytes]:
        while True:
            line = self._file.readline(_LINE)
            if not line.endswith(b"\n"):
                raise Broken("the answer was cut off")
            size = int(line.split(b";")[0], 16)
            if not size:
                while self._file.readline(_LINE) not in (b"\r\n", b"\n", b""):
                    pass  # trailers
                return
            yield from self._exactly(size)
            self._file.readline(_LINE)

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._read(min(size, PIECE))
            if not piece:
                raise Broken("the answer was cut off")
            size -= len(piece)
            yield piece

    def _read(self, size: int) -> bytes:
        return cast(bytes, self._file.read1(size))  # type: ignore[attr-defined]
