"""``wherry show``: one run, and why it is as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from wherry.cli import options

if TYPE_CHECKING:
    from wherry.core.api import RunDetail
    from wherry.core.run import Event, File, Rank, Run, Series

_MANY = 20  # ranks, metrics, events shown to a person


@click.command()
@options.run_argument
@options.on_option
@options.json_option
def show(ref: str, on: str, as_json: bool) -> None:
    """
    Show one run: its state, why, its ranks, where the time went, parameters, metrics, events.

    RUN is an id, the beginning of one, a name (its newest run) or "last".
    """
    from wherry.cli import output

    client = options.connect(on)
    detail = client.run(ref)
    files = client.files(detail.run.id)
    if as_json:
        nested = output.plain(detail)
        output.as_json({**nested.pop("run"), **nested, "files": files})
    else:
        output.thing((detail, files), lambda pair: _fields(*pair), json=False)


def _fields(detail: RunDetail, files: list[File]) -> Iterator[tuple[str, str]]:
    from wherry.cli.output import ago
    from wherry.cli.words import command_line, environment
    from wherry.core.job import format_bytes

    run, now = detail.run, time.time()
    yield "run", run.id
    yield "name", run.name
    yield "state", str(run.state)
    yield "why", _why(run)
    yield "command", command_line(run.spec)
    yield "where", run.spec.code.in_place or (f"a copy of {run.spec.code.bundle[:12]}")
    yield "environment", environment(run.spec)
    yield "left out", _some([f"{left.path} ({left.why})" for left in detail.left_out])
    yield "ranks", _ranks(run)
    yield "created", ago(run.created, now)
    yield "took", _took(detail, now)
    yield "repeats", run.parent
    yield "tags", " ".join(run.spec.tags)
    yield "note", run.spec.note
    yield "params", "  ".join(f"{name}={value}" for name, value in detail.params.items())
    yield "metrics", _some(list(_metrics(detail.metrics)))
    for attempt in detail.attempts:
        words = [_rank(run, rank) for rank in attempt.ranks]
        yield f"attempt {attempt.id.number}", _some(words)
    if files:
        size = format_bytes(sum(file.size for file in files))
        yield "files", f"{len(files)}, {size}: wherry files {run.id}"
    yield (
        "events",
        _some([f"{ago(e.time, now)}: {_event(e)}" for e in detail.events]),
    )
    yield "log", f"wherry logs {run.id}"
    yield "again", f"wherry run --from {run.id}"


def _took(detail: RunDetail, now: float) -> str:
    from wherry.cli.output import duration
    from wherry.cli.words import seconds
    from wherry.core.explain import in_all, lasted

    took = lasted(detail, detail.run.ended or now) if len(detail.attempts) > 1 else None
    if took is None:
        return duration(seconds(detail.run, now))
    return in_all(detail, *map(duration, took))


def _metrics(known: Sequence[Series]) -> Iterator[str]:
    """The last value of each, with whose it is where that is not clear."""
    from wherry.cli.output import number

    ranks = len({series.rank for series in known}) > 1
    attempts = len({series.attempt for series in known}) > 1
    for series in known:
        whose = f"; rank {series.rank}" * ranks + f"; attempt {series.attempt}" * attempts
        yield f"{series.name}={number(series.last)} (step {series.last_step}{whose})"


def _why(run: Run) -> str:
    from wherry.cli.words import outcome

    lines = [outcome(run)]
    if run.verdict is not None and lines[0]:
        lines += [f"  {line}" for line in run.verdict.last_lines]
        lines += [f"hint: {run.verdict.hint}"] if run.verdict.hint else []
    return "\n".join(lines)


def _ranks(run: Run) -> str:
    spec = run.spec
    size = f"{spec.world_size}" if spec.world_size > 1 else ""
    if spec.roles:
        size += f" ({', '.join(f'{role.count} {name}' for name, role in spec.roles.items())})"
    if spec.min_workers:
        size += f" (elastic, at least {spec.min_workers})"
    if spec.processes > 1:
        size += f" ({spec.workers} workers x {spec.processes} processes)"
    asked = [
        f"{name} {amount:g}"
        for name, amount in (("cpu", spec.resources.cpu), ("gpu", spec.resources.gpu))
        if amount
    ]
    if spec.resources.memory:
        from wherry.core.job import format_bytes

        asked.append(f"memory {format_bytes(spec.resources.memory)}")
    return ", ".join([size] * bool(size) + asked)


def _rank(run: Run, rank: Rank) -> str:
    from wherry.cli.output import duration
    from wherry.core.roster import label

    shown = {name: took for name, took in rank.phases.items() if name != "build"}
    phases = ", ".join(f"{name} {duration(took)}" for name, took in shown.items())
    code = f" ({rank.exit_code})" if rank.exit_code else ""
    return f"{label(run.spec, rank.rank)} {rank.state}{code}" + (f": {phases}" if phases else "")


def _event(event: Event) -> str:
    text, _, more = event.message.partition("\n")
    text = text or event.kind
    if event.rank is not None and not text.startswith("rank "):
        text = f"rank {event.rank}: {text}"
    return f"{text} (--json has the rest)" if more else text


def _some(lines: list[str]) -> str:
    if len(lines) > _MANY:
        lines = [*lines[:_MANY], f"… {len(lines) - _MANY} more: --json shows them"]
    return "\n".join(lines)
