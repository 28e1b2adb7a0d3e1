"""
Which rank a failed attempt is to be blamed on, and who was missing.

Called by ``core.decide`` for the verdict and by ``core.explain`` for the story. Pure.
"""

from __future__ import annotations

from wherry.core.run import SYMPTOMS, Attempt, Rank
from wherry.core.states import RankState


def depth(cause: str) -> int:
    """How far a cause is from where a failure began: 0 for the failure itself."""
    return SYMPTOMS.index(cause) + 1 if cause in SYMPTOMS else 0


def broken(attempt: Attempt) -> list[Rank]:
    """
    The ranks that ended badly, the one to blame first; ends on our order do not count.

    By their agents' clocks, but one that only noticed the loss of another never stands before one
    that was lost.
    """
    bad = {RankState.FAILED, RankState.LOST}
    if not attempt.stopping:
        bad.add(RankState.STOPPED)
    found = [r for r in attempt.ranks if r.state in bad]
    return sorted(found, key=lambda r: (depth(r.cause), r.ended or 0.0, r.rank))


def first_broken(attempt: Attempt) -> Rank | None:
    """The rank to blame; None where none ended badly."""
    return next(iter(broken(attempt)), None)


def absent(rank: Rank, attempt: Attempt) -> str:
    """
    Where all that broke are symptoms: who was missing, as far as the other ranks' ends tell.

    "" where ``rank`` has a failure of its own, or names who was missing itself.
    """
    if not depth(rank.cause) or "missing: " in rank.message:
        return ""
    others = [r for r in attempt.ranks if depth(r.cause) == 0 and r.rank != rank.rank]
    # Whoever ends well does so by itself, also while we stop the others.
    left = [r for r in others if r.state is RankState.SUCCEEDED]
    if left:
        return f"; {names(left)} had left, with status 0"
    there = [r for r in others if r.state is not RankState.SUCCEEDED]
    if rank.cause != "rendezvous" or not there:
        return ""
    return f"; missing: {names(there)}, which had not joined when the run was stopped"


def names(ranks: list[Rank]) -> str:
    """``ranks 1, 3``."""
    shown = ", ".join(str(r.rank) for r in ranks[:20]) + (", ..." if len(ranks) > 20 else "")
    return f"rank{'s' * (len(ranks) != 1)} {shown}"
