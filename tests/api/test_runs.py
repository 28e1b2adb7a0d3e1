"""A run's life through the API, with agents played by the test."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.api.conftest import Plane
from wherry.agent import protocol as p
from wherry.backends.base import Capacity
from wherry.core.api import RunDetail
from wherry.core.job import Amount, Code, Resources
from wherry.core.run import AttemptId, Rank, Run
from wherry.core.states import RunState
from wherry.errors import StorageFull
from wherry.testing.fake_backends import MemoryBackend
from wherry.testing.waiting import eventually

ONE_CORE = Capacity(total=Amount(cpu=1.0, memory=2**30), free=Amount(cpu=1.0, memory=2**30))


def pack(*blobs: bytes) -> bytes:
    return b"".join(p.pack_item(hashlib.sha256(b).hexdigest(), len(b)) + b for b in blobs)


def test_a_run_lives_from_submission_to_success(plane: Plane) -> None:
    run = plane.submit("python", "train.py", "--epochs", "3")
    assert run.name == "train" and run.spec.params == {"epochs": 3}
    agent = plane.agent(run)
    agent.start()
    plane.until(run.id, "running")
    agent.say((p.LOG, b"\x01epoch 1\n"), (p.METRIC, p.pack_series({"loss": ([1], [1.0], [0.5])})))
    agent.exit()
    done = plane.until(run.id, "succeeded")
    assert (done.exit_code, done.verdict) == (0, None)
    detail = plane.answer(plane.http.get(f"/api/v1/runs/{run.id}"), RunDetail)
    assert [s.name for s in detail.metrics] == ["loss"]
    assert [e.kind for e in detail.events][-1]
    eventually(lambda: plane.backend.called("forget"))


def test_a_run_that_is_over_before_it_was_seen_running_has_a_start(plane: Plane) -> None:
    run = plane.submit(workers=2)
    first, second = plane.agent(run, 0), plane.agent(run, 1)
    assert first.hello().status_code == second.hello().status_code == 200
    over = {"state": "succeeded", "exit_code": 0}
    second.say((p.STARTED, {"pid": 2}), (p.EXIT, over))
    first.say((p.LOG, b"\x01later"), (p.STARTED, {"pid": 1}), (p.EXIT, over))
    done = plane.until(run.id, "succeeded")
    assert done.started == min(r.started for r in ranks(plane, run) if r.started is not None)
    assert done.ended is not None and done.ended >= done.started


def test_a_run_that_never_began_has_no_start(plane: Plane) -> None:
    run = plane.submit()
    plane.agent(run).say((p.EXIT, {"state": "failed", "cause": "environment", "message": "no"}))
    assert plane.until(run.id, "failed").started is None


def ranks(plane: Plane, run: Run) -> tuple[Rank, ...]:
    return plane.control.services.store.attempt(AttemptId(run.id, 1)).ranks


def test_a_failure_names_the_first_rank_and_stops_the_others(plane: Plane) -> None:
    plane.backend.ignore_stop = True
    run = plane.submit(workers=2)
    first, second = plane.agent(run, 0), plane.agent(run, 1)
    first.start()
    second.start()
    second.exit(3, message="exited with status 3", last_lines=["ValueError: no"])
    eventually(lambda: plane.backend.called("stop"))
    assert first.send().json()["stop"] is True
    first.say((p.EXIT, {"state": "stopped", "signal": 15, "cause": "stopped"}))
    done = plane.until(run.id, "failed")
    assert done.verdict is not None and done.verdict.rank == 1
    assert (done.exit_code, done.verdict.last_lines) == (3, ("ValueError: no",))


def test_the_same_key_makes_one_run_and_another_request_is_refused(plane: Plane) -> None:
    assert plane.submit(key="k1").id == plane.submit(key="k1").id
    body = msgspec.json.encode({"spec": {"command": ["other"]}})
    refused = plane.http.post("/api/v1/runs", content=body, headers={"idempotency-key": "k1"})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency-mismatch"


def test_racing_submissions_with_one_key_make_one_run(plane: Plane) -> None:
    made: list[str] = []
    racers = [
        threading.Thread(target=lambda: made.append(plane.submit(key="race").id)) for _ in range(8)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(made) == 8 and len(set(made)) == 1


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"resources": Resources(cpu=64.0)}, "unsatisfiable-resources"),
        ({"resources": Resources(gpu=9)}, "unsatisfiable-resources"),
        ({"code": Code(bundle="a" * 64)}, "bundle-missing"),
        ({"code": Code(bundle="../../x")}, "invalid-input"),
        ({"group": "elastic"}, "capability-missing"),
        ({"env": {"A=B": "1"}}, "invalid-spec"),
    ],
)
def test_a_submission_that_cannot_be_is_refused_and_leaves_nothing(
    plane: Plane, spec: dict[str, Any], code: str
) -> None:
    body = msgspec.json.encode({"spec": {"command": ["x"], **spec}})
    response = plane.http.post("/api/v1/runs", content=body)
    assert response.status_code in (400, 409)
    assert response.json()["error"]["code"] == code
    assert plane.http.get("/api/v1/runs").json() == []


def test_runs_queue_for_cores_in_order(make_plane: Callable[[], Plane], backend: Any) -> None:
    backend.room = ONE_CORE
    plane = make_plane()
    first, second = plane.submit(), plane.submit()
    plane.agent(first).start()
    waiting = plane.until(second.id, "queued")
    assert eventually(lambda: plane.run(second.id).reason).startswith("needs 1 core,")
    assert waiting.attempt == 0
    stopped = plane.submit()
    plane.answer(plane.http.post(f"/api/v1/runs/{stopped.id}/stop", json={}), Run)
    assert plane.until(stopped.id, "stopped").attempt == 0
    agent = plane.agent(first)
    agent.seq = 1
    agent.exit()
    plane.until(first.id, "succeeded")
    assert eventually(lambda: plane.run(second.id).attempt) == 1


def test_an_agent_that_dies_is_drained_then_lost_then_tried_again(plane: Plane) -> None:
    run = plane.submit(restarts=1)
    agent = plane.agent(run)
    agent.start()
    left = agent.frames((p.LOG, b"\x02last words\n"))
    plane.backend.frames[AttemptId(run.id, 1), 0] = p.frame(p.STARTED, 1, 0.0, b"{}") + left
    plane.backend.set(AttemptId(run.id, 1), 0, "ended", cause="agent-lost")
    again = plane.agent(run, attempt=2)
    assert agent.send().status_code == 409
    again.start()
    again.exit()
    assert plane.until(run.id, "succeeded").attempt == 2
    lines = plane.http.get(f"/api/v1/runs/{run.id}/logs").text
    assert lines.count("last words") == 1


def test_a_run_keeps_the_start_of_its_first_attempt(plane: Plane) -> None:
    run = plane.submit(restarts=1)
    plane.agent(run).start()
    began = plane.until(run.id, "running").started
    plane.backend.set(AttemptId(run.id, 1), 0, "ended", cause="agent-lost")
    again = plane.agent(run, attempt=2)
    again.start()
    again.exit()
    ended = plane.until(run.id, "succeeded")
    assert (ended.attempt, ended.started) == (2, began)


def test_a_dead_agents_exit_that_was_left_on_disk_counts(plane: Plane) -> None:
    run = plane.submit()
    agent = plane.agent(run)
    agent.start()
    end = {"state": "failed", "exit_code": 7, "cause": "exit"}
    left = agent.frames((p.EXIT, end))
    plane.backend.frames[AttemptId(run.id, 1), 0] = p.frame(p.STARTED, 1, 0.0, b"{}") + left
    plane.backend.set(AttemptId(run.id, 1), 0, "ended")
    assert plane.until(run.id, "failed").exit_code == 7


def test_a_launch_that_fails_is_a_verdict_with_words(plane: Plane) -> None:
    plane.backend.launch_errors.append(StorageFull("no space left on /work"))
    run = plane.submit()
    done = plane.until(run.id, "failed")
    assert done.verdict is not None
    assert (done.verdict.cause, "no space left" in done.verdict.message) == ("launch", True)


def test_stopping_twice_or_after_the_end_changes_nothing(plane: Plane) -> None:
    plane.backend.ignore_stop = True
    run = plane.submit()
    agent = plane.agent(run)
    agent.start()
    for _ in range(2):
        assert plane.http.post(f"/api/v1/runs/{run.id}/stop", json={}).status_code == 200
    agent.say((p.EXIT, {"state": "stopped", "signal": 15, "cause": "stopped"}))
    plane.until(run.id, "stopped")
    plane.http.post(f"/api/v1/runs/{run.id}/stop", json={})
    assert plane.run(run.id).state is RunState.STOPPED


def test_a_restart_adopts_what_runs_and_keeps_the_queue(
    make_plane: Callable[[], Plane], backend: Any
) -> None:
    backend.room = ONE_CORE
    plane = make_plane()
    live, queued = plane.submit(), plane.submit()
    agent = plane.agent(live)
    agent.start()
    plane.until(queued.id, "queued")
    second = make_plane()
    agent = second.agent(live)
    agent.seq = 1
    agent.exit()
    assert second.until(live.id, "succeeded").attempt == 1
    assert eventually(lambda: second.run(queued.id).attempt) == 1
    assert backend.called("launch").count(AttemptId(live.id, 1)) == 1


def test_a_crash_between_the_row_and_the_launch_heals(
    make_plane: Callable[[], Plane], backend: MemoryBackend
) -> None:
    plane = make_plane()
    services = plane.control.services
    services.reconciler.close()
    run = plane.submit()
    services.store.create_attempt(run.id, 1, world_size=1, time=0.0)
    make_plane()
    eventually(lambda: AttemptId(run.id, 1) in backend.plans)


def test_orphans_of_nobody_are_forgotten_at_a_start(
    make_plane: Callable[[], Plane], backend: MemoryBackend
) -> None:
    backend.set(AttemptId("rnobody", 1), 0, "ended")
    make_plane()
    eventually(lambda: AttemptId("rnobody", 1) in backend.called("forget"))


def test_retry_makes_a_new_run_of_the_same_spec(plane: Plane) -> None:
    run = plane.submit("python", "x.py", tags=("a",))
    refused = plane.http.post(f"/api/v1/runs/{run.id}/retry", json={})
    assert refused.json()["error"]["code"] == "conflict"
    agent = plane.agent(run)
    agent.start()
    agent.exit(1)
    plane.until(run.id, "failed")
    again = plane.answer(plane.http.post(f"/api/v1/runs/{run.id}/retry", json={}), Run)
    assert (again.parent, again.spec.tags) == (run.id, ("a",))
    assert plane.run(run.id).state is RunState.FAILED


def test_a_run_is_found_by_id_prefix_name_and_last_and_removed(plane: Plane) -> None:
    run = plane.submit(name="digits")
    for ref in (run.id, run.id[:-2], "digits", "last"):
        assert plane.http.get(f"/api/v1/runs/{ref}").json()["run"]["id"] == run.id
    assert plane.http.get("/api/v1/runs/nobody").json()["error"]["code"] == "not-found"
    assert plane.http.delete(f"/api/v1/runs/{run.id}").json()["error"]["code"] == "conflict"
    agent = plane.agent(run)
    agent.start()
    agent.exit()
    plane.until(run.id, "succeeded")
    assert eventually(lambda: plane.http.delete(f"/api/v1/runs/{run.id}").status_code == 204)
    assert plane.http.get("/api/v1/runs").json() == []


def test_a_dry_run_says_what_would_be_sent_without_a_secret(plane: Plane) -> None:
    body = {"spec": {"command": ["python", "x.py"], "workers": 2}}
    planned = plane.http.post("/api/v1/runs/plan", json=body)
    assert planned.status_code == 200 and len(planned.json()["plan"]["ranks"]) == 2
    assert "wr." not in planned.text
    assert plane.http.get("/api/v1/runs").json() == []


def test_wait_answers_when_the_run_ends(plane: Plane) -> None:
    run = plane.submit()
    agent = plane.agent(run)
    agent.start()
    assert plane.http.get(f"/api/v1/runs/{run.id}/wait?timeout=0").json()["state"] != "succeeded"
    threading.Timer(0.1, agent.exit).start()
    ended = plane.http.get(f"/api/v1/runs/{run.id}/wait?timeout=30")
    assert ended.json()["state"] == "succeeded"
