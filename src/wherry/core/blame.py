"""
Which ranks ended badly, which of them a failed attempt is to be blamed on, and who was missing.

Called by ``core.decide`` for the verdict and by ``core.explain`` for the story. Pure.
"""

from __future__ import annotations

import re

from wherry.core.causes import SYMPTOMS
from wherry.core.run import Attempt, Rank
from wherry.core.states import RankState

_NOT_THERE = re.compile(r"ranks? ([\d,-]+) did not arrive")


def depth(cause: str) -> int:
    """How far a cause is from where a failure began: 0 for the failure itself."""
    return SYMPTOMS.index(cause) + 1 if cause in SYMPTOMS else 0


def failed(rank: Rank) -> bool:
    """Whether its program failed by itself, be its agent still there or not."""
    if rank.state is RankState.ENDING:
        return rank.cause not in ("", "stopped", "preempted")
    return rank.state is RankState.FAILED


def succeeded(rank: Rank) -> bool:
    """Whether its program ended well, be its agent still there or not."""
    ending = rank.state is RankState.ENDING and rank.cause == ""
    return ending or rank.state is RankState.SUCCEEDED


def is_broken(attempt: Attempt, rank: Rank) -> bool:
    """Whether it ended badly. Ends on our order do not count."""
    if failed(rank) or rank.state is RankState.LOST:
        return True
    told = rank.state is RankState.ENDING and rank.cause != ""
    gone = told or rank.state is RankState.STOPPED
    return gone and (not attempt.stopping or rank.cause == "preempted")


def broken(attempt: Attempt) -> list[Rank]:
    """
    The ranks that ended badly, the one to blame first.

    By their agents' clocks, but one that only noticed the loss of another never stands before one
    that was lost: clocks of machines differ, and victims may notice before it is known.
    """
    found = [r for r in attempt.ranks if is_broken(attempt, r)]
    return sorted(found, key=lambda r: (depth(r.cause), r.ended or float("inf"), r.rank))


def first_broken(attempt: Attempt) -> Rank | None:
    """The rank to blame; None where none ended badly."""
    return next(iter(broken(attempt)), None)


def left_early(rank: Rank, attempt: Attempt) -> list[Rank]:
    """Where ``rank`` broke as it missed another: who had ended well before, and left it alone."""
    if not depth(rank.cause):
        return []
    before = rank.ended or float("inf")
    return [
        r
        for r in attempt.ranks
        if r.state is RankState.SUCCEEDED and r.rank != rank.rank and (r.ended or 0.0) <= before
    ]


def absent(rank: Rank, attempt: Attempt) -> str:
    """
    Where all that broke are symptoms: who was missing, as far as the other ranks' ends tell.

    "" where ``rank`` has a failure of its own, or names who was missing itself.
    """
    if not depth(rank.cause) or "missing: " in rank.message:
        return ""
    if left := left_early(rank, attempt):
        return f"; {names(left)} had left, with status 0"
    if there := not_joined(rank, attempt):
        return f"; missing: {names(there)}, which had not joined when the run was stopped"
    return ""


def not_joined(rank: Rank, attempt: Attempt) -> list[Rank]:
    """
    Where ``rank`` broke as a rendezvous was never complete: who did not wait there with it.

    Of our own, the barrier, ``rank`` was told who: see ``agent.ranks``.
    """
    if rank.cause == "barrier":
        found = _NOT_THERE.match(rank.message)
        spans = [part.partition("-") for part in found[1].split(",")] if found else []
        missing = [(int(low), int(high or low)) for low, _, high in spans]
        others = [r for r in attempt.ranks if r.cause != "barrier"]
        return [r for r in others if any(a <= r.rank <= b for a, b in missing)]
    if rank.cause != "rendezvous" or left_early(rank, attempt):
        return []
    others = [r for r in attempt.ranks if depth(r.cause) == 0 and r.rank != rank.rank]
    return [r for r in others if r.state is not RankState.SUCCEEDED]


def said(rank: Rank) -> str:
    """What it ended of, with the hint if it gave one; "" where nothing is known."""
    if not rank.message and rank.signal is not None:
        return f"killed by signal {rank.signal}"
    if not rank.message and rank.exit_code is not None:
        return f"exited with status {rank.exit_code}"
    return rank.message


def names(ranks: list[Rank]) -> str:
    """``ranks 1, 3``."""
    shown = ", ".join(str(r.rank) for r in ranks[:20]) + (", ..." if len(ranks) > 20 else "")
    return f"rank{'s' * (len(ranks) != 1)} {shown}"
