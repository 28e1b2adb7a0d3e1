"""
Start processes on the machines of other ranks for ``mpirun``, which would use ssh: no daemon, no
keys, nothing to set up.

Runs as a script of its own, ``wherry_rsh.py``, in three parts; ``agent.mpi`` says when.

``--listen``        the program of every rank but 0: starts what it is asked to, until rank 0 ends
``--launch CMD``    the program of rank 0: runs CMD while it holds a line to every listener
``RANK CMD...``     what ``mpirun`` calls in ssh's place: CMD runs there, its output comes back

The folder ``WHERRY_MPI`` has ``ranks.json``, mode 0600: ``{"rank", "ranks": [{"address", "port",
"key"}], "names": {host: rank}}``. A listener greets with 32 random bytes, and hears only whoever
answers with ``HMAC(its key, greeting + request)``: the keys go to the ranks of one attempt, by the
control plane, and never over the line. Then it sends frames, ``u8 stream | u32 length | bytes``;
stream 0 has the exit status as text.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_REQUEST = struct.Struct("<32sI")
_FRAME = struct.Struct("<BI")
_PATIENCE = 60.0  #: seconds for a listener to come up, and for a caller to say what it wants
_DEFERENCE = 30.0  #: seconds that a listener outlives a rank 0 that did not say that it is done
_LAST_WORDS = 2.0  #: seconds for what was started here to end by itself when rank 0 is done
_LONGEST = 2**20  #: bytes of a request
_NO_PROGRAM = 127  #: the status of a shell that does not find its program
_BYE = b"bye"


def main(words: list[str]) -> int:
    """The exit status of this process."""
    with open(os.path.join(os.environ["WHERRY_MPI"], "ranks.json")) as file:
        told = json.load(file)
    if words[:1] == ["--listen"]:
        return Listener(told["ranks"][told["rank"]]).run()
    if words[:1] == ["--launch"]:
        return launch(words[1:], told["ranks"][1:])
    return run_there(told["ranks"][told["names"][words[0]]], " ".join(words[1:]))


class Listener:
    """Serves one rank. ``me``: its own entry in ``ranks.json``."""

    def __init__(self, me: dict[str, Any]) -> None:
        self._key = bytes.fromhex(me["key"])
        self._over = threading.Event()
        self._running: set[threading.Thread] = set()
        self._status = 1
        family = socket.AF_INET6 if ":" in me["address"] else socket.AF_INET
        self._server = socket.socket(family, socket.SOCK_STREAM)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._server.bind((me["address"], me["port"]))
        self._server.listen(128)

    def run(self) -> int:
        """Until rank 0 says that it is done (0), or is gone without that word (1)."""
        threading.Thread(target=self._accept, daemon=True).start()
        self._over.wait()
        self._server.close()
        deadline = time.monotonic() + _LAST_WORDS
        for thread in list(self._running):
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._status:
            # Rank 0's own end tells more: let it be heard first. It also ends us, as a rule.
            time.sleep(_DEFERENCE)
        return self._status

    def _accept(self) -> None:
        while True:
            try:
                line = self._server.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line:
            try:
                request = self._hear(line)
                if request is None:
                    return
                if request["do"] == "run":
                    self._running.add(threading.current_thread())
                    _execute(request["command"], line)
                    self._running.discard(threading.current_thread())
                elif request["do"] == "hold":
                    self._hold(line)
            except OSError:  # whoever called has gone
                pass

    def _hold(self, line: socket.socket) -> None:
        try:
            line.sendall(_FRAME.pack(0, 0))
            line.settimeout(None)
            if line.recv(len(_BYE)) == _BYE:
                self._status = 0
        finally:
            self._over.set()

    def _hear(self, line: socket.socket) -> Any:
        """What is asked; None from somebody who does not have the key."""
        line.settimeout(_PATIENCE)
        greeting = os.urandom(32)
        line.sendall(greeting)
        proof, size = _REQUEST.unpack(_exactly(line, _REQUEST.size))
        if size > _LONGEST:
            return None
        body = _exactly(line, size)
        if not hmac.compare_digest(proof, _proof(self._key, greeting, body)):
            return None
        return json.loads(body)


def _execute(command: str, line: socket.socket) -> None:
    """Run it as ssh would, by a shell; it goes when the caller goes."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    sending = threading.Lock()

    def send(stream: int, data: bytes) -> None:
        with sending:
            line.sendall(_FRAME.pack(stream, len(data)) + data)

    def copy(stream: int, pipe: Any) -> None:
        try:
            for data in iter(lambda: os.read(pipe.fileno(), 65536), b""):
                send(stream, data)
        except OSError:
            pass

    def watch() -> None:
        try:
            line.settimeout(None)
            while line.recv(1):
                pass
        except OSError:
            pass
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)

    copies = [
        threading.Thread(target=copy, args=(stream, pipe), daemon=True)
        for stream, pipe in ((1, process.stdout), (2, process.stderr))
    ]
    for thread in copies:
        thread.start()
    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    for thread in copies:
        thread.join(1.0)  # a daemon that it left may hold the pipe
    send(0, str(status if status >= 0 else 128 - status).encode())


def run_there(rank: dict[str, Any], command: str) -> int:
    """Run ``command`` on a rank's machine; its exit status, 255 where the line breaks."""
    try:
        with _call(rank, {"do": "run", "command": command}) as line:
            while True:
                stream, size = _FRAME.unpack(_exactly(line, _FRAME.size))
                data = _exactly(line, size)
                if not stream:
                    return int(data)
                os.write(stream, data)
    except OSError as error:
        print(f"wherry: no line to {rank['address']}: {error}", file=sys.stderr)
        return 255


def launch(command: list[str], others: list[dict[str, Any]]) -> int:
    """Run ``command`` here; the listeners know that it lives, and how it went."""
    try:
        lines = [_call(rank, {"do": "hold"}) for rank in others]
    except OSError as error:
        print(f"error: a rank cannot be reached: {error}", file=sys.stderr)
        return 1
    # Whoever ends us signals the whole process group, so the command hears it, too. A handler does
    # not stay with the command, as SIG_IGN would.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"error: {command[0]!r} cannot be started: {error}", file=sys.stderr)
        print("hint: Open MPI must be on every machine: apt install openmpi-bin", file=sys.stderr)
        return _NO_PROGRAM
    status = process.wait()
    if status == 0:
        for line in lines:
            line.sendall(_BYE)
    elif status < 0:
        if -status not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _call(rank: dict[str, Any], request: dict[str, Any]) -> socket.socket:
    """A line to a rank's listener on which the request was made. :raises OSError:"""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            line = socket.create_connection((rank["address"], rank["port"]), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    line.settimeout(None)
    body = json.dumps(request).encode()
    try:
        proof = _proof(bytes.fromhex(rank["key"]), _exactly(line, 32), body)
        line.sendall(_REQUEST.pack(proof, len(body)) + body)
        if request["do"] == "hold":
            _exactly(line, _FRAME.size)  # it was heard
    except OSError:
        line.close()
        raise
    return line


def _proof(key: bytes, greeting: bytes, body: bytes) -> bytes:
    return hmac.new(key, greeting + body, hashlib.sha256).digest()


def _exactly(line: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = line.recv(size - len(data))
        if not part:
            raise ConnectionError("the line was cut")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
