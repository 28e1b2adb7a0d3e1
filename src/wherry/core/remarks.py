"""
What the ranks of a running run say of themselves, in one line: stalled, held.

Called by ``control.reconcile`` when a rank has said something. Pure: what was recorded is all that
is needed, so a control plane that was restarted says the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from wherry.core.job import JobSpec
from wherry.core.run import Event, Run

STALLED, MOVING, HELD = "stalled", "moving", "held"  # kinds of events that agents send


def remarks(
    run: Run,
    events: Iterable[Event],
    *,
    held: Collection[int] = (),
    ended: Collection[int] = (),
) -> str:
    """
    The reason to show for the run's present attempt; "" where there is nothing to say.

    ``held``: the ranks that are, see ``core.decide``. ``ended``: those that ended well.
    """
    keeps: Event | None = None
    stalled: dict[int, Event] = {}
    for event in events:
        if event.attempt != run.attempt or event.rank is None:
            continue
        if event.kind == HELD and event.rank in held:
            keeps = keeps or event
        elif event.kind == STALLED:
            stalled[event.rank] = event
        elif event.kind == MOVING:
            stalled.pop(event.rank, None)
    if keeps is not None:
        # "failed (exited with status 1); held for 30m"
        return f"rank {keeps.rank} {_first(keeps)}: {_exec(run, keeps.rank or 0)}"
    for rank in ended:
        stalled.pop(rank, None)
    return _stalled(run, stalled, sorted(ended)) if stalled else ""


def _stalled(run: Run, stalled: Mapping[int, Event], ended: Sequence[int]) -> str:
    """Who does not move, after who was stopped, and before who cannot be waited for any more."""
    newest = max(stalled.values(), key=lambda event: event.time)
    who = ranks_in_words(sorted(stalled))
    said = f"{who} {'shows' if len(stalled) == 1 else 'show'} {_first(newest).partition('; ')[0]}"
    # "no output, metric or CPU for 10m; stopped (SIGSTOP): kill -CONT 123"
    halted = {n: why for n, e in sorted(stalled.items()) if (why := _first(e).partition("; ")[2])}
    if len(halted) == 1:
        said = "".join(f"rank {n} is {why}" for n, why in halted.items()) + f"; {said}"
    elif halted:
        what = next(iter(halted.values())).partition(": ")[0]
        said = f"{ranks_in_words(sorted(halted))} are {what}; {said}"
    if ended and run.spec.group != "pool":
        said += f"; {ranks_in_words(ended)} had ended, with status 0"
    return f"{said}: wherry stack {run.id}"


def stall_limit(spec: JobSpec, default: float) -> float:
    """Seconds without a sign of life; 0, never, where to wait for work is what a rank is for."""
    if spec.stall is not None:
        return spec.stall
    return 0.0 if spec.call and spec.call.tasks else default


def ranks_in_words(ranks: Sequence[int]) -> str:
    """``rank 2``, ``ranks 0-3,7``: of ascending numbers."""
    return f"rank{'s' * (len(ranks) > 1)} {spans(ranks)}"


def spans(ranks: Sequence[int]) -> str:
    """``0-3,7``: of ascending numbers."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _exec(run: Run, rank: int) -> str:
    return f"wherry exec {run.id} --rank {rank} -- bash"


def _first(event: Event) -> str:
    return event.message.partition("\n")[0]
