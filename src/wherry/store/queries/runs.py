"""
Runs: made once by key, found by what a person types, moved along ``states.RUN_NEXT``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, delete, exists, func, insert, select, update

from wherry.core.ids import ALPHABET
from wherry.core.job import JobSpec
from wherry.core.run import Event, Run
from wherry.core.states import RUN_TERMINAL, RunState, run_sources
from wherry.errors import AmbiguousName, Conflict, IdempotencyMismatch, NotFound
from wherry.store.base import RunFilter
from wherry.store.engine import upsert
from wherry.store.queries import history
from wherry.store.queries.records import fit
from wherry.store.tables import idempotency, runs, tags, uses

_ROW = select(*(runs.c[name] for name in Run.__struct_fields__))


def create(connection: Connection, run: Run, *, key: str, request: str) -> Run:
    """See ``Store.create_run``."""
    if key and not _claim(connection, run, key, request):
        return _made(connection, key, request)
    connection.execute(insert(runs), _columns(run))
    own = {"run": run.id}
    if run.spec.tags:
        connection.execute(insert(tags), [own | {"tag": tag} for tag in sorted({*run.spec.tags})])
    if digests := _digests(run.spec):
        connection.execute(insert(uses), [own | {"digest": digest} for digest in digests])
    history.add(connection, Event(run=run.id, time=run.created, kind=run.state, message=run.reason))
    return run


def _claim(connection: Connection, run: Run, key: str, request: str) -> bool:
    """Whether ``key`` is this run's. Where two ask at once, one waits here for the other."""
    row = {"key": key, "request": request, "run": run.id, "created": run.created}
    claim = upsert(connection.dialect.name, idempotency).on_conflict_do_nothing()
    return connection.scalar(claim.returning(idempotency.c.key), row) is not None


def _made(connection: Connection, key: str, request: str) -> Run:
    known = connection.execute(select(idempotency).where(idempotency.c.key == key)).one()
    if known.request != request:
        raise IdempotencyMismatch(
            f"the idempotency key {key!r} was used for another request, which made {known.run}",
            hint="use a fresh key for a new request",
        )
    return get(connection, known.run)


def _columns(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in Run.__struct_fields__}


def _digests(spec: JobSpec) -> list[str]:
    named = {spec.code.bundle, spec.environment.requirements, spec.environment.frozen}
    if spec.call is not None:
        named.add(spec.call.payload)
    return sorted(named - {""})


def get(connection: Connection, run_id: str) -> Run:
    """See ``Store.run``."""
    row = connection.execute(_ROW.where(runs.c.id == run_id)).first()
    if row is None:
        raise NotFound(f"there is no run {run_id!r}", hint="see: wherry ps --all")
    return Run(**row._mapping)


def resolve(connection: Connection, ref: str, *, owner: str, project: str) -> Run:
    """See ``Store.resolve``."""
    theirs = _ROW.where(runs.c.owner == owner, runs.c.project == project)
    newest = theirs.order_by(runs.c.ordinal.desc())
    for statement in (theirs.where(runs.c.id == ref), newest.where(runs.c.name == ref).limit(1)):
        if row := connection.execute(statement).first():
            return Run(**row._mapping)
    if ref == "last":
        found = connection.execute(newest.limit(1)).all()
    elif ref and set(ref) <= set(ALPHABET):
        # A range, not LIKE: the index serves it in every collation.
        prefixed = newest.where(runs.c.id.between(ref, ref + ALPHABET[-1] * 12))
        found = connection.execute(prefixed.limit(4)).all()
    else:
        found = []
    if not found:
        raise NotFound(f"there is no run {ref!r}", hint="see: wherry ps --all")
    if len(found) > 1:
        some = ", ".join(f"{row.id} ({row.name})" for row in found[:3])
        more = ", ..." if len(found) > 3 else ""
        raise AmbiguousName(f"{ref!r} is the beginning of several runs: {some}{more}")
    return Run(**found[0]._mapping)


def page(connection: Connection, where: RunFilter) -> list[Run]:
    """See ``Store.runs``."""
    same = {"owner": where.owner, "project": where.project, "name": where.name}
    conditions = [runs.c[name] == value for name, value in same.items() if value]
    conditions += [
        exists().where(tags.c.run == runs.c.id, tags.c.tag == tag) for tag in sorted(where.tags)
    ]
    if where.states:
        conditions.append(runs.c.state.in_(sorted(where.states)))
    if where.before:
        ordinal = connection.scalar(select(runs.c.ordinal).where(runs.c.id == where.before))
        if ordinal is None:
            raise NotFound(f"there is no run {where.before!r}", hint="list from the start again")
        conditions.append(runs.c.ordinal < ordinal)
    newest = _ROW.where(*conditions).order_by(runs.c.ordinal.desc())
    return [Run(**row._mapping) for row in connection.execute(newest.limit(where.limit))]


def count(connection: Connection) -> dict[RunState, int]:
    """See ``Store.count_runs``."""
    rows = connection.execute(select(runs.c.state, func.count()).group_by(runs.c.state))
    return {RunState(state): number for state, number in rows}


def move(
    connection: Connection,
    run_id: str,
    to: RunState,
    *,
    attempt: int | None,
    reason: str,
    news: Mapping[str, Any],
) -> bool:
    """See ``Store.move_run``. ``news``: columns with their new values, None for those that stay."""
    values = {name: value for name, value in news.items() if value is not None}
    statement = update(runs).where(runs.c.id == run_id, runs.c.state.in_(run_sources(to)))
    if attempt is not None:
        statement = statement.where(runs.c.attempt == attempt)
    moved = statement.values(state=to, reason=reason, **values).returning(runs.c.attempt)
    latest = connection.scalar(moved)
    if latest is None:
        return False
    happened = values.get("ended", values.get("started", time.time()))
    message = reason or (values["verdict"].message if "verdict" in values else "")
    event = Event(run=run_id, time=happened, kind=to, message=message, attempt=latest)
    history.add(connection, event)
    return True


def set_reason(connection: Connection, run_id: str, reason: str, *, event: bool) -> None:
    """See ``Store.set_reason``. The event's kind is ``waiting``."""
    changed = (
        update(runs)
        .where(runs.c.id == run_id, runs.c.reason != reason, runs.c.state.not_in(RUN_TERMINAL))
        .values(reason=reason)
        .returning(runs.c.attempt)
    )
    attempt = connection.scalar(changed)
    if attempt is not None and reason and event:
        now = time.time()
        waits = Event(run=run_id, time=now, kind="waiting", message=reason, attempt=attempt)
        history.add(connection, waits)


def request_stop(connection: Connection, run_id: str, reason: str) -> bool:
    """See ``Store.request_stop``. The event's kind is ``stop-requested``."""
    changed = (
        update(runs)
        .where(runs.c.id == run_id, ~runs.c.stop_requested, runs.c.state.not_in(RUN_TERMINAL))
        .values(stop_requested=True)
        .returning(runs.c.attempt)
    )
    attempt = connection.scalar(changed)
    if attempt is None:
        return False
    now = time.time()
    event = Event(run=run_id, time=now, kind="stop-requested", message=fit(reason), attempt=attempt)
    history.add(connection, event)
    return True


def remove(connection: Connection, run_id: str) -> None:
    """See ``Store.delete_run``. What the run owns goes by ON DELETE CASCADE."""
    finished = runs.c.state.in_(RUN_TERMINAL)
    removed = delete(runs).where(runs.c.id == run_id, finished)
    if not connection.execute(removed).rowcount:
        state = get(connection, run_id).state
        raise Conflict(f"run {run_id!r} is {state}", hint=f"stop it first: wherry stop {run_id}")


def finished_before(connection: Connection, ended: float, limit: int) -> list[str]:
    """See ``Store.finished_before``."""
    statement = (
        select(runs.c.id)
        .where(runs.c.state.in_(RUN_TERMINAL), runs.c.ended < ended)
        .order_by(runs.c.ended, runs.c.ordinal)
        .limit(limit)
    )
    return list(connection.scalars(statement))
