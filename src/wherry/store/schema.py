"""
Bring a database to this version's schema, or refuse it.

Called by ``store.sql`` when a store is opened. alembic is slow to import and almost never needed:
the revision is read by hand, a fresh database is made from ``store.tables``, and alembic runs only
where an older one must be changed.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from wherry.errors import InvalidInput, SchemaTooNew
from wherry.store.tables import metadata

#: Every revision in ``migrations/versions``, oldest first.
REVISIONS: tuple[str, ...] = ("0001", "0002", "0003")
#: The revision of this version.
SCHEMA: str = REVISIONS[-1]
MIGRATIONS = Path(__file__).parent / "migrations"


def prepare(connection: Connection, name: str) -> None:
    """
    Make, migrate or accept the schema. ``name`` is the database's, for people.

    :raises SchemaTooNew: for a revision that this version does not know.
    :raises InvalidInput: for a database of something else.
    """
    found = revision(connection)
    if found == SCHEMA:
        return
    if found is None:
        if inspect(connection).get_table_names():
            raise InvalidInput(f"{name} holds tables that are not Wherry's")
        metadata.create_all(connection, checkfirst=False)
        _stamp(connection)
    elif found in REVISIONS:
        migrate(connection)
    else:
        raise SchemaTooNew(
            f"{name} has schema {found!r}; this Wherry knows {SCHEMA!r} and older",
            hint="upgrade Wherry, or set WHERRY_HOME to another folder",
        )


def revision(connection: Connection) -> str | None:
    """The revision that the database says it has; None where it says nothing."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return found


def migrate(connection: Connection) -> None:
    """Run what is due, inside the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _stamp(connection: Connection) -> None:
    # As alembic creates it, to the letter.
    connection.execute(
        text(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
            "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(
        text("INSERT INTO alembic_version (version_num) VALUES (:head)"), {"head": SCHEMA}
    )
