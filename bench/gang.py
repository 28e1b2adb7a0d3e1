"""
How long a gang of four takes to start, and how soon the death of one of them is dealt with.

``python bench/gang.py [--python PYTHON] [--json]``. The first in PyTorch: four processes meet,
reduce one number and leave; in the same run ``torchrun --nproc-per-node 4`` does so with the same
script and interpreter. Without a PyTorch (``--python``; by default that of ``make
frameworks-setup``) it is left out, and said so. The second: four programs that sleep, one of which
is killed; once its program alone, once with its agent. Over a network a machine that is lost says
nothing at all: an agent is frozen, and the silence is measured in heartbeats.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wherry import settings
from wherry.agent import platform
from wherry.core.api import Submit
from wherry.core.job import Environment, JobSpec
from wherry.sdk.client import Client
from wherry.sdk.connect import connect, stop_server

MEET = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
assert one.item() == dist.get_world_size() == 4
dist.destroy_process_group()
"""
TORCH = Path(__file__).parents[1] / ".cache" / "frameworks" / "main" / "bin" / "python"
SLEEP = "import time; print('up', flush=True); time.sleep(600)"


def timed(command: list[str], folder: Path, env: dict[str, str]) -> float:
    """Seconds that the command takes. :raises CalledProcessError: where it fails."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    return time.perf_counter() - began


def start(python: str, folder: Path, times: int) -> dict[str, float]:
    """The gang's start, ours and torchrun's, one after the other so that both meet one machine."""
    (folder / "meet.py").write_text(MEET)
    env = {**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    env["VIRTUAL_ENV"] = str(Path(python).parent.parent)
    ours = [sys.executable, "-m", "wherry.cli.main", "run", "--workers", "4", "meet.py"]
    peer = [python, "-m", "torch.distributed.run", "--nproc-per-node", "4", "meet.py"]
    theirs = {**env, "OMP_NUM_THREADS": "1"}  # as ours; it says so by itself otherwise
    both = [(timed(ours, folder, env), timed(peer, folder, theirs)) for _ in range(times + 1)][1:]
    mine, bare = (statistics.median(column) for column in zip(*both, strict=True))
    return {
        "gang of 4: wherry run, s": mine,
        "gang of 4: torchrun, s": bare,
        "gang of 4: ratio to torchrun": mine / bare,
    }


def agents(home: Path, run: str) -> dict[int, int]:
    """The agents' pids by rank, once every program is up."""
    folder = home / "attempts" / f"{run}-1"
    return {n: int((folder / str(n) / "lock").read_text().split()[0]) for n in range(4)}


def program(home: Path, run: str, rank: int) -> int:
    """The pid of a rank's program."""
    child = json.loads((home / "attempts" / f"{run}-1" / str(rank) / "child.json").read_text())
    return int(child["pid"])


def death(client: Client, home: Path, victim: Callable[[str], int]) -> tuple[float, float]:
    """Seconds from the death of one until it is known, and until nothing of the gang is left."""
    run = launched(client)
    programs = [program(home, run, n) for n in range(4)]
    pid = victim(run)
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    while any(platform.pid_started(p) is not None for p in programs):
        time.sleep(0.002)
    gone = time.time() - killed
    client.wait(run, 60)
    stopping = [e.time for e in client.run(run).events if e.kind == "stopping"]
    return stopping[0] - killed, gone


def launched(client: Client) -> str:
    """A gang of four that sleeps, running."""
    environment = Environment(python=sys.executable)
    spec = JobSpec(command=("python", "-c", SLEEP), workers=4, environment=environment)
    run = client.submit(Submit(spec=spec)).id
    while client.run(run).run.state != "running":
        time.sleep(0.02)
    return run


def silence(client: Client, home: Path) -> float:
    """Seconds from the moment when an agent falls silent until its rank is declared lost."""
    run = launched(client)
    agent = agents(home, run)[2]
    frozen = time.time()
    os.kill(agent, signal.SIGSTOP)
    while not (lost := [e.time for e in client.run(run).events if e.kind == "rank"]):
        time.sleep(0.05)
    client.stop(run, grace=0.0)
    client.wait(run, 60)
    return min(lost) - frozen


def detect(home: Path, times: int) -> dict[str, float]:
    """How soon a death is known and dealt with: the median and the worst."""
    found: dict[str, float] = {}
    client = connect()
    victims: dict[str, Callable[[str], int]] = {
        "program": lambda run: program(home, run, 2),
        "agent": lambda run: agents(home, run)[2],
    }
    for name, victim in victims.items():
        known, gone = zip(*(death(client, home, victim) for _ in range(times)), strict=True)
        found[f"killed {name}: known after, s"] = statistics.median(known)
        found[f"killed {name}: known after at worst, s"] = max(known)
        found[f"killed {name}: all four gone after, s"] = statistics.median(gone)
    beats = [silence(client, home) / float(settings.get("heartbeat")) for _ in range(2)]
    found["silent agent: known after, heartbeats at worst"] = max(beats)
    client.close()
    return found


def has_torch(python: str) -> bool:
    """Whether this interpreter can import it."""
    if not os.access(python, os.X_OK):
        return False
    looked = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    return looked.returncode == 0


def measure(python: str, times: int) -> dict[str, float]:
    """Every figure."""
    folder = Path(tempfile.mkdtemp(prefix="wherry-bench-"))
    os.environ["WHERRY_HOME"] = str(folder / "home")
    try:
        found = detect(folder / "home", times)
        if has_torch(python):
            found |= start(python, folder, times)
        else:
            print(f"not measured: {python} has no PyTorch, see --python", file=sys.stderr)
        return found
    finally:
        stop_server(folder / "home")
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="the start of a gang, and the death of a rank")
    parser.add_argument("--python", default=str(TORCH), help="an interpreter with PyTorch")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    figures = measure(asked.python, asked.times)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{value:10.3f}  {name}")


if __name__ == "__main__":
    main()
