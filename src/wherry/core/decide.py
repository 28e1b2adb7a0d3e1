"""
Decide what a run should do next.

Called by ``control.reconcile`` with a run, its latest attempt and, where one was made, a fresh
observation. Pure: returns actions, performs none. Every action can be repeated, so a crash between
any two of them heals by deciding again.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from wherry.core.blame import absent, depth, first_broken
from wherry.core.run import (
    INFRASTRUCTURE,
    Attempt,
    Cause,
    Observation,
    Rank,
    RankObservation,
    Run,
    Verdict,
)
from wherry.core.states import RANK_TERMINAL, RankState, RunState


class Wait(Struct, frozen=True):
    """Let it queue."""


class Start(Struct, frozen=True):
    """Make attempt ``number`` and launch it."""

    number: int


class Launch(Struct, frozen=True):
    """Launch the latest attempt again: the last launch was cut short."""


class Drain(Struct, frozen=True):
    """Read what a dead agent left on disk, then decide again."""

    rank: int


class EndRank(Struct, frozen=True):
    """Declare a rank over that did not say so itself."""

    rank: int
    state: RankState
    cause: Cause
    message: str


class MarkRunning(Struct, frozen=True):
    """Every rank's program has started."""


class StopAttempt(Struct, frozen=True):
    """Stop every rank, for this reason."""

    why: str


class EndAttempt(Struct, frozen=True):
    """Every rank is over."""


class TryAgain(Struct, frozen=True):
    """Queue the run for another attempt."""

    verdict: Verdict


class Finish(Struct, frozen=True):
    """The run is over."""

    state: RunState
    verdict: Verdict | None
    exit_code: int | None


Action = (
    Wait
    | Start
    | Launch
    | Drain
    | EndRank
    | MarkRunning
    | StopAttempt
    | EndAttempt
    | TryAgain
    | Finish
)


class Facts(Struct, frozen=True, kw_only=True):
    """What is known. ``silent``: ranks whose lease is over; ``drained``: journals read already."""

    run: Run
    attempt: Attempt | None = None
    observation: Observation | None = None
    admitted: bool = False
    silent: frozenset[int] = frozenset()
    drained: frozenset[int] = frozenset()
    now: float = 0.0  #: seconds since the epoch; 0: not known


_SETTLE = 2.0  # seconds after the first rendezvous time-out in which the others may say the same


def decide(facts: Facts) -> list[Action]:
    """The actions, in the order in which to perform them."""
    run, attempt = facts.run, facts.attempt
    if attempt is not None and attempt.ended is None:
        return list(_tend(facts, attempt))
    if run.finished:
        return []
    if run.state in (RunState.STARTING, RunState.RUNNING):
        # The attempt has ended; the crash came before the run was moved.
        assert attempt is not None
        return [_outcome(run, attempt)]
    if run.stop_requested:
        return [Finish(RunState.STOPPED, Verdict(cause="stopped", message="stopped"), None)]
    if facts.admitted:
        return [Start(run.attempt + 1)]
    return [Wait()]


def _tend(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """What a live attempt needs."""
    run = facts.run
    if all(rank.state in RANK_TERMINAL for rank in attempt.ranks):
        yield EndAttempt()
        if not run.finished:
            yield _outcome(run, attempt)
        return
    if run.finished or run.stop_requested:
        if not attempt.stopping:
            yield StopAttempt("user")
    elif (broken := first_broken(attempt)) is not None and _settled(facts, attempt, broken):
        yield StopAttempt(f"rank {broken.rank} {broken.state}")
    yield from _fates(facts, attempt)
    started = all(r.state not in (RankState.PENDING, RankState.ARRIVED) for r in attempt.ranks)
    if run.state is RunState.STARTING and started:
        yield MarkRunning()


def _settled(facts: Facts, attempt: Attempt, broken: Rank) -> bool:
    """
    Whether to stop the others now.

    Ranks that wait for each other time out together: those that do not were never there, and the
    verdict can name them only if the others may tell.
    """
    if attempt.stopping:
        return False
    gone = facts.now - (broken.ended or 0.0)
    return broken.cause != "rendezvous" or not 0.0 <= gone < _SETTLE


def _fates(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """The ends of ranks that cannot tell of it themselves."""
    if facts.observation is None:
        return
    seen = {o.rank: o for o in facts.observation.ranks}
    for rank in attempt.ranks:
        if rank.state in RANK_TERMINAL:
            continue
        saw = seen.get(rank.rank) or RankObservation(rank=rank.rank, phase="absent")
        if saw.phase in ("ended", "absent"):
            fresh = rank.state is RankState.PENDING and saw.phase == "absent"
            if fresh and not attempt.stopping:
                yield Launch()
                return
            if not fresh and rank.rank not in facts.drained:
                yield Drain(rank.rank)
            else:
                yield _gone(rank, attempt, saw.cause, saw.message)
        elif rank.rank in facts.silent:
            message = f"rank {rank.rank} was silent for longer than its lease"
            yield EndRank(rank.rank, RankState.LOST, "lease", message)


def _gone(rank: Rank, attempt: Attempt, cause: Cause, message: str) -> EndRank:
    first = first_broken(attempt)
    # A peer noticed the loss before we did: that we then stopped the others did not cause it.
    noticed = attempt.stopping != "user" and first is not None and depth(first.cause) > 0
    if attempt.stopping and not noticed:
        return EndRank(rank.rank, RankState.STOPPED, "stopped", message)
    message = message or f"the agent of rank {rank.rank} is gone without a word"
    said = cause if cause not in ("", "stopped") else "agent-lost"
    return EndRank(rank.rank, RankState.LOST, said, message)


def _outcome(run: Run, attempt: Attempt) -> Action:
    """What becomes of the run when its latest attempt has ended."""
    first = first_broken(attempt)
    if run.stop_requested and any(r.state is not RankState.SUCCEEDED for r in attempt.ranks):
        code = attempt.ranks[0].exit_code
        return Finish(RunState.STOPPED, Verdict(cause="stopped", message="stopped"), code)
    if first is None and all(r.state is RankState.SUCCEEDED for r in attempt.ranks):
        return Finish(RunState.SUCCEEDED, None, 0)
    if first is None:
        first = next(r for r in attempt.ranks if r.state is not RankState.SUCCEEDED)
    verdict = judge(first, run, attempt)
    if verdict.cause in INFRASTRUCTURE and attempt.id.number <= run.spec.restarts:
        return TryAgain(verdict)
    state = RunState.LOST if verdict.cause in ("agent-lost", "lease") else RunState.FAILED
    return Finish(state, verdict, first.exit_code)


_HINTS: dict[str, str] = {
    "oom": "ask for more with --memory, or use less: a smaller batch, fewer loader workers",
    "timeout": "give it longer with --timeout",
    "agent-lost": "its machine or agent died; --restarts 2 tries again",
    "lease": "its machine was unreachable or stopped; --restarts 2 tries again",
    "barrier": "see the log of the ranks that never arrived",
    "environment": "see the log for the installer's words",
    "signal": "a signal from outside, or a crash in native code",
}


def judge(rank: Rank, run: Run, attempt: Attempt) -> Verdict:
    """The verdict on a run whose first broken rank this is, in its latest attempt."""
    what = rank.message
    if not what and rank.signal is not None:
        what = f"killed by signal {rank.signal}"
    elif not what and rank.exit_code is not None:
        what = f"exited with status {rank.exit_code}"
    message, _, hint = (what or f"ended: {rank.state}").partition("\nhint: ")
    message += absent(rank, attempt)
    return Verdict(
        cause=rank.cause or "exit",
        message=f"rank {rank.rank}: {message}" if run.spec.world_size > 1 else message,
        hint=hint or _HINTS.get(rank.cause, ""),
        rank=rank.rank,
        exit_code=rank.exit_code,
        signal=rank.signal,
        last_lines=rank.last_lines,
    )
