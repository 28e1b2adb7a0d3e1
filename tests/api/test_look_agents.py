"""Looking into ranks with the real agent, on every Python that it runs on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Plane
from tests.unit.agent_rank import Rank, interpreters
from wherry.control.tokens import RankIdentity
from wherry.core.run import AttemptId
from wherry.sdk import beside
from wherry.sdk.client import Client
from wherry.sdk.http import Endpoint, Http
from wherry.testing.waiting import eventually

WAITS = """
import time
def waits_for_ever():
    while True:
        time.sleep(0.1)
open("evidence", "w").write("of " + __name__)
waits_for_ever()
"""


class Real:
    """One real agent of a run of the plane's, and a client that asks for it."""

    def __init__(self, tmp: Path, plane: Plane, python: str, **spec: Any) -> None:
        self.plane = plane
        run = plane.submit(**spec)
        self.id = run.id
        plane.agent(run)  # once the attempt exists
        tokens = plane.control.services.reconciler.tokens

        class Sink:
            """As much of ``AgentSink`` as ``Rank`` asks for."""

            url = plane.url

            @staticmethod
            def expect(*_: object) -> None:
                """One rank."""

            @staticmethod
            def token(attempt: str, rank: int) -> str:
                """Its token."""
                return tokens.mint(RankIdentity(AttemptId.parse(attempt), rank, 1))

        config = {"py_spy": shutil.which("py-spy", path=str(Path(sys.executable).parent)) or ""}
        self.rank = Rank(tmp, Sink(), python=python, run=run.id, spec=spec, **config)  # type: ignore[arg-type]
        self.client = Client(Http(Endpoint(plane.url, plane.control.keys.token)))

    def exec(self, *words: str, input: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Run it beside the program."""
        done = beside.run(self.client, self.id, words, rank=0, input=input, timeout=60)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=interpreters())
def python(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(tmp_path: Path, plane: Plane, python: str) -> Iterator[list[Real]]:
    """A list whose agents are killed at the end."""
    made: list[Real] = []
    yield made
    for real in made:
        real.client.close()
        real.rank.kill()


@pytest.mark.slow
def test_exec_and_stack_on_each_python(
    make: list[Real], tmp_path: Path, plane: Plane, python: str
) -> None:
    real = Real(tmp_path, plane, python)
    make.append(real)
    real.rank.start(WAITS)
    plane.until(real.id, "running")
    script = "cat evidence; cat; echo $WHERRY_RANK >&2; exit 3"
    assert real.exec("sh", "-c", script, input=b"!") == (3, b"of __main__!", b"0\n")
    (stack,) = real.client.stack(real.id, ranks=(0,))
    assert not stack.problems
    assert stack.processes[0].threads[0].calls[0].name == "waits_for_ever"


@pytest.mark.slow
def test_a_rank_is_held_on_each_python(
    make: list[Real], tmp_path: Path, plane: Plane, python: str
) -> None:
    real = Real(tmp_path, plane, python, hold=3600.0)
    make.append(real)
    real.rank.start("open('evidence', 'w').write('it')\nraise SystemExit(4)\n")
    eventually(lambda: "held for 1h" in plane.run(real.id).reason)
    assert real.exec("cat", "evidence")[:2] == (0, b"it")
    real.client.stop(real.id)
    assert real.rank.wait() == 0
    end = eventually(
        lambda: (
            plane.control.services.store.attempt(AttemptId(real.id, 1)).ranks[0]
            if plane.run(real.id).finished
            else None
        )
    )
    assert (end.state, end.exit_code, end.cause) == ("failed", 4, "exit")
    kinds = [event.kind for event in plane.control.services.store.events(real.id)]
    assert kinds.count("held") == 1
