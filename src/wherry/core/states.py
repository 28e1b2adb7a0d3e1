"""
The states of runs and ranks: one table each.

Called by ``core.decide``, which plans moves, and by the stores, which guard them
(``UPDATE … WHERE state IN …``). ``docs/concepts/states.md`` is drawn from these tables.
"""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """Where a run is."""

    SUBMITTED = "submitted"  # the row is written
    QUEUED = "queued"  # waits for room
    STARTING = "starting"  # the back end was asked to launch it
    RUNNING = "running"  # every rank's program has started
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    LOST = "lost"  # its machines went away and the restarts are used up


class RankState(StrEnum):
    """Where one rank of one attempt is."""

    PENDING = "pending"  # launched, has not called yet
    ARRIVED = "arrived"  # its agent called, prepares, waits at the barrier
    RUNNING = "running"  # its program runs
    ENDING = "ending"  # its program is over; its files are being sent, or it is held
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # ended because it was told to
    LOST = "lost"  # its agent is gone or silent


_R = RunState
# QUEUED follows RUNNING when a new attempt is made.
RUN_NEXT: dict[RunState, frozenset[RunState]] = {
    _R.SUBMITTED: frozenset({_R.QUEUED, _R.STARTING, _R.STOPPED, _R.FAILED}),
    _R.QUEUED: frozenset({_R.STARTING, _R.STOPPED, _R.FAILED}),
    _R.STARTING: frozenset({_R.RUNNING, _R.SUCCEEDED, _R.FAILED, _R.STOPPED, _R.LOST, _R.QUEUED}),
    _R.RUNNING: frozenset({_R.SUCCEEDED, _R.FAILED, _R.STOPPED, _R.LOST, _R.QUEUED}),
    _R.SUCCEEDED: frozenset(),
    _R.FAILED: frozenset(),
    _R.STOPPED: frozenset(),
    _R.LOST: frozenset(),
}

_K = RankState
RANK_NEXT: dict[RankState, frozenset[RankState]] = {
    _K.PENDING: frozenset(set(_K) - {_K.PENDING}),
    _K.ARRIVED: frozenset({_K.RUNNING, _K.ENDING, _K.SUCCEEDED, _K.FAILED, _K.STOPPED, _K.LOST}),
    # ARRIVED follows RUNNING in an elastic group that meets again.
    _K.RUNNING: frozenset({_K.ARRIVED, _K.ENDING, _K.SUCCEEDED, _K.FAILED, _K.STOPPED, _K.LOST}),
    _K.ENDING: frozenset({_K.ARRIVED, _K.SUCCEEDED, _K.FAILED, _K.STOPPED, _K.LOST}),
    _K.SUCCEEDED: frozenset(),
    _K.FAILED: frozenset(),
    _K.STOPPED: frozenset(),
    _K.LOST: frozenset(),
}

RUN_TERMINAL: frozenset[RunState] = frozenset(s for s, after in RUN_NEXT.items() if not after)
RUN_ACTIVE: frozenset[RunState] = frozenset({_R.STARTING, _R.RUNNING})
RANK_TERMINAL: frozenset[RankState] = frozenset(s for s, after in RANK_NEXT.items() if not after)


def run_sources(target: RunState) -> frozenset[RunState]:
    """The states that a run may be in just before ``target``."""
    return frozenset(s for s, after in RUN_NEXT.items() if target in after)


def rank_sources(target: RankState) -> frozenset[RankState]:
    """The states that a rank may be in just before ``target``."""
    return frozenset(s for s, after in RANK_NEXT.items() if target in after)
