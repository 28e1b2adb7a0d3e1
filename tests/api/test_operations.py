"""What an operator relies on: readiness, retention that goes on, retries that count once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.conftest import Plane
from wherry.agent import protocol as p
from wherry.cli import words
from wherry.control.cleanup import Cleanup
from wherry.core.api import RunDetail
from wherry.core.run import Run
from wherry.errors import StorageFull
from wherry.server import app
from wherry.store.sql import SqlStore
from wherry.testing.waiting import eventually


def finished(plane: Plane) -> Run:
    run = plane.submit()
    agent = plane.agent(run)
    agent.start()
    agent.exit()
    return plane.until(run.id, "succeeded")


def test_retention_goes_on_after_a_fault(
    make_plane: Callable[[], Plane], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: list[str] = []

    def faulty(cls: type, name: str) -> None:
        call = getattr(cls, name)

        def fails_once(*args: Any) -> Any:
            if name not in faults:
                faults.append(name)
                raise StorageFull("the disk is full")
            return call(*args)

        monkeypatch.setattr(cls, name, fails_once)

    faulty(Cleanup, "prune")
    faulty(SqlStore, "prune_idempotency")
    monkeypatch.setattr(app, "_PRUNE_EVERY", 0.05)
    monkeypatch.setenv("WHERRY_RETENTION", "5")
    plane = make_plane()
    run = finished(plane)
    eventually(lambda: len(faults) == 2)
    cleanup = plane.control.services.cleanup
    cleanup.clock = lambda: (run.ended or 0) + 4 * 86400
    assert cleanup.clock() and plane.http.get(f"/api/v1/runs/{run.id}").status_code == 200
    cleanup.clock = lambda: (run.ended or 0) + 6 * 86400
    eventually(lambda: plane.http.get(f"/api/v1/runs/{run.id}").status_code == 404)


def test_readyz_says_503_while_the_store_cannot_be_used(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plane.stranger.get("/readyz").json() == {"ok": True}

    def broken(self: SqlStore) -> None:
        raise StorageFull("the disk is full")

    monkeypatch.setattr(SqlStore, "check", broken)
    answer = plane.stranger.get("/readyz")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "storage-full"
    assert plane.stranger.get("/healthz").status_code == 200


def test_a_retry_that_is_sent_twice_makes_one_run(plane: Plane) -> None:
    first = finished(plane)
    headers = {"idempotency-key": "again"}
    url = f"/api/v1/runs/{first.id}/retry"
    answers = [plane.http.post(url, content=b"{}", headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"] != first.id
    other = plane.http.post(url, content=b'{"name": "other"}', headers=headers)
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency-mismatch"


def test_a_clock_that_jumps_backwards_ends_no_run_and_makes_no_negative_time(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]
    monkeypatch.setattr(plane.control.reconciler, "clock", lambda: now[0])
    monkeypatch.setattr(plane.control.services.runs, "clock", lambda: now[0])
    run = plane.submit()
    agent = plane.agent(run)
    agent.start()
    plane.until(run.id, "running")
    now[0] -= 7200
    assert plane.control.services.live.silent(agent.who.attempt) == frozenset()
    series = p.pack_series({"loss": ([1, 2], [5000.0, 100.0], [0.5, 0.25])})
    agent.say((p.METRIC, series), (p.LOG, b"\x01later\n"))
    agent.exit()
    done = plane.until(run.id, "succeeded")
    assert words.seconds(done, now[0]) == 0.0
    (loss,) = plane.answer(plane.http.get(f"/api/v1/runs/{run.id}"), RunDetail).metrics
    assert (loss.count, loss.last, loss.last_step) == (2, 0.25, 2)
    after = plane.submit("python", "next.py")
    assert plane.agent(after).hello().status_code == 200
    newest = plane.answer(plane.http.get("/api/v1/runs"), list[Run])
    assert {r.id for r in newest} == {run.id, after.id}
