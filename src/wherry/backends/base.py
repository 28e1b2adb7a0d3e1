"""
The back end: nine verbs that start ranks somewhere and say what became of them.

Called by ``control`` alone. A back end is told everything in a :class:`Request` and keeps no truth
of its own: it says started, ended, why. What the program did (log, metrics, exit status) comes from
the agent. ``wherry.testing.BackendContract`` holds every promise below as a test.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from wherry.core.job import Amount as Amount
from wherry.core.job import JobSpec
from wherry.core.run import AttemptId
from wherry.core.run import Observation as Observation
from wherry.core.run import RankObservation as RankObservation


class Capability(StrEnum):
    """What a back end can do beyond the nine verbs. What is not declared is forbidden."""

    QUEUES = "queues"  # it has a scheduler: launch at once, it waits by itself
    IN_PLACE = "in-place"  # it shares this machine's files
    ATTACH = "attach"  # a terminal on this machine can be attached
    LIMITS = "limits"  # memory and CPU limits are enforced
    REPLACE = "replace"  # one rank can be launched anew while the others run on


class Member(Struct, frozen=True, kw_only=True):
    """One rank to launch."""

    rank: int
    incarnation: int
    token: str  #: good for this incarnation's reports; never in a log, a command line or a pod spec
    threads: int = 1  #: cores allotted to it: the value of the thread variables

    def __repr__(self) -> str:
        return f"Member(rank={self.rank}, incarnation={self.incarnation})"


class Request(Struct, frozen=True, kw_only=True):
    """An attempt to launch, in full."""

    attempt: AttemptId
    spec: JobSpec
    members: tuple[Member, ...]
    server: str  #: the control plane's URL as the agents are to call it
    attach: str = ""  #: Unix socket of a waiting terminal
    grace: float = 10.0  #: seconds from SIGTERM to SIGKILL
    heartbeat: float = 2.0  #: seconds
    lease: float = 30.0  #: seconds
    barrier_timeout: float = 600.0  #: seconds
    spool_limit: int = 4 * 2**30  #: bytes
    stall: float = 600.0  #: seconds without a sign of life before a rank is flagged; 0: never


class Plan(Struct, frozen=True, kw_only=True):
    """What a back end will do: ``wherry run --dry-run`` prints ``body``, ``launch`` sends it."""

    request: Request
    body: dict[str, Any]  #: plain data, without secrets


class Capacity(Struct, frozen=True, kw_only=True):
    """What there is."""

    total: Amount
    free: Amount


class Backend(Protocol):
    """Nine verbs. Each may be called from any thread; none blocks for longer than it must."""

    capabilities: frozenset[Capability]

    def plan(self, request: Request) -> Plan:
        """What ``launch`` would do. Pure. :raises CapabilityMissing: for what it cannot do."""
        ...

    def launch(self, plan: Plan) -> None:
        """
        Make it so. Again, for an attempt that is already there: nothing.

        With ``Capability.REPLACE``: a member of a newer incarnation than the one that is there
        takes its place, once that one is gone for good; the other members are left alone. An
        attempt that was told to stop launches nobody.

        Once it has returned, the ranks outlive this object and this process.
        :raises WherryError: where it cannot be launched; then nothing of it is left.
        """
        ...

    def observe(self, attempt: AttemptId) -> Observation:
        """What is known now; also of an attempt that another object launched."""
        ...

    def changes(self) -> Iterator[AttemptId]:
        """
        Attempts to observe next, without end: blocks until there is one, or yields nothing new
        for a second and then any attempt again. May repeat, never misses for long.
        """
        ...

    def logs(self, attempt: AttemptId, rank: int) -> Iterator[bytes]:
        """The frames (see ``agent.protocol``) that are left on disk, sent or not, in order."""
        ...

    def stop(self, attempt: AttemptId, grace: float) -> None:
        """
        Ask every agent to stop its program; after ``grace`` seconds kill what is left.

        Returns at once. Before the start: it will not start. Again, or after the end: no error.
        """
        ...

    def forget(self, attempt: AttemptId) -> None:
        """Remove every trace, killing what still runs. Again: no error."""
        ...

    def owned(self) -> Iterator[AttemptId]:
        """Every attempt of ours that has a trace here, for finding orphans."""
        ...

    def capacity(self) -> Capacity | None:
        """What there is, and what of it is free. None: not allowed to know."""
        ...
