"""``wherry stop``, ``retry``, ``rm``: what changes runs that are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from wherry.cli import options
from wherry.core.run import Run
from wherry.errors import WherryError

T = TypeVar("T")


@click.command()
@click.argument("refs", metavar="RUN...", nargs=-1, required=True)
@click.option("--grace", type=options.duration, help="From SIGTERM to SIGKILL, such as 30s.")
@click.option("--wait", is_flag=True, help="Come back when they have ended.")
@options.on_option
@options.json_option
@click.pass_context
def stop(
    ctx: click.Context,
    refs: tuple[str, ...],
    grace: float | None,
    wait: bool,
    on: str,
    as_json: bool,
) -> None:
    """Stop runs: SIGTERM, then SIGKILL. One that has ended is left as it is."""
    client = options.connect(on)

    def act(ref: str) -> Run:
        run = client.stop(ref, grace=grace)
        return client.wait(run.id) if wait else run

    _finish(ctx, *_each(refs, act), as_json=as_json)


@click.command()
@click.argument("refs", metavar="RUN...", nargs=-1, required=True)
@options.on_option
@options.json_option
@click.pass_context
def rm(ctx: click.Context, refs: tuple[str, ...], on: str, as_json: bool) -> None:
    """Remove finished runs with their logs, metrics and files."""
    client = options.connect(on)

    def act(ref: str) -> Run:
        run = client.run(ref).run
        client.delete(run.id)
        return run

    _finish(ctx, *_each(refs, act), as_json=as_json)


@click.command()
@options.run_argument
@click.option("--name", "-n", default="", help="Another name for the new run.")
@options.on_option
@options.json_option
def retry(ref: str, name: str, on: str, as_json: bool) -> None:
    """
    Run again what ran before, in a copy of the code as it was then.

    With changes: wherry run --from RUN.
    """
    from wherry.cli import output

    run = options.connect(on).retry(ref, name=name)
    if as_json:
        output.as_json(run)
    else:
        output.write(run.id + "\n")
        output.hint(f"wherry logs -f {run.id}")


def _each(refs: tuple[str, ...], act: Callable[[str], T]) -> tuple[list[T], int]:
    """Act on every one, whatever becomes of the others; the first failure's exit status."""
    from wherry.cli.main import complain

    done, status = [], 0
    for ref in refs:
        try:
            done.append(act(ref))
        except WherryError as error:
            complain(f"{ref}: {error.message}", error.hint)
            status = status or error.exit_status
    return done, status


def _finish(ctx: click.Context, runs: list[Run], status: int, *, as_json: bool) -> None:
    from wherry.cli import output

    if as_json:
        output.as_json(runs)
    else:
        output.write("".join(f"{run.id}\n" for run in runs))
    ctx.exit(status)
