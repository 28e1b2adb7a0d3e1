"""
The stage on which ``BackendContract`` plays: requests for programs on a leash, and questions about
what became of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from wherry.agent import protocol
from wherry.backends.base import Backend, Member, Observation, Request
from wherry.core.ids import new_id
from wherry.core.job import Environment, JobSpec
from wherry.core.run import AttemptId
from wherry.testing.leash import Leash
from wherry.testing.sink import AgentSink
from wherry.testing.waiting import eventually

BackendFactory = Callable[[], Backend]

FOREVER = "told()"  #: until it is told, or the test is over
#: It says that it and its children ignore SIGTERM by now.
DEAF = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fork(deaf=True)
    fork(deaf=True, daemon=True)
    line.sendall(b"!")
    while True:
        time.sleep(60)
"""


class Bench:
    """A place to launch from: makes requests, remembers attempts, asks what became of them."""

    def __init__(
        self,
        factory: BackendFactory,
        sink: AgentSink,
        leash: Leash,
        *,
        python: str,
        patience: float,
    ) -> None:
        self.factory, self.sink, self.leash = factory, sink, leash
        self.python, self.patience = python, patience
        self.attempts: list[AttemptId] = []

    def request(
        self,
        body: str = FOREVER,
        *arguments: str,
        workers: int = 1,
        grace: float = 10.0,
        attach: str = "",
        **spec: Any,
    ) -> Request:
        """A request for programs on the leash."""
        attempt = AttemptId(new_id("r"), 1)
        self.attempts.append(attempt)
        self.sink.expect(str(attempt), workers)
        environment = Environment(kind="active", python=self.python)
        command = (*self.leash.program(body), *arguments)
        return Request(
            attempt=attempt,
            spec=JobSpec(command=command, workers=workers, environment=environment, **spec),
            members=tuple(
                Member(rank=rank, incarnation=1, token=secret(attempt, rank))
                for rank in range(workers)
            ),
            server=self.sink.url,
            attach=attach,
            grace=grace,
            heartbeat=0.1,
        )

    def launch(
        self, backend: Backend, body: str = FOREVER, *arguments: str, **kw: Any
    ) -> AttemptId:
        """Plan and launch."""
        request = self.request(body, *arguments, **kw)
        backend.launch(backend.plan(request))
        return request.attempt

    def phases(self, attempt: AttemptId, backend: Backend | None = None) -> list[str]:
        """The phases by rank, as a new object sees them."""
        seen = (backend or self.factory()).observe(attempt)
        return [rank.phase for rank in seen.ranks]

    def ended(self, attempt: AttemptId, backend: Backend | None = None) -> Observation:
        """What is observed once every rank has ended."""
        backend = backend or self.factory()

        def over() -> Observation | None:
            seen = backend.observe(attempt)
            return seen if seen.ranks and all(r.phase == "ended" for r in seen.ranks) else None

        return eventually(over, within=self.patience)

    def strays(self, workers: int = 1) -> int:
        """
        How many programs have started that no test has caught. Two launches of ``workers`` ranks
        see their end first, one after the other: what was to start before has started by then.
        """
        for _ in range(2):
            self.ended(self.launch(self.factory(), "pass", workers=workers))
        known = len(self.leash.held)
        return self.leash.started() - known - 2 * workers

    def exit(self, attempt: AttemptId, rank: int = 0) -> dict[str, Any]:
        """What the agent said at its end."""
        return self.sink.wait_exit(str(attempt), rank, self.patience)


def secret(attempt: AttemptId, rank: int, incarnation: int = 1) -> str:
    """A token that the sink takes for the rank's and that looks like nothing else."""
    return f"{attempt}/{rank:07d}/{incarnation:07d}"


def renewed(request: Request, rank: int) -> Request:
    """The request with another incarnation of one rank."""
    members = tuple(
        replace(m, incarnation=2, token=secret(request.attempt, rank, 2)) if m.rank == rank else m
        for m in request.members
    )
    return replace(request, members=members)


def trace_of(backend: Backend, attempt: AttemptId) -> bool:
    """Whether a back end knows of an attempt."""
    phases = {rank.phase for rank in backend.observe(attempt).ranks}
    return bool(phases - {"absent"}) or attempt in backend.owned()


def frames_of(backend: Backend, attempt: AttemptId) -> list[tuple[int, int, float, memoryview]]:
    """What is in rank 0's logs."""
    return list(protocol.iter_frames(b"".join(backend.logs(attempt, 0))))


def output_of(backend: Backend, attempt: AttemptId) -> bytes:
    """What rank 0's program wrote, as far as it is in the logs."""
    frames = frames_of(backend, attempt)
    return b"".join(bytes(payload[1:]) for kind, _, _, payload in frames if kind == protocol.LOG)


def what_others_see() -> str:
    """Every command line and environment of this machine that can be read."""
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-axEwwo", "command="], capture_output=True, check=True)
        return listed.stdout.decode("utf-8", "replace")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                found.append((process / name).read_text("utf-8", "replace"))
            except OSError:
                continue
    return "\n".join(found)
