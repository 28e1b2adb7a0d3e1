"""
Who waits for what: threads say that a run has changed, requests wait for it.

Called by ``control.reconcile`` and ``control.reports`` (``publish``) and by the routes that follow
logs or wait for an end (``wait``). Nothing is carried but the fact: who wakes reads the store.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict


class Bus:
    """A change counter per run. ``publish`` from any thread; ``wait`` on the event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: dict[str, int] = defaultdict(int)
        self._waiters: dict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self.closed = False

    def version(self, run_id: str) -> int:
        """Read this before the store, then ``wait`` for a newer one: no change is missed."""
        with self._lock:
            return self._versions[run_id]

    def publish(self, run_id: str) -> None:
        """The run has changed."""
        with self._lock:
            self._versions[run_id] += 1
            waiters = self._waiters.pop(run_id, set())
        for future in waiters:
            future.get_loop().call_soon_threadsafe(_wake, future)

    def close(self) -> None:
        """Wake everybody: the process is about to end."""
        self.closed = True
        for run_id in list(self._waiters):
            self.publish(run_id)

    async def wait(self, run_id: str, version: int, *, timeout: float) -> bool:
        """Until the run is newer than ``version``; False when ``timeout`` seconds are over."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            if self.closed or self._versions[run_id] != version:
                return True
            self._waiters[run_id].add(future)
        try:
            await asyncio.wait_for(future, timeout)
        except TimeoutError:
            return False
        finally:
            with self._lock:
                self._waiters[run_id].discard(future)
                if not self._waiters[run_id]:
                    del self._waiters[run_id]
        return True

    def forget(self, run_id: str) -> None:
        """The run is deleted."""
        with self._lock:
            self._versions.pop(run_id, None)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
