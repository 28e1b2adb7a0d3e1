"""Promises of `wherry restore`: the backup or the old state, never half of each."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wherry.blobs.objects import ObjectBlobs
from wherry.cli import options, restore
from wherry.errors import Conflict, InvalidInput, Unavailable
from wherry.sdk import connect

DATABASE = b"SQLite format 3\0new"


def backup(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o666
            tar.addfile(member, io.BytesIO(data))
    return path


def blob(data: bytes) -> str:
    name = hashlib.sha256(data).hexdigest()
    return f"blobs/{name[:2]}/{name}"


def written(data: bytes) -> str:
    """As ``wherry backup`` names it."""
    return f"blobs/{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "blobs").mkdir(parents=True)
    (folder / "wherry.db").write_bytes(b"SQLite format 3\0old")
    (folder / "wherry.db-wal").write_bytes(b"old wal")
    (folder / "blobs/old").write_bytes(b"old")
    (folder / "server.log").write_bytes(b"log")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A control plane that starts and stops at once; what was asked of it."""
    done: list[str] = []
    monkeypatch.setattr(connect, "find_server", lambda home: None)
    monkeypatch.setattr(connect, "stop_server", lambda home: done.append("stop"))
    monkeypatch.setattr(connect, "start_server", lambda home: done.append("start"))
    return done


def state(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in home.rglob("*") if p.is_file()}


def test_everything_is_replaced_and_private(home: Path, tmp_path: Path, server: list[str]) -> None:
    files = {"./wherry.db": DATABASE, "token": b"t", "secret": b"s", blob(b"new"): b"new"}
    restore.replace(home, backup(tmp_path / "b.tar", files))
    assert state(home) == {
        "wherry.db": DATABASE, "token": b"t", "secret": b"s", blob(b"new"): b"new",
        "server.log": b"log",
    }  # fmt: skip
    assert (home / "token").stat().st_mode & 0o777 == 0o600
    assert server == ["stop", "start"]


def test_a_blob_lies_where_the_control_plane_looks_for_it(
    home: Path, tmp_path: Path, server: list[str]
) -> None:
    restore.replace(home, backup(tmp_path / "b.tar", {"wherry.db": DATABASE, written(b"x"): b"x"}))
    digest = hashlib.sha256(b"x").hexdigest()
    assert b"".join(ObjectBlobs.open(home / "blobs").get(digest)) == b"x"


@pytest.mark.parametrize(
    "files",
    [
        {"wherry.db": b"no database"},
        {"token": b"t"},
        {"wherry.db": DATABASE, "../evil": b""},
        {"wherry.db": DATABASE, "server.json": b""},
        {"wherry.db": DATABASE, blob(b"new"): b"other bytes"},
    ],
)
def test_what_is_no_backup_changes_nothing(
    home: Path, tmp_path: Path, server: list[str], files: dict[str, bytes]
) -> None:
    before = state(home)
    with pytest.raises(InvalidInput):
        restore.replace(home, backup(tmp_path / "b.tar", files))
    assert state(home) == before and not server
    assert not (tmp_path / "evil").exists()


def test_a_file_that_is_cut_off_changes_nothing(
    home: Path, tmp_path: Path, server: list[str]
) -> None:
    path = backup(tmp_path / "b.tar", {"wherry.db": DATABASE + bytes(100_000)})
    path.write_bytes(path.read_bytes()[:50_000])
    before = state(home)
    with pytest.raises(InvalidInput):
        restore.replace(home, path)
    assert state(home) == before


def test_links_in_a_backup_are_refused(home: Path, tmp_path: Path, server: list[str]) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        link = tarfile.TarInfo("wherry.db")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InvalidInput):
        restore.replace(home, tmp_path / "b.tar")


def test_where_the_control_plane_does_not_start_everything_is_put_back(
    home: Path, tmp_path: Path, server: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(home: Path) -> None:
        raise Unavailable("it does not start")

    monkeypatch.setattr(connect, "start_server", broken)
    before = state(home)
    with pytest.raises(Unavailable):
        restore.replace(home, backup(tmp_path / "b.tar", {"wherry.db": DATABASE}))
    assert state(home) == before


def test_active_runs_are_not_pulled_away(
    home: Path,
    tmp_path: Path,
    server: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client:
        def status(self) -> object:
            return type("Status", (), {"runs": {"running": 2, "failed": 1}})

    there: Callable[[Path], object] = lambda home: object()  # noqa: E731
    monkeypatch.setattr(connect, "find_server", there)
    monkeypatch.setattr(options, "connect", lambda on: Client())
    before = state(home)
    with pytest.raises(Conflict, match="2 runs"):
        restore.replace(home, backup(tmp_path / "b.tar", {"wherry.db": DATABASE}))
    assert state(home) == before and not server
