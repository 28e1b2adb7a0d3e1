"""
A whole control plane in this process, with a back end that does what a test tells it.

``plane`` is real from its socket down to SQLite and the blob folder; only the machine is imagined.
``Agent`` plays a rank's agent over HTTP.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from wherry.agent import protocol as p
from wherry.blobs.objects import ObjectBlobs
from wherry.control.tokens import RankIdentity
from wherry.core.api import Submit
from wherry.core.job import JobSpec
from wherry.core.run import AttemptId, Run
from wherry.server.__main__ import Server
from wherry.server.app import ControlPlane, Keys
from wherry.store.sql import SqlStore
from wherry.testing.fake_backends import MemoryBackend
from wherry.testing.waiting import eventually


class Plane:
    """The control plane under test, with a client that has the owner's token."""

    def __init__(self, home: Path, backend: MemoryBackend) -> None:
        self.home, self.backend = home, backend
        home.mkdir(exist_ok=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = f"http://{self.host}"
        self.control = ControlPlane(
            home=home,
            url=self.url,
            keys=Keys.of(home),
            store=SqlStore.open(f"sqlite:///{home / 'wherry.db'}"),
            blobs=ObjectBlobs.open(str(home / "blobs")),
            backends={"local": backend},
        )
        self.clients: list[httpx.Client] = []
        self.stranger = self.client("")
        self.http = self.client(self.control.keys.token)
        config = uvicorn.Config(self.control.app, log_level="warning", lifespan="on")
        self.server = Server(config, self.control.leave)
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.thread.start()
        eventually(lambda: self.server.started)

    def client(self, token: str) -> httpx.Client:
        """A client with this token."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=60))
        return self.clients[-1]

    def close(self) -> None:
        """End the control plane in good order."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        for client in self.clients:
            client.close()

    def submit(self, *command: str, key: str = "", **spec: Any) -> Run:
        """Submit and return the run."""
        ask = Submit(spec=JobSpec(command=command or ("python", "x.py"), **spec))
        headers = {"idempotency-key": key} if key else {}
        response = self.http.post("/api/v1/runs", content=msgspec.json.encode(ask), headers=headers)
        made: Run = self.answer(response, Run)
        return made

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
        self.who, self.seq, self.backend = who, 0, plane.backend
        token = plane.control.services.reconciler.tokens.mint(who)
        self.http = plane.client(token)

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
        said = self.say((p.EXIT, {"state": state, "exit_code": code, **cause, **fields}))
        self.backend.set(self.who.attempt, self.who.rank, "ended")
        return said


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def make_plane(tmp_path: Path, backend: MemoryBackend) -> Iterator[Callable[[], Plane]]:
    """Makes control planes over one home: a second one is what a restart makes."""
    made: list[Plane] = []

    def make() -> Plane:
        for plane in made:
            plane.close()
        made[:] = [Plane(tmp_path / "home", backend)]
        return made[0]

    yield make
    for plane in made:
        plane.close()


@pytest.fixture
def plane(make_plane: Callable[[], Plane]) -> Plane:
    return make_plane()
