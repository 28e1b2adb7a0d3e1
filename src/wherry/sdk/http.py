"""
Calls to a control plane: keep-alive, errors by their class, and patience over its restarts.

Called by ``sdk.client`` (and by ``sdk.connect``, to ask who is there). Safe from any thread: every
call has a connection to itself, taken from those that are idle.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from wherry._version import __version__
from wherry.errors import Unavailable, WherryError, from_envelope
from wherry.sdk.wire import Body, Broken, Connection, Refused, Response

T = TypeVar("T")

Query = Mapping[str, Any]
#: A body, or what makes it anew for each try.
Source = bytes | Callable[[], Iterable[bytes]]

TIMEOUT = 60.0  # seconds; the control plane sends blank lines more often than that
PATIENCE = 30.0  # seconds; it is back within ten after a crash


@dataclass(frozen=True)
class Endpoint:
    """Where a control plane is, and the credential for it."""

    url: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


class Stream:
    """
    An answer whose body arrives in pieces. A context manager; iterate at most once.

    Leaving it early closes the connection. ``headers``: of the answer, by their names in small
    letters.
    """

    def __init__(self, http: Http, connection: Connection, response: Response) -> None:
        self._http = http
        self._connection = connection
        self._response = response
        self.headers: Mapping[str, str] = response.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http._release(self._connection, reusable=self._response.reusable)

    def __iter__(self) -> Iterator[bytes]:
        """:raises Broken: where the answer is cut off."""
        return self._response.pieces()

    def lines(self) -> Iterator[bytes]:
        """The lines as they arrive, without newlines. :raises Broken: where it is cut off."""
        rest = b""
        for piece in self:
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines
        if rest:
            yield rest

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)


class Http:
    """
    A client of one control plane.

    :param renew: asked for the endpoint again whenever the connection fails; None: no news.
    :param patience: seconds that a call goes on trying once the control plane, having answered
        before, no longer does. Only calls that may be repeated are.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        renew: Callable[[], Endpoint | None] = lambda: None,
        patience: float = PATIENCE,
    ) -> None:
        self.endpoint = endpoint
        self._renew = renew
        self._patience = patience
        self._met = False
        self._idle: list[Connection] = []
        self._process = os.getpid()

    def close(self) -> None:
        """Close the idle connections. Later calls make new ones."""
        while self._idle:
            self._idle.pop().close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Source = b"",
        key: str = "",
        again: bool = True,
        timeout: float = TIMEOUT,
        token: bool = True,
    ) -> bytes:
        """
        The body of the answer.

        :param query: empty values are left out, several of a name are given as a list.
        :param key: an idempotency key.
        :param again: whether the call may be repeated when it is not known to have arrived.
        :param timeout: seconds of silence that are taken for a broken connection.
        :raises WherryError: what the server says. :raises Unavailable: where it cannot be reached.
        """

        def once() -> bytes:
            with self._once(method, path, query, body, key, timeout, token) as stream:
                return stream.read()

        return self._persist(once, again)

    def open(
        self,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        timeout: float = TIMEOUT,
    ) -> Stream:
        """
        A GET whose answer is read as it arrives; with a ``body``, a POST that is not repeated.

        Raises as :meth:`call`.
        """
        method = "GET" if body is None else "POST"
        return self._persist(
            lambda: self._once(method, path, query, body or b"", "", timeout, True),
            again=body is None,
        )

    def pause(self, error: Exception, deadline: float, pause: float) -> None:
        """Wait a little and look where the control plane is now; after the deadline, raise."""
        if time.monotonic() >= deadline:
            raise self._words(error) from None
        time.sleep(pause)
        self.endpoint = self._renew() or self.endpoint

    @property
    def patience(self) -> float:
        """Seconds to go on trying: none before the first answer."""
        return self._patience if self._met else 0.0

    def _persist(self, once: Callable[[], T], again: bool) -> T:
        deadline, pause = 0.0, 0.05
        while True:
            try:
                return once()
            except (Refused, Broken, Unavailable) as error:
                if type(error) is not Refused and not again:
                    raise self._words(error) from None
                if isinstance(error, Unavailable) and type(error) is not Unavailable:
                    raise  # no space left will not pass by waiting
                deadline = deadline or time.monotonic() + self.patience
                self.pause(error, deadline, pause)
                pause = min(2 * pause, 1.0)

    def _once(
        self,
        method: str,
        path: str,
        query: Query | None,
        body: Source,
        key: str,
        timeout: float,
        token: bool,
    ) -> Stream:
        endpoint = self.endpoint
        headers = {"User-Agent": f"wherry/{__version__}", "Accept": "*/*"}
        if token:
            headers["Authorization"] = f"Bearer {endpoint.token}"
        if key:
            headers["Idempotency-Key"] = key
        if body:
            binary = callable(body)
            headers["Content-Type"] = "application/octet-stream" if binary else "application/json"
        payload: Body = body() if callable(body) else body
        connection = self._take(endpoint.url, timeout)
        try:
            response = connection.request(
                method, path + _encode(query), headers, payload, timeout=timeout
            )
            self._met = True
            if response.status >= 400:
                raise _error(response)
        except BaseException:
            connection.close()
            raise
        return Stream(self, connection, response)

    def _take(self, url: str, timeout: float) -> Connection:
        if self._process != os.getpid():  # after a fork the sockets are the parent's
            self._idle, self._process = [], os.getpid()
        while self._idle:
            connection = self._idle.pop()
            if connection.url == url and connection.idle():
                return connection
            connection.close()
        return Connection(url, timeout=min(timeout, 10.0))

    def _release(self, connection: Connection, *, reusable: bool) -> None:
        if reusable and len(self._idle) < 4:
            self._idle.append(connection)
        else:
            connection.close()

    def _words(self, error: Exception) -> WherryError:
        if isinstance(error, WherryError):
            return error
        return Unavailable(
            f"the control plane at {self.endpoint.url} does not answer: {error}",
            hint="wherry status says what is there; wherry up starts it on this machine",
        )


def segment(text: str) -> str:
    """One segment of a path, quoted."""
    return quote(text, safe="")


def _encode(query: Query | None) -> str:
    words: list[tuple[str, str]] = []
    for name, value in (query or {}).items():
        if isinstance(value, bool):
            value = "true" if value else None
        values = value if isinstance(value, list | tuple | set | frozenset) else (value,)
        words += [(name, str(v)) for v in values if v is not None and v != ""]
    return "?" + urlencode(words) if words else ""


def _error(response: Response) -> WherryError:
    raw = b"".join(response.pieces())
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        body = raw.decode("utf-8", "replace")
    return from_envelope(body, status=response.status)
