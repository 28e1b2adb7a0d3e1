"""
What time leaves behind: old runs, blobs that nobody refers to, old keys. And backups.

Called by ``server.routes.admin`` and, for the retention setting, by a timer of ``server.app``.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from wherry import settings
from wherry.blobs.base import Blobs
from wherry.core.api import Backup, BackupDone, Prune, Pruned
from wherry.core.bundle import LeftOut, Manifest
from wherry.core.run import Run
from wherry.errors import Conflict, InvalidInput, NotFound, StorageFull
from wherry.store.base import Store

_DAY = 86400.0
#: A blob younger than this may belong to a run that is about to be submitted.
_FRESH = _DAY


class Cleanup:
    """Removes what is no longer wanted, and copies what is."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        delete: Callable[[Run], None],
        prune_cache: Callable[[float], tuple[int, int]],
        keep: tuple[Path, ...] = (),
        lent: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.blobs, self.delete, self.keep = store, blobs, delete, keep
        self.prune_cache, self.lent = prune_cache, lent
        self.clock = clock

    def prune(self, ask: Prune) -> Pruned:
        """Remove, or with ``dry_run`` name, old runs; then sweep blobs."""
        gone: list[str] = []
        if ask.days is not None:
            if ask.days < 0:
                raise InvalidInput(f"{ask.days} days is not an age")
            limit = self.clock() - ask.days * _DAY
            while runs := self.store.finished_before(limit):
                gone += runs
                if ask.dry_run:
                    break
                for run_id in runs:
                    self.delete(self.store.run(run_id))
        count, size = self._sweep(dry_run=ask.dry_run)
        if not ask.dry_run:
            size += self.prune_cache(settings.get("cache_retention"))[1]
        return Pruned(runs=tuple(gone), blobs=count, bytes=size)

    def _sweep(self, *, dry_run: bool) -> tuple[int, int]:
        """Remove blobs that no row and no manifest of a row names."""
        wanted = set(self.wanted())
        count = size = 0
        for digest, length, stored in list(self.blobs.all()):
            if digest in wanted or stored > self.clock() - _FRESH:
                continue
            count, size = count + 1, size + length
            if not dry_run:
                self.blobs.remove(digest)
        return count, size

    def wanted(self) -> Iterator[str]:
        """Digests that rows or running maps name, and what the manifests among them name."""
        yield from self.lent()
        for digest in self.store.referenced_blobs():
            yield digest
            try:
                manifest = read_manifest(self.blobs, digest)
            except (NotFound, msgspec.DecodeError):
                continue  # not a manifest
            yield from (entry.digest for entry in manifest.entries)

    def backup(self, ask: Backup) -> BackupDone:
        """
        Write database, keys and blobs as one tar, readable by its owner alone.

        Runs go on; the database is a consistent copy, and blobs never change.
        :raises InvalidInput: a relative path. :raises Conflict: where it exists already.
        """
        path = Path(ask.path)
        if not path.is_absolute() or not path.parent.is_dir():
            raise InvalidInput(f"{ask.path!r} is not an absolute path in a folder that exists")
        if path.exists():
            raise Conflict(f"{ask.path!r} exists already", hint="choose another name")
        descriptor, partial = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
                runs = self._write(tar)
            os.replace(partial, path)
        except OSError as error:
            raise StorageFull(f"the backup could not be written: {error}") from None
        finally:
            Path(partial).unlink(missing_ok=True)
        return BackupDone(path=str(path), bytes=path.stat().st_size, runs=runs)

    def _write(self, tar: tarfile.TarFile) -> int:
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "wherry.db"
            self.store.backup(copy)
            tar.add(copy, arcname="wherry.db")
            for path in self.keep:
                tar.add(path, arcname=path.name)
            for digest, size, stored in self.blobs.all():
                info = tarfile.TarInfo(f"blobs/{digest}")
                info.size, info.mtime, info.mode = size, int(stored), 0o600
                with _Pieces(self.blobs.get(digest)) as pieces:
                    tar.addfile(info, pieces)  # type: ignore[arg-type]
        return len(self.store.finished_before(float("inf"), limit=10**9))


class _Pieces:
    """An iterator of bytes as the file that ``tarfile`` reads."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def __enter__(self) -> _Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


_decoder = msgspec.json.Decoder(Manifest)
_FIRST = (b'{"entries"', b'{"left_out"', b"{}")  # how a manifest begins; a model rarely does


def entries(blobs: Blobs, bundle: str) -> frozenset[str]:
    """The digests of a bundle's files. :raises NotFound:"""
    return frozenset(entry.digest for entry in read_manifest(blobs, bundle).entries)


class _LeftOut(msgspec.Struct):
    """A manifest without its entries, which are many and not asked for."""

    left_out: tuple[LeftOut, ...] = ()


def left_out(blobs: Blobs, bundle: str) -> tuple[LeftOut, ...]:
    """What did not travel with a bundle; nothing where there is none, or it is gone."""
    try:
        text = b"".join(blobs.get(bundle)) if bundle else b"{}"
        return msgspec.json.decode(text, type=_LeftOut).left_out
    except (NotFound, msgspec.DecodeError):
        return ()


def read_manifest(blobs: Blobs, digest: str) -> Manifest:
    """The manifest of a bundle. :raises NotFound: :raises msgspec.DecodeError: not a manifest."""
    if blobs.size(digest) > 64 * 2**20:
        raise msgspec.DecodeError("too large for a manifest")
    if not b"".join(blobs.get(digest, length=12)).startswith(_FIRST):
        raise msgspec.DecodeError("not a manifest")
    return _decoder.decode(b"".join(blobs.get(digest)))
