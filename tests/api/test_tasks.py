"""The routes of wherry.map: who may, what travels, and that nobody waits for nothing."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import Agent, Plane
from wherry.agent import tasks as t
from wherry.agent.protocol import pack_item
from wherry.backends.base import Capability
from wherry.core.job import Call
from wherry.core.run import Run
from wherry.core.states import RankState
from wherry.testing.fake_backends import MemoryBackend
from wherry.testing.waiting import eventually


def submit(plane: Plane, workers: int = 2) -> Run:
    digest = blob(plane, b"payload")
    call = Call(payload=digest, name="map", tasks=True)
    return plane.submit(call=call, group="pool", workers=workers)


def blob(plane: Plane, data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    body = pack_item(digest, len(data)) + data
    assert plane.http.post("/api/v1/blobs/pack", content=body).status_code == 204
    return digest


class Driver:
    """Speaks as ``sdk.pool`` does."""

    def __init__(self, plane: Plane, run: Run) -> None:
        self.http, self.path, self.after = plane.http, f"/api/v1/runs/{run.id}/tasks", 0
        self.epoch = self.put(b"").json()["epoch"]

    def put(self, *frames: bytes, epoch: str = "") -> Any:
        query = {"epoch": epoch or getattr(self, "epoch", "")}
        return self.http.post(self.path, params=query, content=b"".join(frames))

    def collect(self, wait: float = 0.0) -> list[tuple[int, int, bytes]]:
        query: dict[str, Any] = {"epoch": self.epoch, "after": self.after, "wait": wait}
        body = self.http.get(self.path, params=query).content
        state, *rest = [(k, n, bytes(p)) for k, n, p in t.iter_frames(body)]
        self.state = json.loads(state[2])
        self.after = self.state["next"]
        return rest


def take(agent: Agent, *held: int, want: int = 1, wait: float = 0.0) -> Any:
    query: dict[str, Any] = {"want": want, "wait": wait}
    return agent.http.post("/agent/v1/tasks/next", params=query, content=t.pack_numbers(held))


def answer(agent: Agent, *frames: bytes) -> Any:
    return agent.http.post("/agent/v1/tasks", content=b"".join(frames))


@pytest.fixture
def plane(backend: MemoryBackend, make_plane: Callable[[], Plane]) -> Plane:
    backend.capabilities |= {Capability.REPLACE}
    return make_plane()


@pytest.fixture
def run(plane: Plane) -> Run:
    return submit(plane)


@pytest.fixture
def workers(plane: Plane, run: Run) -> list[Agent]:
    agents = [plane.agent(run, rank) for rank in (0, 1)]
    for agent in agents:
        agent.start()
    return agents


def test_a_chunk_goes_to_a_worker_and_its_outcome_to_the_driver(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    driver = Driver(plane, run)
    assert driver.put(t.frame(t.CHUNK, 1, b"\0work")).json()["accepted"] == 1
    [(kind, number, data)] = t.iter_frames(take(workers[0]).content)
    assert (kind, number, bytes(data)) == (t.CHUNK, 1, b"\0work")
    assert answer(workers[0], t.frame(t.RESULT, 1, b"done")).status_code == 204
    assert driver.collect() == [(t.RESULT, 1, b"done")]
    assert driver.collect() == []


def test_both_ends_wait_until_there_is_something(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    driver = Driver(plane, run)
    seen: list[Any] = []
    waiting = [
        threading.Thread(target=lambda: seen.append(take(workers[0], wait=50).content)),
        threading.Thread(target=lambda: seen.append(driver.collect(wait=50))),
    ]
    for thread in waiting:
        thread.start()
    driver.put(t.frame(t.CHUNK, 1, b"\0work"))
    waiting[0].join(30)
    answer(workers[0], t.frame(t.RESULT, 1, b"done"))
    waiting[1].join(30)
    assert [t.frame(t.CHUNK, 1, b"\0work"), [(t.RESULT, 1, b"done")]] == seen


def test_strangers_and_the_wrong_credential_are_refused(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    path = f"/api/v1/runs/{run.id}/tasks"
    for method in ("POST", "GET", "DELETE"):
        assert plane.stranger.request(method, path).status_code == 401
        assert workers[0].http.request(method, path).status_code == 401
    for path in ("/agent/v1/tasks/next", "/agent/v1/tasks"):
        assert plane.stranger.post(path).status_code == 401
        assert plane.http.post(path).status_code == 401


def test_a_worker_reaches_the_tasks_of_its_own_run_alone(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    other = submit(plane, workers=1)
    stranger = plane.agent(other)
    stranger.start()
    driver = Driver(plane, run)
    driver.put(t.frame(t.CHUNK, 1, b"\0work"))
    assert take(stranger).content == b""
    answer(stranger, t.frame(t.RESULT, 1, b"mine"))
    assert driver.collect() == []
    assert take(workers[0]).content != b""


def test_a_worker_reads_the_blobs_that_its_driver_grants(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    digest = blob(plane, b"an argument")
    get: Callable[[], Any] = lambda: workers[0].http.get(f"/agent/v1/blobs/{digest}")  # noqa: E731
    assert get().status_code == 403
    Driver(plane, run).put(t.frame(t.GRANT, 0, bytes.fromhex(digest)))
    assert get().content == b"an argument"


def test_a_run_without_tasks_has_none(plane: Plane) -> None:
    plain = plane.submit()
    agent = plane.agent(plain)
    agent.start()
    for response in (
        plane.http.get(f"/api/v1/runs/{plain.id}/tasks"),
        plane.http.post(f"/api/v1/runs/{plain.id}/tasks"),
        take(agent),
    ):
        assert response.status_code == 400, response.text
        assert "does not serve tasks" in response.text


@pytest.mark.parametrize("body", [b"\1\2\3", b"\xff" * 100], ids=["short", "odd"])
def test_what_does_not_decode_is_the_callers_mistake(
    plane: Plane, run: Run, workers: list[Agent], body: bytes
) -> None:
    driver = Driver(plane, run)
    assert driver.put(body).status_code == 400
    assert answer(workers[0], body).status_code == 400
    odd = workers[0].http.post("/agent/v1/tasks/next", content=b"123")
    assert odd.status_code == 400


def test_a_worker_that_was_declared_lost_is_refused_and_its_chunk_comes_back(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    driver = Driver(plane, run)
    driver.put(t.frame(t.CHUNK, 1, b"\0work"))
    take(workers[0])
    who = workers[0].who
    plane.control.services.store.move_rank(who.attempt, who.rank, RankState.LOST, exit=lost())
    plane.control.services.bus.publish(run.id)
    [(kind, number, why)] = driver.collect(wait=30)
    assert (kind, number) == (t.LOST, 1)
    assert json.loads(why) == {"why": "it was silent"}
    response = answer(workers[0], t.frame(t.RESULT, 1, b"late"))
    assert (response.status_code, response.json()["error"]["code"]) == (409, "stale-token")


def lost() -> Any:
    from wherry.store.base import Exit

    return Exit(state=RankState.LOST, time=1.0, cause="lease", message="it was silent")


def test_after_the_end_workers_leave_and_the_run_succeeds(
    plane: Plane, run: Run, workers: list[Agent]
) -> None:
    driver = Driver(plane, run)
    for _ in range(2):
        assert plane.http.delete(driver.path).status_code == 204
    for agent in workers:
        assert [kind for kind, *_ in t.iter_frames(take(agent, wait=30).content)] == [t.END]
        agent.exit()
    plane.until(run.id, "succeeded")
    driver.collect(wait=30)
    eventually(lambda: driver.collect() == [] and driver.state["state"] == "succeeded")


def test_another_control_plane_has_another_epoch_and_what_workers_have_stays_theirs(
    plane: Plane, run: Run, workers: list[Agent], make_plane: Callable[[], Plane]
) -> None:
    before = Driver(plane, run)
    before.put(t.frame(t.CHUNK, 1, b"\0work"))
    take(workers[0])
    plane = make_plane()
    driver = Driver(plane, run)
    assert driver.epoch != before.epoch
    agents = [plane.agent(run, rank) for rank in (0, 1)]
    again = t.frame(t.CHUNK, 1, bytes([t.AGAIN]) + b"work")
    driver.put(again, t.frame(t.CHUNK, 2, bytes([t.AGAIN]) + b"more"))
    assert take(agents[1]).content == b""
    take(agents[0], 1)
    assert [n for _, n, _ in t.iter_frames(take(agents[1], wait=30).content)] == [2]
    answer(agents[0], t.frame(t.RESULT, 1, b"done"))
    assert driver.collect() == [(t.RESULT, 1, b"done")]
