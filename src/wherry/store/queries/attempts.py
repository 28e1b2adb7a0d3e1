"""
Attempts and their ranks. Moves are guarded by the states that may precede them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from wherry.core.run import Attempt, AttemptId, Event, Rank
from wherry.core.states import RANK_TERMINAL, RankState, RunState, rank_sources, run_sources
from wherry.errors import NotFound, StaleToken
from wherry.store.base import Exit
from wherry.store.queries import history
from wherry.store.tables import attempts, ranks, runs

#: The columns of a Rank beside those of its key.
RANK_FIELDS = tuple(f for f in Rank.__struct_fields__ if f not in ("attempt", "rank"))


def create(
    connection: Connection, run_id: str, number: int, *, world_size: int, time: float
) -> bool:
    """See ``Store.create_attempt``."""
    started = (
        update(runs)
        .where(
            runs.c.id == run_id,
            runs.c.state.in_(run_sources(RunState.STARTING)),
            runs.c.attempt == number - 1,
            ~runs.c.stop_requested,
        )
        .values(state=RunState.STARTING, attempt=number, reason="")
    )
    if not connection.execute(started).rowcount:
        return False
    connection.execute(
        insert(attempts), {"run": run_id, "number": number, "created": time, "stopping": ""}
    )
    fresh = Rank(attempt=AttemptId(run_id, number), rank=0)
    values = {name: getattr(fresh, name) for name in RANK_FIELDS}
    rows = [
        {"run": run_id, "attempt": number, "rank": rank, **values} for rank in range(world_size)
    ]
    connection.execute(insert(ranks), rows)
    event = Event(run=run_id, time=time, kind=RunState.STARTING, attempt=number)
    history.add(connection, event)
    return True


def get(connection: Connection, attempt: AttemptId) -> Attempt:
    """See ``Store.attempt``."""
    found = _load(connection, select(attempts).where(*_is(attempt)))
    if not found:
        raise NotFound(f"there is no attempt {attempt}")
    return found[0]


def of(connection: Connection, run_id: str) -> list[Attempt]:
    """See ``Store.attempts``."""
    return _load(connection, select(attempts).where(attempts.c.run == run_id))


def live(connection: Connection) -> list[Attempt]:
    """See ``Store.live_attempts``."""
    return _load(connection, select(attempts).where(attempts.c.ended.is_(None)))


def _load(connection: Connection, which: Select[Any]) -> list[Attempt]:
    """The attempts that ``which`` selects, by run and number, each with its ranks."""
    found = connection.execute(which.order_by(attempts.c.run, attempts.c.number)).all()
    chosen = which.subquery()
    members = connection.execute(
        select(ranks)
        .join(chosen, (ranks.c.run == chosen.c.run) & (ranks.c.attempt == chosen.c.number))
        .order_by(ranks.c.run, ranks.c.attempt, ranks.c.rank)
    )
    grouped = {
        key: tuple(rank_of(row) for row in rows)
        for key, rows in itertools.groupby(members, lambda row: (row.run, row.attempt))
    }
    return [
        Attempt(
            id=AttemptId(row.run, row.number),
            created=row.created,
            ended=row.ended,
            stopping=row.stopping,
            round=row.round,
            members=row.members,
            charged=row.charged,
            ranks=grouped.get((row.run, row.number), ()),
        )
        for row in found
    ]


def rank_of(row: Row[Any]) -> Rank:
    """The rank that a row of ``ranks`` holds."""
    values = row._mapping
    own = {name: values[name] for name in RANK_FIELDS}
    return Rank(attempt=AttemptId(row.run, row.attempt), rank=row.rank, **own)


def mark_stopping(connection: Connection, attempt: AttemptId, why: str) -> bool:
    """See ``Store.mark_stopping``. The event's kind is ``stopping``."""
    statement = (
        update(attempts)
        .where(*_is(attempt), attempts.c.stopping == "", attempts.c.ended.is_(None))
        .values(stopping=why)
    )
    if not connection.execute(statement).rowcount:
        return False
    now, number = time.time(), attempt.number
    event = Event(run=attempt.run, time=now, kind="stopping", message=why, attempt=number)
    history.add(connection, event)
    return True


def end(connection: Connection, attempt: AttemptId, ended: float) -> bool:
    """See ``Store.end_attempt``."""
    statement = update(attempts).where(*_is(attempt), attempts.c.ended.is_(None))
    return bool(connection.execute(statement.values(ended=ended)).rowcount)


def arrive(
    connection: Connection,
    attempt: AttemptId,
    rank: int,
    incarnation: int,
    *,
    address: str,
    ports: Sequence[int],
) -> Rank:
    """See ``Store.arrive``."""
    row = connection.execute(
        select(ranks, attempts.c.ended.label("over"))
        .join_from(ranks, attempts)
        .where(*_is(attempt), ranks.c.rank == rank)
        .with_for_update()
    ).first()
    if row is None:
        raise gone(attempt, rank)
    here = rank_of(row)
    refuse_stale(here, incarnation, over=row.over is not None)
    pending = here.state is RankState.PENDING
    values = {
        "state": RankState.ARRIVED if pending else here.state,
        "address": address,
        "ports": tuple(ports),
    }
    changed = (
        update(ranks)
        .where(ranks.c.run == attempt.run, ranks.c.attempt == attempt.number, ranks.c.rank == rank)
        .values(**values)
        .returning(ranks)
    )
    return rank_of(connection.execute(changed).one())


def gone(attempt: AttemptId, rank: int) -> StaleToken:
    """Why a rank that has no row is refused."""
    return StaleToken(f"rank {rank} of attempt {attempt} is no more")


def refuse_stale(rank: Rank, incarnation: int, *, over: bool) -> None:
    """
    Let only the present incarnation pass.

    :raises StaleToken: for another one, a rank declared lost, an attempt that is ``over``.
    """
    who = f"rank {rank.rank} of attempt {rank.attempt}"
    if incarnation != rank.incarnation:
        raise StaleToken(f"incarnation {incarnation} of {who} was replaced by {rank.incarnation}")
    if rank.state is RankState.LOST:
        raise StaleToken(f"{who} was declared lost")
    if over:
        raise StaleToken(f"attempt {rank.attempt} has ended")


def move(
    connection: Connection, attempt: AttemptId, rank: int, to: RankState, exit: Exit | None
) -> bool:
    """See ``Store.move_rank``."""
    values: dict[str, Any] = {"state": to}
    if exit is not None:
        values |= ending(exit)
    elif to in RANK_TERMINAL:
        # Where its program's end was reported, that is when it was.
        values["ended"] = func.coalesce(ranks.c.ended, time.time())
    elif to is RankState.RUNNING:
        values["started"] = time.time()
    statement = update(ranks).where(
        ranks.c.run == attempt.run,
        ranks.c.attempt == attempt.number,
        ranks.c.rank == rank,
        ranks.c.state.in_(rank_sources(to)),
    )
    return bool(connection.execute(statement.values(**values)).rowcount)


def ending(exit: Exit) -> dict[str, Any]:
    """The fields of a rank that an exit sets."""
    names = ("exit_code", "signal", "cause", "message", "last_lines")
    fields: dict[str, Any] = {name: getattr(exit, name) for name in names}
    fields["ended"] = exit.time
    return fields


def _is(attempt: AttemptId) -> tuple[Any, ...]:
    return (attempts.c.run == attempt.run, attempts.c.number == attempt.number)
