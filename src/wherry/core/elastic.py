"""
Rounds of an elastic group: who is in, who waits, when to meet again.

Called by ``core.decide``. Pure. A round is a meeting of ranks that know of each other and work
together. Whoever is lost breaks it, whoever comes waits for the next; then all leave the round
(their programs are ended) and meet in a new one, with new numbers and a new world size.
"""

from __future__ import annotations

from wherry.core.run import Attempt, Rank
from wherry.core.states import RankState


def inside(attempt: Attempt) -> tuple[int, ...]:
    """The members of the present round that have not left it."""
    return tuple(n for n in attempt.members if attempt.ranks[n].round < attempt.round)


def waiting(attempt: Attempt, ready: frozenset[int]) -> tuple[int, ...]:
    """The ranks that wait for the next round. ``ready``: those that have all but the others."""
    busy = set(inside(attempt))
    here = [r.rank for r in attempt.ranks if r.state is RankState.ARRIVED]
    return tuple(n for n in here if n in ready and n not in busy)


def next_round(
    attempt: Attempt, ready: frozenset[int], *, least: int, settled: bool
) -> tuple[int, ...]:
    """
    The members of the next round, if it can begin; else ().

    Old hands come first, so that rank 0 tends to stay where its state is. Nobody may be left in the
    present round. With fewer than all, it begins when nobody has come for a while.
    """
    here = waiting(attempt, ready)
    if len(here) < least or any(_works(attempt.ranks[n]) for n in inside(attempt)):
        return ()
    coming = (RankState.PENDING, RankState.ARRIVED)
    if not settled and any(r.state in coming and r.rank not in here for r in attempt.ranks):
        return ()
    old = [n for n in attempt.members if n in here]
    return (*old, *(n for n in here if n not in old))


def broken(attempt: Attempt, ready: frozenset[int], *, settled: bool) -> bool:
    """Whether those who are in the present round are to leave it."""
    stayed = inside(attempt)
    if not any(_works(attempt.ranks[n]) for n in stayed):
        return False
    left = len(stayed) < len(attempt.members)
    gone = any(attempt.ranks[n].state in (RankState.LOST, RankState.STOPPED) for n in stayed)
    return left or gone or (settled and bool(waiting(attempt, ready)))


def _works(rank: Rank) -> bool:
    return rank.state in (RankState.ARRIVED, RankState.RUNNING)
