"""
What a pool's workers are given to do: jobs, and the batches that they are cut into.

Called by ``sdk.pool``; ``sdk.map`` has the jobs of ``wherry.map`` and of executors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from wherry.agent import parcels

TARGET = 0.08  #: seconds that a batch shall take
LEAST = 0.01  #: seconds that are not worth to be cut further, to spread the last tasks
GROWTH = 256  #: how many times larger a batch may be than the largest before
SHORT = 0.2  #: seconds: what takes less may wait behind another at its worker
BYTES = 1 << 20  #: of a batch, about


class Again(NamedTuple):
    """
    A task that is to be done again, by its index. ``alone``: so that we see whether it kills its
    worker.
    """

    task: int
    item: Any
    alone: bool


class Batch:
    """Tasks of one job that one worker does in a row: their places in the job, and their items."""

    def __init__(
        self, job: Job, indexes: Sequence[int], items: list[Any], *, alone: bool = False
    ) -> None:
        self.job, self.indexes, self.items, self.alone = job, indexes, items, alone
        self.data = b""
        self._open = bytearray(b"\1") * len(items)

    def close(self, place: int, count: int) -> bool:
        """Note that these are answered. False where one of them was before."""
        if self._open.count(1, place, place + count) != count:
            return False
        self._open[place : place + count] = bytes(count)
        return True

    def left(self) -> list[int]:
        """The places that are not answered."""
        return [place for place, is_open in enumerate(self._open) if is_open]


class Job:
    """
    The tasks of one function. Subclasses say which there are and what becomes of them.

    :param mode: how an item becomes a call: ``agent.pool.MODES``.
    :param retries: how often a task that raised is tried again.
    :param timeout: seconds of one task.
    :param chunksize: tasks of a batch; 0: as many as take :data:`TARGET` seconds.
    """

    def __init__(
        self,
        function: Any,
        *,
        mode: str = "item",
        retries: int = 0,
        timeout: float | None = None,
        chunksize: int = 0,
    ) -> None:
        self.function, self.mode = function, mode
        self.retries, self.timeout, self.chunksize = retries, timeout, chunksize
        self.again: deque[Again] = deque()  # before what is new
        self.tries: dict[int, int] = {}  # of those that raised
        self.deaths: dict[int, int] = {}  # of their workers
        self.packed: tuple[str, parcels.Parcel] | None = None
        self._pace = 0.0  # seconds of a task, measured at the workers
        self._bytes = 0.0  # bytes of a task
        self._largest = 1

    # --- what a subclass says

    def take(self, count: int) -> tuple[Sequence[int], list[Any]]:
        """At most so many new tasks, by index and item; none where there are none now."""
        raise NotImplementedError

    def left(self) -> int | None:
        """How many tasks :meth:`take` can still give; None where nobody knows."""
        raise NotImplementedError

    def finish(self, indexes: Sequence[int], values: list[Any]) -> None:
        """These have returned."""
        raise NotImplementedError

    def fail(self, index: int, item: Any, error: BaseException) -> None:
        """This one has raised, for the last time."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether there are tasks that an end should wait for."""
        raise NotImplementedError

    def settled(self) -> None:
        """Some were finished or failed; called once for many."""

    def broken(self, error: BaseException) -> None:
        """Nothing more will come: the workers have left."""
        raise NotImplementedError

    # --- cutting

    def draw(self, workers: int) -> Batch | None:
        """The next batch; None where there is none now. May run the code of an iterator."""
        if self.again:
            return self._repeat()
        indexes, items = self.take(self.size(workers))
        return Batch(self, indexes, items) if items else None

    def _repeat(self) -> Batch:
        found = [self.again.popleft()]
        while not found[0].alone and self.again and not self.again[0].alone:
            if len(found) >= (self.chunksize or self._fitting()):
                break
            found.append(self.again.popleft())
        indexes, items = [a.task for a in found], [a.item for a in found]
        return Batch(self, indexes, items, alone=found[0].alone)

    def size(self, workers: int) -> int:
        """How many tasks the next batch shall have."""
        if self.chunksize or not self._pace:
            return self.chunksize or 1
        size, left = self._fitting(), self.left()
        if left is not None:
            size = min(size, max(-(-left // (2 * workers)), int(LEAST / self._pace)))
        return max(1, size)

    def _fitting(self) -> int:
        """How many tasks are done in the time that a batch shall take."""
        if not self._pace:
            return 1
        size = min(int(TARGET / self._pace), self._largest * GROWTH)
        if self._bytes:
            size = min(size, int(BYTES / self._bytes))
        return max(1, size)

    def learn(self, count: int, seconds: float) -> None:
        """So many tasks took so long, all together."""
        if count:
            pace = max(seconds / count, 1e-7)
            self._pace = (self._pace + pace) / 2 if self._pace else pace
            self._largest = max(self._largest, count)

    def weigh(self, count: int, size: int) -> None:
        """So many tasks were so many bytes."""
        self._bytes = size / count

    def short(self, count: int) -> bool:
        """Whether so many are done in an instant."""
        return bool(self._pace) and count * self._pace < SHORT
