"""
Checkpoints that came by blobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, delete, select
from sqlalchemy.sql import ColumnElement

from wherry.core.checkpoint import Checkpoint, merged, superfluous
from wherry.core.run import AttemptId
from wherry.store.engine import upsert
from wherry.store.queries.attempts import gone as no_more
from wherry.store.queries.attempts import rank_of, refuse_stale
from wherry.store.queries.records import fit_row
from wherry.store.tables import attempts, checkpoints, ranks

_FIELDS = Checkpoint.__struct_fields__
_KEY = ("run", "member", "name")


def keep(
    connection: Connection, made: Checkpoint, incarnation: int, gone: Sequence[str], most: int
) -> None:
    """See ``Store.keep_checkpoint``."""
    attempt = AttemptId(made.run, made.attempt)
    row = connection.execute(
        select(ranks, attempts.c.ended.label("over"))
        .join_from(ranks, attempts)
        .where(ranks.c.run == made.run, ranks.c.attempt == made.attempt, ranks.c.rank == made.rank)
        .with_for_update()
    ).first()
    if row is None:
        raise no_more(attempt, made.rank)
    refuse_stale(rank_of(row), incarnation, over=row.over is not None)
    values: dict[str, Any] = {name: getattr(made, name) for name in _FIELDS}
    if not made.name:
        before = [one for one in _of(connection, made) if not one.name]
        old = before[0].files if before else ()
        values["files"] = merged(old, made.files, gone)
    statement = upsert(connection.dialect.name, checkpoints)
    rest = {name: statement.excluded[name] for name in _FIELDS if name not in _KEY}
    statement = statement.on_conflict_do_update(index_elements=list(_KEY), set_=rest)
    connection.execute(statement, values | {"name": fit_row(values)["name"]})
    for old_one in superfluous(_of(connection, made), most):
        connection.execute(delete(checkpoints).where(*_is(old_one)))


def of(connection: Connection, run_id: str) -> list[Checkpoint]:
    """See ``Store.checkpoints``."""
    return _load(connection, checkpoints.c.run == run_id)


def digests(connection: Connection) -> list[str]:
    """Those of all files."""
    rows = connection.scalars(select(checkpoints.c.files))
    return sorted({file.digest for files in rows for file in files})


def _of(connection: Connection, made: Checkpoint) -> list[Checkpoint]:
    return _load(connection, checkpoints.c.run == made.run, checkpoints.c.member == made.member)


def _load(connection: Connection, *which: ColumnElement[bool]) -> list[Checkpoint]:
    columns = [checkpoints.c[name] for name in _FIELDS]
    order = (checkpoints.c.member, checkpoints.c.attempt, checkpoints.c.step, checkpoints.c.name)
    rows = connection.execute(select(*columns).where(*which).order_by(*order))
    return [Checkpoint(**row._mapping) for row in rows]


def _is(one: Checkpoint) -> list[ColumnElement[bool]]:
    return [checkpoints.c[name] == getattr(one, name) for name in _KEY]
