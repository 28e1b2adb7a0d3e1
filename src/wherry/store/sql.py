"""
The store over SQLAlchemy Core: SQLite, and PostgreSQL with the same code.

Opened by ``server.app``. Here are only the transactions; the statements are in ``store.queries``,
what the two databases do differently in ``store.engine``.

Beside the moves of runs (kind: the state) there are events of the kinds ``waiting``,
``stop-requested`` and ``stopping``, each written with the change that it tells of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from wherry.core.checkpoint import KEPT, Checkpoint
from wherry.core.job import Scalar
from wherry.core.run import Attempt, AttemptId, Event, File, Rank, Run, Series, Verdict
from wherry.core.states import RankState, RunState
from wherry.store.base import Chunk, ChunkKind, Exit, Report, RunFilter
from wherry.store.engine import Database
from wherry.store.queries import attempts, checkpoints, cleaning, groups, history, records, runs
from wherry.store.queries import reports as reporting
from wherry.store.schema import SCHEMA, prepare

if TYPE_CHECKING:
    from wherry.store.base import Store

__all__ = ["SCHEMA", "SqlStore"]


class SqlStore:
    """Keeps the promises of ``store.base.Store``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> SqlStore:
        """
        Open the database at ``url``, e.g. ``sqlite:////folder/wherry.db``; make or migrate it.

        :raises SchemaTooNew: where a newer Wherry wrote it.
        :raises Unavailable: where it cannot be opened, or another process has it open.
        """
        database = Database(url)
        try:
            with database.transaction() as connection:
                prepare(connection, database.name)
            database.enforce_references()
        except BaseException:
            database.close()
            raise
        return cls(database)

    # --- the store itself
    def close(self) -> None:
        self._database.close()

    def check(self) -> None:
        with self._database.transaction() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))

    def backup(self, path: Path) -> None:
        self._database.backup(path)

    # --- runs
    def create_run(self, run: Run, *, key: str = "", request: str = "") -> Run:
        with self._database.transaction() as connection:
            return runs.create(connection, run, key=key, request=request)

    def run(self, run_id: str) -> Run:
        with self._database.transaction() as connection:
            return runs.get(connection, run_id)

    def resolve(self, ref: str, *, owner: str, project: str) -> Run:
        with self._database.transaction() as connection:
            return runs.resolve(connection, ref, owner=owner, project=project)

    def runs(self, where: RunFilter) -> list[Run]:
        with self._database.transaction() as connection:
            return runs.page(connection, where)

    def count_runs(self) -> dict[RunState, int]:
        with self._database.transaction() as connection:
            return runs.count(connection)

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
        news = {
            "started": started,
            "ended": ended,
            "verdict": verdict,
            "exit_code": exit_code,
            "restarts_used": restarts_used,
            "not_before": not_before,
        }
        with self._database.transaction() as connection:
            return runs.move(connection, run_id, to, attempt=attempt, reason=reason, news=news)

    def set_reason(self, run_id: str, reason: str, *, event: bool = True) -> None:
        with self._database.transaction() as connection:
            runs.set_reason(connection, run_id, reason, event=event)

    def request_stop(self, run_id: str, *, reason: str = "") -> bool:
        with self._database.transaction() as connection:
            return runs.request_stop(connection, run_id, reason)

    def delete_run(self, run_id: str) -> None:
        with self._database.transaction() as connection:
            runs.remove(connection, run_id)

    # --- attempts and ranks
    def create_attempt(self, run_id: str, number: int, *, world_size: int, time: float) -> bool:
        with self._database.transaction() as connection:
            return attempts.create(connection, run_id, number, world_size=world_size, time=time)

    def attempt(self, attempt: AttemptId) -> Attempt:
        with self._database.transaction() as connection:
            return attempts.get(connection, attempt)

    def attempts(self, run_id: str) -> list[Attempt]:
        with self._database.transaction() as connection:
            return attempts.of(connection, run_id)

    def live_attempts(self) -> list[Attempt]:
        with self._database.transaction() as connection:
            return attempts.live(connection)

    def mark_stopping(self, attempt: AttemptId, why: str) -> bool:
        with self._database.transaction() as connection:
            return attempts.mark_stopping(connection, attempt, why)

    def end_attempt(self, attempt: AttemptId, time: float) -> bool:
        with self._database.transaction() as connection:
            return attempts.end(connection, attempt, time)

    def arrive(
        self, attempt: AttemptId, rank: int, incarnation: int, *, address: str, ports: Sequence[int]
    ) -> Rank:
        with self._database.transaction() as connection:
            return attempts.arrive(
                connection, attempt, rank, incarnation, address=address, ports=ports
            )

    def move_rank(
        self, attempt: AttemptId, rank: int, to: RankState, *, exit: Exit | None = None
    ) -> bool:
        with self._database.transaction() as connection:
            return attempts.move(connection, attempt, rank, to, exit)

    # --- ranks of pools and elastic groups
    def replace_rank(
        self, attempt: AttemptId, rank: int, incarnation: int, *, cost: int = 0
    ) -> bool:
        with self._database.transaction() as connection:
            return groups.replace(connection, attempt, rank, incarnation, cost)

    def leave_round(
        self, attempt: AttemptId, rank: int, round: int, *, cost: int | None = None
    ) -> bool:
        with self._database.transaction() as connection:
            return groups.leave(connection, attempt, rank, round, cost)

    def form_round(self, attempt: AttemptId, round: int, members: Sequence[int]) -> bool:
        with self._database.transaction() as connection:
            return groups.form(connection, attempt, round, members)

    # --- reports
    def ingest(self, reports: Sequence[Report]) -> list[int | Exception]:
        group = [reporting.prepare(report) for report in reports]
        with self._database.transaction() as connection:
            return reporting.ingest(connection, group)

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
        with self._database.transaction() as connection:
            rows = records.chunk_rows(
                connection,
                run_id,
                kind,
                after=after,
                before=before,
                attempt=attempt,
                ranks=ranks,
                limit=limit,
                newest=newest,
            )
        return [records.chunk_of(row) for row in rows]

    def series(self, run_id: str) -> list[Series]:
        with self._database.transaction() as connection:
            return records.at_a_glance(connection, run_id)

    def params(self, run_id: str) -> dict[str, Scalar]:
        with self._database.transaction() as connection:
            own = runs.get(connection, run_id).spec.params
            return {**own, **records.parameters(connection, run_id)}

    # --- files and events
    def files(self, run_id: str) -> list[File]:
        with self._database.transaction() as connection:
            return records.kept(connection, run_id)

    def add_event(self, event: Event) -> None:
        with self._database.transaction() as connection:
            history.add(connection, event)

    def events(self, run_id: str) -> list[Event]:
        with self._database.transaction() as connection:
            return history.of(connection, run_id)

    # --- checkpoints
    def keep_checkpoint(
        self,
        checkpoint: Checkpoint,
        incarnation: int,
        *,
        gone: Sequence[str] = (),
        most: int = KEPT,
    ) -> None:
        with self._database.transaction() as connection:
            checkpoints.keep(connection, checkpoint, incarnation, gone, most)

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        with self._database.transaction() as connection:
            return checkpoints.of(connection, run_id)

    # --- cleaning
    def finished_before(self, time: float, limit: int = 1000) -> list[str]:
        with self._database.transaction() as connection:
            return runs.finished_before(connection, time, limit)

    def referenced_blobs(self) -> Iterable[str]:
        with self._database.transaction() as connection:
            return cleaning.referenced_blobs(connection)

    def prune_idempotency(self, before: float) -> int:
        with self._database.transaction() as connection:
            return cleaning.prune_idempotency(connection, before)


if TYPE_CHECKING:
    _: type[Store] = SqlStore
