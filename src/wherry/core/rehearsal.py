"""
What a rehearsal was asked to do, and what came of it: did the run go on from where it was?

Called by ``sdk.rehearse``. Pure. The evidence is what the ranks reported themselves: the steps
before a fault against those of the next attempt (in a gang), or after the rank's next start (in
the other groups, whose attempts go on).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from wherry.agent.faults import COUNTERS
from wherry.core.api import MetricSeries, RunDetail
from wherry.core.faults import ENDING, FAULTS, SILENT, Fault, FaultKind
from wherry.core.job import JobSpec, parse_seconds
from wherry.core.run import Event
from wherry.core.states import RunState
from wherry.errors import InvalidSpec

LEASE = 5.0  #: seconds of a rehearsal's lease, where only silence tells of a fault

_WRITTEN = re.compile(
    r"(?P<rank>[0-9]+)(?:x(?P<factor>[0-9.]+))?(?:@(?P<when>[^+]*))?(?:\+(?P<length>.*))?"
)
#: Kinds of events: a rank is declared lost, all are stopped, one is replaced, all have gone.
_DECISIONS = frozenset({"rank", "stopping", "replaced", "queued"})


# --- what was asked for


def parse(kind: FaultKind, text: str) -> Fault:
    """
    A fault as people write it: ``RANK``, ``RANK@step:N``, ``RANK@TIME``; a partition and a slow
    rank with ``+TIME`` behind it, a slow one with ``xFACTOR`` behind the rank.

    :raises InvalidSpec: with the form that is right.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise _unread(kind, text, "it begins with a rank")
    fault = Fault(kind=kind, rank=int(match["rank"]))
    if match["factor"] is not None:
        if kind != "slow":
            raise _unread(kind, text, "only a slow rank has a factor")
        fault = replace(fault, factor=_factor(text, match["factor"]))
    if match["length"] is not None:
        fault = replace(fault, seconds=_time(kind, text, match["length"]))
    when = match["when"]
    if when is None:
        return fault
    word, colon, number = when.partition(":")
    if not colon:
        return replace(fault, after=_time(kind, text, when))
    if word != "step":
        raise _unread(kind, text, f"{word!r} is no moment")
    if not re.fullmatch(r"[0-9]+", number):
        raise _unread(kind, text, f"{number!r} is not a step")
    return replace(fault, step=int(number))


def _factor(text: str, written: str) -> float:
    try:
        factor = float(written)
    except ValueError:
        factor = 0.0
    if not 1 < factor <= 1000:
        raise _unread("slow", text, f"{written!r} is not a factor above 1")
    return factor


def _time(kind: FaultKind, text: str, written: str) -> float:
    try:
        return parse_seconds(written)
    except InvalidSpec as error:
        raise _unread(kind, text, error.message) from None


def _unread(kind: FaultKind, text: str, why: str) -> InvalidSpec:
    forms = [f"--{kind} 2", f"--{kind} 2@step:10", f"--{kind} 2@30s"]
    if kind in ("partition", "slow"):
        forms.append(f"--{kind} 2@step:10+20s")
    if kind == "slow":
        forms.append("--slow 2x4")
    return InvalidSpec(f"--{kind} {text}: {why}", hint="write " + ", ".join(forms))


def arrange(spec: JobSpec, faults: Sequence[Fault], *, restarts: int | None) -> JobSpec:
    """
    The job with its faults, and with what it needs to survive them.

    In a gang a fault ends the attempt, so each has an attempt of its own, in their order. Where the
    job has no restarts it gets as many as there are such faults; ``restarts`` is what was said.

    :raises InvalidSpec: where there is nothing to rehearse, or no way to survive it.
    """
    if not faults:
        raise InvalidSpec(
            "nothing is to go wrong in this rehearsal",
            hint="; ".join(f"--{kind} 0: {what}" for kind, what in list(FAULTS.items())[:2]),
        )
    ending = [fault for fault in faults if fault.kind in ENDING]
    if ending and restarts is not None and restarts < len(ending):
        raise InvalidSpec(
            f"{ending[0].kind} {ending[0]}: {len(ending)} faults cannot be survived with "
            f"{restarts} restarts",
            hint=f"--restarts {len(ending)}, or leave it out",
        )
    if spec.group == "gang":
        number = iter(range(1, len(ending) + 1))
        faults = [replace(f, attempt=next(number)) if f.kind in ENDING else f for f in faults]
    lease, retry_on = spec.lease, spec.retry_on
    if lease is None and any(fault.kind in SILENT for fault in ending):
        lease = LEASE
    if any(f.kind == "crash" for f in ending) and not {"SIGKILL", "signal", "any"} & {*retry_on}:
        # A crash is the program's own fault: without being asked, nobody would try again.
        retry_on = (*retry_on, "SIGKILL")
    return replace(
        spec,
        faults=tuple(faults),
        restarts=max(spec.restarts, len(ending)),
        lease=lease,
        retry_on=retry_on,
    ).check()


# --- what came of it


class Rehearsed(Struct, frozen=True, kw_only=True):
    """One fault and its consequences. Times are seconds, from the fault on; None: not so."""

    fault: Fault
    injected: float | None = None  #: when, seconds since the epoch
    message: str = ""  #: what the rank said of it
    noticed_after: float | None = None  #: until the control plane decided to stop or replace
    resumed_after: float | None = None  #: until the first step after it
    resumed: bool | None = None  #: None: nothing had to be
    last_step: int | None = None  #: before
    first_step: int | None = None  #: after
    steps_again: int | None = None  #: done twice
    seconds_again: float | None = None  #: of work that was lost
    problem: str = ""  #: why the rehearsal failed
    hint: str = ""


class Rehearsal(Struct, frozen=True, kw_only=True):
    """A rehearsed run. ``ok``: every fault came, and the run went on from where it was."""

    run: str
    name: str
    state: RunState
    ok: bool
    attempts: int
    lease: float | None
    faults: tuple[Rehearsed, ...]
    problem: str = ""  #: of the run as a whole
    hint: str = ""


def judge(detail: RunDetail, series: Sequence[MetricSeries]) -> Rehearsal:
    """What a finished run shows. ``series``: all its metrics, point by point."""
    run = detail.run
    events = sorted(detail.events, key=lambda event: event.time)
    told = list(_told(run.spec.faults, events))
    faults = tuple(_fault(detail, series, events, f, event) for f, event in told)
    problem = hint = ""
    if run.state is not RunState.SUCCEEDED:
        verdict = run.verdict
        problem = f"the run {_ENDS.get(run.state, f'is {run.state}')}"
        problem += f": {verdict.message}" if verdict and verdict.message else ""
        hint = (verdict.hint if verdict else "") or f"wherry logs {run.id}"
    return Rehearsal(
        run=run.id,
        name=run.name,
        state=run.state,
        ok=not problem and not any(fault.problem for fault in faults),
        attempts=len(detail.attempts),
        lease=run.spec.lease,
        faults=faults,
        problem=problem,
        hint=hint,
    )


_ENDS = {RunState.FAILED: "failed", RunState.STOPPED: "was stopped", RunState.LOST: "was lost"}


def _told(faults: Iterable[Fault], events: Sequence[Event]) -> Iterator[tuple[Fault, Event | None]]:
    """Each fault with the event by which its rank told of it."""
    left = [event for event in events if event.kind == "fault"]
    for fault in faults:
        found = next((event for event in left if _is(fault, event)), None)
        if found is not None:
            left.remove(found)
        yield fault, found


def _is(fault: Fault, event: Event) -> bool:
    kind = event.message.partition(":")[0]
    return (event.rank, event.attempt, kind) == (fault.rank, fault.attempt, fault.kind)


def _fault(
    detail: RunDetail,
    series: Sequence[MetricSeries],
    events: Sequence[Event],
    fault: Fault,
    event: Event | None,
) -> Rehearsed:
    if event is None:
        return _never(detail, series, fault)
    made = Rehearsed(fault=fault, injected=event.time, message=event.message)
    if fault.kind not in ENDING:
        return made
    noticed = next((e.time for e in events if e.time >= event.time and _decides(e, fault)), None)
    if noticed is None:
        length = fault.seconds
        if fault.kind == "partition" and length is not None:
            return made  # it was over before anybody had to notice
        return replace(
            made,
            problem="the run was over before anybody noticed",
            hint=f"an earlier moment: --{fault.kind} {fault.rank}@step:N",
        )
    made = replace(made, noticed_after=noticed - event.time)
    pairs = {
        rank: pair
        for rank in range(detail.run.spec.world_size)
        if (pair := _pair(detail, series, fault, event, rank)) is not None
    }
    return _compare(detail.run.spec, made, event, pairs)


def _decides(event: Event, fault: Fault) -> bool:
    return event.kind in _DECISIONS and event.attempt == fault.attempt


def _never(detail: RunDetail, series: Sequence[MetricSeries], fault: Fault) -> Rehearsed:
    """A fault that nobody told of."""
    own = [s for s in series if s.rank == fault.rank and s.attempt == fault.attempt]
    steps = [step for one in own for step, _ in points(one, detail.run.spec)]
    if len(detail.attempts) < fault.attempt:
        why = f"attempt {fault.attempt}, in which it was to come, never began"
    elif fault.step is not None:
        reached = f"its last step was {max(steps)}" if steps else "it reported no step"
        why = f"rank {fault.rank} never reached step {fault.step}: {reached}"
    elif fault.after is not None:
        why = f"rank {fault.rank} ran for less than {fault.after:g} s"
    else:
        why = f"rank {fault.rank} was over before it had written a checkpoint and done a step more"
    middle = sorted(steps)[len(steps) // 2] if steps else None
    hint = "report steps: wherry.report(step=..., loss=...)"
    if middle is not None:
        hint = f"choose an earlier moment: --{fault.kind} {fault.rank}@step:{middle}"
    return Rehearsed(fault=fault, problem=f"the fault never came: {why}", hint=hint)


# --- steps


def points(series: MetricSeries, spec: JobSpec) -> list[tuple[int, float]]:
    """
    ``(step, time)`` of a series. Where the steps are no more than a count and the name says that
    the value is one (a rule that reads "step"), the value.
    """
    counted = series.steps == list(range(len(series.steps)))
    if series.name in COUNTERS and counted:
        values = [float(value) for value in series.values]
        return [(int(v), t) for v, t in zip(values, series.times, strict=True) if math.isfinite(v)]
    if series.name in spec.metrics:
        return []  # counted by the rule from 0 in every attempt: it tells nothing
    return list(zip(series.steps, series.times, strict=True))


_Steps = list[tuple[int, float]]  # with the time of each
_Pair = tuple[_Steps, _Steps]


def _pair(
    detail: RunDetail, series: Sequence[MetricSeries], fault: Fault, event: Event, rank: int
) -> _Pair | None:
    """One rank's steps before and after; of the metric that tells most. None: it had none."""
    spec = detail.run.spec
    best: _Pair | None = None
    names = dict.fromkeys(s.name for s in series if s.rank == rank)
    for name in sorted(names, key=lambda n: n not in COUNTERS):
        own = {s.attempt: points(s, spec) for s in series if (s.rank, s.name) == (rank, name)}
        before, after = _split(detail, own, fault, event, rank)
        if before and (best is None or len(before) > len(best[0])):
            best = before, after
    return best


def _split(
    detail: RunDetail,
    own: Mapping[int, _Steps],
    fault: Fault,
    event: Event,
    rank: int,
) -> _Pair:
    if detail.run.spec.group == "gang":
        return own.get(fault.attempt, []), own.get(fault.attempt + 1, [])
    here = next(a for a in detail.attempts if a.id.number == event.attempt)
    again = here.ranks[rank].started
    found = own.get(event.attempt, [])
    if again is None or again < event.time:  # it was left alone
        return [], []
    return [p for p in found if p[1] < again], [p for p in found if p[1] >= again]


def _compare(spec: JobSpec, made: Rehearsed, event: Event, pairs: Mapping[int, _Pair]) -> Rehearsed:
    """Whether every rank that had to begin again went on from where it was."""
    if not pairs:
        ruled = ", ".join(spec.metrics)
        return replace(
            made,
            resumed=False,
            problem="no rank reported a step, so nothing shows whether it was resumed",
            hint=f"{ruled} has only a count: a rule named step reads one: --metric 'step=step "
            "([0-9]+)'" if ruled else "wherry.report(step=..., loss=...), or --metric 'step=...'",
        )  # fmt: skip
    silent = [rank for rank, (_, after) in pairs.items() if not after]
    if len(silent) == len(pairs):
        return replace(
            made,
            resumed=False,
            last_step=max(step for before, _ in pairs.values() for step, _ in before),
            problem="no step was reported after the fault",
            hint="see what the next attempt did: wherry logs",
        )
    moved = {rank: pair for rank, pair in pairs.items() if pair[1]}
    # The rank that did most of its work twice; of several, the one that had the fault.
    rank = max(moved, key=lambda r: (_again(*moved[r]), r == made.fault.rank, -r))
    before, after = moved[rank]
    first = after[0][0]
    kept = max((time for step, time in before if step < first), default=before[0][1])
    found = replace(
        made,
        resumed=True,
        resumed_after=min(new[0][1] for _, new in moved.values()) - event.time,
        last_step=max(step for step, _ in before),
        first_step=first,
        steps_again=_again(before, after),
        seconds_again=max(0.0, before[-1][1] - kept),
    )
    anew = [r for r, (old, new) in moved.items() if new[0][0] <= old[0][0]]
    if not anew:
        return found
    where = moved[anew[0]][1][0][0]
    who = "it" if len(anew) == len(moved) else "rank " + ", ".join(map(str, anew))
    return replace(
        found,
        resumed=False,
        problem=f"{who} began again at step {where}: nothing was resumed",
        hint="write checkpoints to wherry.checkpoint_dir, and look there at the start; "
        "name steps: wherry.report(step=...)",
    )


def _again(before: _Steps, after: _Steps) -> int:
    """How many steps were done twice."""
    return max(0, max(step for step, _ in before) - after[0][0] + 1)
