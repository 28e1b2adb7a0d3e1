"""
Roles, pools and elastic groups, through the command line and real processes.

Evidence that does not come from the control plane: every program appends to a file of its own.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import World
from wherry.testing.waiting import eventually

#: Says who it is, then works until ``FOLDER/go`` is there. SIGTERM ends it.
WORKER = """
import os, sys, time
me = f"{os.environ['WHERRY_RANK']}/{os.environ['WHERRY_WORLD_SIZE']}"
with open(sys.argv[1] + "/started", "a") as file:
    file.write(f"{me} {os.getppid()}\\n")
while not os.path.exists(sys.argv[1] + "/go"):
    time.sleep(0.02)
print("done", me)
"""


class Notes:
    """What the programs wrote: who they are, and their agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def started(self) -> list[tuple[str, int]]:
        try:
            lines = (self.folder / "started").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def until(self, count: int) -> list[tuple[str, int]]:
        return eventually(
            lambda: self.started() if len(self.started()) >= count else None, within=60.0
        )

    def go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "notes")


def events(world: World, run: str, kind: str) -> list[str]:
    return [e["message"] for e in world.json("show", run)["events"] if e["kind"] == kind]


@pytest.mark.slow
def test_each_role_runs_its_own_command_and_the_chiefs_end_ends_them_all(world: World) -> None:
    world.write("train.py", "import os; print('trains', os.environ['WHERRY_RANK'])\n")
    world.write("ps.py", "import time; print('serves', flush=True); time.sleep(3600)\n")
    world.write(
        "job.yaml",
        "command: python train.py\n"
        "roles: {chief: 1, worker: 1, ps: {count: 1, command: python ps.py}}\n",
    )
    done = world.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    shown = world.json("show", "last")
    states = [rank["state"] for rank in shown["attempts"][0]["ranks"]]
    assert (states[0], states[2]) == ("succeeded", "stopped")
    assert "trains 0" in done.stdout


def test_a_rank_of_a_pool_that_is_lost_is_replaced_alone(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world(backoff="0.01")
    world.write("work.py", WORKER)
    run = world.detach(
        *("--group", "pool", "--workers", "2", "--restarts", "1"), "work.py", str(notes.folder)
    )
    agents = dict(notes.until(2))
    os.kill(agents["1/2"], signal.SIGKILL)
    third = notes.until(3)[2]
    assert third[0] == "1/2" and third[1] != agents["1/2"]
    notes.go()
    world.until(run, "succeeded")
    ranks = world.json("show", run)["attempts"][0]["ranks"]
    assert [rank["incarnation"] for rank in ranks] == [1, 2]
    assert len(notes.started()) == 3
    assert "the agent died" in events(world, run, "replaced")[0]
    # Every line once, though two incarnations wrote as rank 1.
    assert sorted(world.cli("logs", run).stdout.split("\n"))[1:] == ["[0] done 0/2", "[1] done 1/2"]


def test_an_elastic_group_shrinks_by_a_loss_and_grows_again(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world(elastic_settle="0.3")
    world.write("work.py", WORKER)
    run = world.detach(
        *("--workers", "2:3", "--restarts", "1", "--backoff", "1s"), "work.py", str(notes.folder)
    )
    agents = dict(notes.until(3))
    assert set(agents) == {"0/3", "1/3", "2/3"}
    os.kill(agents["2/3"], signal.SIGKILL)
    shrunk = notes.until(5)[3:5]
    assert {who for who, _ in shrunk} == {"0/2", "1/2"}
    assert {agent for _, agent in shrunk} == {agents["0/3"], agents["1/3"]}  # they never left
    grown = notes.until(8)[5:8]
    assert {who for who, _ in grown} == {"0/3", "1/3", "2/3"}
    notes.go()
    world.until(run, "succeeded")
    rounds = [message.partition(":")[0] for message in events(world, run, "round")]
    assert rounds == ["round 1", "round 2", "round 3"]


@pytest.mark.slow
def test_an_elastic_group_survives_a_restart_of_the_control_plane(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world(elastic_settle="0.3")
    world.write("work.py", WORKER)
    run = world.detach("--workers", "1:2", "--restarts", "1", "work.py", str(notes.folder))
    agents = dict(notes.until(2))
    world.kill_server()
    os.kill(agents["1/2"], signal.SIGKILL)
    world.client()
    assert notes.until(3)[2][0] == "0/1"
    assert {who for who, _ in notes.until(5)[3:5]} == {"0/2", "1/2"}
    notes.go()
    world.until(run, "succeeded")


@pytest.mark.slow
def test_a_program_that_fails_in_an_elastic_group_ends_it_unless_it_may_be_tried_again(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world(elastic_settle="0.2")
    fails = (
        "import os, sys\n"
        "if os.environ['WHERRY_RANK'] == '1':\n"
        "    first = not os.path.exists(sys.argv[1] + '/failed')\n"
        "    open(sys.argv[1] + '/' + ('failed' if first else 'go'), 'w').close()\n"
        "    sys.exit(75 if first else 0)\n"
    )
    world.write("work.py", fails + WORKER)
    words = ("--workers", "2:2", "--restarts", "1", "work.py", str(notes.folder))
    failed = world.until(world.detach(*words), "failed", "succeeded")
    assert failed.state == "failed" and failed.exit_code == 75
    (notes.folder / "failed").unlink()
    again = world.until(world.detach("--retry-on", "75", *words), "failed", "succeeded", "lost")
    assert again.state == "succeeded", json.dumps(world.json("show", again.id)["events"], indent=1)


@pytest.mark.slow
def test_a_gang_is_tried_again_for_what_the_job_names_and_waits_before(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world()
    world.write(
        "fails.py",
        "import os, sys\n"
        "open(f'{sys.argv[1]}/{os.environ[\"WHERRY_ATTEMPT\"]}', 'w').close()\n"
        "sys.exit(75 if os.environ['WHERRY_ATTEMPT'] < '3' else 0)\n",
    )
    words = ("fails.py", str(notes.folder))
    run = world.detach("--restarts", "3", "--retry-on", "75", "--backoff", "0.2s", *words)
    assert world.until(run, "failed", "succeeded", "lost").restarts_used == 2
    assert sorted(path.name for path in notes.folder.iterdir()) == ["1", "2", "3"]
    queued = events(world, run, "queued")
    assert "again in 0.2 s (restart 1 of 3)" in queued[-2]
    assert "again in 0.4 s (restart 2 of 3)" in queued[-1]
    short = world.detach("--restarts", "1", "--retry-on", "75", "--backoff", "0.1s", *words)
    assert world.until(short, "failed", "succeeded", "lost").exit_code == 75
    never = world.detach("--restarts", "3", "--retry-on", "any", "--fail-on", "75", *words)
    assert world.until(never, "failed", "succeeded", "lost").attempt == 1


@pytest.mark.slow
def test_a_machine_that_goes_away_is_told_from_a_stop(
    make_world: Callable[..., World], notes: Notes
) -> None:
    world = make_world(backoff="0.01")
    world.write("work.py", WORKER)
    run = world.detach("--restarts", "1", "work.py", str(notes.folder))
    ((_, agent),) = notes.until(1)
    os.kill(agent, signal.SIGTERM)
    notes.until(2)
    notes.go()
    ended = world.until(run, "succeeded", "failed", "stopped", "lost")
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    assert "asked it to leave" in events(world, run, "queued")[-1]
