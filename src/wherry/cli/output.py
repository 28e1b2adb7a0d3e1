"""
The one renderer: every command hands its data here.

With ``--json``: one JSON document on stdout, a list of objects for a list, an object for one thing.
Times are seconds since the epoch, durations seconds, sizes bytes, as in the API; values that JSON
cannot hold are ``"NaN"``, ``"Infinity"``, ``"-Infinity"``. Otherwise a table for people: drawn by
rich on a terminal, aligned plain text elsewhere. Stdout carries data alone; :func:`note` and
:func:`hint` write prose to stderr.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wherry.cli.colour import is_terminal, paint, visible, wants_colour
from wherry.core.api import json_number

STATE_STYLES = {
    "succeeded": "green", "running": "cyan", "starting": "cyan", "arrived": "cyan",
    "failed": "red", "lost": "red", "stopped": "yellow",
}  # fmt: skip

_NARROW = 8  # characters that a column keeps, however narrow the terminal


@dataclass(frozen=True)
class Column:
    """
    One column of a table for people. ``style`` gives the style of a cell from its text.

    On a terminal that is too narrow only columns that ``shrinks`` give way, the last ones first.
    """

    title: str
    text: Callable[[Any], str]
    right: bool = False
    style: Callable[[str], str] = lambda text: ""
    shrinks: bool = False


def state_style(text: str) -> str:
    """The style of a state's name."""
    return STATE_STYLES.get(text, "")


def plain(value: Any) -> Any:
    """Structs as dictionaries, and every number as JSON can hold it."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int):
        return value
    return plain(msgspec.to_builtins(value, str_keys=True))


def write(text: str) -> None:
    """``text`` to stdout."""
    sys.stdout.write(text)


def as_json(value: Any) -> None:
    """One JSON document on stdout."""
    data = msgspec.json.format(msgspec.json.encode(plain(value)), indent=2)
    write(data.decode() + "\n")


def listing(
    items: Iterable[Any], columns: Sequence[Column], *, json: bool, empty: str = ""
) -> None:
    """Many things: a JSON list or a table. ``empty`` is said on stderr where there is none."""
    items = list(items)
    if json:
        as_json(items)
    elif items:
        table(items, columns)
    elif empty:
        note(empty)


def thing(item: Any, fields: Callable[[Any], Iterable[tuple[str, str]]], *, json: bool) -> None:
    """One thing: a JSON object, or a line for each of its fields that is not empty."""
    if json:
        as_json(item)
        return
    shown = [(name, text) for name, text in fields(item) if text]
    width = max((len(name) for name, _ in shown), default=0)
    for name, text in shown:
        head = paint(name.ljust(width), "bold", sys.stdout)
        body = visible(text).replace("\n", "\n" + " " * (width + 2))
        write(f"{head}  {paint(body, state_style(body), sys.stdout)}\n")


def table(items: Sequence[Any], columns: Sequence[Column]) -> None:
    """A table for people on stdout."""
    rows = [[_one_line(column.text(item)) for column in columns] for item in items]
    if is_terminal(sys.stdout):
        _rich_table(rows, columns)
    else:
        _plain_table(rows, columns)


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _plain_table(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    titles = [column.title for column in columns]
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(columns))]
    colour = wants_colour(sys.stdout)
    lines = []
    for row in (titles, *rows):
        cells = []
        for cell, width, column in zip(row, widths, columns, strict=True):
            padded = cell.rjust(width) if column.right else cell.ljust(width)
            style = "bold" if row is titles else column.style(cell)
            cells.append(paint(padded, style, sys.stdout) if colour else padded)
        lines.append("  ".join(cells).rstrip() + "\n")
    write("".join(lines))


def _rich_table(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(no_color=not wants_colour(sys.stdout), highlight=False)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    widths = _widths(rows, columns, console.width)
    for column, width in zip(columns, widths, strict=True):
        drawn.add_column(
            column.title, justify="right" if column.right else "left", overflow="ellipsis",
            no_wrap=True, width=width,
        )  # fmt: skip
    for row in rows:
        cells = zip(row, columns, strict=True)
        drawn.add_row(*(Text(text, column.style(text)) for text, column in cells))
    # Where even the rest does not fit, the terminal breaks the lines: they stay whole.
    console.width = max(console.width, sum(widths) + 2 * len(widths))
    console.print(drawn)


def _widths(rows: Sequence[Sequence[str]], columns: Sequence[Column], room: int) -> list[int]:
    """The width of each column. Where there is not enough room, those that may give way do."""
    from rich.cells import cell_len

    titles = [column.title for column in columns]
    widths = [max(cell_len(row[i]) for row in (titles, *rows)) for i in range(len(columns))]
    over = sum(widths) + 2 * len(widths) - room
    for i in reversed(range(len(columns))):
        if over > 0 and columns[i].shrinks:
            given = min(over, max(0, widths[i] - max(_NARROW, len(titles[i]))))
            widths[i] -= given
            over -= given
    return widths


def note(text: str) -> None:
    """Prose for the person, on stderr."""
    print(visible(text), file=sys.stderr)


def hint(text: str) -> None:
    """What to do next, on stderr."""
    print(paint("hint:", "bold cyan", sys.stderr), visible(text), file=sys.stderr)


def ago(when: float | None, now: float | None = None) -> str:
    """``"3 min ago"`` for a time in seconds since the epoch; a date beyond a month."""
    if not when:
        return ""
    gone = max(0.0, (time.time() if now is None else now) - when)
    if gone > 30 * 86400:
        return time.strftime("%Y-%m-%d", time.localtime(when))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if gone >= size:
            return f"{gone / size:.0f} {unit} ago"
    return f"{gone:.0f} s ago" if gone >= 1 else "now"


def duration(seconds: float | None) -> str:
    """``"1h 05m"``, ``"2m 03s"``, ``"1.4 s"``, ``"40 ms"``."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds >= 3600:
        return f"{int(seconds // 3600)}h {int(seconds % 3600 // 60):02d}m"
    if seconds >= 60:
        return f"{int(seconds // 60)}m {int(seconds % 60):02d}s"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def number(value: Any) -> str:
    """A metric's value, short."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
