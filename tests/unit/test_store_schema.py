"""The schema: made, migrated or refused when a store is opened."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from wherry.core.job import JobSpec
from wherry.errors import InvalidInput, SchemaTooNew
from wherry.store import schema
from wherry.store.engine import Database
from wherry.store.sql import SCHEMA, SqlStore
from wherry.testing.stores.data import submit

NEWER = f"{len(schema.REVISIONS) + 1:04d}"
NEXT = f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{NEWER}", "{SCHEMA}"


def upgrade():
    op.create_table("shiny", sa.Column("id", sa.Integer, primary_key=True))
    with op.batch_alter_table("runs", recreate="always") as runs:
        runs.add_column(sa.Column("mood", sa.Text, nullable=False, server_default="calm"))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "wherry.db"


def open_store(file: Path) -> SqlStore:
    return SqlStore.open(f"sqlite:///{file}")


def ask(file: Path, question: str) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute(question).fetchall()
        connection.commit()
        return rows


def drawn(file: Path) -> list[tuple[str, ...]]:
    """Every table and index as SQLite has it, without white space."""
    rows = ask(file, "SELECT type, name, sql FROM sqlite_master ORDER BY type, name")
    return [(kind, name, re.sub(r"\s", "", sql or "")) for kind, name, sql in rows]


def test_a_fresh_database_has_the_schema_that_the_migrations_make(tmp_path: Path) -> None:
    migrated, fresh = tmp_path / "migrated.db", tmp_path / "fresh.db"
    database = Database(f"sqlite:///{migrated}")
    with database.transaction() as connection:
        schema.migrate(connection)
    database.close()
    open_store(fresh).close()
    assert drawn(fresh) == drawn(migrated)
    version = "SELECT version_num FROM alembic_version"
    assert ask(fresh, version) == ask(migrated, version) == [(SCHEMA,)]


def test_the_table_of_revisions_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in scripts)[::-1] == schema.REVISIONS


def test_opening_does_not_import_alembic(file: Path) -> None:
    code = (
        "import sys; from wherry.store.sql import SqlStore;"
        "[SqlStore.open(sys.argv[1]).close() for _ in range(2)];"
        "print(*sorted({'alembic', 'sqlalchemy.orm'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{file}"]
    assert subprocess.check_output(command, text=True).strip() == ""


@pytest.mark.parametrize("revision", [NEWER, "from-the-future"])
def test_a_newer_schema_is_refused_with_words_and_left_alone(file: Path, revision: str) -> None:
    store = open_store(file)
    run = submit(store)
    store.close()
    ask(file, f"UPDATE alembic_version SET version_num = '{revision}'")
    before = drawn(file)
    with pytest.raises(SchemaTooNew, match=revision) as refused:
        open_store(file)
    assert SCHEMA in refused.value.message
    assert "upgrade" in refused.value.hint
    assert drawn(file) == before
    ask(file, f"UPDATE alembic_version SET version_num = '{SCHEMA}'")
    store = open_store(file)
    assert store.run(run.id) == run
    store.close()


def test_a_database_of_something_else_is_refused_and_left_alone(file: Path) -> None:
    ask(file, "CREATE TABLE recipes (id INTEGER)")
    before = drawn(file)
    with pytest.raises(InvalidInput, match="not Wherry's"):
        open_store(file)
    assert drawn(file) == before


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Wherry with one migration more; the file to write it to."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, NEWER))
    monkeypatch.setattr(schema, "SCHEMA", NEWER)
    return folder / "versions" / f"{NEWER}_shiny.py"


def test_an_older_database_is_migrated_when_it_is_opened(
    file: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA", SCHEMA)
        store = open_store(file)
        run = submit(store, spec=JobSpec(command=("x",), tags=("t",)))
        store.close()
    newer.write_text(NEXT)
    for _ in range(2):
        store = open_store(file)
        assert store.run(run.id) == run
        store.close()
    assert ask(file, "SELECT version_num FROM alembic_version") == [(NEWER,)]
    assert ask(file, "SELECT mood FROM runs") == [("calm",)]
    assert ask(file, "SELECT tag FROM tags") == [("t",)], (
        "the migration removed what refers to runs"
    )


def test_a_migration_that_fails_leaves_the_database_as_it_was(
    file: Path, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(schema, "SCHEMA", SCHEMA)
        open_store(file).close()
    before = drawn(file)
    newer.write_text(NEXT + "    raise RuntimeError('out of luck')\n")
    with pytest.raises(RuntimeError, match="out of luck"):
        open_store(file)
    assert drawn(file) == before
    assert ask(file, "SELECT version_num FROM alembic_version") == [(SCHEMA,)]
