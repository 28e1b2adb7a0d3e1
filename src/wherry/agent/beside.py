"""
A program beside the rank's, for a person at the other end of a channel: ``wherry exec``.

Started by ``agent.commands`` as ``python AGENT --beside``, a process of its own: what a person does
there must not slow the rank's agent, and nothing of it is mistaken for the program's. Its standard
input is a line of JSON, see :data:`TOLD`, and stays open for as long as the rank's agent wants it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import Any

from wherry.agent import platform, program
from wherry.agent.attach import Terminal, TerminalGone
from wherry.agent.calls import Control, Refused, Replaced, Unreachable
from wherry.agent.capture import Output
from wherry.agent.supervise import Ended, Supervisor
from wherry.agent.wake import Wake

#: What is told on standard input: name → meaning.
TOLD = {
    "config": "as much of the agent's config as Control needs",
    "channel": "the channel's id",
    "env": "the program's environment",
    "cwd": "the program's folder",
    "cgroup": "the program's control groups",
}
_START = 30.0  #: seconds for the person's first word
_GRACE = 1.0  #: seconds from SIGHUP to SIGKILL
_PATIENCE = 3600.0  #: seconds for a person who looks at a page of output to read on
_BLOCK = 2**16


def main(_: str) -> int:
    """Everything. The exit status means nothing: the person is told how it ended."""
    told = json.loads(_line())
    wake = Wake()
    wake.catch_signals(lambda: True)
    threading.Thread(target=_until_unwanted, args=(wake,), daemon=True).start()
    line = Line(told["config"], told["channel"])
    try:
        terminal = Terminal(line.socket, patience=_START)
    except TerminalGone:
        line.finish()
        return 0
    try:
        ended = _run(told, terminal, wake)
    except (OSError, ValueError) as error:
        terminal.ended(_not_started(terminal.start["command"], error), _PATIENCE)
    else:
        if ended.why == "over":
            _note(terminal, "the rank is over, and with it what ran beside it")
        terminal.ended(_outcome(ended), _PATIENCE)
    line.finish()
    return 0


def _line() -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(0, _BLOCK)
        if not part:
            raise EOFError("the agent went away")
        data += part
    return data


def _until_unwanted(wake: Wake) -> None:
    # Not sys.stdin: its lock would be held when we leave.
    while os.read(0, _BLOCK):
        pass
    wake.end("over")


def _run(told: dict[str, Any], terminal: Terminal, wake: Wake) -> Ended:
    die_with_us = platform.adopt_orphans()

    def in_child() -> None:
        die_with_us()
        platform.enter_cgroups(told["cgroup"])

    started = program.start(
        [str(word) for word in terminal.start["command"]],
        {**told["env"], **terminal.environment},
        told["cwd"],
        tty=terminal.size,
        stdin=terminal.stdin,
        in_child=in_child,
    )
    return Supervisor(
        started, Output(), terminal, wake, grace=lambda: _GRACE, timeout=None, hangs=True
    ).run()


def _note(terminal: Terminal, text: str) -> None:
    with contextlib.suppress(TerminalGone):
        terminal.note(text)


def _outcome(ended: Ended) -> dict[str, Any]:
    code = ended.code
    return {
        "state": "failed" if code else "succeeded",
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
    }


def _not_started(command: list[str], error: Exception) -> dict[str, Any]:
    """As a shell has it: 127 where there is no such program, 126 where it does not run."""
    code = 127 if isinstance(error, FileNotFoundError) else 126
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    message = f"{command[0] if command else ''!r} cannot be started: {why}"
    return {"state": "failed", "exit_code": code, "signal": None, "message": message}


class Line:
    """
    A socket whose other end is the person: two threads carry what goes through it to and from the
    control plane. It is closed when the person is gone.
    """

    def __init__(self, config: dict[str, Any], channel: str) -> None:
        self._config, self._path = config, f"/channels/{channel}"
        self.socket, self._ours = socket.socketpair()
        self._sender = threading.Thread(target=self._send, daemon=True)
        threading.Thread(target=self._receive, daemon=True).start()
        self._sender.start()

    def finish(self) -> None:
        """Return once all that was written is sent, or nobody is there to read it."""
        self.socket.close()
        self._sender.join()

    def _receive(self) -> None:
        control = Control(self._config)
        try:
            with control.flow(self._path) as read:
                while data := read(_BLOCK):
                    self._ours.sendall(data)
        except (Refused, Replaced, Unreachable, OSError):
            pass
        finally:
            self._shut(socket.SHUT_WR)

    def _send(self) -> None:
        control = Control(self._config)
        try:
            control.call("POST", self._path, iter(self._next, b""))
        except (Refused, Replaced, Unreachable, OSError):
            self._shut(socket.SHUT_RDWR)

    def _next(self) -> bytes:
        return self._ours.recv(_BLOCK)

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(how)
