"""``wherry up down status prune backup``: the control plane itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wherry import settings
from wherry.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wherry.core.api import Status


@click.command()
@options.json_option
def up(as_json: bool) -> None:
    """
    Start the control plane of this machine. Any command does that by itself when it needs to.
    """
    from wherry.cli import output
    from wherry.sdk.connect import start_server

    start_server(settings.home())
    output.thing(options.connect("local").status(), _status, json=as_json)


@click.command()
@options.json_option
def down(as_json: bool) -> None:
    """Stop the control plane of this machine. Runs go on, and report when it is back."""
    from wherry.cli import output
    from wherry.sdk.connect import stop_server

    stopped = stop_server(settings.home())
    if as_json:
        output.as_json({"stopped": stopped})
    elif not stopped:
        output.note("no control plane was running")


@click.command()
@options.on_option
@options.json_option
def status(on: str, as_json: bool) -> None:
    """Show the control plane; start it where none is running."""
    from wherry.cli import output

    output.thing(options.connect(on).status(), _status, json=as_json)


def _status(status: Status) -> Iterator[tuple[str, str]]:
    from wherry.cli.output import ago

    yield "url", status.url
    yield "pid", str(status.pid)
    yield "version", status.version
    yield "home", status.home
    yield "started", ago(status.started)
    yield "schema", status.schema
    yield "runs", "  ".join(f"{count} {state}" for state, count in status.runs.items()) or "none"
    for kind in ("free", "total"):
        yield kind, _amount((status.capacity or {}).get(kind) or {})


def _amount(amount: dict[str, Any]) -> str:
    from wherry.core.job import format_bytes

    cores = f"{amount.get('cpu', 0):.2f}".rstrip("0").rstrip(".")
    words = [f"{cores} core{'s' * (cores != '1')}", format_bytes(amount.get("memory", 0))]
    if gpu := amount.get("gpu"):
        words.append(f"{gpu} GPU{'s' * (gpu != 1)}")
    return "  ".join(words) if amount else ""


@click.command()
@click.option(
    "--older-than", type=options.duration, metavar="AGE",
    help="Also remove runs that finished longer ago than this, such as 30d.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@options.on_option
@options.json_option
def prune(older_than: float | None, dry_run: bool, on: str, as_json: bool) -> None:
    """Remove what nobody refers to, unused environments, and old runs if asked."""
    from wherry.cli import output
    from wherry.core.job import format_bytes

    days = None if older_than is None else older_than / 86400
    pruned = options.connect(on).prune(days=days, dry_run=dry_run)
    output.thing(
        pruned,
        lambda p: [
            ("runs", f"{len(p.runs)}  {' '.join(p.runs[:10])}".strip()),
            ("blobs", str(p.blobs)),
            ("bytes", format_bytes(p.bytes)),
        ],
        json=as_json,
    )


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path, dir_okay=False))
@options.on_option
@options.json_option
def backup(path: Path | None, on: str, as_json: bool) -> None:
    """
    Write runs, logs, metrics and files to one tar file while everything goes on.

    PATH is on the control plane's machine; default: wherry-DATE.tar here. It holds credentials.
    """
    from wherry.cli import output
    from wherry.core.job import format_bytes

    path = path or Path(time.strftime("wherry-%Y%m%d-%H%M%S.tar"))
    done = options.connect(on).backup(path.absolute())
    output.thing(
        done,
        lambda d: [("path", d.path), ("size", format_bytes(d.bytes)), ("runs", str(d.runs))],
        json=as_json,
    )
    if not as_json:
        output.hint(f"wherry restore {done.path}")
