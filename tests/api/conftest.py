"""
A whole control plane in this process, with a back end that does what a test tells it.

``plane`` is real down to SQLite and the blob folder; only the machine is imagined. Requests go
through the guard, as from outside. ``Agent`` plays a rank's agent over HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar.testing import TestClient

from wherry.agent import protocol as p
from wherry.blobs.objects import ObjectBlobs
from wherry.control.tokens import RankIdentity
from wherry.core.api import Submit
from wherry.core.job import JobSpec
from wherry.core.run import AttemptId, Run
from wherry.server.app import ControlPlane, Keys
from wherry.store.sql import SqlStore
from wherry.testing.fake_backends import MemoryBackend
from wherry.testing.waiting import eventually

URL = "http://127.0.0.1:7777"


class Plane:
    """The control plane under test, with a client that has the owner's token."""

    def __init__(self, home: Path, backend: MemoryBackend) -> None:
        self.home, self.backend = home, backend
        home.mkdir(exist_ok=True)
        self.control = ControlPlane(
            home=home,
            url=URL,
            keys=Keys.of(home),
            store=SqlStore.open(f"sqlite:///{home / 'wherry.db'}"),
            blobs=ObjectBlobs.open(str(home / "blobs")),
            backends={"local": backend},
        )
        self.stranger: TestClient[Any] = TestClient(self.control.app, base_url=URL)
        self.http: TestClient[Any] = TestClient(
            self.control.app,
            base_url=URL,
            headers={"authorization": f"Bearer {self.control.keys.token}"},
        )

    def submit(self, *command: str, key: str = "", **spec: Any) -> Run:
        """Submit and return the run."""
        ask = Submit(spec=JobSpec(command=command or ("python", "x.py"), **spec))
        return self.answer(
            self.http.post(
                "/api/v1/runs",
                content=msgspec.json.encode(ask),
                headers={"idempotency-key": key} if key else {},
            ),
            Run,
        )

    def answer(self, response: Any, kind: Any) -> Any:
        """The decoded body of a good answer."""
        assert response.status_code < 300, response.text
        return msgspec.json.decode(response.content, type=kind)

    def run(self, ref: str) -> Run:
        """The run as the store has it."""
        return self.control.services.store.run(ref)

    def until(self, ref: str, *states: str) -> Run:
        """The run once it is in one of the states."""
        return eventually(lambda: run if (run := self.run(ref)).state in states else None)

    def agent(self, run: Run, rank: int = 0, *, attempt: int = 1) -> Agent:
        """An agent of this rank, once the attempt exists."""
        eventually(lambda: self.run(run.id).attempt >= attempt)
        return Agent(self, RankIdentity(AttemptId(run.id, attempt), rank, 1))


class Agent:
    """Speaks ``agent.protocol`` as a rank's agent does."""

    def __init__(self, plane: Plane, who: RankIdentity) -> None:
        self.who, self.seq = who, 0
        token = plane.control.services.reconciler.tokens.mint(who)
        self.http: TestClient[Any] = TestClient(
            plane.control.app, base_url=URL, headers={"authorization": f"Bearer {token}"}
        )

    def hello(self) -> Any:
        """Introduce itself."""
        body = {"protocol": p.PROTOCOL, "address": "127.0.0.1", "ports": [5000 + self.who.rank]}
        return self.http.post("/agent/v1/hello", json=body)

    def frames(self, *parts: tuple[int, Any]) -> bytes:
        """Frames numbered on from the last."""
        made = []
        for kind, payload in parts:
            self.seq += 1
            raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
            made.append(p.frame(kind, self.seq, 1000.0 + self.seq, raw))
        return b"".join(made)

    def send(self, body: bytes = b"") -> Any:
        """Post frames, or a heartbeat."""
        return self.http.post("/agent/v1/reports", content=body)

    def say(self, *parts: tuple[int, Any]) -> Any:
        """Number and post frames; the answer must be good."""
        response = self.send(self.frames(*parts))
        assert response.status_code == 200, response.text
        return response.json()

    def start(self) -> None:
        """Arrive and run."""
        assert self.hello().status_code == 200
        self.say((p.STARTED, {"pid": 1}))

    def exit(self, code: int = 0, **fields: Any) -> Any:
        """Say how the program ended."""
        state = "succeeded" if code == 0 else "failed"
        cause = {} if code == 0 else {"cause": "exit"}
        return self.say((p.EXIT, {"state": state, "exit_code": code, **cause, **fields}))


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def make_plane(tmp_path: Path, backend: MemoryBackend) -> Iterator[Callable[[], Plane]]:
    """Makes control planes over one home: a second one is what a restart makes."""
    made: list[Plane] = []

    def make() -> Plane:
        for plane in made:
            stop(plane)
        made.append(Plane(tmp_path / "home", backend))
        made[-1].http.__enter__()
        return made[-1]

    def stop(plane: Plane) -> None:
        made.remove(plane)
        plane.http.__exit__()

    yield make
    for plane in list(made):
        stop(plane)


@pytest.fixture
def plane(make_plane: Callable[[], Plane]) -> Plane:
    return make_plane()
