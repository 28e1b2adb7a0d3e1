"""
``python -m wherry.server --home HOME``: the control plane's process.

Started by ``sdk.connect`` (any command that finds none) and by ``wherry up``. One instance per
home: the lock is held for life, so a crash frees it. ``server.json`` appears when it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import uvicorn

from wherry import settings
from wherry._version import __version__
from wherry.errors import InvalidInput, StorageFull, WherryError

ALREADY = 75  # exit status: another process serves this home


def main() -> int:
    """Serve until SIGTERM. Exit status 0; 75 when another process serves this home."""
    parser = argparse.ArgumentParser(prog="python -m wherry.server")
    parser.add_argument("--home", type=Path, default=settings.home())
    home: Path = parser.parse_args().home.absolute()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _lock(home / "server.lock")  # noqa: F841 - as long as this function runs
    except BlockingIOError:
        print(f"another process serves {home}", file=sys.stderr)
        return ALREADY
    except OSError as error:
        print(f"error: {home} cannot be used: {error.strerror}", file=sys.stderr)
        return StorageFull.exit_status
    logging.basicConfig(
        level=str(settings.get("log_level")).upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        serve(home)
    except WherryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _lock(path: Path) -> IO[str]:
    """Hold the lock for life. :raises BlockingIOError: where another does."""
    lock = path.open("a")
    for _ in range(4):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.005)  # a client that looks whether it is held holds it for an instant
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def serve(home: Path) -> None:
    """Build the control plane of ``home`` and answer until told to stop."""
    from wherry.server.app import embedded  # half of the start; losers of the race skip it

    os.umask(0o077)
    listener = listen(home)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    plane = embedded(home, url=url)
    announce = announcer(home, {"pid": os.getpid(), "url": url, "token": plane.keys.token})
    config = uvicorn.Config(
        plane.app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=120,
        backlog=2048,
        server_header=False,
    )
    # uvicorn raises the signal again when it has served; then this one ends the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        asyncio.run(_answer(Server(config, plane.leave), listener, announce))
    finally:
        (home / "server.json").unlink(missing_ok=True)


class Server(uvicorn.Server):
    """Ends the long answers before it waits for the end of all."""

    def __init__(self, config: uvicorn.Config, leave: Callable[[], None]) -> None:
        super().__init__(config)
        self._leave = leave

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but agents' long polls and followed logs do not hold it up."""
        self._leave()
        await super().shutdown(sockets)


async def _answer(
    server: uvicorn.Server, listener: socket.socket, announce: Callable[[], None]
) -> None:
    """Serve; announce once requests are answered."""
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    if server.started:
        announce()
    await serving


def listen(home: Path) -> socket.socket:
    """
    A listening socket: the port of the settings, else the one of the last time, else a free one.

    Agents of an earlier process find the new port in ``server.json``; keeping it saves them that.
    :raises InvalidInput: where the host is not loopback, or the port asked for is taken.
    """
    host = str(settings.get("host"))
    if host not in ("127.0.0.1", "localhost"):
        raise InvalidInput(
            f"WHERRY_HOST={host!r} is not a loopback address",
            hint="the embedded control plane serves this machine alone",
        )
    wanted = int(settings.get("port"))
    remembered = home / "port"
    last = int(remembered.read_text()) if remembered.exists() else 0
    for port in (wanted,) if wanted else (last, 0):
        # The protocol by name: asyncio turns Nagle's wait (40 ms an answer) off for no other.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        listener.listen(2048)
        remembered.write_text(str(listener.getsockname()[1]))
        return listener
    raise InvalidInput(
        f"port {wanted} is taken", hint="choose another in WHERRY_PORT, or leave it unset"
    )


def announcer(home: Path, facts: dict[str, Any]) -> Callable[[], None]:
    """What writes ``server.json``, whole and readable by its owner alone."""

    def announce() -> None:
        partial = home / "server.json.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as out:
            json.dump({**facts, "version": __version__, "started": time.time()}, out)
        partial.replace(home / "server.json")

    return announce


if __name__ == "__main__":
    sys.exit(main())
