"""
Stores and blobs that fail in one named way each, for tests of whoever calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from wherry.blobs.base import Blobs
from wherry.errors import StorageFull, Unavailable
from wherry.store.base import Store

_READS = frozenset(
    {
        *("close", "run", "resolve", "runs", "attempt", "attempts", "live_attempts", "chunks"),
        *(
            "count_runs",
            "series",
            "params",
            "files",
            "events",
            "checkpoints",
            "finished_before",
            "referenced_blobs",
        ),
    }
)


class FullStore:
    """
    A store with room for ``writes`` more writes, then ``StorageFull``. Reading always works.

    Space is freed by setting ``writes`` again. ``FullStore.over`` gives it the type of a store.
    """

    def __init__(self, store: Store, writes: int = 0) -> None:
        self.store, self.writes = store, writes

    @classmethod
    def over(cls, store: Store, writes: int = 0) -> Store:
        """The same, for callers that are typed."""
        return cast(Store, cls(store, writes))

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self.store, name)
        if name in _READS:
            return verb

        def limited(*args: Any, **kwargs: Any) -> Any:
            if self.writes <= 0:
                raise StorageFull("no space is left", hint="free some")
            self.writes -= 1
            return verb(*args, **kwargs)

        return limited


class FlakyBlobs:
    """
    Blobs whose next ``failures`` calls raise ``Unavailable``, as a bucket does now and then.

    A failing ``get`` gives its first piece before: a transfer that breaks off. A failing ``put``
    has drawn all its data and stored nothing.
    """

    def __init__(self, blobs: Blobs, failures: int = 0) -> None:
        self.blobs, self.failures = blobs, failures

    def put(self, digest: str, data: Iterable[bytes]) -> int:
        if self.failures > 0:
            for _ in data:
                pass
        self._fail()
        return self.blobs.put(digest, data)

    def get(self, digest: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        pieces = self.blobs.get(digest, offset=offset, length=length)
        return self._broken_off(pieces) if self.failures > 0 else pieces

    def _broken_off(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield next(pieces, b"")
        self._fail()
        yield from pieces

    def size(self, digest: str) -> int:
        self._fail()
        return self.blobs.size(digest)

    def missing(self, digests: Iterable[str]) -> list[str]:
        self._fail()
        return self.blobs.missing(digests)

    def remove(self, digest: str) -> None:
        self._fail()
        self.blobs.remove(digest)

    def all(self) -> Iterator[tuple[str, int, float]]:
        self._fail()
        return self.blobs.all()

    def _fail(self) -> None:
        if self.failures > 0:
            self.failures -= 1
            raise Unavailable("the bucket did not answer", hint="try again")


if TYPE_CHECKING:
    _: type[Blobs] = FlakyBlobs
