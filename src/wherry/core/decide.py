"""
Decide what a run should do next.

Called by ``control.reconcile`` with a run, its latest attempt and, where one was made, a fresh
observation. Pure: returns actions, performs none. Every action can be repeated, so a crash between
any two of them heals by deciding again.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from wherry.core import elastic, retry
from wherry.core.blame import (
    absent,
    depth,
    failed,
    first_broken,
    is_broken,
    left_early,
    not_joined,
    said,
    succeeded,
)
from wherry.core.causes import FREE, SYMPTOMS, Cause
from wherry.core.remarks import ranks_in_words
from wherry.core.roster import ends_with, label, roster
from wherry.core.run import Attempt, Observation, Rank, RankObservation, Run, Verdict
from wherry.core.states import RANK_TERMINAL, RankState, RunState

_GIFTS = 5  #: attempts that cost no restart, at the most


class Wait(Struct, frozen=True):
    """Let it queue."""


class Start(Struct, frozen=True):
    """Make attempt ``number`` and launch it."""

    number: int


class Launch(Struct, frozen=True):
    """Launch the latest attempt again: the last launch was cut short, or a rank is new."""


class Drain(Struct, frozen=True):
    """Read what a dead agent left on disk, then decide again."""

    rank: int


class EndRank(Struct, frozen=True):
    """Declare a rank over that did not say so itself. No cause: what it said of its end holds."""

    rank: int
    state: RankState
    cause: Cause = ""
    message: str = ""


class Replace(Struct, frozen=True):
    """Give the rank a new incarnation, in place of ``incarnation``; ``cost``: in restarts."""

    rank: int
    incarnation: int
    cost: int


class Excuse(Struct, frozen=True):
    """Let a rank of an elastic group whose program failed take part in the next round."""

    rank: int
    cost: int


class Recall(Struct, frozen=True):
    """Tell the ranks of an elastic group to leave this round and to meet again."""

    round: int


class FormRound(Struct, frozen=True):
    """Begin round ``round`` of an elastic group with these ranks, in this order."""

    round: int
    members: tuple[int, ...]


class MarkRunning(Struct, frozen=True):
    """The ranks' programs have started."""


class StopAttempt(Struct, frozen=True):
    """Stop every rank but those of ``keep``, for this reason."""

    why: str
    keep: frozenset[int] = frozenset()


class EndAttempt(Struct, frozen=True):
    """Every rank is over."""


class TryAgain(Struct, frozen=True):
    """Queue the run for another attempt, in ``delay`` seconds; ``cost``: in restarts."""

    verdict: Verdict
    cost: int = 1
    delay: float = 0.0


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
    | Replace
    | Excuse
    | Recall
    | FormRound
    | MarkRunning
    | StopAttempt
    | EndAttempt
    | TryAgain
    | Finish
)


class Facts(Struct, frozen=True, kw_only=True):
    """
    What is known. ``silent``: ranks whose lease is over; ``drained``: journals read already;
    ``ready``: ranks that have all but the others; ``settled``: nobody has come or gone for a while;
    ``backoff``: the first delay where the job says none; ``kept``: the ranks of an attempt that is
    being stopped that were not told.
    """

    run: Run
    attempt: Attempt | None = None
    observation: Observation | None = None
    admitted: bool = False
    silent: frozenset[int] = frozenset()
    drained: frozenset[int] = frozenset()
    ready: frozenset[int] = frozenset()
    settled: bool = False
    kept: frozenset[int] = frozenset()
    now: float = 0.0  #: seconds since the epoch
    backoff: float = 0.0  #: seconds
    stop_reason: str = ""  #: why it is wanted stopped, where it was no person


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
        return [_outcome(facts, attempt)]
    if run.stop_requested:
        return [Finish(RunState.STOPPED, _stopped(facts), None)]
    if facts.admitted:
        return [Start(run.attempt + 1)]
    return [Wait()]


def _tend(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """What a live attempt needs."""
    run = facts.run
    group = {"gang": _gang, "pool": _pool, "elastic": _elastic}[run.spec.group]
    moves: list[Action] = []
    if run.finished or run.stop_requested:
        moves = [] if attempt.stopping and not facts.kept else [StopAttempt("user")]
    elif not attempt.stopping:
        moves = list(group(facts, attempt))
    elif facts.kept and not held(run, attempt):
        moves = [StopAttempt(attempt.stopping)]
    replaced = any(isinstance(move, Replace) for move in moves)
    if all(rank.state in RANK_TERMINAL for rank in attempt.ranks) and not replaced:
        if run.spec.group != "pool" or not _resting(facts, attempt):
            yield EndAttempt()
            if not run.finished:
                yield _outcome(facts, attempt)
        return
    yield from moves
    yield from _fates(facts, attempt)
    if run.state is RunState.STARTING and _started(run, attempt):
        yield MarkRunning()


def _started(run: Run, attempt: Attempt) -> bool:
    """Whether the run counts as running: every program of a gang, any of the others."""
    begun = [r.state not in (RankState.PENDING, RankState.ARRIVED) for r in attempt.ranks]
    return all(begun) if run.spec.group == "gang" else any(begun)


def _all_told(facts: Facts, broken: Rank) -> bool:
    """
    Whether to stop the others now.

    Ranks that wait for each other time out together: those that do not were never there, and the
    verdict can name them only if the others may tell.
    """
    gone = facts.now - (broken.ended or 0.0)
    return broken.cause != "rendezvous" or not 0.0 <= gone < _SETTLE


def _fates(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """The ends of ranks that cannot tell of it themselves."""
    if facts.observation is None:
        return
    seen = {(o.rank, o.incarnation): o for o in facts.observation.ranks}
    for rank in attempt.ranks:
        if rank.state in RANK_TERMINAL:
            continue
        saw = seen.get((rank.rank, rank.incarnation))
        saw = saw or RankObservation(rank=rank.rank, phase="absent")
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
    if failed(rank):
        return EndRank(rank.rank, RankState.FAILED)
    first = first_broken(attempt)
    # A peer noticed the loss before we did: that we then stopped the others did not cause it.
    ordered = attempt.stopping in ("user", "done")
    noticed = not ordered and first is not None and depth(first.cause) > 0
    if attempt.stopping and not noticed:
        return EndRank(rank.rank, RankState.STOPPED, "stopped", message)
    message = message or f"the agent of rank {rank.rank} is gone without a word"
    known = cause if cause not in ("", "stopped") else "agent-lost"
    return EndRank(rank.rank, RankState.LOST, known, message)


# --- the three kinds of group


def _gang(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """All or nothing: one that breaks stops all; when those that matter are done, so is the run."""
    if (broken := first_broken(attempt)) is not None:
        if _all_told(facts, broken):
            keep = held(facts.run, attempt)
            yield StopAttempt(f"rank {broken.rank} {_word(broken)}", keep=keep)
    elif _done(facts.run, attempt) and any(r.state not in RANK_TERMINAL for r in attempt.ranks):
        yield StopAttempt("done")


def _pool(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """Each for itself: one that breaks is replaced alone, as often as the job has restarts."""
    for rank in attempt.ranks:
        if _may_be_replaced(facts.run, rank, rank.incarnation - 1) and _due(facts, rank):
            yield Replace(rank.rank, rank.incarnation, 1)


def _resting(facts: Facts, attempt: Attempt) -> bool:
    """Whether a rank of a pool waits for its next incarnation."""
    if attempt.stopping or facts.run.stop_requested or facts.run.finished:
        return False
    return any(_may_be_replaced(facts.run, r, r.incarnation - 1) for r in attempt.ranks)


def _elastic(facts: Facts, attempt: Attempt) -> Iterator[Action]:
    """One that is lost is replaced; the others meet again without it, and again with it."""
    run = facts.run
    inside = elastic.inside(attempt)
    if inside and all(succeeded(attempt.ranks[n]) for n in inside):
        if any(r.state not in RANK_TERMINAL for r in attempt.ranks):
            yield StopAttempt("done")
        return
    if any(succeeded(attempt.ranks[n]) for n in inside):
        # The work is done; who comes now comes too late.
        broken = [n for n in inside if is_broken(attempt, attempt.ranks[n])]
        if broken:
            yield StopAttempt(f"rank {broken[0]} {_word(attempt.ranks[broken[0]])}")
        return
    spent = attempt.charged
    for rank in attempt.ranks:
        if rank.state is RankState.ENDING and failed(rank):
            cost = 0 if rank.cause in SYMPTOMS else 1
            if cost and not _may_be_replaced(run, rank, spent):
                yield StopAttempt(f"rank {rank.rank} {_word(rank)}")
                return
            yield Excuse(rank.rank, cost)
            spent += cost
        elif _may_be_replaced(run, rank, spent):
            if _due(facts, rank):
                yield Replace(rank.rank, rank.incarnation, 1)
            spent += 1
        elif rank.state is RankState.FAILED:
            yield StopAttempt(f"rank {rank.rank} {_word(rank)}")
            return
    least = run.spec.min_workers or 1
    living = [r for r in attempt.ranks if r.state not in RANK_TERMINAL]
    if len(living) < least and not any(_may_be_replaced(run, r, spent) for r in attempt.ranks):
        yield StopAttempt(f"{len(living)} workers are left, {least} are needed")
    elif members := elastic.next_round(attempt, facts.ready, least=least, settled=facts.settled):
        yield FormRound(attempt.round + 1, members)
    elif elastic.broken(attempt, facts.ready, settled=facts.settled):
        yield Recall(attempt.round + 1)


def held(run: Run, attempt: Attempt) -> frozenset[int]:
    """
    The ranks that failed by themselves and are kept for a person to look into: of a gang, only the
    one that failed first, and only where it is not tried again.
    """
    if not run.spec.hold or run.stop_requested or run.finished or run.spec.group == "elastic":
        return frozenset()
    kept = [r for r in attempt.ranks if r.state is RankState.ENDING and failed(r)]
    if run.spec.group == "gang":
        first = first_broken(attempt)
        kept = [r for r in kept if r is first and _cost(run, attempt, r) is None]
    return frozenset(r.rank for r in kept)


# --- what ranks are


def _word(rank: Rank) -> str:
    return "failed" if rank.state is RankState.ENDING else str(rank.state)


def _again(run: Run, rank: Rank) -> bool:
    spec = run.spec
    return retry.again(
        rank.cause, rank.exit_code, rank.signal, retry_on=spec.retry_on, fail_on=spec.fail_on
    )


def _may_be_replaced(run: Run, rank: Rank, spent: int) -> bool:
    """Whether a rank of a pool or an elastic group broke, and may be tried again."""
    bad = failed(rank) or rank.state is RankState.LOST or rank.cause == "preempted"
    return bad and spent < run.spec.restarts and _again(run, rank)


def _due(facts: Facts, rank: Rank) -> bool:
    """Whether its back-off is over; a clock that is behind ours does not make it longer."""
    if rank.state is RankState.ENDING:
        return False
    since = facts.now - (rank.ended or 0.0)
    return since < 0 or since >= _delay(facts, rank.incarnation - 1)


def _delay(facts: Facts, tried: int) -> float:
    said = facts.run.spec.backoff
    return retry.delay(facts.backoff if said is None else said, tried)


def _done(run: Run, attempt: Attempt) -> bool:
    """Whether every rank whose success ends the run has succeeded."""
    wanted = ends_with(run.spec)
    return all(
        succeeded(attempt.ranks[place.rank])
        for place in roster(run.spec)
        if not wanted or place.role in wanted
    )


# --- the outcome


def _outcome(facts: Facts, attempt: Attempt) -> Action:
    """What becomes of the run when its latest attempt has ended."""
    run = facts.run
    first = first_broken(attempt)
    if _well(run, attempt):
        return Finish(RunState.SUCCEEDED, None, 0)
    if run.stop_requested and not (first and _looked_into(run, attempt)):
        code = attempt.ranks[0].exit_code
        return Finish(RunState.STOPPED, _stopped(facts), code)
    if first is None:
        first = next(r for r in attempt.ranks if r.state is not RankState.SUCCEEDED)
    verdict = judge(first, run, attempt)
    cost = None if run.stop_requested else _cost(run, attempt, first)
    if cost is not None:
        delay = _delay(facts, run.restarts_used) if cost else 0.0
        return TryAgain(verdict, cost=cost, delay=delay)
    lost = verdict.cause in ("agent-lost", "lease", "preempted")
    return Finish(RunState.LOST if lost else RunState.FAILED, verdict, first.exit_code)


def _looked_into(run: Run, attempt: Attempt) -> bool:
    """Whether a person has ended what was held: the failure stays the reason."""
    return bool(run.spec.hold) and attempt.stopping not in ("", "user", "done")


def _cost(run: Run, attempt: Attempt, first: Rank) -> int | None:
    """What another attempt of a gang costs in restarts; None where there is to be none."""
    if run.spec.group != "gang" or not _again(run, first):
        return None
    gifts = attempt.id.number - 1 - run.restarts_used
    if (first.cause or "exit") in FREE and gifts < _GIFTS:
        return 0
    return 1 if run.restarts_used < run.spec.restarts else None


def _well(run: Run, attempt: Attempt) -> bool:
    """Whether what had to succeed has, with its files."""
    needed: list[int] = list(range(len(attempt.ranks)))
    if run.spec.group == "elastic" and attempt.members:
        needed = list(attempt.members)
    elif wanted := ends_with(run.spec):
        needed = [place.rank for place in roster(run.spec) if place.role in wanted]
    return all(attempt.ranks[n].state is RankState.SUCCEEDED for n in needed)


_HINTS: dict[str, str] = {
    "oom": "ask for more with --memory, or use less: a smaller batch, fewer loader workers",
    "timeout": "give it longer with --timeout",
    "agent-lost": "its machine or agent died; --restarts 2 tries again",
    "lease": "its machine was unreachable or stopped; --restarts 2 tries again",
    "environment": "see the log for the installer's words",
    "signal": "a signal from outside, or a crash in native code",
    "preempted": "its machine was taken away; --restarts 2 tries again",
}


def judge(rank: Rank, run: Run, attempt: Attempt) -> Verdict:
    """The verdict on a run whose first broken rank this is, in its latest attempt."""
    message, _, hint = (said(rank) or f"ended: {rank.state}").partition("\nhint: ")
    if rank.cause == "barrier" and (missing := not_joined(rank, attempt)):
        return _never_came(missing, message, hint, run, attempt)
    message += absent(rank, attempt)
    if left_early(rank, attempt):
        hint = (
            "do all ranks do the same number of steps? one that ends early leaves the others alone"
        )
    many = run.spec.world_size > 1
    return Verdict(
        cause=rank.cause or "exit",
        message=f"{label(run.spec, rank.rank)}: {message}" if many else message,
        hint=hint or _HINTS.get(rank.cause, "") or (_look(run, rank) if many else ""),
        rank=rank.rank,
        exit_code=rank.exit_code,
        signal=rank.signal,
        last_lines=rank.last_lines,
    )


def _never_came(
    missing: list[Rank], message: str, hint: str, run: Run, attempt: Attempt
) -> Verdict:
    """On who did not come to the barrier; who waited there in vain said ``message``."""
    first = missing[0]
    if len(missing) == 1:
        message = message.replace(f"rank {first.rank}", label(run.spec, first.rank), 1)
    waited = ranks_in_words([r.rank for r in attempt.ranks if r not in missing])
    return Verdict(
        cause="barrier", message=f"{message} ({waited} waited)", hint=hint, rank=first.rank
    )


def _look(run: Run, rank: Rank) -> str:
    log = f"wherry logs {run.id} --rank {rank.rank}"
    return f"its whole log: {log}; --hold-on-failure 30m keeps such a rank to be looked into"


def _stopped(facts: Facts) -> Verdict:
    return Verdict(cause="stopped", message=facts.stop_reason or "stopped")
