"""
Disks that are full when a test says so.

A real one (tmpfs) where this process may mount; for SQLite also a quota of its own, which needs no
rights, so that the promise is tested everywhere.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from wherry.store.sql import SqlStore

_SYS_ADMIN = 1 << 21


def may_mount() -> bool:
    """Whether this process has the right, as root in most containers does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) & _SYS_ADMIN)
    return False


class SmallDisk:
    """A file system of 16 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, _: SqlStore | None = None) -> None:
        """Leave no byte free."""
        with open(self._ballast, "ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self, _: SqlStore | None = None) -> None:
        """Give it all back."""
        self._ballast.unlink()


class Quota:
    """A database that may not grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, store: SqlStore) -> None:
        """Let it have the pages that it has."""
        self._limit(store, 1)  # SQLite raises it to the pages in use

    def free(self, store: SqlStore) -> None:
        """Let it grow again."""
        self._limit(store, 2**30)

    def _limit(self, store: SqlStore, pages: int) -> None:
        with store._database.transaction() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[SmallDisk]:
    """A small disk at ``folder`` for a while."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
