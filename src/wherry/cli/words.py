"""
A run in words: how it went, why, how to repeat it, and the status to exit with. Pure.

Called by ``ps``, ``show``, ``run``, ``stop``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from wherry.cli.output import Column, ago, duration, state_style
from wherry.core.api import Planned
from wherry.core.job import JobSpec
from wherry.core.run import Run
from wherry.core.states import RunState


def exit_status(run: Run) -> int:
    """The script's own status, or as a shell says it: 128 + n, 126, 127; else 1."""
    if run.state is RunState.SUCCEEDED:
        return 0
    code = run.exit_code
    if code is None and run.verdict is not None:
        code = run.verdict.exit_code
        if code is None and run.verdict.signal is not None:
            return 128 + run.verdict.signal
    if run.verdict is not None and run.verdict.cause == "start" and code is None:
        return 127 if "No such file" in run.verdict.message else 126
    if code is None or code == 0:
        return 1
    return code if code > 0 else 128 - code


def seconds(run: Run, now: float) -> float | None:
    """How long it has run, or ran, in all attempts; 0 where the clock was turned back meanwhile."""
    return None if run.started is None else max(0.0, (run.ended or now) - run.started)


def outcome(run: Run) -> str:
    """Why it is in its state, in one line."""
    if run.verdict is not None and run.state is not RunState.SUCCEEDED:
        return run.verdict.message
    return run.reason


def command_line(spec: JobSpec) -> str:
    """What runs, as one would type it."""
    if spec.command:
        return shlex.join(spec.command)
    return f"{spec.call.name or 'a function'}()" if spec.call else ""


def environment(spec: JobSpec) -> str:
    """Which rung of the ladder, and the Python."""
    origin, python = spec.environment.origin, spec.environment.python
    return origin if python in origin else f"{origin}, Python {python}".strip(", ")


def columns(now: float) -> list[Column]:
    """A list of runs, for people."""
    return [
        Column("ID", lambda run: run.id),
        Column("NAME", lambda run: run.name, shrinks=True),
        Column("STATE", lambda run: str(run.state), style=state_style),
        Column("RANKS", lambda run: str(run.spec.world_size), right=True),
        Column("CREATED", lambda run: ago(run.created, now)),
        Column("TOOK", lambda run: duration(seconds(run, now)), right=True),
        Column("TAGS", lambda run: " ".join(run.spec.tags), shrinks=True),
        Column("WHY", outcome, shrinks=True),
    ]


def plan(planned: Planned) -> Iterator[tuple[str, str]]:
    """What a dry run found, for people."""
    spec = planned.spec
    yield "name", spec.name
    yield "command", command_line(spec)
    yield "where", spec.code.in_place or f"a copy of {spec.code.bundle[:12]}"
    yield "environment", environment(spec)
    yield "ranks", str(spec.world_size)
    yield "back end", planned.backend
    yield "in full", "wherry run --dry-run --json"
