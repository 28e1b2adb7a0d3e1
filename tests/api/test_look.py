"""
Looking into ranks over HTTP: commands to agents, and bytes that are relayed with back-pressure.

``conftest.Agent`` plays the rank's agent, threads play whoever waits.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.conftest import Agent, Plane
from wherry.agent import protocol as p
from wherry.core.run import Run
from wherry.sdk.beside import Line, dial
from wherry.sdk.client import Client
from wherry.sdk.http import Endpoint, Http
from wherry.testing.waiting import eventually


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


@pytest.fixture
def run(plane: Plane) -> Run:
    """A run of two ranks whose programs run."""
    made = plane.submit(workers=2)
    for rank in (0, 1):
        plane.agent(made, rank).start()
    return plane.until(made.id, "running")


def client(plane: Plane) -> Client:
    return Client(Http(Endpoint(plane.url, plane.control.keys.token)))


def next_command(agent: Agent) -> dict[str, Any]:
    """What the agent is asked to do, once it is."""
    (command,) = agent.http.get("/agent/v1/commands?wait=30").json()["commands"]
    found: dict[str, Any] = command
    return found


class Ends:
    """Both ends of a channel: a person's line, and what a rank's agent hears and says."""

    def __init__(self, plane: Plane, run: Run, rank: int, pool: ThreadPoolExecutor) -> None:
        self.agent = plane.agent(run, rank)
        calling: Future[Line] = pool.submit(dial, client(plane), run.id, rank=rank)
        self.path = f"/agent/v1/channels/{next_command(self.agent)['channel']}"
        self._stack = contextlib.ExitStack()
        self.heard = self._stack.enter_context(self.agent.http.stream("GET", self.path))
        self.line = self._stack.enter_context(calling.result(30))

    def close(self) -> None:
        """Again: no error."""
        self._stack.close()


@pytest.fixture
def ends(plane: Plane, run: Run, pool: ThreadPoolExecutor) -> Iterator[Ends]:
    made = Ends(plane, run, 1, pool)
    yield made
    made.close()


def test_stacks_are_asked_of_every_rank_at_once(
    plane: Plane, run: Run, pool: ThreadPoolExecutor
) -> None:
    asking = pool.submit(plane.http.get, f"/api/v1/runs/{run.id}/stack?native=true")
    for rank in (1, 0):
        agent = plane.agent(run, rank)
        command = next_command(agent)
        assert (command["kind"], command["native"]) == ("stack", True)
        frame = {"name": f"f{rank}", "filename": "a.py", "line": 1}
        thread = {"thread_name": "MainThread", "thread_id": 1, "frames": [frame]}
        answer = {"processes": [{"pid": 1, "command": "python", "threads": [thread]}]}
        done = agent.http.post(f"/agent/v1/commands/{command['id']}", json=answer)
        assert done.status_code == 204
    found = asking.result(30).json()
    names = [one["processes"][0]["threads"][0]["calls"][0]["name"] for one in found]
    assert names == ["f0", "f1"]


def test_an_agent_that_answers_nonsense_spoils_no_other_rank(
    plane: Plane, run: Run, pool: ThreadPoolExecutor
) -> None:
    asking = pool.submit(plane.http.get, f"/api/v1/runs/{run.id}/stack")
    for rank, answer in ((0, {"processes": 7}), (1, {"processes": []})):
        agent = plane.agent(run, rank)
        agent.http.post(f"/agent/v1/commands/{next_command(agent)['id']}", json=answer)
    first, second = asking.result(30).json()
    assert first["problems"][0]["code"] == "not-understood" and "problems" in second


def test_what_a_person_sends_arrives_and_what_the_rank_sends_comes_back(ends: Ends) -> None:
    assert ends.line.rank == 1
    ends.line.socket.sendall(b"to the rank")
    heard = ends.heard.iter_raw()  # to drop it would be to hang up
    assert next(heard) == b"to the rank"
    ends.agent.http.post(ends.path, content=b"to the person")
    assert ends.line.socket.recv(100) == b"to the person"
    assert ends.line.socket.recv(100) == b""  # the rank has hung up


def test_a_person_who_leaves_ends_the_ranks_side(ends: Ends) -> None:
    with ends.line:
        pass
    assert b"".join(ends.heard.iter_raw()) == b""
    eventually(lambda: ends.agent.http.post(ends.path, content=b"x").status_code == 404)


def test_a_person_who_does_not_read_slows_the_rank_and_loses_nothing(
    plane: Plane, ends: Ends, pool: ThreadPoolExecutor
) -> None:
    block, blocks, sent = bytes(range(256)) * 256, 1024, [0]
    enough = threading.Event()

    def output() -> Iterator[bytes]:
        for _ in range(blocks):
            yield block
            sent[0] += 1
            if sent[0] * len(block) > 2**20:
                enough.set()

    sending = pool.submit(ends.agent.http.post, ends.path, content=output())
    assert enough.wait(30)
    # Sockets hold some megabytes; all 64 MiB would be in memory if nobody had to wait.
    before = -1
    while before != sent[0]:
        before = sent[0]
        plane.http.get("/api/v1/status")
    assert sent[0] < blocks and not sending.done()
    got = 0
    while data := ends.line.socket.recv(1 << 20):
        assert data == (block * 17)[got % 256 : got % 256 + len(data)]
        got += len(data)
    assert got == len(block) * blocks
    assert sending.result(30).status_code == 204


def test_a_channel_belongs_to_its_rank_alone(plane: Plane, run: Run, ends: Ends) -> None:
    other = plane.agent(run, 0)
    assert other.http.get(ends.path).status_code == 404
    assert other.http.post(ends.path, content=b"x").status_code == 404
    assert plane.stranger.post(ends.path.replace("/agent/", "/api/")).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/api/v1/runs/{run}/exec", 409, "not-running"),
        ("GET", "/api/v1/runs/{run}/stack", 409, "not-running"),
        ("POST", "/api/v1/runs/nowhere/exec", 404, "not-found"),
        ("POST", "/api/v1/channels/nowhere", 404, "not-found"),
    ],
)
def test_what_cannot_be_looked_into_is_refused_with_a_code(
    plane: Plane, method: str, path: str, status: int, code: str
) -> None:
    made = plane.submit()
    plane.agent(made)
    answer = plane.http.request(method, path.format(run=made.id), json={})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"] == code


def test_an_agent_of_a_run_that_is_over_is_told_so(plane: Plane) -> None:
    made = plane.submit()
    agent = plane.agent(made)
    agent.start()
    agent.exit(0)
    plane.until(made.id, "succeeded")
    answer = eventually(
        lambda: found if (found := agent.http.get("/agent/v1/commands?wait=0")).is_error else None
    )
    assert answer.json()["error"]["code"] == "stale-token"


def test_an_event_of_a_rank_is_the_runs_and_its_reason(plane: Plane, run: Run) -> None:
    agent = plane.agent(run, 1)
    agent.seq = 1  # it has started
    agent.say((p.EVENT, {"kind": "stalled", "message": "no output for 10m\nstacks"}))
    found = eventually(lambda: plane.run(run.id).reason)
    assert found == f"rank 1 shows no output for 10m: wherry stack {run.id}"
    agent.say((p.EVENT, {"kind": "moving", "message": "it moves again"}))
    eventually(lambda: plane.run(run.id).reason == "")
    kinds = [event.kind for event in plane.control.services.store.events(run.id)]
    assert kinds[-2:] == ["stalled", "moving"]


def test_a_hold_outlives_the_control_plane_and_ends_with_a_stop(
    make_plane: Callable[[], Plane],
) -> None:
    plane = make_plane()
    held = plane.submit(workers=2, hold=3600.0)
    one, two = plane.agent(held, 0), plane.agent(held, 1)
    for agent in (one, two):
        agent.start()
    end = {"state": "failed", "exit_code": 1, "cause": "exit", "message": "exited with status 1"}
    note = {"kind": "held", "message": "failed (exited with status 1); held for 1h"}
    two.say((p.ENDED, end), (p.EVENT, note))

    def told() -> tuple[bool, bool]:
        return one.send().json()["stop"], two.send().json()["stop"]

    eventually(lambda: told() == (True, False))
    reason = f"rank 1 failed (exited with status 1); held for 1h: wherry exec {held.id} --rank 1"
    assert eventually(lambda: plane.run(held.id).reason).startswith(reason)
    plane = make_plane()
    seqs = one.seq, two.seq
    one, two = plane.agent(held, 0), plane.agent(held, 1)
    one.seq, two.seq = seqs
    assert told() == (True, False)
    assert plane.run(held.id).reason.startswith(reason)
    one.say((p.EXIT, {"state": "stopped", "cause": "stopped"}))
    assert plane.http.post(f"/api/v1/runs/{held.id}/stop", json={}).status_code == 200
    # Told to stop; or over already, for this back end ends what it stops at once.
    eventually(lambda: (answer := two.send()).is_error or answer.json()["stop"])
    two.send(two.frames((p.EXIT, end)))
    run = plane.until(held.id, "failed")
    assert run.verdict is not None and (run.verdict.rank, run.verdict.exit_code) == (1, 1)
