"""
Calls from the agent to the control plane: one keep-alive connection, and what its answers mean.

Used by ``agent.sender`` (reports), ``agent.ranks`` (the barrier), ``agent.code`` and
``agent.files`` (blobs). Each owns a :class:`Control` of its own: a connection is for one thread.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional, Union
from urllib.parse import urlsplit

TIMEOUT = 60.0  #: seconds for one answer
BACKOFF = 5.0  #: seconds between tries at most
CUT = threading.Event()  #: set: a rehearsal has cut this agent off, see ``agent.faults``

_Body = Optional[Union[bytes, Iterable[bytes]]]


class Replaced(Exception):
    """Another incarnation of this rank took over, or the token is not good any more."""


class Unreachable(Exception):
    """No answer, or one that says to try again."""


class Refused(Exception):
    """The control plane does not accept this."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Control:
    """The control plane, as one rank's token sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._url: str = config["server"]
        self._connection: http.client.HTTPConnection | None = None

    @property
    def host(self) -> str:
        """The host that the calls go to."""
        return urlsplit(self._url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        """The port that the calls go to."""
        return urlsplit(self._url).port or 80

    def call(self, method: str, path: str, body: _Body = None, *, size: int | None = None) -> Any:
        """
        The decoded JSON of the answer, ``{}`` where it is empty, with its ``status``.

        :raises Replaced: :raises Unreachable: :raises Refused:
        """
        with self._request(method, path, body, size) as answer:
            data = answer.read()
        try:
            decoded = json.loads(data) if data else {}
        except ValueError:
            raise Unreachable(f"{self._url} does not answer in JSON") from None
        return {**decoded, "status": answer.status}

    @contextmanager
    def stream(
        self, method: str, path: str, body: _Body = None
    ) -> Iterator[Callable[[int], bytes]]:
        """``read(n)`` of the answer's bytes. Raises what ``call`` does."""
        with self._request(method, path, body, None) as answer:
            yield answer.read

    def close(self) -> None:
        """Give up the connection; the next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _request(
        self, method: str, path: str, body: _Body, size: int | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Authorization": f"Bearer {self._config['token']}"}
        if size is not None:
            headers["Content-Length"] = str(size)
        try:
            if CUT.is_set():
                raise OSError("cut off")
            connection = self._connect()
            connection.request(method, self._prefix + path, body, headers)
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _error(answer.status, answer.read())
            yield answer
        except (OSError, http.client.HTTPException, EOFError) as error:
            self._lost()
            raise Unreachable(f"{self._url}: {error or type(error).__name__}") from None
        except Unreachable:
            self._lost()
            raise
        except BaseException:
            self.close()
            raise

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._url)
        self._prefix = parts.path.rstrip("/") + "/agent/v1"
        if self._connection is None:
            secure = parts.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            self._connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
        return self._connection

    def _lost(self) -> None:
        """After a failure: look where the control plane is now."""
        self.close()
        if self._config["server_file"]:
            try:
                with open(self._config["server_file"], "rb") as file:
                    self._url = str(json.load(file)["url"])
            except (OSError, ValueError, KeyError, TypeError):
                pass  # it is being restarted: the file comes back with it


def _error(status: int, body: bytes) -> Exception:
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "", body[:200].decode("utf-8", "replace")
    if status in (401, 403) or code == "stale-token":
        return Replaced(message)
    if status >= 500 or status in (408, 429):
        return Unreachable(f"{status}: {message}")
    return Refused(status, code, message)


def backoff() -> Iterator[float]:
    """Seconds to wait between tries: short at first, then ``BACKOFF``."""
    delay = 0.05
    while True:
        yield delay
        delay = min(delay * 1.7, BACKOFF)


def persist(action: Callable[[], Any], stopped: threading.Event) -> Any:
    """
    What ``action`` returns, tried for as long as the control plane does not answer.

    :raises Unreachable: once ``stopped`` is set. :raises Replaced: :raises Refused:
    """
    for delay in backoff():
        try:
            return action()
        except Unreachable:
            if stopped.wait(delay):
                raise
    raise AssertionError


def own_address(host: str, port: int) -> str:
    """The address of this machine as those see it who are where ``host`` is."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"
