"""A person in a project folder, with and without a terminal: what tests of commands share."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEADLINE = 60.0
WHERRY = [sys.executable, "-m", "wherry.cli.main"]


class Shell:
    """A person in a project folder."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY", "CLICOLOR"))}
        self.env = {**kept, "WHERRY_HOME": str(home), "NO_COLOR": "1", "TERM": "xterm"}

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, "utf-8")

    def __call__(self, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*WHERRY, *args], cwd=self.folder, env=self.env, input=stdin, capture_output=True,
            timeout=DEADLINE, check=False,
        )  # fmt: skip

    def json(self, *args: str) -> Any:
        done = self(args[0], "--json", *args[1:])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


class Screen:
    """The same person at a terminal."""

    def __init__(self, shell: Shell, *args: str) -> None:
        self.shell = shell
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (30, 90))
        self.before = termios.tcgetattr(self.slave)
        # A shell in between takes the terminal for itself, as a person's does.
        take = "import fcntl,os,sys,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        self.process = subprocess.Popen(
            [sys.executable, "-c", take + "os.execv(sys.argv[1], sys.argv[1:])", *WHERRY, *args],
            cwd=shell.folder, env=shell.env, stdin=self.slave, stdout=self.slave,
            stderr=self.slave, start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def see(self, pattern: str) -> re.Match[bytes]:
        """Wait until the pattern is shown, after what was seen before."""
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(pattern.encode(), self.seen, re.DOTALL)):
            assert time.monotonic() < deadline, f"never saw {pattern!r}: {self.seen!r}"
            self._read()
        self.seen = self.seen[found.end() :]
        return found

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it never ended: {self.seen!r}"
            self._read()
        self._read()
        return self.process.returncode

    def _read(self) -> None:
        while select.select([self.master], [], [], 0.02)[0]:
            self.seen += os.read(self.master, 65536)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextlib.contextmanager
def control_plane(folder: Path, **values: str) -> Iterator[Path]:
    """The home of a control plane with these settings; every run is stopped at the end."""
    shell = Shell(folder, folder / "home")
    shell.env |= {f"WHERRY_{name.upper()}": value for name, value in values.items()}
    up = shell("up", "--json")
    assert up.returncode == 0, up.stderr
    yield folder / "home"
    for run in shell.json("ps", "-s", "queued", "-s", "starting", "-s", "running"):
        shell("stop", run["id"], "--grace", "0s", "--wait")
    assert shell("down").returncode == 0
