"""What starts on another machine: only for whoever has the key, and no longer than rank 0 lives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wherry.agent import mpi, remote
from wherry.agent.ranks import Ports
from wherry.testing.waiting import eventually

SCRIPT = remote.__file__


class Machines:
    """Two ranks at two addresses of this machine."""

    def __init__(self, root: Path) -> None:
        held = [Ports(1), Ports(1)]
        self.peers: list[dict[str, Any]] = [
            {"rank": r, "address": f"127.0.0.{r + 1}", "ports": held[r].numbers, "key": f"{r:064x}"}
            for r in range(2)
        ]
        for ports in held:
            ports.release()
        self.folders = [str(root / f"mpi {r}") for r in range(2)]
        for rank, folder in enumerate(self.folders):
            hosts = mpi.hosts(self.peers, 1)
            mpi.write(folder, rank, self.peers, hosts, own=0, script=SCRIPT)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, rank: int, *words: str, **env: str) -> subprocess.Popen[str]:
        """What the rank's agent would start."""
        command = mpi.command(list(words), rank, SCRIPT)
        return self.popen(rank, command, **env)

    def popen(self, rank: int, command: list[str], **env: str) -> subprocess.Popen[str]:
        folder = self.folders[rank]
        path = f"{os.environ['PATH']}{os.pathsep}{folder}"
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "WHERRY_MPI": folder, "PATH": path, **env},
        )  # fmt: skip
        self.started.append(process)
        return process

    def told(self, rank: int) -> dict[str, Any]:
        """An entry of ranks.json."""
        told = json.loads(Path(self.folders[0], "ranks.json").read_text())
        entry: dict[str, Any] = told["ranks"][rank]
        return entry


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    made = Machines(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def test_a_command_runs_in_the_environment_of_the_other_rank(machines: Machines) -> None:
    other = machines.start(1, WHO="the other")
    script = 'wherry-rsh 127.0.0.2 echo "\\$WHO" "; echo no >&2; exit 7"'
    first = machines.start(0, "sh", "-c", script, WHO="the first")
    out, err = first.communicate(timeout=30)
    assert (out, err, first.returncode) == ("the other\n", "no\n", 7)
    assert other.poll() is None, "it waits to be ended, so that rank 0's end is heard first"


def test_the_others_end_well_when_rank_0_did(machines: Machines) -> None:
    other = machines.start(1)
    first = machines.start(0, "true")
    assert first.wait(30) == 0 and other.wait(30) == 0


def test_rank_0_ends_as_its_command_did(machines: Machines) -> None:
    machines.start(1)
    assert machines.start(0, "sh", "-c", "kill -9 $$").wait(30) == -signal.SIGKILL
    missing = machines.start(0, "no-such-mpirun")
    assert "hint:" in missing.communicate(timeout=30)[1] and missing.returncode == 127


def test_whoever_has_not_the_key_is_not_heard(machines: Machines, tmp_path: Path) -> None:
    other = machines.start(1)
    request = {"do": "run", "command": f"touch '{tmp_path}/ran'"}
    forged = {**machines.told(1), "key": "f" * 64}
    status = remote.run_there(forged, request["command"])
    assert status == 255 and not (tmp_path / "ran").exists() and other.poll() is None
    assert remote.run_there(machines.told(1), request["command"]) == 0
    assert (tmp_path / "ran").exists()


def test_noise_on_the_port_disturbs_nobody(machines: Machines) -> None:
    other = machines.start(1)
    told = machines.told(1)
    assert remote.run_there(told, "true") == 0
    for noise in (b"", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 100):
        with socket.create_connection((told["address"], told["port"])) as line:
            line.sendall(noise)
    assert remote.run_there(told, "true") == 0 and other.poll() is None


def test_a_command_goes_when_its_caller_goes(machines: Machines, tmp_path: Path) -> None:
    machines.start(1)
    words = [sys.executable, SCRIPT, "127.0.0.2", f"echo $$ >'{tmp_path}/pid'; exec sleep 600"]
    caller = machines.popen(0, words)
    pid = int(eventually(lambda: _read(tmp_path / "pid")))
    caller.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_the_keys_are_for_the_owner_only(machines: Machines) -> None:
    told = Path(machines.folders[0], "ranks.json")
    assert told.stat().st_mode & 0o077 == 0 and told.parent.stat().st_mode & 0o077 == 0


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
