"""The failing fakes fail as they say, and only so."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry.blobs.objects import ObjectBlobs
from wherry.errors import StorageFull, Unavailable
from wherry.store.sql import SqlStore
from wherry.testing import fakes
from wherry.testing.blobs import LARGE, digest_of, pieces_of
from wherry.testing.fakes import FlakyBlobs, FullStore
from wherry.testing.stores.data import make_run, report, started, submit


def test_a_full_store_reads_and_refuses_to_write(tmp_path: Path) -> None:
    inner = SqlStore.open(f"sqlite:///{tmp_path}/wherry.db")
    attempt = started(inner)
    full = FullStore(inner, writes=1)
    store = FullStore.over(inner)
    assert full.create_run(make_run(id="r1")).id == "r1"
    with pytest.raises(StorageFull):
        submit(store)
    with pytest.raises(StorageFull):
        store.ingest([report(attempt)])
    assert store.run(attempt.run) == inner.run(attempt.run)
    assert store.attempt(attempt).ranks[0].acked == 0
    full.writes = 1
    assert full.ingest([report(attempt)]) == [1]
    store.close()


def test_every_verb_of_a_store_is_known_to_read_or_to_write() -> None:
    verbs = {name for name in vars(SqlStore) if not name.startswith("_")} - {"open"}
    writes = {
        *("check", "backup", "create_run", "move_run", "set_reason", "request_stop"),
        *("delete_run", "create_attempt", "mark_stopping", "end_attempt", "arrive", "move_rank"),
        *("ingest", "add_event", "prune_idempotency"),
        *("replace_rank", "leave_round", "form_round", "keep_checkpoint"),
    }
    assert verbs - writes == fakes._READS


def test_flaky_blobs_fail_as_often_as_they_are_told(tmp_path: Path) -> None:
    inner = ObjectBlobs.open(tmp_path)
    blobs, digest = FlakyBlobs(inner, failures=1), digest_of(LARGE)
    pieces = pieces_of(LARGE)
    with pytest.raises(Unavailable):
        blobs.put(digest, pieces)
    assert next(pieces, None) is None
    assert inner.missing([digest]) == [digest]
    blobs.put(digest, pieces_of(LARGE))
    blobs.failures = 1
    torn = blobs.get(digest)
    assert next(torn)
    with pytest.raises(Unavailable):
        next(torn)
    blobs.failures = 2
    for call in (lambda: blobs.size(digest), lambda: blobs.missing([digest])):
        with pytest.raises(Unavailable):
            call()
    assert b"".join(blobs.get(digest)) == LARGE
    assert [found for found, *_ in blobs.all()] == [digest]
    blobs.remove(digest)
    assert inner.missing([digest]) == [digest]
