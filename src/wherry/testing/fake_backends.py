"""
Back ends that run nothing, for tests of whoever calls a back end.

``MemoryBackend`` does what a test tells it and remembers what it was asked. ``SlowBackend`` and
``BadBackend`` stand before another back end and fail in one named way each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from msgspec.structs import replace

from wherry.backends.base import (
    Amount,
    Backend,
    Capability,
    Capacity,
    Observation,
    Plan,
    RankObservation,
    Request,
)
from wherry.core.causes import Cause
from wherry.core.run import AttemptId
from wherry.errors import WherryError

Phase = Literal["absent", "pending", "running", "ended"]


class MemoryBackend:
    """
    A back end of dictionaries. Nothing runs: a rank is where :meth:`set` puts it.

    ``launch`` puts every rank into ``launched_as``. ``stop`` ends the ranks at once unless
    ``ignore_stop`` is set. ``calls`` is every verb with its attempt, in order (``plan`` and the
    reading verbs left out). ``launch_errors`` are raised by the next launches, one each.
    """

    def __init__(
        self,
        *,
        capacity: Capacity | None = None,
        capabilities: frozenset[Capability] = frozenset({Capability.IN_PLACE, Capability.ATTACH}),
        launched_as: Phase = "running",
        ignore_stop: bool = False,
    ) -> None:
        self.capabilities = capabilities
        self.launched_as: Phase = launched_as
        self.ignore_stop = ignore_stop
        self.launch_errors: list[WherryError] = []
        self.plans: dict[AttemptId, Plan] = {}
        self.calls: list[tuple[str, AttemptId]] = []
        self.frames: dict[tuple[AttemptId, int], bytes] = {}
        everything = Amount(cpu=4.0, memory=8 * 2**30)
        self.room: Capacity | None = capacity or Capacity(total=everything, free=everything)
        self._ranks: dict[AttemptId, dict[int, RankObservation]] = {}
        self._stopped: set[AttemptId] = set()
        self._changed: list[AttemptId] = []
        self._wake = threading.Condition()

    # --- what a test says
    def set(
        self,
        attempt: AttemptId,
        rank: int,
        phase: Phase,
        *,
        cause: Cause = "",
        message: str = "",
        incarnation: int = 1,
    ) -> None:
        """Put a rank into a phase and let ``changes`` say so."""
        with self._wake:
            self._ranks.setdefault(attempt, {})[rank] = RankObservation(
                rank=rank, phase=phase, cause=cause, message=message, incarnation=incarnation
            )
            self._announce(attempt)

    def called(self, verb: str) -> list[AttemptId]:
        """The attempts that a verb was called with, in order."""
        return [attempt for name, attempt in self.calls if name == verb]

    # --- the nine verbs
    def plan(self, request: Request) -> Plan:
        """Who would be launched."""
        members = [{"rank": m.rank, "incarnation": m.incarnation} for m in request.members]
        return Plan(request=request, body={"backend": "memory", "ranks": members})

    def launch(self, plan: Plan) -> None:
        """Put the ranks into ``launched_as``; raise the next of ``launch_errors`` instead."""
        attempt = plan.request.attempt
        with self._wake:
            self.calls.append(("launch", attempt))
            if self.launch_errors:
                raise self.launch_errors.pop(0)
            if attempt in self.plans:
                return
            self.plans[attempt] = plan
            stopped = attempt in self._stopped
            self._ranks[attempt] = {
                m.rank: RankObservation(
                    rank=m.rank,
                    phase="ended" if stopped else self.launched_as,
                    cause="stopped" if stopped else "",
                    incarnation=m.incarnation,
                )
                for m in plan.request.members
            }
            self._announce(attempt)

    def observe(self, attempt: AttemptId) -> Observation:
        """The phases as they were set; no ranks where it was never launched."""
        with self._wake:
            ranks = self._ranks.get(attempt, {})
            return Observation(attempt=attempt, ranks=tuple(ranks[n] for n in sorted(ranks)))

    def changes(self) -> Iterator[AttemptId]:
        """Changed attempts at once; without a change, every live one each second."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed, timeout=1.0)
                found = list(dict.fromkeys(self._changed)) or self._live()
                self._changed.clear()
            yield from found

    def logs(self, attempt: AttemptId, rank: int) -> Iterator[bytes]:
        """What a test put into ``frames``."""
        if data := self.frames.get((attempt, rank)):
            yield data

    def stop(self, attempt: AttemptId, grace: float) -> None:
        """End the ranks, as programs that listen would."""
        with self._wake:
            self.calls.append(("stop", attempt))
            self._stopped.add(attempt)
            if self.ignore_stop:
                return
            for rank, seen in self._ranks.get(attempt, {}).items():
                if seen.phase in ("pending", "running"):
                    self._ranks[attempt][rank] = replace(seen, phase="ended")
            self._announce(attempt)

    def forget(self, attempt: AttemptId) -> None:
        """Drop everything but ``calls``."""
        with self._wake:
            self.calls.append(("forget", attempt))
            self.plans.pop(attempt, None)
            self._ranks.pop(attempt, None)
            self._stopped.discard(attempt)

    def owned(self) -> Iterator[AttemptId]:
        """Attempts with a trace."""
        with self._wake:
            found = sorted({*self._ranks, *self._stopped})
        yield from found

    def capacity(self) -> Capacity | None:
        """``room``, as the test set it."""
        return self.room

    def _live(self) -> list[AttemptId]:
        return [
            attempt
            for attempt, ranks in self._ranks.items()
            if any(r.phase in ("pending", "running") for r in ranks.values())
        ]

    def _announce(self, attempt: AttemptId) -> None:
        self._changed.append(attempt)
        self._wake.notify_all()


class _Before:
    """Stands before another back end: every verb passes :meth:`_pass` first."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities

    def _pass(self, verb: str) -> None:
        raise NotImplementedError

    def plan(self, request: Request) -> Plan:
        self._pass("plan")
        return self.inner.plan(request)

    def launch(self, plan: Plan) -> None:
        self._pass("launch")
        self.inner.launch(plan)

    def observe(self, attempt: AttemptId) -> Observation:
        self._pass("observe")
        return self.inner.observe(attempt)

    def changes(self) -> Iterator[AttemptId]:
        self._pass("changes")
        return self.inner.changes()

    def logs(self, attempt: AttemptId, rank: int) -> Iterator[bytes]:
        self._pass("logs")
        return self.inner.logs(attempt, rank)

    def stop(self, attempt: AttemptId, grace: float) -> None:
        self._pass("stop")
        self.inner.stop(attempt, grace)

    def forget(self, attempt: AttemptId) -> None:
        self._pass("forget")
        self.inner.forget(attempt)

    def owned(self) -> Iterator[AttemptId]:
        self._pass("owned")
        return self.inner.owned()

    def capacity(self) -> Capacity | None:
        self._pass("capacity")
        return self.inner.capacity()


class SlowBackend(_Before):
    """Every verb in ``delays`` takes so many seconds longer: a cluster on a bad day."""

    def __init__(
        self,
        inner: Backend,
        delays: Mapping[str, float],
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self.delays = dict(delays)
        self._sleep = sleep

    def _pass(self, verb: str) -> None:
        if delay := self.delays.get(verb, 0.0):
            self._sleep(delay)


class BadBackend(_Before):
    """
    Every verb in ``errors`` raises its error, ``times`` times (-1: always), then works.

    ``raised`` counts by verb. The inner back end is not called where an error is raised.
    """

    def __init__(
        self, inner: Backend, errors: Mapping[str, BaseException], *, times: int = -1
    ) -> None:
        super().__init__(inner)
        self.errors = dict(errors)
        self.times = times
        self.raised: dict[str, int] = {}

    def _pass(self, verb: str) -> None:
        count = self.raised.get(verb, 0)
        if verb in self.errors and count != self.times:
            self.raised[verb] = count + 1
            raise self.errors[verb]
