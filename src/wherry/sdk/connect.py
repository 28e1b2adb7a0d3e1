"""
Finding the control plane, and starting the one of this machine.

Called by every command and by ``wherry.run``. Many may start it at once: each spawns a server, the
first to hold ``server.lock`` stays, the others leave, and all wait for its ``server.json``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from wherry import settings
from wherry._version import __version__
from wherry.errors import ServerMissing, Unavailable, WherryError
from wherry.sdk.client import Client
from wherry.sdk.http import Endpoint, Http

if TYPE_CHECKING:
    from subprocess import Popen

_ASK = 2.0  # seconds for /healthz
_STEP = 0.02  # seconds between looks
_ALREADY = 75  # exit status of a server that gave way to another


class ServerInfo(Struct, frozen=True, kw_only=True):
    """``server.json``: what the control plane of this machine says of itself. Mode 0600."""

    pid: int
    url: str
    token: str
    version: str = ""
    started: float = 0.0  #: seconds since the epoch

    def __repr__(self) -> str:
        return f"ServerInfo(pid={self.pid}, url={self.url!r}, version={self.version!r})"


def connect(context: str | None = "", *, start: bool = True, wait: float = 20.0) -> Client:
    """
    A client of the control plane called ``context``; "" is the one in use, else this machine's.

    :param start: start this machine's where it does not run.
    :param wait: seconds that it may take to start.
    :raises NotFound: for an unknown context. :raises Unavailable: :raises ServerMissing:
    """
    from wherry.sdk import contexts

    home = settings.home()
    endpoint = contexts.context(context or "", home).endpoint
    if endpoint is not None:
        return Client(Http(endpoint))
    found = _probe(home)
    if found is None:
        if not start:
            raise Unavailable(
                f"no control plane runs on this machine (home: {home})",
                hint="start it: wherry up",
            )
        start_server(home, wait=wait)
        found = _probe(home)
        if found is None:
            raise _died(home, 0)
    info, http = found
    _check_version(info)
    return Client(http)


def find_server(home: Path) -> ServerInfo | None:
    """The control plane of ``home``, if it answers with its own pid; None where a file is stale."""
    found = _probe(home)
    if found is None:
        return None
    found[1].close()
    return found[0]


def start_server(home: Path, *, wait: float = 20.0) -> ServerInfo:
    """
    Start the control plane of ``home`` and wait until it answers. It outlives this process.

    Where one answers already, or others start one at the same time: that one.

    :raises ServerMissing: where this installation is only a client.
    :raises Unavailable: where it does not start; with the end of its log.
    """
    if found := find_server(home):
        return found
    _check_installed()
    settings.check()
    settings.make_home(home)
    log = home / "server.log"
    offset = log.stat().st_size if log.exists() else 0
    child = _spawn(home, log)
    deadline = time.monotonic() + wait
    try:
        while time.monotonic() < deadline:
            if found := find_server(home):
                return found
            left = child.poll()
            if left is not None and left != _ALREADY:
                raise _died(home, offset)
            if left == _ALREADY and not _locked(home):
                child = _spawn(home, log)  # the one it gave way to has gone
            time.sleep(_STEP)
    finally:
        # It outlives us and nobody waits for it: a Popen that is thrown away need not complain.
        child.returncode = child.returncode or 0
    raise Unavailable(
        f"the control plane did not answer within {wait:g} s{_tail(log, offset)}",
        hint=f"its log: {log}",
    )


def stop_server(home: Path, *, wait: float = 20.0) -> bool:
    """
    Make the control plane of ``home`` leave, and wait for that. Runs go on.

    :returns: whether there was one. :raises Unavailable: where it does not leave.
    """
    found = _probe(home)
    if found is None:
        if not _locked(home):
            return False
        raise Unavailable(
            f"a control plane holds {home / 'server.lock'}, but does not answer",
            hint="try again in a moment; if it hangs, kill -9 its process: runs go on",
        )
    info, http = found
    Client(http).shutdown()
    http.close()
    deadline = time.monotonic() + wait
    while _locked(home):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the control plane (process {info.pid}) did not leave within {wait:g} s",
                hint=f"kill -9 {info.pid}: runs go on, and the next start heals the rest",
            )
        time.sleep(_STEP)
    left = _read(home)
    if left is not None and left.pid == info.pid:
        # What is left behind reads as a crash, after which clients start it again.
        (home / "server.json").unlink(missing_ok=True)
    return True


def _probe(home: Path) -> tuple[ServerInfo, Http] | None:
    """The server that answers, with a connection to it that is warm."""
    info = _read(home)
    if info is None:
        return None
    http = Http(Endpoint(info.url, info.token), renew=_renew(home))
    try:
        # Another program may have taken the port: no token before it has said who it is.
        answer = http.call("GET", "/healthz", again=False, timeout=_ASK, token=False)
        if msgspec.json.decode(answer).get("pid") == info.pid:
            return info, http
    except (WherryError, msgspec.DecodeError, AttributeError):
        pass
    http.close()
    return None


def _renew(home: Path) -> Callable[[], Endpoint | None]:
    """
    Where the control plane is after it was lost.

    One that crashed leaves its ``server.json`` behind and is started again; one that was taken down
    does not, and stays down.
    """

    def renew() -> Endpoint | None:
        info = _read(home)
        if info is None:
            return None
        # Not by its pid: a dead process has one until its parent, perhaps idle, looks.
        if not _locked(home):
            with suppress(WherryError):
                info = start_server(home)
        return Endpoint(info.url, info.token)

    return renew


def _read(home: Path) -> ServerInfo | None:
    try:
        return msgspec.json.decode((home / "server.json").read_bytes(), type=ServerInfo)
    except (OSError, msgspec.DecodeError):
        return None


def _spawn(home: Path, log: Path) -> Popen[bytes]:
    import subprocess

    from wherry.agent.protocol import VARIABLES

    # A server that a rank starts is not that rank.
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        return subprocess.Popen(
            # -P and the folder: nothing in a person's project may shadow a module of the server's
            [sys.executable, "-P", "-m", "wherry.server", "--home", str(home)],
            cwd=home,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def _locked(home: Path) -> bool:
    """Whether a server lives: it holds ``server.lock`` for as long."""
    import fcntl

    try:
        descriptor = os.open(home / "server.lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_installed() -> None:
    from importlib.util import find_spec

    missing = [m for m in ("litestar", "uvicorn", "sqlalchemy", "obstore") if find_spec(m) is None]
    if missing:
        raise ServerMissing(
            "this installation of Wherry is only a client and cannot start a control plane here "
            f"(missing: {', '.join(missing)})",
            hint="pip install 'wherry[server]', or use one that runs elsewhere: wherry context add",
        )


def _check_version(info: ServerInfo) -> None:
    theirs, ours = info.version.split(".")[:2], __version__.split(".")[:2]
    if info.version and theirs != ours:
        raise Unavailable(
            f"the control plane is Wherry {info.version}, this is Wherry {__version__}",
            hint="wherry down, then again: runs go on",
        )


def _died(home: Path, offset: int) -> Unavailable:
    log = home / "server.log"
    return Unavailable(
        f"the control plane did not start{_tail(log, offset)}", hint=f"its log: {log}"
    )


def _tail(log: Path, offset: int, lines: int = 10) -> str:
    """The last lines written after ``offset``, as the end of a sentence."""
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(offset, log.stat().st_size - 16_384))
        if text := file.read().decode("utf-8", "replace").strip():
            return ":\n" + "\n".join("  " + line for line in text.splitlines()[-lines:])
    return ""
