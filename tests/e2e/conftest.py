"""
The real thing: the command line and the control plane as processes, in a home of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.agent import platform
from wherry.core.run import Run
from wherry.errors import WherryError
from wherry.sdk import connect as sdk
from wherry.sdk.client import Client
from wherry.testing.waiting import eventually


class World:
    """A person's machine: a home, a project folder, the command line."""

    def __init__(self, root: Path) -> None:
        self.home, self.project = root / "home", root / "project"
        self.project.mkdir()
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("WHERRY_", "PYTEST_"))},
            "WHERRY_HOME": str(self.home),
            "NO_COLOR": "1",
        }

    def write(self, name: str, text: str) -> Path:
        """A file of the project."""
        path = self.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def cli(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run ``wherry`` in the project folder and return what it said."""
        options = {"timeout": 120, "cwd": self.project, "env": self.environ, **options}
        return subprocess.run(
            [sys.executable, "-m", "wherry.cli.main", *words],
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def json(self, *words: str) -> Any:
        """The document that a command prints; it must succeed."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def detach(self, *words: str) -> str:
        """Submit and return the run's id."""
        done = self.cli("run", "--detach", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[0]

    def client(self, *, start: bool = True) -> Client:
        """A client of this home's control plane."""
        return sdk.connect(start=start)

    def server(self) -> sdk.ServerInfo | None:
        """The control plane that answers now."""
        return sdk.find_server(self.home)

    def kill_server(self, sig: int = signal.SIGKILL) -> None:
        """Send the control plane a signal and, where it kills, wait for the death."""
        info = self.server()
        assert info is not None
        os.kill(info.pid, sig)
        if sig == signal.SIGKILL:
            eventually(lambda: not alive(info.pid))

    def until(self, ref: str, *states: str, within: float = 60.0) -> Run:
        """The run once it is in one of the states, over restarts of the control plane."""

        def look() -> Run | None:
            try:
                run = self.client().run(ref).run
            except WherryError:
                return None
            return run if run.state in states else None

        return eventually(look, within=within)

    def close(self) -> None:
        """Stop every run, then the control plane; kill what is left."""
        try:
            client = self.client(start=False)
            for run in client.runs(states=("submitted", "queued", "starting", "running")):
                client.stop(run.id, grace=0)
                self.until(run.id, "stopped", "failed", "lost", "succeeded")
        except WherryError:
            pass
        sdk.stop_server(self.home)
        for rank in (self.home / "attempts").glob("*/*/config.json"):
            config = json.loads(rank.read_text())
            platform.kill_marked(f"{config['run']}-{config['attempt']}/{config['rank']}")


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def make_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """Makes the world, with settings such as ``lease="3"`` for its control plane."""
    made: list[World] = []

    def make(**values: str) -> World:
        world = World(tmp_path)
        made.append(world)
        monkeypatch.setenv("WHERRY_HOME", str(world.home))
        for name, value in values.items():
            monkeypatch.setenv(f"WHERRY_{name.upper()}", value)
            world.environ[f"WHERRY_{name.upper()}"] = value
        return world

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
