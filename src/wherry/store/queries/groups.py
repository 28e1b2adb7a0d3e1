"""
Ranks that are replaced, and the rounds of elastic groups.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, Table, exists, select, update

from wherry.core.run import AttemptId, Event, Rank
from wherry.core.states import RankState
from wherry.store.queries import history
from wherry.store.queries.attempts import RANK_FIELDS
from wherry.store.tables import attempts, ranks

#: What a new incarnation begins with; the times and phases of the one before go with it.
_FRESH = tuple(name for name in RANK_FIELDS if name not in ("incarnation", "round"))


def replace(
    connection: Connection, attempt: AttemptId, rank: int, incarnation: int, cost: int
) -> bool:
    """See ``Store.replace_rank``. The event's kind is ``replaced``."""
    fresh = Rank(attempt=attempt, rank=rank)
    live = (*_is(attempt, attempts), attempts.c.stopping == "", attempts.c.ended.is_(None))
    here = (
        *_is(attempt, ranks),
        ranks.c.rank == rank,
        ranks.c.incarnation == incarnation,
        ranks.c.state != RankState.SUCCEEDED,
    )
    why = connection.execute(select(ranks.c.cause, ranks.c.message).where(*here)).first()
    changed = (
        update(ranks)
        .where(*here, exists().where(*live))
        .values(
            incarnation=incarnation + 1,
            round=select(attempts.c.round).where(*_is(attempt, attempts)).scalar_subquery(),
            **{name: getattr(fresh, name) for name in _FRESH},
        )
    )
    if not connection.execute(changed).rowcount:
        return False
    _charge(connection, attempt, cost)
    said = (why.message.partition("\nhint: ")[0] or why.cause) if why else ""
    reason = f" ({said})" if said else ""
    _note(connection, attempt, "replaced", f"rank {rank} is replaced{reason}", rank)
    return True


def leave(
    connection: Connection, attempt: AttemptId, rank: int, round: int, cost: int | None
) -> bool:
    """See ``Store.leave_round``."""
    before = (RankState.RUNNING, RankState.ARRIVED) if cost is None else (RankState.ENDING,)
    present = exists().where(*_is(attempt, attempts), attempts.c.round == round)
    left = (
        update(ranks)
        .where(
            *_is(attempt, ranks),
            ranks.c.rank == rank,
            ranks.c.state.in_(before),
            ranks.c.round < round,
            present,
        )
        .values(state=RankState.ARRIVED, round=round, **_no_end())
    )
    if not connection.execute(left).rowcount:
        return False
    _charge(connection, attempt, cost or 0)
    return True


def form(connection: Connection, attempt: AttemptId, round: int, members: Sequence[int]) -> bool:
    """See ``Store.form_round``. The event's kind is ``round``."""
    begun = (
        update(attempts)
        .where(*_is(attempt, attempts), attempts.c.round == round - 1, attempts.c.ended.is_(None))
        .values(round=round, members=tuple(members))
    )
    if not connection.execute(begun).rowcount:
        return False
    names = ", ".join(map(str, members))
    _note(connection, attempt, "round", f"round {round}: {len(members)} ranks meet: {names}")
    return True


def _no_end() -> dict[str, object]:
    """The fields of a rank whose program is to begin again."""
    fresh = Rank(attempt=AttemptId("", 1), rank=0)
    names = ("exit_code", "signal", "cause", "message", "last_lines", "ended", "started")
    return {name: getattr(fresh, name) for name in names}


def _charge(connection: Connection, attempt: AttemptId, cost: int) -> None:
    if cost:
        spent = update(attempts).where(*_is(attempt, attempts))
        connection.execute(spent.values(charged=attempts.c.charged + cost))


def _note(
    connection: Connection, attempt: AttemptId, kind: str, message: str, rank: int | None = None
) -> None:
    event = Event(
        run=attempt.run,
        time=time.time(),
        kind=kind,
        message=message,
        attempt=attempt.number,
        rank=rank,
    )
    history.add(connection, event)


def _is(attempt: AttemptId, table: Table) -> tuple[ColumnElement[bool], ...]:
    number = table.c.number if table is attempts else table.c.attempt
    return (table.c.run == attempt.run, number == attempt.number)
