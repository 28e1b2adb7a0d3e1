"""
Start the program: in a session and process group of its own, with pipes or a pseudo-terminal.

Called by ``agent.main``; ``agent.supervise`` does the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence

from wherry.agent import platform, protocol

_WINDOW = struct.Struct("HHHH")  # rows, columns and two unused: the kernel's struct winsize


class Program:
    """A started program and our ends of its streams."""

    def __init__(self, pid: int, streams: dict[int, int], stdin: int | None, tty: bool) -> None:
        self.pid = pid
        self.streams = streams  #: our descriptor → stream
        self.stdin = stdin  #: our descriptor, or None
        self.tty = tty


def start(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    *,
    tty: tuple[int, int] | None,
    stdin: bool,
    in_child: Callable[[], None],
) -> Program:
    """
    Start it. ``tty``: rows and columns of a pseudo-terminal, else pipes. ``stdin``: whether there
    will be input. ``in_child`` runs in the child before the program. :raises OSError:
    """
    if tty:
        return _start_on_terminal(command, env, cwd, tty, in_child)
    process = subprocess.Popen(
        command,
        env=env,
        cwd=cwd,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
        preexec_fn=in_child,
    )
    # Descriptors of our own: the object is not needed, and must not wait for the process.
    process.returncode = 0
    streams = {}
    for pipe, stream in ((process.stdout, protocol.STDOUT), (process.stderr, protocol.STDERR)):
        assert pipe is not None
        fd = os.dup(pipe.fileno())
        pipe.close()
        platform.widen_pipe(fd)
        os.set_blocking(fd, False)
        streams[fd] = stream
    entry = None
    if process.stdin is not None:
        entry = os.dup(process.stdin.fileno())
        process.stdin.close()
        os.set_blocking(entry, False)
    return Program(process.pid, streams, entry, tty=False)


def _start_on_terminal(
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    size: tuple[int, int],
    in_child: Callable[[], None],
) -> Program:
    ours, theirs = os.openpty()

    def control_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        in_child()

    try:
        resize(ours, *size)
        process = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=control_terminal,
        )
    except OSError:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    process.returncode = 0
    os.set_blocking(ours, False)
    return Program(process.pid, {ours: protocol.STDOUT}, ours, tty=True)


def resize(fd: int, rows: int, columns: int) -> None:
    """Tell a pseudo-terminal how large the real one is."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, _WINDOW.pack(rows, columns, 0, 0))
