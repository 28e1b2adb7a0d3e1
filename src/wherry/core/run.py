"""
Runs, attempts and ranks: snapshots of rows. Frozen; later writes never change one.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from wherry.core.causes import Cause
from wherry.core.job import JobSpec
from wherry.core.states import RUN_TERMINAL, RankState, RunState


class AttemptId(Struct, frozen=True, order=True):
    """One try at a run. Its text, ``RUN-NUMBER``, names it on every back end."""

    run: str
    number: int

    def __str__(self) -> str:
        return f"{self.run}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> AttemptId:
        """The inverse of ``str``. :raises ValueError: otherwise."""
        run, _, number = text.rpartition("-")
        if not run:
            raise ValueError(f"{text!r} is not the id of an attempt")
        return cls(run, int(number))


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a run ended as it did: of the rank that failed first."""

    cause: Cause = ""
    message: str = ""
    hint: str = ""
    rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    last_lines: tuple[str, ...] = ()


class Rank(Struct, frozen=True, kw_only=True):
    """One rank of one attempt."""

    attempt: AttemptId
    rank: int
    incarnation: int = 1
    state: RankState = RankState.PENDING
    round: int = 0  #: of an elastic group: the last round that it has left
    address: str = ""
    ports: tuple[int, ...] = ()
    acked: int = 0  #: the last report stored
    exit_code: int | None = None
    signal: int | None = None
    cause: Cause = ""
    message: str = ""
    last_lines: tuple[str, ...] = ()
    started: float | None = None  #: seconds since the epoch
    ended: float | None = None  #: when its program was over
    phases: dict[str, float] = {}  #: seconds by phase: bundle, environment, barrier, run, upload
    result: str = ""  #: digest of the pickled result


class Attempt(Struct, frozen=True, kw_only=True):
    """One attempt with its ranks. ``ended`` is set once and for all."""

    id: AttemptId
    created: float
    ended: float | None = None
    stopping: str = ""  #: why it is being stopped: "user", "done", "rank 1 failed"; "" if not
    round: int = 0  #: of an elastic group: how often its ranks have met
    members: tuple[int, ...] = ()  #: of an elastic group: who met in that round, in its order
    charged: int = 0  #: of an elastic group: how many restarts its losses have cost
    ranks: tuple[Rank, ...] = ()


class Run(Struct, frozen=True, kw_only=True):
    """One submission of a JobSpec."""

    id: str
    name: str
    owner: str
    project: str
    spec: JobSpec
    state: RunState = RunState.SUBMITTED
    reason: str = ""  #: what it waits for and what would end that, for people
    created: float = 0.0  #: seconds since the epoch
    started: float | None = None  #: when the programs of its first attempt began
    ended: float | None = None
    attempt: int = 0  #: the number of the latest attempt; 0: none yet
    restarts_used: int = 0  #: how many of the job's ``restarts`` are spent
    not_before: float = 0.0  #: the next attempt waits until then, seconds since the epoch
    stop_requested: bool = False
    verdict: Verdict | None = None
    exit_code: int | None = None  #: the status to exit with: rank 0's, or the first failure's
    backend: str = "local"
    parent: str = ""  #: the run that this one repeats
    foreground: bool = False  #: a person waits at a terminal
    attach: str = ""  #: the Unix socket of that person's terminal

    @property
    def finished(self) -> bool:
        """Whether the state is terminal."""
        return self.state in RUN_TERMINAL


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a run, for ``show`` and ``explain``."""

    run: str
    time: float
    kind: str
    message: str = ""
    attempt: int = 0
    rank: int | None = None


class File(Struct, frozen=True, kw_only=True):
    """A file that a run kept."""

    path: str
    digest: str
    size: int
    attempt: int
    rank: int = 0
    modified: float = 0.0


class Series(Struct, frozen=True, kw_only=True):
    """What is known of one metric of one rank at a glance. NaN and infinities never win min/max."""

    name: str
    attempt: int
    rank: int
    count: int
    last: float | str  #: a number; where it travels, one that JSON cannot hold is named
    last_step: int
    last_time: float
    min: float | None = None
    max: float | None = None


class RankObservation(Struct, frozen=True, kw_only=True):
    """
    What a back end knows of one rank's agent.

    ``absent``: never launched, or forgotten. ``pending``: accepted, not yet running. ``ended``: the
    agent is no more; ``cause`` is empty where it left by itself.
    """

    rank: int
    phase: Literal["absent", "pending", "running", "ended"]
    incarnation: int = 1
    cause: Cause = ""
    message: str = ""
    address: str = ""


class Observation(Struct, frozen=True, kw_only=True):
    """What a back end knows of an attempt."""

    attempt: AttemptId
    ranks: tuple[RankObservation, ...]
    reason: str = ""  #: what it waits for, for people
