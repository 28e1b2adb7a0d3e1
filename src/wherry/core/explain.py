"""
Why a run waited, failed, was tried again, went where it went: told from what was recorded.

Called by ``sdk.runs`` and ``cli.explain``. Pure: a RunDetail in, facts in the order of time out.
Nothing is guessed: where no event says why, no reason is given.
"""

from __future__ import annotations

import time as clock
from collections.abc import Iterator, Sequence

from msgspec import Struct

from wherry.core import retry
from wherry.core.api import RunDetail
from wherry.core.blame import absent, broken, depth, left_early, names, not_joined, said
from wherry.core.causes import INFRASTRUCTURE
from wherry.core.run import Attempt, Event, Rank, Run, Verdict
from wherry.core.states import RankState, RunState

_WORTH = 0.5  # seconds of waiting that are worth a word without a reason
_PHASE = 1.0  # seconds of a phase that are
_NAMED = {"rank", "replaced", "fault"}  # kinds of events whose messages name the rank
_STARTED = {"gang": "every rank's program had started"}
_STARTED |= dict.fromkeys(("pool", "elastic"), "the first rank's program had started")
_TOLD = {"waiting", "stopping", "stop-requested", "rank", *RunState}


class Fact(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One thing that happened, in words.

    ``kind``: submitted, placed, waited, prepared, started, left, failed, consequence, stopped,
    retried, ended, or the kind of the event that it was recorded as.
    """

    time: float  #: seconds since the epoch
    kind: str
    text: str
    attempt: int = 0
    rank: int | None = None

    def __str__(self) -> str:
        return f"{clock.strftime('%H:%M:%S', clock.localtime(self.time))}  {self.text}"


def explain(detail: RunDetail) -> tuple[Fact, ...]:
    """What happened, oldest first."""
    facts = [*_beginning(detail.run)]
    facts += _events(detail)
    facts += _waits(detail)
    for attempt in detail.attempts:
        facts += _attempt(detail, attempt)
    facts += _end(detail)
    return tuple(sorted(facts, key=lambda fact: fact.time))


def _beginning(run: Run) -> Iterator[Fact]:
    spec = run.spec
    what = " ".join(spec.command) if spec.command else f"{spec.call.name if spec.call else ''}()"
    size = f", {spec.world_size} ranks" if spec.world_size > 1 else ""
    again = f"; it repeats {run.parent}" if run.parent else ""
    yield Fact(time=run.created, kind="submitted", text=f"submitted: {what}{size}{again}")
    if spec.environment.origin:
        text = f"its environment is {spec.environment.origin}"
        yield Fact(time=run.created, kind="environment", text=text)


def _events(detail: RunDetail) -> Iterator[Fact]:
    """What was recorded as an event and is told nowhere else."""
    words = {
        **dict.fromkeys(("rank", "replaced", "round", "fault", "stalled", "moving", "held"), "{}"),
    }
    placed = next((e for e in detail.events if e.kind == RunState.SUBMITTED and e.message), None)
    if placed is not None:
        yield Fact(time=placed.time, kind="placed", text=f"it runs {placed.message}")
    told = {(a.id.number, r.rank) for a in detail.attempts for r in broken(a)}
    many = detail.run.spec.world_size > 1
    for event in detail.events:
        if event.kind == "rank" and (event.attempt, event.rank) in told:
            continue
        if event.kind == RunState.RUNNING:
            text = _STARTED[detail.run.spec.group] if many else "its program had started"
        elif event.kind == "stop-requested":
            why = _unhinted(event.message)
            text = f"it was told to stop: {why}" if why else "a person asked it to stop"
        elif event.kind in words:
            text = words[event.kind].format(_unhinted(event.message))
        elif event.kind in _TOLD:
            continue
        else:  # of a kind that is newer than this module
            text = f"{event.kind}: {event.message}" if event.message else event.kind
        if many and event.rank is not None and event.kind not in _NAMED:
            text = f"rank {event.rank}: {text}"
        running = event.kind == RunState.RUNNING
        kind, time = ("started", _begun(detail, event)) if running else (event.kind, event.time)
        yield Fact(time=time, kind=kind, text=text, attempt=event.attempt, rank=event.rank)


def _begun(detail: RunDetail, event: Event) -> float:
    """
    When the programs had started of which this event tells: it is written when that is noticed,
    and a short program may be over by then.
    """
    attempt = next((a for a in detail.attempts if a.id.number == event.attempt), None)
    began = [r.started for r in attempt.ranks if r.started] if attempt else []
    if attempt is None or not began:
        return event.time
    last = max(began) if detail.run.spec.group == "gang" else min(began)
    return max(attempt.created, min(event.time, last))


def _waits(detail: RunDetail) -> Iterator[Fact]:
    """How long it waited before each attempt, and for what."""
    begun: float | None = detail.run.created
    reasons: list[tuple[float, str]] = []
    for event in detail.events:
        again = event.kind == RunState.QUEUED and event.attempt > 0
        if again:
            begun, reasons = event.time, []
        elif event.kind in (RunState.QUEUED, "waiting") and event.message:
            reasons.append((event.time, event.message))
        elif begun is not None and _leaves(event):
            yield from _wait(begun, event.time, reasons, event.attempt)
            begun = None
    if begun is not None and not detail.run.finished and reasons:
        since, why = reasons[-1]
        yield Fact(time=since, kind="waits", text=f"it waits: {why}")


def _leaves(event: Event) -> bool:
    return event.kind == RunState.STARTING or event.kind in ("failed", "stopped", "lost")


def _wait(
    begun: float, ended: float, reasons: Sequence[tuple[float, str]], attempt: int
) -> Iterator[Fact]:
    took = ended - begun
    if not reasons and took < _WORTH:
        return
    parts = []
    ends = [since for since, _ in reasons[1:]] + [ended]
    for (since, why), until in zip(reasons, ends, strict=False):
        share = f" ({span(until - since)})" if len(reasons) > 1 else ""
        parts.append(f"{why}{share}")
    if len(parts) > 4:
        parts = [*parts[:2], f"{len(parts) - 3} more", parts[-1]]
    why = ": " + ", then ".join(parts) if parts else ""
    yield Fact(time=ended, kind="waited", text=f"waited {span(took)}{why}", attempt=attempt)


def _attempt(detail: RunDetail, attempt: Attempt) -> Iterator[Fact]:
    number = attempt.id.number
    if len(detail.attempts) > 1:
        yield Fact(
            time=attempt.created, kind="started", text=f"attempt {number} began", attempt=number
        )
    yield from _prepared(attempt)
    yield from _failures(attempt)


def _prepared(attempt: Attempt) -> Iterator[Fact]:
    """What came before the programs, of the rank that needed the longest."""
    number = attempt.id.number
    for name, words in (("bundle", "its code came"), ("environment", "")):
        slow = max(attempt.ranks, key=lambda r: r.phases.get(name, 0.0), default=None)
        took = slow.phases.get(name, 0.0) if slow else 0.0
        if slow is None or (took < _PHASE and "build" not in slow.phases):
            continue
        if name == "environment":
            built = slow.phases.get("build")
            words = "its environment was there"
            if built is not None:
                words = "its environment was built (nobody had needed the same before)"
        elif took < _PHASE:
            continue
        yield Fact(
            time=attempt.created + sum(_until(slow, name)),
            kind="prepared",
            text=f"{words} after {span(took)}",
            attempt=number,
            rank=slow.rank,
        )
    waited = {r.rank: r.phases["barrier"] for r in attempt.ranks if "barrier" in r.phases}
    if len(waited) > 1 and max(waited.values()) - min(waited.values()) >= _PHASE:
        last = min(waited, key=lambda r: waited[r])
        started = min(r.started for r in attempt.ranks if r.started) if attempt.ranks else 0.0
        yield Fact(
            time=started,
            kind="prepared",
            text=f"rank {last} was the last to be ready: others waited for it"
            f" {span(max(waited.values()))}",
            attempt=number,
            rank=last,
        )


def _until(rank: Rank, phase: str) -> Iterator[float]:
    for name in ("bundle", "environment"):
        yield rank.phases.get(name, 0.0)
        if name == phase:
            return


def _failures(attempt: Attempt) -> Iterator[Fact]:
    """Which rank failed first, what followed from it, and who was stopped for it."""
    found = broken(attempt)
    number, many = attempt.id.number, len(attempt.ranks) > 1
    if not found:
        return
    first = found[0]
    when = first.ended or attempt.ended or attempt.created
    who = (
        f"rank {first.rank} failed" + (" first" if len(found) > 1 else "") if many else "it failed"
    )
    for rank in left_early(first, attempt):
        text = f"rank {rank.rank} ended, with status 0"
        yield Fact(time=rank.ended or when, kind="left", text=text, attempt=number, rank=rank.rank)
    # Who is missing is known once the others have had the time to tell.
    over = bool(attempt.stopping) or attempt.ended is not None
    text = f"{who}: {_said(first)}{absent(first, attempt) if over else ''}"
    yield Fact(time=when, kind="failed", text=text, attempt=number, rank=first.rank)
    for rank in found[1:]:
        gap = (rank.ended or when) - when
        order = f"{span(abs(gap))} {'later' if gap >= 0 else 'earlier, by its own clock'}"
        follows = depth(rank.cause) > 0 and depth(rank.cause) >= depth(first.cause)
        text = f"rank {rank.rank} failed {order}: {_said(rank)}"
        if follows and depth(rank.cause) > depth(first.cause):
            text += f"; a consequence of rank {first.rank}'s failure"
        kind = "consequence" if follows else "failed"
        yield Fact(time=rank.ended or when, kind=kind, text=text, attempt=number, rank=rank.rank)
    yield from _victims(attempt, found, when)


def _victims(attempt: Attempt, found: Sequence[Rank], when: float) -> Iterator[Fact]:
    """Who was stopped for a failure; that a rank was missing is not the failure's doing."""
    stopped = [r for r in attempt.ranks if r.state is RankState.STOPPED and r not in found]
    if not attempt.stopping or attempt.stopping == "user":
        return
    missing = not_joined(found[0], attempt)
    for group, why in (
        ([r for r in stopped if r in missing], "stopped"),
        ([r for r in stopped if r not in missing], "stopped for it"),
    ):
        if group:
            last = max(r.ended or when for r in group)
            text = f"{names(group)} {'was' if len(group) == 1 else 'were'} {why}"
            yield Fact(time=last, kind="stopped", text=text, attempt=attempt.id.number)


def _said(rank: Rank) -> str:
    return _unhinted(said(rank)) or str(rank.cause or rank.state)


def _unhinted(message: str) -> str:
    """Without what to do about it: that is said once, at the end. ``x⏎hint: y)`` keeps its end."""
    first, _, hint = message.partition("\nhint: ")
    cut_open = hint.endswith(")") and first.count("(") > first.count(")")
    return first + ")" * cut_open


def _end(detail: RunDetail) -> Iterator[Fact]:
    run = detail.run
    for event in detail.events:
        if event.kind == RunState.QUEUED and event.attempt > 0:
            attempt = next(a for a in detail.attempts if a.id.number == event.attempt)
            first = next(iter(broken(attempt)), None)
            machines = first is None or first.cause in INFRASTRUCTURE
            why = "a fault of machines, not of the program" if machines else "retry_on names it"
            text = f"tried again: {why}; {_when(event.message) if first else event.message}"
            yield Fact(time=event.time, kind="retried", text=text, attempt=event.attempt)
    if not run.finished or run.ended is None:
        return
    text = str(run.state)
    if (took := lasted(detail, run.ended)) is not None:
        latest, whole = took
        many = len(detail.attempts) > 1
        text += (
            f"; {in_all(detail, span(latest), span(whole))}" if many else f" after {span(whole)}"
        )
    if run.verdict is not None and run.state in (RunState.FAILED, RunState.LOST):
        text += f"; {_not_again(run, run.verdict)}"
    yield Fact(time=run.ended, kind="ended", text=text, attempt=run.attempt)
    if run.verdict is not None and run.verdict.hint and run.state is not RunState.SUCCEEDED:
        yield Fact(time=run.ended, kind="hint", text=f"what to do: {run.verdict.hint}")


def lasted(detail: RunDetail, until: float) -> tuple[float, float] | None:
    """Seconds that the latest attempt took, and all of them, from the first program's start."""
    started = detail.run.started
    # Polling can miss RUNNING: then the ranks know when their programs started.
    known = [r.started for a in detail.attempts for r in a.ranks if r.started]
    if started:
        known = [started, *known] if len(detail.attempts) > 1 else [started]
    if not known:
        return None
    whole = max(0.0, until - min(known))
    if len(detail.attempts) < 2:
        return whole, whole
    last = detail.attempts[-1]
    since = min((time for time in known if time >= last.created), default=last.created)
    return max(0.0, (last.ended or until) - since), whole


def in_all(detail: RunDetail, latest: str, whole: str) -> str:
    """How long a run of several attempts took, or takes."""
    last = detail.attempts[-1]
    takes = "takes" if last.ended is None and not detail.run.finished else "took"
    return f"attempt {last.id.number} {takes} {latest}; {whole} in all"


def _when(message: str) -> str:
    """``attempt 1 ended: …; again now (restart 1 of 2)``, without what the attempt's facts say."""
    _, found, when = message.rpartition("; again ")
    return when if found else message


def _not_again(run: Run, verdict: Verdict) -> str:
    spec = run.spec
    end = (verdict.cause, verdict.exit_code, verdict.signal)
    if not retry.again(*end, retry_on=spec.retry_on, fail_on=()):
        said = f", and this was: {verdict.cause}" if verdict.cause else ""
        also = " and what retry_on names" if spec.retry_on else ""
        return f"not tried again: only faults of machines{also} are{said}"
    if not retry.again(*end, retry_on=spec.retry_on, fail_on=spec.fail_on):
        return "not tried again: fail_on names it"
    if not spec.restarts:
        return "not tried again: no --restarts were given"
    return f"not tried again: the restart budget was {spec.restarts}, and is used up"


def span(seconds: float) -> str:
    """``0.4 s``, ``40 s``, ``12 min 5 s``, ``2 h 3 min``."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
