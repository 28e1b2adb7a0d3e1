"""
Live ranks, in memory: when each was last heard, and whether it is told to stop.

Called by ``control.reports`` (heard) and ``control.reconcile`` (silent, stopping). Leases run on
the monotonic clock of this process and start anew with it: while the control plane is down, or a
wall clock jumps, nobody's lease runs out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from wherry.core.run import AttemptId


class Live:
    """The attempts that have not ended."""

    def __init__(self, *, lease: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease = lease
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[AttemptId, dict[int, float]] = {}
        self._stopping: set[AttemptId] = set()
        self._rounds: dict[AttemptId, int] = {}
        self._ready: dict[AttemptId, set[int]] = {}

    def heard(self, attempt: AttemptId, rank: int) -> None:
        """A call of this rank's agent has come in."""
        with self._lock:
            self._heard.setdefault(attempt, {})[rank] = self._clock()

    def silent(self, attempt: AttemptId, lease: float | None = None) -> frozenset[int]:
        """Ranks that called once and then not for longer than the lease; None: the usual one."""
        with self._lock:
            limit = self._clock() - (self.lease if lease is None else lease)
            return frozenset(r for r, t in self._heard.get(attempt, {}).items() if t < limit)

    def stop(self, attempt: AttemptId) -> None:
        """From now on its agents are told to stop."""
        with self._lock:
            self._stopping.add(attempt)

    def stopping(self, attempt: AttemptId) -> bool:
        """What to answer its agents."""
        return attempt in self._stopping

    def excuse(self, seconds: float) -> None:
        """For so long nobody could have been heard here: it counts against nobody."""
        with self._lock:
            for ranks in self._heard.values():
                for rank in ranks:
                    ranks[rank] += seconds

    def wait(self, attempt: AttemptId, rank: int) -> None:
        """This rank has all but the others, and waits for them."""
        with self._lock:
            self._ready.setdefault(attempt, set()).add(rank)

    def ready(self, attempt: AttemptId) -> frozenset[int]:
        """The ranks that wait for the others, or did once. After a restart all ask again."""
        with self._lock:
            return frozenset(self._ready.get(attempt, ()))

    def recall(self, attempt: AttemptId, round: int) -> None:
        """From now on the ranks of an elastic group are told to meet for this round."""
        with self._lock:
            self._rounds[attempt] = round

    def round(self, attempt: AttemptId) -> int:
        """The round that its agents are to meet for, or the one that they are in."""
        return self._rounds.get(attempt, 0)

    def forget(self, attempt: AttemptId, rank: int | None = None) -> None:
        """It has ended; or only this incarnation of a rank has."""
        with self._lock:
            if rank is not None:
                self._heard.get(attempt, {}).pop(rank, None)
                self._ready.get(attempt, set()).discard(rank)
                return
            self._ready.pop(attempt, None)
            self._heard.pop(attempt, None)
            self._rounds.pop(attempt, None)
            self._stopping.discard(attempt)
