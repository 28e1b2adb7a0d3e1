"""
The database behind the store: its one place for what SQLite and PostgreSQL do differently.

Called by ``store.sql``. Gives transactions, turns the drivers' exceptions into ours, copies SQLite
while it is used.

SQLite has one connection for the whole process, guarded by a lock, and takes the file for itself
(``locking_mode=EXCLUSIVE``): versions before 3.51.3 can corrupt a WAL database that several
connections write. Without a shared-memory file there is also nothing to map on a full disk.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.pool import StaticPool

from wherry.errors import Conflict, InvalidInput, StorageFull, Unavailable, WherryError

_COPY_PAGES = 1024  # pages of a backup between two chances for others to write
_PRAGMAS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA journal_size_limit=67108864",
)

Upsert = sqlite.Insert | postgresql.Insert


def upsert(dialect: str, table: Table) -> Upsert:
    """An INSERT into ``table`` that knows ON CONFLICT."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


class Database:
    """An open database. Safe from any thread."""

    def __init__(self, url: str) -> None:
        """:raises InvalidInput: for a URL of something else. Nothing is opened yet."""
        try:
            parsed = make_url(url)
        except exc.ArgumentError:
            raise InvalidInput(f"{url!r} is not the URL of a database") from None
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise InvalidInput(
                f"{url!r}: only SQLite and PostgreSQL are known",
                hint="write sqlite:////folder/wherry.db or postgresql+psycopg://host/name",
            )
        self.name = parsed.render_as_string(hide_password=True)
        self._closed = False
        self._guard: AbstractContextManager[Any] = contextlib.nullcontext()
        self._sqlite = parsed.get_backend_name() == "sqlite"
        if self._sqlite:
            self._guard = self._lock = threading.RLock()
            self._engine = _sqlite_engine(url, parsed.database or "")
        else:
            self._engine = create_engine(url, pool_pre_ping=True)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """
        One transaction: committed at the end, rolled back where the block raises.

        :raises StorageFull: :raises Conflict: for a row that exists. :raises InvalidInput: for a
            number that no column holds. :raises Unavailable: for all else that it cannot do.
        """
        with self._connected() as connection, connection.begin():
            yield connection

    def enforce_references(self) -> None:
        """
        From now on a row goes with the row that it belongs to. Not before a migration is done: to
        change a table SQLite makes it anew, and dropping the old one would empty those below it.
        """
        if self._sqlite:
            with self._connected() as connection:
                _driver(connection).execute("PRAGMA foreign_keys=ON")

    def close(self) -> None:
        """Let go. Again: no error."""
        with self._guard:
            self._closed = True
            self._engine.dispose()

    def backup(self, path: Path) -> None:
        """
        Copy the database to ``path``; it appears there when it is whole.

        Between steps others may read and write: the copy follows what this connection writes.
        """
        if not self._sqlite:
            raise Unavailable(f"{self.name} is not copied from here", hint="use pg_dump")
        partial = path.with_name(path.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            with (
                self._connected() as connection,
                contextlib.closing(sqlite3.connect(partial)) as target,
            ):
                target.execute("PRAGMA journal_mode=OFF")  # what fails is thrown away
                source = _driver(connection)
                source.backup(target, pages=_COPY_PAGES, progress=self._give_way)
            os.replace(partial, path)
        except OSError as error:
            raise Unavailable(f"the backup cannot be written: {error}") from None
        finally:
            partial.unlink(missing_ok=True)

    def _give_way(self, status: int, remaining: int, total: int) -> None:
        self._lock.release()
        time.sleep(0.0005)  # a thread that waits gets the lock only if this one lingers
        self._lock.acquire()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._guard, self._translated():
            if self._closed:
                raise Unavailable(f"{self.name} is closed")
            with self._engine.connect() as connection:
                yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OverflowError:
            raise InvalidInput(
                "a number has more than 64 bits", hint="ask for a smaller one"
            ) from None
        except exc.DBAPIError as error:
            raise self._in_words(error.orig) from error
        except sqlite3.Error as error:
            raise self._in_words(error) from error

    def _in_words(self, error: BaseException | None) -> WherryError:
        code = getattr(error, "sqlite_errorname", "") or getattr(error, "sqlstate", "") or ""
        if code in ("SQLITE_FULL", "53100"):
            return StorageFull(
                f"no space is left for {self.name}",
                hint="free some space, or remove old runs: wherry prune --days 30",
            )
        if code.startswith(("SQLITE_CONSTRAINT", "23")):
            return Conflict(f"a row like this is there already: {error}")
        if code.startswith("SQLITE_BUSY"):
            return Unavailable(f"{self.name} is open in another process", hint="see: wherry status")
        return Unavailable(f"{self.name}: {error}")


def _driver(connection: Connection) -> sqlite3.Connection:
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def _sqlite_engine(url: str, file: str) -> Engine:
    if file in ("", ":memory:"):
        raise InvalidInput(f"{url!r} names no file", hint="write sqlite:////folder/wherry.db")
    engine = create_engine(
        url,
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )

    def connected(connection: sqlite3.Connection, _: Any) -> None:
        for pragma in _PRAGMAS:
            connection.execute(pragma).close()

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begin)
    return engine
