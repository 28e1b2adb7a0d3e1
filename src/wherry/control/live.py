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

    def heard(self, attempt: AttemptId, rank: int) -> None:
        """A call of this rank's agent has come in."""
        with self._lock:
            self._heard.setdefault(attempt, {})[rank] = self._clock()

    def silent(self, attempt: AttemptId) -> frozenset[int]:
        """Ranks that called once and then not for longer than the lease."""
        with self._lock:
            limit = self._clock() - self.lease
            return frozenset(r for r, t in self._heard.get(attempt, {}).items() if t < limit)

    def stop(self, attempt: AttemptId) -> None:
        """From now on its agents are told to stop."""
        with self._lock:
            self._stopping.add(attempt)

    def stopping(self, attempt: AttemptId) -> bool:
        """What to answer its agents."""
        return attempt in self._stopping

    def forget(self, attempt: AttemptId) -> None:
        """It has ended."""
        with self._lock:
            self._heard.pop(attempt, None)
            self._stopping.discard(attempt)
