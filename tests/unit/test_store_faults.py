"""What the store keeps when a process is killed, a disk is full, or a file is not what it was."""

from __future__ import annotations

import contextlib
import random
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import Quota, SmallDisk, may_mount, mounted
from wherry.core.run import Run
from wherry.errors import InvalidInput, StorageFull, Unavailable
from wherry.store import engine
from wherry.store.base import RunFilter
from wherry.store.sql import SqlStore
from wherry.testing.stores.data import all_of, chunk, everything, glance, report, started, submit

NOISE = random.Random(0).randbytes(2**20)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/wherry.db"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore.open(url(tmp_path))
    yield store
    store.close()


def looked_at(file: Path, question: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return connection.execute(question).fetchall()


# --- killed
WRITER = """
import itertools, sys
from wherry.core.run import AttemptId
from wherry.store.sql import SqlStore
from wherry.testing.stores.data import chunk, glance, report
store, attempt = SqlStore.open(sys.argv[1]), AttemptId.parse(sys.argv[2])
first = store.attempt(attempt).ranks[0].acked + 1
for seq in itertools.count(first):
    payload = b"%d\\n" % seq + b"x" * 3000
    [acked] = store.ingest([report(attempt, seq=seq, chunks=[chunk(payload)], series=(glance(),))])
    print(acked, flush=True)
"""


def test_what_was_acknowledged_survives_the_kill_of_its_writer(tmp_path: Path) -> None:
    store = SqlStore.open(url(tmp_path))
    attempt = started(store)
    store.close()
    for moment in (3, 40):
        command = [sys.executable, "-c", WRITER, url(tmp_path), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            heard = [int(writer.stdout.readline()) for _ in range(moment)]
            writer.kill()
            heard += [int(line) for line in writer.stdout if line.endswith(b"\n")]
        assert (tmp_path / "wherry.db-wal").stat().st_size > 0, "it was not killed in its work"
        store = SqlStore.open(url(tmp_path))
        acked = store.attempt(attempt).ranks[0].acked
        chunks = store.chunks(attempt.run, "log", limit=10**6)
        counted = store.series(attempt.run)[0].count
        store.close()
        assert acked >= heard[-1]
        assert [int(c.payload.split(b"\n")[0]) for c in chunks] == list(range(1, acked + 1))
        assert counted == acked
        assert looked_at(tmp_path / "wherry.db", "PRAGMA integrity_check") == [("ok",)]


def test_every_commit_reaches_the_disk_and_no_other_connection_the_file(store: SqlStore) -> None:
    with store._database.transaction() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 2  # FULL
        assert pragma("locking_mode") == "exclusive"
        assert pragma("foreign_keys") == 1


# --- full
DISKS = ["quota", *(["disk"] if may_mount() else [])]


@pytest.fixture(params=DISKS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk | Quota]:
    if request.param == "quota":
        yield Quota(tmp_path)
    else:
        with mounted(tmp_path / "small") as disk:
            yield disk


def test_a_full_disk_is_said_and_nothing_is_half_written(small: SmallDisk | Quota) -> None:
    store = SqlStore.open(url(small.folder))
    try:
        attempt = everything(store)
        before = all_of(store, attempt.run)
        small.fill(store)
        big = report(attempt, rank=1, chunks=[chunk(NOISE)] * 3, series=(glance(),))
        with pytest.raises(StorageFull, match="no space"):
            store.ingest([report(attempt, seq=2, phases={"run": 1.0}), big])
        assert all_of(store, attempt.run) == before
        small.free(store)
        assert store.ingest([big]) == [1]
        store.check()
        assert len(store.chunks(attempt.run, "log")) == 4
    finally:
        store.close()
    assert looked_at(small.folder / "wherry.db", "PRAGMA integrity_check") == [("ok",)]


def test_on_a_full_disk_a_run_is_not_made_by_half(small: SmallDisk | Quota) -> None:
    store = SqlStore.open(url(small.folder))
    try:
        small.fill(store)
        made: list[Run] = []
        with pytest.raises(StorageFull):
            made.extend(submit(store, name="n" * 1000) for _ in range(10_000))
        assert store.runs(RunFilter(limit=10**6)) == made[::-1]
        assert all(len(store.events(run.id)) == 1 for run in made)
        small.free(store)
        submit(store)
    finally:
        store.close()


# --- not what it was
def test_a_database_that_is_open_is_not_opened_twice(tmp_path: Path, store: SqlStore) -> None:
    with pytest.raises(Unavailable, match="another process"):
        SqlStore.open(url(tmp_path) + "?timeout=0.01")
    store.check()


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "wherry.db").write_bytes(b"not a database" * 100)
    with pytest.raises(Unavailable, match="not a database"):
        SqlStore.open(url(tmp_path))
    assert (tmp_path / "wherry.db").read_bytes() == b"not a database" * 100


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nowhere/wherry\.db"):
        SqlStore.open(url(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "wrong", ["wherry.db", "mysql://host/name", "sqlite://", "sqlite:///:memory:"]
)
def test_only_a_url_of_a_database_that_is_known_is_taken(wrong: str) -> None:
    with pytest.raises(InvalidInput, match=r"sqlite|mysql|wherry\.db"):
        SqlStore.open(wrong)


# --- at rest
def test_large_logs_are_compressed_at_rest_and_nothing_else(
    tmp_path: Path, store: SqlStore
) -> None:
    attempt = started(store)
    text = b"the same line\n" * 1000
    sent = [chunk(text), chunk(b"x" * 1024), chunk(NOISE), chunk(text, "metric")]
    store.ingest([report(attempt, chunks=sent)])
    store.close()
    rows = looked_at(tmp_path / "wherry.db", "SELECT packed, length(payload) FROM chunks")
    assert rows[0][0] == 1
    assert rows[0][1] < len(text) / 10  # type: ignore[operator]
    assert rows[1:] == [(0, 1024), (0, len(NOISE)), (0, len(text))]


# --- backup
def test_a_backup_holds_what_was_there_and_is_a_store(tmp_path: Path, store: SqlStore) -> None:
    attempt = everything(store)
    store.backup(tmp_path / "copy.db")
    expected = all_of(store, attempt.run)
    copy = SqlStore.open(f"sqlite:///{tmp_path}/copy.db")
    try:
        assert all_of(copy, attempt.run) == expected
    finally:
        copy.close()


def test_while_a_backup_is_made_others_write_and_the_copy_is_whole(
    tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_COPY_PAGES", 16)
    attempt = started(store)
    store.ingest([report(attempt, chunks=[chunk(NOISE)] * 4)])
    copying = threading.Thread(target=store.backup, args=(tmp_path / "copy.db",))
    copying.start()
    seq = 1
    while copying.is_alive():
        seq += 1
        store.ingest([report(attempt, seq=seq, chunks=[chunk(b"%d" % seq)])])
    copying.join()
    assert seq > 5, "nobody could write"
    assert looked_at(tmp_path / "copy.db", "PRAGMA integrity_check") == [("ok",)]
    [(acked,)] = looked_at(tmp_path / "copy.db", "SELECT acked FROM ranks WHERE rank = 0")
    [(chunks,)] = looked_at(tmp_path / "copy.db", "SELECT count(*) FROM chunks")
    assert chunks == 3 + acked  # type: ignore[operator]
    assert 1 <= acked <= seq  # type: ignore[operator]


def test_a_backup_that_cannot_be_written_says_so_and_leaves_nothing(
    tmp_path: Path, store: SqlStore
) -> None:
    submit(store)
    (tmp_path / "folder").mkdir()
    for target in (tmp_path / "nowhere" / "copy.db", tmp_path / "folder"):
        with pytest.raises(Unavailable, match=r"backup|unable to open"):
            store.backup(target)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["folder", "wherry.db", "wherry.db-wal"]
    store.check()


@pytest.mark.parametrize("room", ["none", *(["some"] if may_mount() else [])])
def test_a_backup_without_room_leaves_the_one_before(
    tmp_path: Path, store: SqlStore, room: str
) -> None:
    attempt = started(store)
    store.ingest([report(attempt, chunks=[chunk(NOISE)] * 20)])
    with contextlib.ExitStack() as stack:
        if room == "some":
            folder = stack.enter_context(mounted(tmp_path / "small")).folder
        else:
            folder = tmp_path / "small"
            folder.mkdir()
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
        (folder / "copy.db").write_text("before")
        with pytest.raises(Unavailable):
            store.backup(folder / "copy.db")
        assert [path.name for path in folder.iterdir()] == ["copy.db"]
        assert (folder / "copy.db").read_text() == "before"
    store.check()
