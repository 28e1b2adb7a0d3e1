"""
Checkpoints that were sent to the control plane, where a back end has no folder that survives.

Called by ``server.routes.checkpoints`` and ``store.queries.checkpoints``. Pure. Where it matters
which is newest: that of the latest attempt, then that of the highest step, as ``agent.checkpoint``
has it on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

from wherry.core.bundle import check_digest, check_path
from wherry.errors import InvalidInput

KEPT = 2  #: complete checkpoints of a run, the newest
_NAME = re.compile(r"step-[0-9]{1,18}(\.[0-9]{1,9})?(/shard-[0-9]{1,9})?")


class Kept(Struct, frozen=True, kw_only=True):
    """One file."""

    path: str
    digest: str
    size: int
    modified: float = 0.0  #: seconds since the epoch


class Checkpoint(Struct, frozen=True, kw_only=True):
    """
    What one agent sent at once: a checkpoint or a shard of one, with its manifest.

    With the name "", the files that the program wrote into the folder by itself: as they were when
    it was over, each as its last writer left it.
    """

    run: str
    name: str
    attempt: int
    rank: int
    member: int = 0  #: in a pool, whose members have a folder each, the rank
    step: int = 0
    shard: int | None = None
    shards: int = 1
    created: float = 0.0
    files: tuple[Kept, ...] = ()

    @property
    def family(self) -> tuple[int, int, str]:
        """What it shares with the other shards of its attempt; a larger one is newer."""
        return (self.attempt, self.step, self.name.partition("/")[0])

    def check(self) -> Checkpoint:
        """The same. :raises InvalidInput: where names or digests are none."""
        if self.name and not _NAME.fullmatch(self.name):
            raise InvalidInput(f"{self.name[:80]!r} is not the name of a checkpoint")
        if not 0 <= self.step < 2**63 or not 1 <= self.shards < 2**31:
            raise InvalidInput(f"step {self.step} of {self.shards} shards")
        for file in self.files:
            check_path(file.path)
            check_digest(file.digest)
        return self


def complete(rows: Iterable[Checkpoint]) -> list[list[Checkpoint]]:
    """The complete checkpoints among the rows of one member, each with its shards, newest first."""
    families: dict[tuple[int, int, str], dict[int, Checkpoint]] = {}
    for row in rows:
        if row.name:
            families.setdefault(row.family, {})[row.shard or 0] = row
    whole = [
        (family, shards)
        for family, shards in families.items()
        if all(one.shards == len(shards) for one in shards.values())
    ]
    return [
        [shards[number] for number in sorted(shards)] for _, shards in sorted(whole, reverse=True)
    ]


def superfluous(rows: Iterable[Checkpoint], keep: int) -> list[Checkpoint]:
    """What is older than the newest ``keep`` complete ones."""
    rows = list(rows)
    kept = complete(rows)[:keep]
    if len(kept) < keep:
        return []
    oldest = kept[-1][0].family
    return [row for row in rows if row.name and row.family < oldest]


def merged(old: Iterable[Kept], new: Iterable[Kept], gone: Iterable[str]) -> tuple[Kept, ...]:
    """The program's own files after an agent has told what changed."""
    files = {file.path: file for file in old}
    for path in gone:
        files.pop(path, None)
    files.update({file.path: file for file in new})
    return tuple(files[path] for path in sorted(files))
