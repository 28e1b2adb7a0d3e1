"""
The tables, as SQLAlchemy sees them.

Used by ``store.queries`` and, for a fresh database, by ``store.schema``. A change here needs a
migration in ``migrations/versions``; a test proves that both ways lead to the same schema.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from wherry.core.checkpoint import Kept
from wherry.core.job import JobSpec
from wherry.core.run import Verdict
from wherry.core.states import RankState, RunState


class Data(TypeDecorator[Any]):
    """Frozen data of one type, as JSON text."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._decoder = msgspec.json.Decoder(kind)

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else self._decoder.decode(value)


class State(TypeDecorator[Any]):
    """A state, by its word."""

    impl = Text
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else self.kind(value)


#: SQLite counts only a plain INTEGER PRIMARY KEY; PostgreSQL needs 64 bits.
Serial = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _run() -> Column[Any]:
    """The run that a row belongs to and goes with."""
    return Column(
        "run", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True, nullable=False
    )


def _owned() -> Column[Any]:
    """The same, where the row has a number of its own."""
    return Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


runs = Table(
    "runs",
    metadata,
    # Ids carry only seconds: this is the order of submission. Never given twice, so that paging
    # and cursors survive deletion.
    Column("ordinal", Serial, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("project", Text, nullable=False),
    Column("spec", Data(JobSpec), nullable=False),
    Column("state", State(RunState), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("attempt", Integer, nullable=False),
    Column("stop_requested", Boolean, nullable=False),
    Column("verdict", Data(Verdict)),
    Column("exit_code", BigInteger),
    Column("backend", Text, nullable=False),
    Column("parent", Text, nullable=False),
    Column("foreground", Boolean, nullable=False),
    Column("attach", Text, nullable=False),
    Column("restarts_used", Integer, nullable=False, server_default="0"),
    Column("not_before", Double, nullable=False, server_default="0"),
    Index(None, "owner", "project", "name", "ordinal"),
    Index(None, "state", "ended"),
    sqlite_autoincrement=True,
)

tags = Table(
    "tags",
    metadata,
    _run(),
    Column("tag", Text, primary_key=True, nullable=False),
    Index(None, "tag"),
)

# Digests that a run's spec names, so that sweeping blobs need not decode every spec.
uses = Table("uses", metadata, _run(), Column("digest", Text, primary_key=True, nullable=False))

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),
    # Deferred: the key is claimed before its run is made.
    Column(
        "run",
        Text,
        ForeignKey("runs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED"),
        nullable=False,
        index=True,
    ),
    Column("created", Double, nullable=False, index=True),
)

attempts = Table(
    "attempts",
    metadata,
    _run(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("created", Double, nullable=False),
    Column("ended", Double),
    Column("stopping", Text, nullable=False),
    Column("round", Integer, nullable=False, server_default="0"),
    Column("charged", Integer, nullable=False, server_default="0"),
    Column("members", Data(tuple[int, ...]), nullable=False, server_default="[]"),
)
Index(
    "ix_attempts_live",
    attempts.c.run,
    attempts.c.number,
    sqlite_where=text("ended IS NULL"),
    postgresql_where=text("ended IS NULL"),
)

ranks = Table(
    "ranks",
    metadata,
    Column("run", Text, primary_key=True, nullable=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("rank", Integer, primary_key=True, autoincrement=False),
    Column("incarnation", Integer, nullable=False),
    Column("state", State(RankState), nullable=False),
    Column("address", Text, nullable=False),
    Column("ports", Data(tuple[int, ...]), nullable=False),
    Column("acked", BigInteger, nullable=False),
    Column("exit_code", BigInteger),
    Column("signal", Integer),
    Column("cause", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("last_lines", Data(tuple[str, ...]), nullable=False),
    Column("started", Double),
    Column("ended", Double),
    Column("phases", Data(dict[str, float]), nullable=False),
    Column("result", Text, nullable=False),
    Column("round", Integer, nullable=False, server_default="0"),
    ForeignKeyConstraint(
        ["run", "attempt"], ["attempts.run", "attempts.number"], ondelete="CASCADE"
    ),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    _owned(),
    Column("kind", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("first", Double, nullable=False),
    Column("last", Double, nullable=False),
    Column("packed", Boolean, nullable=False),
    # Last, so that a look at the other columns reads no page of it.
    Column("payload", LargeBinary, nullable=False),
    Index(None, "run", "kind", "id", "attempt", "rank"),
    sqlite_autoincrement=True,
)

series = Table(
    "series",
    metadata,
    _run(),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("rank", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("last", Double),  # NULL is NaN: SQLite has no NaN
    Column("last_step", BigInteger, nullable=False),
    Column("last_time", Double, nullable=False),
    Column("min", Double),
    Column("max", Double),
)

params = Table(
    "params",
    metadata,
    _run(),
    Column("name", Text, primary_key=True, nullable=False),
    Column("value", Text, nullable=False),
)

files = Table(
    "files",
    metadata,
    _run(),
    Column("rank", Integer, primary_key=True, autoincrement=False),
    Column("path", Text, primary_key=True, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("modified", Double, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _run(),
    Column("member", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("shard", Integer),
    Column("shards", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("files", Data(tuple[Kept, ...]), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    _owned(),
    Column("time", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("rank", Integer),
    Index(None, "run", "id"),
    sqlite_autoincrement=True,
)
