"""``wherry metrics``: what a run reported, at a glance or point by point."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from wherry.cli import options
from wherry.errors import NotFound, did_you_mean

if TYPE_CHECKING:
    from wherry.core.api import MetricSeries
    from wherry.core.run import Series


@click.command()
@options.run_argument
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--all", "-a", "points", is_flag=True, help="Every point of every metric.")
@click.option("--usage", is_flag=True, help="CPU, memory and GPU instead.")
@click.option("--rank", "-r", "ranks", type=options.ranks, default="", help="Such as 0, 0,3, 2-5.")
@click.option("--attempt", type=click.IntRange(1), help="Only this attempt.")
@click.option("--csv", "as_csv", is_flag=True, help="Print points as CSV.")
@options.on_option
@options.json_option
def metrics(
    ref: str,
    names: tuple[str, ...],
    points: bool,
    usage: bool,
    ranks: tuple[int, ...],
    attempt: int | None,
    as_csv: bool,
    on: str,
    as_json: bool,
) -> None:
    """Show the last, least and greatest value of each metric; with names or --all, its points."""
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    client = options.connect(on)
    glance = not (names or points or as_csv)
    if glance and not usage:
        known = [
            series
            for series in client.run(ref).metrics
            if (not ranks or series.rank in ranks) and attempt in (None, series.attempt)
        ]
        _glance(known, as_json)
        return
    ask = client.usage if usage else client.metrics
    found = ask(ref, names=names, ranks=ranks, attempt=attempt)
    if unknown := sorted(set(names) - {series.name for series in found}):
        every = ask(ref) if usage else client.run(ref).metrics
        others = sorted({series.name for series in every})
        if unknown[0] not in others:  # else it is of another rank or attempt
            raise NotFound(
                f"the run has no metric {unknown[0]!r}",
                hint=did_you_mean(unknown[0], others) if others else "it has reported none",
            )
    if glance:
        _glance([summary(series) for series in found if series.values], as_json)
    elif as_csv:
        _write_csv(found)
    else:
        _points(found, as_json)


def summary(series: MetricSeries) -> Series:
    """A series at a glance. NaN and infinities never win."""
    from wherry.core.run import Series

    values = [float(value) for value in series.values]
    finite = [value for value in values if math.isfinite(value)]
    return Series(
        name=series.name,
        attempt=series.attempt,
        rank=series.rank,
        count=len(values),
        last=values[-1],
        last_step=series.steps[-1],
        last_time=series.times[-1],
        min=min(finite, default=None),
        max=max(finite, default=None),
    )


def _glance(found: Sequence[Series], as_json: bool) -> None:
    from wherry.cli.output import Column, listing, number

    columns = [
        Column("METRIC", lambda s: s.name),
        Column("RANK", lambda s: str(s.rank), right=True),
        Column("LAST", lambda s: number(s.last), right=True),
        Column("STEP", lambda s: str(s.last_step), right=True),
        Column("MIN", lambda s: "" if s.min is None else number(s.min), right=True),
        Column("MAX", lambda s: "" if s.max is None else number(s.max), right=True),
        Column("COUNT", lambda s: str(s.count), right=True),
    ]
    if len({s.attempt for s in found}) > 1:
        columns.insert(1, Column("ATTEMPT", lambda s: str(s.attempt), right=True))
    listing(
        found, columns, json=as_json,
        empty="no metrics\nhint: wherry.report(step=1, loss=0.5) in the script reports one",
    )  # fmt: skip


def _points(found: Sequence[MetricSeries], as_json: bool) -> None:
    from wherry.cli.output import Column, listing, number

    if as_json:
        listing(found, (), json=True)
        return
    rows = [
        (s.name, s.rank, step, value)
        for s in found
        for step, value in zip(s.steps, s.values, strict=True)
    ]
    listing(
        rows,
        [
            Column("METRIC", lambda row: row[0]),
            Column("RANK", lambda row: str(row[1]), right=True),
            Column("STEP", lambda row: str(row[2]), right=True),
            Column("VALUE", lambda row: number(row[3]), right=True),
        ],
        json=False,
        empty="no points of these metrics",
    )


def _write_csv(found: Sequence[MetricSeries]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["name", "attempt", "rank", "step", "time", "value"])
    for s in found:
        for step, time, value in zip(s.steps, s.times, s.values, strict=True):
            writer.writerow([s.name, s.attempt, s.rank, step, f"{time:.3f}", repr(value)])
