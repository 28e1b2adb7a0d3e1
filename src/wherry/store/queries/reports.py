"""
Reports of ranks: judged one by one in memory, then written together.

So a refused report leaves no trace, and a group costs one statement per table, not per report.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, Table, and_, bindparam, case, insert, or_, select, tuple_, update

from wherry.core.run import Rank
from wherry.core.states import RANK_NEXT, RankState
from wherry.errors import Conflict, InvalidInput, WherryError
from wherry.store.base import Report
from wherry.store.engine import Upsert, upsert
from wherry.store.queries import attempts as members
from wherry.store.queries import history
from wherry.store.queries.records import chunk_row, file_row, fit, fit_row, param_row, series_row
from wherry.store.tables import attempts, chunks, events, files, params, ranks, series

Key = tuple[str, int, int]  # run, attempt, rank

_KEY = ("run", "attempt", "rank")
_MOST = 500  # ranks asked for in one statement
_CHANGED = (
    *("state", "acked", "exit_code", "signal", "cause", "message", "last_lines"),
    *("started", "ended", "phases", "result"),
)
_INSERT_CHUNKS = insert(chunks)
_UPDATE_RANKS = (
    update(ranks)
    .where(*(ranks.c[name] == bindparam(f"key_{name}") for name in _KEY))
    .values({name: bindparam(f"new_{name}") for name in _CHANGED})
)


class Prepared(Struct, frozen=True):
    """A report with what it adds, encoded before the transaction begins."""

    report: Report
    phases: dict[str, float]
    over: dict[str, Any]  #: the fields of its rank that its program's end sets
    end: dict[str, Any]  #: the fields of its rank that an exit sets
    chunks: list[dict[str, Any]]
    series: list[dict[str, Any]]
    files: list[dict[str, Any]]
    params: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def key(self) -> Key:
        """Whose report it is."""
        return (self.report.attempt.run, self.report.attempt.number, self.report.rank)


def prepare(report: Report) -> Prepared | WherryError:
    """Compress and encode a report; the error where a value fits no column."""
    key = (report.attempt.run, report.attempt.number, report.rank)
    own = dict(zip(_KEY, key, strict=True))
    try:
        return Prepared(
            report=report,
            phases=fit({k: v for k, v in report.phases.items() if math.isfinite(v)}),
            over=fit_row(members.ending(report.ended)) if report.ended else {},
            end=fit_row(members.ending(report.exit)) if report.exit else {},
            chunks=[own | chunk_row(chunk) for chunk in report.chunks],
            series=[own | series_row(part) for part in report.series],
            files=[own | file_row(file) for file in report.files],
            params=[{"run": key[0]} | param_row(*item) for item in report.params.items()],
            events=[fit_row(history.row_of(event)) for event in report.events],
        )
    except ValueError as error:
        return InvalidInput(f"a report of rank {report.rank} of {report.attempt}: {error}")


def ingest(
    connection: Connection, group: Sequence[Prepared | WherryError]
) -> list[int | Exception]:
    """See ``Store.ingest``."""
    reports = [one for one in group if isinstance(one, Prepared)]
    known = _locked(connection, {one.key for one in reports})
    changed: dict[Key, Rank] = {}
    accepted: list[Prepared] = []
    outcomes: list[int | Exception] = []
    for one in group:
        if not isinstance(one, Prepared):
            outcomes.append(one)
            continue
        try:
            rank, over = known.get(one.key) or _nobody(one)
            members.refuse_stale(rank, one.report.incarnation, over=over)
            if _is_new(rank, one.report):
                rank = _after(rank, one)
                known[one.key], changed[one.key] = (rank, over), rank
                accepted.append(one)
            outcomes.append(rank.acked)
        except WherryError as refused:
            outcomes.append(refused)
    _write(connection, accepted, changed)
    return outcomes


def _locked(connection: Connection, keys: set[Key]) -> dict[Key, tuple[Rank, bool]]:
    """The ranks with whether their attempt is over, theirs alone until the transaction ends."""
    known: dict[Key, tuple[Rank, bool]] = {}
    statement = select(ranks, attempts.c.ended.label("over")).join_from(ranks, attempts)
    key = tuple_(*(ranks.c[name] for name in _KEY))
    remaining = iter(sorted(keys))
    while some := list(itertools.islice(remaining, _MOST)):
        for row in connection.execute(statement.where(key.in_(some)).with_for_update()):
            known[row.run, row.attempt, row.rank] = (members.rank_of(row), row.over is not None)
    return known


def _nobody(one: Prepared) -> tuple[Rank, bool]:
    raise members.gone(one.report.attempt, one.report.rank)


def _is_new(rank: Rank, report: Report) -> bool:
    """
    Whether the report is to be stored; False where it was already.

    :raises Conflict: where it does not begin right after the last frame stored.
    """
    if report.last_seq <= rank.acked:
        return False
    if report.first_seq != rank.acked + 1:
        raise Conflict(
            f"frames {report.first_seq} to {report.last_seq} of rank {rank.rank} of "
            f"{rank.attempt} do not follow frame {rank.acked}",
            hint=f"send from frame {rank.acked + 1}",
        )
    return True


def _after(rank: Rank, one: Prepared) -> Rank:
    """The rank once the report is stored."""
    report = one.report
    values: dict[str, Any] = {"acked": report.last_seq, "phases": rank.phases | one.phases}
    if report.result:
        values["result"] = report.result
    rank = replace(rank, **values)
    if report.state is not None and report.state in RANK_NEXT[rank.state]:
        started = time.time() if report.started is None else report.started
        rank = replace(rank, state=report.state, started=started)
    if report.ended is not None and RankState.ENDING in RANK_NEXT[rank.state]:
        rank = replace(rank, state=RankState.ENDING, **one.over)
    if report.exit is not None and report.exit.state in RANK_NEXT[rank.state]:
        over = rank.ended if rank.state is RankState.ENDING else None
        rank = replace(rank, state=report.exit.state, **one.end)
        rank = rank if over is None else replace(rank, ended=over)
    return rank


def _write(connection: Connection, accepted: Sequence[Prepared], changed: dict[Key, Rank]) -> None:
    def rows(name: str) -> list[dict[str, Any]]:
        return [row for one in accepted for row in getattr(one, name)]

    if some := rows("chunks"):
        connection.execute(_INSERT_CHUNKS, some)
    dialect = connection.dialect.name
    if some := rows("series"):
        connection.execute(_merge_series(dialect), some)
    if some := rows("files"):
        connection.execute(_latest(dialect, files), some)
    if some := rows("params"):
        connection.execute(_latest(dialect, params), some)
    if some := rows("events"):
        connection.execute(insert(events), some)
    if changed:
        connection.execute(_UPDATE_RANKS, [_rank_row(*item) for item in changed.items()])


def _rank_row(key: Key, rank: Rank) -> dict[str, Any]:
    row: dict[str, Any] = {f"key_{name}": part for name, part in zip(_KEY, key, strict=True)}
    return row | {f"new_{name}": getattr(rank, name) for name in _CHANGED}


@functools.cache
def _latest(dialect: str, table: Table) -> Upsert:
    """Insert, or replace what has the same key."""
    statement = upsert(dialect, table)
    key = table.primary_key
    values = {
        column.name: column for column in statement.excluded if column.name not in key.columns
    }
    return statement.on_conflict_do_update(index_elements=list(key.columns), set_=values)


@functools.cache
def _merge_series(dialect: str) -> Upsert:
    """Insert, or add to what is known: frames come in order, so the newer has the last value."""
    statement = upsert(dialect, series)
    new = statement.excluded

    def best(name: str, better: Any) -> Any:
        old, other = series.c[name], new[name]
        return case((or_(old.is_(None), and_(other.is_not(None), better)), other), else_=old)

    return statement.on_conflict_do_update(
        index_elements=list(series.primary_key.columns),
        set_={
            "count": series.c.count + new["count"],
            "last": new.last,
            "last_step": new.last_step,
            "last_time": new.last_time,
            "min": best("min", new.min < series.c.min),
            "max": best("max", new.max > series.c.max),
        },
    )
