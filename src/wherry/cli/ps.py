"""``wherry ps``: which runs there are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from wherry.cli import options
from wherry.core.states import RUN_TERMINAL, RunState

if TYPE_CHECKING:
    from wherry.core.run import Run
    from wherry.sdk.client import Client

RECENT = 15  # finished runs shown beside the active ones
_PAGE = 500


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Every run, however old.")
@click.option(
    "--state", "-s", "states", multiple=True, type=click.Choice([s.value for s in RunState]),
    help="Only runs in this state; may be repeated.",
)  # fmt: skip
@click.option("--tag", "-t", "tags", multiple=True, help="Only runs with this tag; all of them.")
@click.option("--name", "-n", default="", help="Only runs of this name.")
@click.option("--limit", type=click.IntRange(1), help="At most so many, the newest.")
@options.on_option
@options.json_option
def ps(
    everything: bool,
    states: tuple[str, ...],
    tags: tuple[str, ...],
    name: str,
    limit: int | None,
    on: str,
    as_json: bool,
) -> None:
    """List runs, newest first: all that are active and the latest that have finished."""
    from wherry.cli import output, words

    client = options.connect(on)
    if everything or states or tags or name or limit:
        runs = _pages(client, states, tags, name, limit)
    else:
        active = [state.value for state in RunState if state not in RUN_TERMINAL]
        found = {run.id: run for run in client.runs(limit=RECENT)}
        found |= {run.id: run for run in _pages(client, tuple(active), (), "", None)}
        runs = sorted(found.values(), key=lambda run: (run.created, run.id), reverse=True)
    chosen = bool(states or tags or name)
    empty = "" if runs or as_json else _none(len(client.runs(limit=_PAGE)) if chosen else 0)
    output.listing(runs, words.columns(time.time()), json=as_json, empty=empty)


def _none(others: int) -> str:
    """What to say where no run is to be listed; ``others``: how many there are, of a page."""
    if not others:
        return "no runs\nhint: wherry run script.py makes one"
    there = "there is 1" if others == 1 else f"there are {others}{' or more' * (others == _PAGE)}"
    return f"no run fits; {there}: wherry ps --all"


def _pages(
    client: Client, states: tuple[str, ...], tags: tuple[str, ...], name: str, limit: int | None
) -> list[Run]:
    runs: list[Run] = []
    while limit is None or len(runs) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(runs))
        page = client.runs(
            states=states, tags=tags, name=name, limit=size, before=runs[-1].id if runs else ""
        )
        runs += page
        if len(page) < size:
            break
    return runs
