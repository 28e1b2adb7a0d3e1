"""
Remember digests by stat, so that an unchanged file is never read again.

Called by ``capture``. One file a project, written whole and put in place by rename, so commands
that race lose nothing but time; a file that cannot be read or written is no cache, not an error.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from wherry.bundle.keep import keep

#: A file that changed so recently may change again within the clock's grain and keep its stat
#: (git's "racy" problem), so it is not remembered.
RACY_NS = 2 * 10**9

Stat = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def stat_key(st: os.stat_result) -> Stat:
    """What must be equal for a file to count as unchanged."""
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino


class Known(msgspec.Struct, array_like=True, frozen=True):
    """What hashing a file found."""

    stat: Stat
    digest: str
    secret: str = ""  #: why it must not travel, see ``guards.secret_content``


class StatCache:
    """The remembered files of one project; paths are relative to its root."""

    def __init__(self, folder: Path, root: Path) -> None:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
        self._file = folder / "stat" / f"{name}.msgpack"
        self._now: dict[str, Known] = {}
        self._fresh = False
        try:
            self._old = msgspec.msgpack.decode(self._file.read_bytes(), type=dict[str, Known])
        except (OSError, msgspec.DecodeError):
            self._old = {}

    def get(self, path: str, stat: Stat) -> Known | None:
        """What is known of the file if it is still the same."""
        known = self._old.get(path)
        if known is None or known.stat != stat:
            return None
        self._now[path] = known
        return known

    def put(self, path: str, known: Known, hashed_at: int) -> None:
        """Remember a file that was hashed at ``hashed_at`` (ns since the epoch)."""
        if hashed_at - max(known.stat[1], known.stat[2]) >= RACY_NS:
            self._now[path] = known
            self._fresh = True

    def save(self) -> None:
        """Write it down if anything is new; files that are gone are forgotten then."""
        if not self._fresh and len(self._now) == len(self._old):
            return
        keep(self._file, msgspec.msgpack.encode(self._now))
