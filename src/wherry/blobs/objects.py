"""
Blobs over obstore: a folder today, a bucket by its URL with the same code.

Opened by ``server.app``. obstore writes an object whole or not at all. In a folder it does so
through a file beside it (``NAME#1``) and a rename; what a crash left of those is swept when the
folder is opened. Nothing is synced: a power cut may take the blobs of its last seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from wherry.core.bundle import DIGEST, blob_path, check_digest
from wherry.errors import InvalidInput, NotFound, StorageFull, Unavailable

if TYPE_CHECKING:
    from wherry.blobs.base import Blobs

_PIECE = 2**20  # bytes: the most that ``get`` gives at once
_PART = 4 * 2**20  # bytes: a smaller blob is stored in one call, a larger one in such parts
_ABANDONED = 3600.0  # seconds: a partial file that nobody wrote to for so long is a crash's
_PARTIAL = re.compile(r"[0-9a-f]{64}#[0-9]+")
#: obstore has no class for them: only its words tell of ENOSPC and EDQUOT.
_FULL = ("No space left on device", "Disk quota exceeded")
_EMPTY = hashlib.sha256().hexdigest()


class ObjectBlobs:
    """Keeps the promises of ``blobs.base.Blobs``."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, where: str | Path) -> ObjectBlobs:
        """
        The blobs in a folder, which is made if need be, or at a URL such as ``s3://bucket/blobs``.

        :raises Unavailable: where it cannot be opened.
        """
        with _translated():
            if "://" in str(where):
                return cls(from_url(str(where)))
            folder = Path(where)
            folder.mkdir(parents=True, exist_ok=True)
            _sweep(folder)
            return cls(LocalStore(folder))

    def put(self, digest: str, data: Iterable[bytes]) -> int:
        checked = _Checked(check_digest(digest), data)
        part = checked.read(_PART)
        if checked.ended:
            with _translated(digest):
                obstore.put(self._store, blob_path(digest), part)
            return checked.size
        # ``obstore.put`` takes pieces too, but draws them where no blob may be read.
        writer = obstore.open_writer(self._store, blob_path(digest), buffer_size=_PART)
        try:
            while part:
                with _translated(digest):
                    writer.write(part)
                part = checked.read(_PART)
        except BaseException as error:
            writer.__exit__(type(error), error, None)  # forgets what it was given
            raise
        with _translated(digest):
            writer.close()
        return checked.size

    def get(self, digest: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        size = self.size(digest)
        end = size if length is None else min(size, offset + length)
        return self._pieces(digest, offset, end) if offset < end else iter(())

    def _pieces(self, digest: str, start: int, end: int) -> Iterator[bytes]:
        with _translated(digest):
            found = obstore.get(self._store, blob_path(digest), options={"range": (start, end)})
            for piece in found.stream(min_chunk_size=_PIECE):
                whole = bytes(piece)
                for at in range(0, len(whole), _PIECE):
                    yield whole[at : at + _PIECE]

    def size(self, digest: str) -> int:
        with _translated(digest):
            return obstore.head(self._store, blob_path(check_digest(digest)))["size"]

    def missing(self, digests: Iterable[str]) -> list[str]:
        return [digest for digest in dict.fromkeys(digests) if not self._has(digest)]

    def _has(self, digest: str) -> bool:
        try:
            # After a power cut a file may be there with nothing in it: ask for it again.
            return self.size(digest) > 0 or digest == _EMPTY
        except NotFound:
            return False

    def remove(self, digest: str) -> None:
        with contextlib.suppress(NotFound), _translated(digest):
            obstore.delete(self._store, blob_path(check_digest(digest)))

    def all(self) -> Iterator[tuple[str, int, float]]:
        with _translated():
            for batch in obstore.list(self._store):
                for meta in batch:
                    digest = meta["path"].rpartition("/")[2]
                    if DIGEST.fullmatch(digest):
                        yield digest, meta["size"], meta["last_modified"].timestamp()


class _Checked:
    """Reads pieces and raises at their end where they are not what ``digest`` says."""

    def __init__(self, digest: str, pieces: Iterable[bytes]) -> None:
        self.digest, self.size, self.ended = digest, 0, False
        self._pieces = iter(pieces)
        self._hash = hashlib.sha256()

    def read(self, enough: int) -> bytes:
        """Pieces until there are ``enough`` bytes, or the rest, which is checked before."""
        parts: list[bytes] = []
        size = 0
        while size < enough and not self.ended:
            piece = next(self._pieces, None)
            if piece is None:
                self._check()
            else:
                self._hash.update(piece)
                size += len(piece)
                parts.append(piece)
        self.size += size
        return b"".join(parts)

    def _check(self) -> None:
        self.ended = True
        if (found := self._hash.hexdigest()) != self.digest:
            raise InvalidInput(
                f"the bytes have the digest {found}, not {self.digest}",
                hint="the content changed or was cut off on its way; send it again",
            )


def _sweep(folder: Path) -> None:
    """Remove what a crash left of writes."""
    old = time.time() - _ABANDONED
    for shelf in os.scandir(folder):
        if shelf.is_dir(follow_symlinks=False):
            for entry in os.scandir(shelf):
                if _PARTIAL.fullmatch(entry.name) and entry.stat().st_mtime < old:
                    os.unlink(entry)


@contextlib.contextmanager
def _translated(digest: str = "") -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"there is no blob {digest}") from None
    except (OSError, BaseError) as error:
        if any(words in str(error) for words in _FULL):
            raise StorageFull(
                "no space is left for blobs", hint="free some, or: wherry prune --days 30"
            ) from error
        raise Unavailable(f"the blobs cannot be used: {error}") from error


if TYPE_CHECKING:
    _: type[Blobs] = ObjectBlobs
