"""One rank's agent, run for real against an ``AgentSink``: what the agent's tests share."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wherry.agent import package, platform, protocol
from wherry.testing.sink import AgentSink

PROMISED = ("3.9", "3.11", "3.13")


@functools.cache
def interpreters() -> list[str]:
    """The Pythons of this machine that the agent promises to run on, this one among them."""
    found = [sys.executable]
    for version in PROMISED:
        if version != "{}.{}".format(*sys.version_info):
            working = [path for path in _candidates(version) if _works(path)]
            found += working[:1]
    return found


def _candidates(version: str) -> list[str]:
    """Where one version may be: on the path, or where pyenv and uv put them."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    uv = Path("~/.local/share/uv/python").expanduser()
    managed = [*pyenv.glob(f"{version}.*/bin/python"), *uv.glob(f"cpython-{version}.*/bin/python")]
    return [*([on_path] if on_path else []), *map(str, managed)]


def _works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


@functools.cache
def _zip() -> bytes:
    return package.build_zip()


def until(condition: Callable[[], Any], what: str = "", timeout: float = 30.0) -> None:
    """Poll until it holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {timeout} s: {what or condition}"
        time.sleep(0.005)


class Rank:
    """
    A rank's folder and its agent. ``spec`` and the other words go over a config that runs
    ``python script.py`` in place, in ``work``.
    """

    def __init__(
        self, tmp: Path, sink: AgentSink, *, python: str = sys.executable, **over: Any
    ) -> None:
        self.sink, self.python = sink, python
        # Unlike any other test's: agents end whatever on this machine carries their attempt's mark.
        own = f"r{hashlib.sha256(bytes(tmp)).hexdigest()[:12]}"
        rank, run = over.get("rank", 0), over.setdefault("run", own)
        self.attempt = f"{run}-1"
        sink.expect(self.attempt, over.get("world_size", 1))
        self.work = tmp / "work"
        self.work.mkdir(exist_ok=True)
        shared = tmp / self.attempt
        self.folder = shared / str(rank)
        self.folder.mkdir(parents=True)
        self.agent = package.unpack(_zip(), tmp.parent / "agent")
        spec = {
            "command": ["python", "script.py"],
            "code": {"in_place": str(self.work)},
            "environment": {"python": python},
            **over.pop("spec", {}),
        }
        self.config: dict[str, Any] = {
            "protocol": protocol.PROTOCOL,
            "server": sink.url,
            "server_file": "",
            "token": sink.token(self.attempt, rank),
            "attempt": 1,
            "rank": rank,
            "incarnation": 1,
            "world_size": 1,
            "processes": 1,
            "roles": [],
            "spec": spec,
            "dir": str(self.folder),
            "shared_dir": str(shared),
            "cache": str(tmp / "cache"),
            "checkpoints": str(tmp / "checkpoints"),
            "threads": 2,
            "attach": "",
            "uv": "",
            "grace": 5.0,
            "heartbeat": 0.1,
            "lease": 30.0,
            "barrier_timeout": 10.0,
            "spool_limit": 2**30,
            "network": {},
            "limits": {"memory": None, "cgroup": []},
            **over,
        }
        self.rank = rank
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, script: str = "") -> Rank:
        """Write ``script`` and start the agent."""
        if script:
            (self.work / "script.py").write_text(script)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        with open(self.folder / "agent.log", "ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-I", "-S", "-X", "utf8", self.agent, self.folder / "config.json"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )
        return self

    def wait(self, timeout: float = 60.0) -> int:
        """The agent's own exit status."""
        assert self.process is not None
        return self.process.wait(timeout)

    def run(self, script: str = "") -> dict[str, Any]:
        """Start, wait, and return EXIT's payload."""
        self.start(script)
        assert self.wait() == 0, (self.folder / "agent.log").read_text()
        found = self.sink.exit(self.attempt, self.rank)
        assert found is not None, (self.folder / "agent.log").read_text()
        return found

    def stop(self) -> None:
        """SIGTERM, as the back end does."""
        assert self.process is not None
        if not (self.folder / "stop").exists():
            (self.folder / "stop").write_text(str(self.config["grace"]))
        os.kill(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the agent and all that carries its mark. Again: no error."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        platform.kill_marked(self.attempt)

    def log(self, stream: int = protocol.STDOUT) -> bytes:
        """What the sink has of a stream."""
        return self.sink.log(self.attempt, self.rank, stream)

    def living(self) -> list[int]:
        """Processes of the program."""
        return platform.find_marked(self.attempt)
