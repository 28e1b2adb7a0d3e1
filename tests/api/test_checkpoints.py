"""Checkpoints over the agents' routes: of one's own run only, whole only, and prune keeps them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.api.conftest import Agent, Plane
from wherry.backends.base import Capability
from wherry.core.checkpoint import Checkpoint, Kept, complete, superfluous
from wherry.core.run import Run


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def run(plane: Plane) -> Run:
    return plane.submit()


@pytest.fixture
def agent(plane: Plane, run: Run) -> Agent:
    made = plane.agent(run)
    made.start()
    return made


def put(agent: Agent, *contents: bytes) -> list[dict[str, Any]]:
    """Store blobs; files that hold them."""
    for data in contents:
        assert agent.http.put(f"/agent/v1/blobs/{sha(data)}", content=data).status_code == 204
    return [file(data) for data in contents]


def file(data: bytes, path: str = "") -> dict[str, Any]:
    return {"path": path or data.decode(), "digest": sha(data), "size": len(data), "modified": 1.5}


def send(agent: Agent, name: str, files: list[dict[str, Any]], **fields: Any) -> Any:
    body = {"name": name, "step": int(name[5:] or 0), "files": files, **fields}
    return agent.http.post("/agent/v1/checkpoints", json=body)


def newest(agent: Agent) -> dict[str, list[str]]:
    answer = agent.http.get("/agent/v1/checkpoints")
    assert answer.status_code == 200, answer.text
    return {part["name"]: [f["path"] for f in part["files"]] for part in answer.json()["parts"]}


def test_the_newest_complete_checkpoint_comes_back(agent: Agent) -> None:
    assert newest(agent) == {}
    for step, data in ((1, b"one"), (2, b"two")):
        assert send(agent, f"step-{step}", put(agent, data)).status_code == 204
    assert newest(agent) == {"step-2": ["two"]}
    assert send(agent, "", put(agent, b"own")).status_code == 204
    assert newest(agent) == {"step-2": ["two"], "": ["own"]}
    assert agent.http.get(f"/agent/v1/blobs/{sha(b'two')}").content == b"two"


def test_one_whose_blobs_did_not_all_come_is_refused(agent: Agent) -> None:
    files = [*put(agent, b"one"), file(b"never")]
    refused = send(agent, "step-1", files)
    assert refused.status_code == 409 and "1 blobs" in refused.json()["error"]["message"]
    assert newest(agent) == {}


@pytest.mark.parametrize(
    ("name", "path", "fields"),
    [
        ("step-1/../../x", "a", {"step": 1}),
        ("step-x", "a", {"step": 1}),
        ("step-1", "../a", {}),
        ("step-1", "/a", {}),
        ("step-1", "a", {"shards": 0}),
        ("step-1", "a", {"step": -1}),
    ],
)
def test_names_that_lead_elsewhere_are_refused(
    agent: Agent, name: str, path: str, fields: dict[str, Any]
) -> None:
    put(agent, b"one")
    body = {"name": name, "step": 1, "files": [file(b"one", path)], **fields}
    assert agent.http.post("/agent/v1/checkpoints", json=body).status_code == 400
    assert newest(agent) == {}


def test_a_rank_sees_its_own_runs_only(plane: Plane, agent: Agent) -> None:
    send(agent, "step-1", put(agent, b"one"))
    other = plane.agent(plane.submit())
    other.start()
    assert newest(other) == {}
    assert other.http.get(f"/agent/v1/blobs/{sha(b'one')}").status_code == 403
    assert plane.stranger.get("/agent/v1/checkpoints").status_code == 401
    assert plane.http.get("/agent/v1/checkpoints").status_code in (401, 403)


def test_a_late_upload_of_an_attempt_that_is_over_is_refused(
    plane: Plane, run: Run, agent: Agent
) -> None:
    files = put(agent, b"one")
    agent.exit(1)
    plane.until(run.id, "failed")
    late = send(agent, "step-1", files)
    assert late.status_code == 409 and late.json()["error"]["code"] == "stale-token"


def test_prune_keeps_the_newest_two_and_frees_older_ones(
    plane: Plane, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherry.control.cleanup._FRESH", 0.0)
    for step, data in ((1, b"one"), (2, b"two"), (3, b"three")):
        assert send(agent, f"step-{step}", put(agent, data)).status_code == 204
    send(agent, "", put(agent, b"own"))
    assert plane.http.post("/api/v1/prune", json={}).status_code < 300
    blobs = plane.control.services.blobs
    digests = [sha(data) for data in (b"one", b"two", b"three", b"own")]
    assert blobs.missing(digests) == [sha(b"one")]


def test_the_members_of_a_pool_have_each_their_own(plane: Plane) -> None:
    plane.backend.capabilities |= {Capability.REPLACE}
    run = plane.submit(workers=2, group="pool")
    agents = [plane.agent(run, rank) for rank in (0, 1)]
    for agent, data in zip(agents, (b"one", b"two"), strict=True):
        agent.start()
        send(agent, "step-1", put(agent, data))
    assert [newest(agent) for agent in agents] == [{"step-1": ["one"]}, {"step-1": ["two"]}]


# --- the rule


def row(step: int, attempt: int = 1, shard: int | None = None, shards: int = 1) -> Checkpoint:
    name = f"step-{step}" + ("" if shard is None else f"/shard-{shard}")
    made = {"run": "r", "rank": 0, "files": (Kept(path="a", digest="0" * 64, size=1),)}
    return Checkpoint(
        name=name,
        step=step,
        attempt=attempt,
        shard=shard,
        shards=shards,
        **made,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], []),
        ([row(1), row(10), row(2)], [[10], [2], [1]]),
        ([row(9), row(1, attempt=2)], [[1], [9]]),
        ([row(1), row(2, shard=0, shards=2)], [[1]]),
        ([row(2, shard=1, shards=2), row(2, shard=0, shards=2)], [[2, 2]]),
        ([row(2, shard=1, shards=2), row(2, attempt=2, shard=0, shards=2)], []),
    ],
)
def test_which_are_complete_and_which_is_newest(
    rows: list[Checkpoint], found: list[list[int]]
) -> None:
    assert [[one.step for one in shards] for shards in complete(rows)] == found


def test_nothing_is_superfluous_while_there_are_not_enough() -> None:
    assert superfluous([row(1)], 2) == []
    assert superfluous([row(1), row(2), row(3, shard=0, shards=2)], 2) == []
    assert superfluous([row(1), row(2), row(3)], 2) == [row(1)]
