"""
Blobs: bytes by their SHA-256.

Called by ``control`` and by the routes that move bytes. A blob that can be seen is whole.
``wherry.testing.BlobContract`` holds the promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol


class Blobs(Protocol):
    """Put, get, ask, remove. Safe from any thread and from several processes."""

    def put(self, digest: str, data: Iterable[bytes]) -> int:
        """
        Store the bytes if they have this digest; how many there are. Again: no error.

        :raises InvalidInput: where they have another digest; nothing is left then.
        :raises StorageFull: where there is no room; nothing is left then.
        """
        ...

    def get(self, digest: str, *, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes, in pieces of at most 1 MiB. :raises NotFound: before the first piece."""
        ...

    def size(self, digest: str) -> int:
        """In bytes. :raises NotFound:"""
        ...

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those that are not here, in the order given, each once."""
        ...

    def remove(self, digest: str) -> None:
        """Again: no error."""
        ...

    def all(self) -> Iterator[tuple[str, int, float]]:
        """(digest, size, time stored in seconds since the epoch) of every blob."""
        ...
