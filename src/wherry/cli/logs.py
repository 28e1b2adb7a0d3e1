"""``wherry logs``: what a run wrote."""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING

import click

from wherry.cli import options
from wherry.cli.colour import RANKS, paint

if TYPE_CHECKING:
    from wherry.core.api import LogLine
    from wherry.sdk.client import Client, Stream

_BATCH = 1000  # lines in one write


@click.command()
@options.run_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has finished.")
@click.option("--rank", "-r", "ranks", type=options.ranks, default="", help="Such as 0, 0,3, 2-5.")
@click.option(
    "--stream", "-s", "streams", multiple=True, type=click.Choice(["stdout", "stderr", "system"]),
    help="Only this stream; may be repeated.",
)  # fmt: skip
@click.option("--grep", "-g", metavar="REGEX", help="Only lines in which this is found.")
@click.option("--invert", "-v", is_flag=True, help="With --grep: only the other lines.")
@click.option(
    "--tail", "-n", type=click.IntRange(0), metavar="N",
    help="The last N lines; while following, counted before --grep.",
)  # fmt: skip
@click.option("--timestamps", "-t", is_flag=True, help="Begin each line with its time, UTC.")
@click.option("--attempt", type=click.IntRange(1), help="Only this attempt.")
@click.option("--raw", is_flag=True, help="The bytes as they were written.")
@options.on_option
@options.json_option
def logs(
    ref: str,
    follow: bool,
    ranks: tuple[int, ...],
    streams: tuple[Stream, ...],
    grep: str | None,
    invert: bool,
    tail: int | None,
    timestamps: bool,
    attempt: int | None,
    raw: bool,
    on: str,
    as_json: bool,
) -> None:
    """
    Print what a run wrote; with --follow, wait for a run that has not started.

    RUN is an id, the beginning of one, a name (its newest run) or "last".
    """
    if raw and (grep or timestamps or tail is not None or as_json):
        raise click.UsageError("--raw goes with --follow, --rank, --stream and --attempt only")
    keep = _matcher(grep, invert)
    client = options.connect(on)
    run = client.run(ref).run
    if follow and not run.attempt and not run.finished:
        _say_waiting(run.state, run.reason)
    if raw:
        pieces = client.raw_logs(
            run.id, follow=follow, ranks=ranks, streams=streams, attempt=attempt
        )
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            if follow:
                sys.stdout.buffer.flush()
        return
    lines: Iterable[LogLine] = client.logs(
        run.id, follow=follow, ranks=ranks, streams=streams, attempt=attempt,
        tail=tail if follow or keep is None else None,
    )  # fmt: skip
    if keep is not None:
        lines = (line for line in lines if keep(line.text))
        if tail is not None and not follow:
            lines = deque(lines, maxlen=tail)
    if as_json:
        _write_json(lines)
    else:
        prefix = run.spec.world_size > 1 and len(ranks) != 1
        write_lines(lines, prefix=prefix, timestamps=timestamps, live=follow)


def follow(client: Client, run_id: str, *, stdout: IO[str]) -> None:
    """What the run wrote and writes, its stderr to ours. For ``run`` where no agent attached."""
    for line in client.logs(run_id, follow=True):
        stream = stdout if line.stream == "stdout" else sys.stderr
        print(line.text, file=stream, flush=True)


def write_lines(lines: Iterable[LogLine], *, prefix: bool, timestamps: bool, live: bool) -> None:
    """Lines for people on stdout. ``live``: each as it comes, else many in one write."""
    render = _renderer(prefix=prefix, timestamps=timestamps)
    write, size = sys.stdout.write, 1 if live else _BATCH
    batch: list[str] = []
    for line in lines:
        batch.append(render(line))
        if len(batch) >= size:
            write("".join(batch))
            batch.clear()
            if live:
                sys.stdout.flush()
    write("".join(batch))


def _renderer(*, prefix: bool, timestamps: bool) -> Callable[[LogLine], str]:
    stamp = _Stamp()
    if not prefix and not timestamps:
        return lambda line: line.text + "\n"
    heads: dict[int, str] = {}

    def head(rank: int) -> str:
        if rank not in heads:
            heads[rank] = paint(f"[{rank}]", RANKS[rank % len(RANKS)], sys.stdout) + " "
        return heads[rank]

    def render(line: LogLine) -> str:
        when = stamp(line.time) + " " if timestamps else ""
        return f"{when}{head(line.rank) if prefix else ''}{line.text}\n"

    return render


class _Stamp:
    """RFC 3339 in UTC with milliseconds; a second is formatted once for all its lines."""

    def __init__(self) -> None:
        self._second, self._text = -1, ""

    def __call__(self, when: float) -> str:
        second = int(when)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((when - second) * 1000):03d}Z"


def _matcher(grep: str | None, invert: bool) -> Callable[[str], bool] | None:
    if grep is None:
        if invert:
            raise click.UsageError("--invert needs --grep")
        return None
    try:
        search = re.compile(grep).search
    except re.error as error:
        raise click.BadParameter(f"{grep!r}: {error}", param_hint="--grep") from None
    return lambda text: (search(text) is None) is invert


def _write_json(lines: Iterable[LogLine]) -> None:
    """One list, written as it comes; also whole when it is interrupted."""
    from wherry.core.api import encode

    def pieces() -> Iterator[str]:
        for number, line in enumerate(lines):
            yield (",\n" if number else "\n") + encode(line).decode()

    sys.stdout.write("[")
    try:
        for piece in pieces():
            sys.stdout.write(piece)
    finally:
        sys.stdout.write("\n]\n")


def _say_waiting(state: str, reason: str) -> None:
    from wherry.cli.output import note

    note(f"waiting: the run is {state}" + (f": {reason}" if reason else ""))
