"""
Whether the program still moves.

Called by ``agent.watch``, every few seconds. A sign of life is output, a metric, or enough CPU. A
program that waits for others without using a core (a lock, a socket, gloo) shows none of them, one
that spins while it waits (NCCL) shows CPU. So this flags and tells, and stops nothing.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Collection

from wherry.agent import protocol
from wherry.agent.journal import Journal

SHARE = 0.01  #: of a core: who uses less, on average over the limit, does not move
_TICKS = 0.05  #: seconds of CPU: less is noise, as the kernel counts
_NAMED = 20  #: processes that are named at the most


class Stall:
    """
    ``limit``: seconds. ``signs()``: grows with each sign of life but CPU. ``stacks()``: the ranks'
    stacks in words, "" where they cannot be had.
    """

    def __init__(
        self,
        limit: float,
        journal: Journal,
        signs: Callable[[], int],
        stacks: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._journal = limit, journal
        self._signs, self._stacks, self._clock = signs, stacks, clock
        self._seen = signs()
        self._since = clock()  # the last sign of life
        self._spent: deque[tuple[float, float]] = deque()  # when, seconds of CPU
        self._enough = max(SHARE * limit, _TICKS)
        self._flagged = False
        self._halted: list[int] = []  # what was told of those that are stopped

    def poll(self, spent: float, stopped: Collection[int] = ()) -> None:
        """
        Look. ``spent``: seconds of CPU since the last time. ``stopped``: processes of the program
        that a signal has stopped: told again where that changes.
        """
        now, signs = self._clock(), self._signs()
        self._spent.append((now, spent))
        while self._spent[0][0] <= now - self._limit:
            self._spent.popleft()
        if signs != self._seen or sum(s for _, s in self._spent) >= self._enough:
            self._move(signs)
        elif now - self._since >= self._limit and not (
            self._flagged and self._halted == list(stopped)
        ):
            self._flagged, self._halted = True, list(stopped)
            message = f"no output, metric or CPU for {in_words(self._limit)}"
            if stopped:
                # ``core.remarks`` takes it apart at the semicolon.
                numbers = " ".join(map(str, self._halted[:_NAMED]))
                message += f"; stopped (SIGSTOP): kill -CONT {numbers}"
            stacks = self._stacks()
            self._tell("stalled", f"{message}\n{stacks}" if stacks else message)

    def _move(self, signs: int) -> None:
        if self._flagged:
            gone = in_words(self._clock() - self._since)
            self._tell("moving", f"it moves again, after {gone}")
        self._seen, self._since, self._flagged = signs, self._clock(), False
        self._spent.clear()

    def _tell(self, kind: str, message: str) -> None:
        event = {"kind": kind, "message": message}
        self._journal.append(protocol.EVENT, json.dumps(event).encode())


def in_words(seconds: float) -> str:
    """``90`` seconds as ``1m 30s``, without what is zero."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = int(seconds)
    parts = ((whole // 3600, "h"), (whole % 3600 // 60, "m"), (whole % 60, "s"))
    return " ".join(f"{number}{unit}" for number, unit in parts if number)
