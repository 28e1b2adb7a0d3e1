"""What the blobs keep when a process is killed, a disk is full, or the power fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from tests.small_disk import may_mount, mounted
from wherry.blobs.objects import ObjectBlobs
from wherry.errors import InvalidInput, NotFound, StorageFull, Unavailable
from wherry.testing.blobs import LARGE, SMALL, digest_of, pieces_of, put


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder: Path) -> ObjectBlobs:
    return ObjectBlobs.open(folder)


# --- nothing is left
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_a_refused_blob_leaves_no_file(blobs: ObjectBlobs, folder: Path, data: bytes) -> None:
    def cut() -> Iterator[bytes]:
        yield from pieces_of(data)
        raise EOFError

    with pytest.raises(InvalidInput):
        blobs.put(digest_of(b"other"), pieces_of(data))
    with pytest.raises(EOFError):
        blobs.put(digest_of(data), cut())
    assert files_below(folder) == []


FULL = ["said", *(["real"] if may_mount() else [])]


@pytest.mark.parametrize("full", FULL)
def test_a_full_disk_is_said_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    if full == "real":
        with mounted(tmp_path / "small") as disk:
            blobs = ObjectBlobs.open(disk.folder / "blobs")
            kept = put(blobs, SMALL)
            disk.fill()
            for data in (b"x" * 100_000, LARGE):
                with pytest.raises(StorageFull):
                    put(blobs, data)
            assert files_below(disk.folder / "blobs") == [kept]
            disk.free()
            put(blobs, LARGE)
    else:
        blobs = ObjectBlobs.open(tmp_path / "blobs")

        def refuse(*_: object, **__: object) -> None:
            raise GenericError("Unable to copy data to file: Disk quota exceeded (os error 122)")

        monkeypatch.setattr("wherry.blobs.objects.obstore.put", refuse)
        with pytest.raises(StorageFull):
            put(blobs, SMALL)
        assert files_below(tmp_path / "blobs") == []


KILLED = """
import sys, time
from wherry.blobs.objects import ObjectBlobs
from wherry.testing.blobs import LARGE, digest_of, pieces_of
def slow():
    yield from pieces_of(LARGE)
    print("written", flush=True)
    time.sleep(600)
ObjectBlobs.open(sys.argv[1]).put(digest_of(LARGE), slow())
"""


def test_what_a_killed_writer_leaves_is_never_seen_and_swept_later(
    blobs: ObjectBlobs, folder: Path
) -> None:
    whole = put(blobs, SMALL)
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.kill()
    [partial] = folder.rglob("*#*")
    assert blobs.missing([digest_of(LARGE)]) == [digest_of(LARGE)]
    assert [digest for digest, *_ in blobs.all()] == [whole]
    ObjectBlobs.open(folder)
    assert partial.exists(), "another process may be writing it"
    long_ago = time.time() - 2 * 3600
    os.utime(partial, (long_ago, long_ago))
    again = ObjectBlobs.open(folder)
    assert files_below(folder) == [whole]
    assert b"".join(again.get(whole)) == SMALL


def test_a_blob_that_a_power_cut_emptied_is_asked_for_again(
    blobs: ObjectBlobs, folder: Path
) -> None:
    digest = put(blobs, SMALL)
    os.truncate(folder / digest[:2] / digest, 0)
    assert blobs.missing([digest]) == [digest]
    put(blobs, SMALL)
    assert b"".join(blobs.get(digest)) == SMALL


# --- not what it was
def test_a_blob_that_goes_while_it_is_listed_is_not_found(blobs: ObjectBlobs, folder: Path) -> None:
    digest = put(blobs, SMALL)
    pieces = blobs.get(digest)
    (folder / digest[:2] / digest).unlink()
    with pytest.raises(NotFound):
        next(pieces)


def test_foreign_files_in_the_folder_are_no_blobs(blobs: ObjectBlobs, folder: Path) -> None:
    (folder / "ab").mkdir(parents=True)
    (folder / "ab" / "README").write_text("hello")
    (folder / "ab" / (digest_of(SMALL) + "#1.txt")).write_text("mine")
    assert list(blobs.all()) == []
    ObjectBlobs.open(folder)
    assert len(files_below(folder)) == 2


def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        ObjectBlobs.open(tmp_path / "file")
    with pytest.raises(Unavailable, match="what"):
        ObjectBlobs.open("what://is/this")


def test_a_url_of_a_folder_is_taken_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blobs = ObjectBlobs.open(f"file://{tmp_path}/blobs")
    assert b"".join(blobs.get(put(blobs, SMALL))) == SMALL
