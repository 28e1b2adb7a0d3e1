"""
The store: the only truth about runs.

Called by ``control`` alone, from any thread. Every method is one transaction and durable when it
returns. Snapshots that were handed out never change. Moves are guarded: a method that returns
``bool`` says whether *this* call made the change, so that of two callers one acts.
``wherry.testing.StoreContract`` holds every promise as a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct

from wherry.core.causes import Cause
from wherry.core.checkpoint import KEPT, Checkpoint
from wherry.core.run import Attempt, AttemptId, Event, File, Rank, Run, Series, Verdict
from wherry.core.states import RankState, RunState

ChunkKind = Literal["log", "metric", "usage"]


class RunFilter(Struct, frozen=True, kw_only=True):
    """Which runs. Newest first; ``before`` is the id of the last run of the page before."""

    owner: str = ""
    project: str = ""
    states: frozenset[RunState] = frozenset()
    name: str = ""
    tags: frozenset[str] = frozenset()  #: all of them
    before: str = ""
    limit: int = 100


class Chunk(Struct, frozen=True, kw_only=True):
    """
    Many log lines or metric points of one rank, packed by the agent; opaque to the store.

    ``id`` grows with every chunk of the whole store, so it serves as a cursor.
    """

    kind: ChunkKind
    payload: bytes
    count: int  #: lines or points
    first: float  #: seconds since the epoch
    last: float
    id: int = 0
    attempt: int = 0
    rank: int = 0


class Exit(Struct, frozen=True, kw_only=True):
    """How a rank's program ended."""

    state: RankState
    time: float
    exit_code: int | None = None
    signal: int | None = None
    cause: Cause = ""
    message: str = ""
    last_lines: tuple[str, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """Some consecutive frames of one incarnation of a rank, taken apart by ``control.reports``."""

    attempt: AttemptId
    rank: int
    incarnation: int
    first_seq: int
    last_seq: int
    chunks: tuple[Chunk, ...] = ()
    series: tuple[Series, ...] = ()  #: of these frames only; the store merges
    files: tuple[File, ...] = ()
    params: dict[str, str | int | float | bool | None] = {}
    phases: dict[str, float] = {}
    state: RankState | None = None  #: RUNNING when the program started
    started: float | None = None  #: when that was; None: when the report is stored
    result: str = ""  #: digest of the pickled result
    ended: Exit | None = None  #: the program is over: how
    exit: Exit | None = None  #: the rank is over; the program's end has the time of ``ended``
    events: tuple[Event, ...] = ()


class Store(Protocol):
    """Rows, in nine groups."""

    # --- the store itself
    def close(self) -> None:
        """Release everything. Again: no error."""
        ...

    def check(self) -> None:
        """Prove that it can be read and written. :raises Unavailable: otherwise."""
        ...

    def backup(self, path: Path) -> None:
        """Write a consistent copy to ``path`` while others read and write."""
        ...

    # --- runs
    def create_run(self, run: Run, *, key: str = "", request: str = "") -> Run:
        """
        Insert a run. With an idempotency ``key`` seen before, return the run it made then.

        :raises IdempotencyMismatch: where ``request`` (a digest) differs from the first time.
        """
        ...

    def run(self, run_id: str) -> Run:
        """:raises NotFound: where there is none."""
        ...

    def resolve(self, ref: str, *, owner: str, project: str) -> Run:
        """
        The run that a person means: an id, a name (its newest run), an id's unique prefix, or
        ``last``.

        :raises NotFound: :raises AmbiguousName:
        """
        ...

    def runs(self, where: RunFilter) -> list[Run]:
        """Newest first, at most ``where.limit``."""
        ...

    def count_runs(self) -> dict[RunState, int]:
        """How many runs there are in each state that has any."""
        ...

    def move_run(
        self,
        run_id: str,
        to: RunState,
        *,
        attempt: int | None = None,
        reason: str = "",
        started: float | None = None,
        ended: float | None = None,
        verdict: Verdict | None = None,
        exit_code: int | None = None,
        restarts_used: int | None = None,
        not_before: float | None = None,
    ) -> bool:
        """
        Move a run along ``states.RUN_NEXT`` and write the event, in one transaction.

        False where the run is not in a state before ``to``, or ``attempt`` is given and is not
        its latest. What is ``None`` keeps what it was.
        """
        ...

    def set_reason(self, run_id: str, reason: str, *, event: bool = True) -> None:
        """
        Say what the run waits for, or what is wrong with it.

        No event where it is the same, or ``event`` is false: another one tells of it already.
        """
        ...

    def request_stop(self, run_id: str, *, reason: str = "") -> bool:
        """
        Note that it is wanted stopped, and why: the message of the event ``stop-requested``.

        False where finished or noted already.
        """
        ...

    def delete_run(self, run_id: str) -> None:
        """
        Remove a finished run with all it owns. :raises Conflict: while it is not finished.

        :raises NotFound:
        """
        ...

    # --- attempts and ranks
    def create_attempt(self, run_id: str, number: int, *, world_size: int, time: float) -> bool:
        """
        Insert attempt ``number`` with its PENDING ranks and move the run to STARTING, in one.

        False where the run cannot start, a stop is requested, or the number is not the next.
        """
        ...

    def attempt(self, attempt: AttemptId) -> Attempt:
        """With all its ranks, in order. :raises NotFound:"""
        ...

    def attempts(self, run_id: str) -> list[Attempt]:
        """Oldest first."""
        ...

    def live_attempts(self) -> list[Attempt]:
        """Every attempt that has not ended."""
        ...

    def mark_stopping(self, attempt: AttemptId, why: str) -> bool:
        """Note why it is being stopped; the first reason stays."""
        ...

    def end_attempt(self, attempt: AttemptId, time: float) -> bool:
        """Set ``ended``, once."""
        ...

    def arrive(
        self,
        attempt: AttemptId,
        rank: int,
        incarnation: int,
        *,
        address: str,
        ports: Sequence[int],
    ) -> Rank:
        """
        An agent called. Again by the same incarnation: updates address and ports, keeps state.

        :raises StaleToken: for another incarnation, a rank that was declared LOST, or an attempt
            that has ended.
        """
        ...

    def move_rank(
        self,
        attempt: AttemptId,
        rank: int,
        to: RankState,
        *,
        exit: Exit | None = None,
    ) -> bool:
        """
        Move a rank along ``states.RANK_NEXT``; ``exit`` gives the fields of an end. Without it,
        what an earlier report said of the program's end stays.
        """
        ...

    # --- ranks of pools and elastic groups
    def replace_rank(
        self, attempt: AttemptId, rank: int, incarnation: int, *, cost: int = 0
    ) -> bool:
        """
        Give a rank the incarnation after ``incarnation``: PENDING again, with nothing acknowledged.

        False where it has another one by now, has SUCCEEDED, or its attempt is being stopped or has
        ended. ``cost`` is added to the attempt's ``charged``.
        """
        ...

    def leave_round(
        self, attempt: AttemptId, rank: int, round: int, *, cost: int | None = None
    ) -> bool:
        """
        A rank has left ``round`` and waits for the next: ARRIVED.

        With a ``cost`` its program had failed (ENDING); without, it came when it was called. False
        where it is in neither state, has left before, or ``round`` is not the present one.
        """
        ...

    def form_round(self, attempt: AttemptId, round: int, members: Sequence[int]) -> bool:
        """Begin ``round``. False where it is not the next one."""
        ...

    # --- reports
    def ingest(self, reports: Sequence[Report]) -> list[int | Exception]:
        """
        Store many reports in one transaction; for each, the last frame stored, or why not.

        Frames at or below ``acked`` were stored before: a report that ends there is only
        acknowledged, one that overlaps is refused with ``Conflict`` naming the seq to send from
        (agents send from ``acked + 1``). StaleToken as in ``arrive``. A refused report leaves no
        trace and does not disturb the others. An exit of a rank that is terminal already changes
        nothing.
        """
        ...

    def chunks(
        self,
        run_id: str,
        kind: ChunkKind,
        *,
        after: int = 0,
        before: int | None = None,
        attempt: int | None = None,
        ranks: Iterable[int] | None = None,
        limit: int = 100,
        newest: bool = False,
    ) -> list[Chunk]:
        """Chunks with ``after < id < before`` by id; the last ``limit`` of them if ``newest``."""
        ...

    def series(self, run_id: str) -> list[Series]:
        """Every metric at a glance, by attempt, rank, name."""
        ...

    def params(self, run_id: str) -> dict[str, str | int | float | bool | None]:
        """What the ranks reported as parameters, over the spec's own."""
        ...

    # --- files and events
    def files(self, run_id: str) -> list[File]:
        """The latest version of each (rank, path), of the latest attempt that wrote it."""
        ...

    def add_event(self, event: Event) -> None:
        """Append to the run's history."""
        ...

    def events(self, run_id: str) -> list[Event]:
        """Oldest first."""
        ...

    # --- checkpoints
    def keep_checkpoint(
        self,
        checkpoint: Checkpoint,
        incarnation: int,
        *,
        gone: Sequence[str] = (),
        most: int = KEPT,
    ) -> None:
        """
        Store it in place of the one of its name, and forget what is older than the newest ``most``
        complete ones of its run and member. To the program's own files (name "") those of the
        checkpoint are added, and those at the paths ``gone`` are forgotten.

        :raises StaleToken: as in ``arrive``.
        """
        ...

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """By member, attempt, step and name."""
        ...

    # --- cleaning
    def finished_before(self, time: float, limit: int = 1000) -> list[str]:
        """Ids of finished runs that ended before ``time``, oldest first."""
        ...

    def referenced_blobs(self) -> Iterable[str]:
        """
        Digests that rows name directly: bundles, environments, calls, results, files, checkpoints.
        """
        ...

    def prune_idempotency(self, before: float) -> int:
        """Forget keys older than ``before``; how many."""
        ...
