"""
``wherry rehearse``: run a job with faults, follow it, and say whether it went on from where it was.

The output of the run goes to stderr; stdout has what came of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from wherry.cli import options
from wherry.cli.run import RunCommand, changes, script_at
from wherry.cli.run import run as run_command
from wherry.core.faults import FAULTS

if TYPE_CHECKING:
    from wherry.core.api import LogLine
    from wherry.core.rehearsal import Rehearsal, Rehearsed

#: Options of ``wherry run`` that make no sense here.
_NOT_HERE = frozenset({"words", "detach", "dry_run", "source", "on", "as_json"})


#: Options that begin the part of a line that is ours, where they stand after the script.
_OURS = frozenset({"--workers", "-w", *(f"--{kind}" for kind in FAULTS)})


class RehearseCommand(RunCommand):
    """Takes its options after the script, too, where no fault stands before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The script's own arguments end where Wherry's begin."""
        return super().parse_args(ctx, faults_first(args, self.params))


def faults_first(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """``args`` with the options of Wherry that stand at its end moved before the script."""
    at = script_at(args, params)
    begins = [n for n in range(at + 1, len(args)) if args[n].partition("=")[0] in _OURS]
    named = [word.partition("=")[0].removeprefix("--") for word in args]
    before, after = named[:at], named[begins[0] :] if begins else []
    if "--" in args or not any(n in FAULTS for n in after) or any(n in FAULTS for n in before):
        return list(args)
    return [*args[:at], *args[begins[0] :], *args[at : begins[0]]]


@click.command(
    cls=RehearseCommand,
    context_settings={"allow_interspersed_args": False},
    epilog="A fault is RANK[@WHEN], WHEN step:N or a time after the start: 2, 2@step:10, 2@30s; "
    "without, at the first step that follows a checkpoint. --partition and --slow also take "
    "how long, 3@step:10+20s, and --slow how much, 1x4. All other options are those of "
    "`wherry run`; where no fault stands before the script, they may end the line.",
)
@click.argument("words", metavar="SCRIPT [ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--kill", multiple=True, metavar="FAULT", help="Lose a rank's machine.")
@click.option("--crash", multiple=True, metavar="FAULT", help="Kill a rank's program alone.")
@click.option("--stop", multiple=True, metavar="FAULT", help="Freeze a rank's machine.")
@click.option("--term", multiple=True, metavar="FAULT", help="Take a machine, with notice.")
@click.option("--partition", multiple=True, metavar="FAULT", help="Cut a rank off.")
@click.option("--slow", multiple=True, metavar="FAULT", help="Slow a rank down.")
@click.option("--lease", metavar="TIME", help="Silence after which a rank is lost.")
@options.on_option
@options.json_option
@click.pass_context
def rehearse(ctx: click.Context, /, **given: Any) -> None:
    """
    Run a script with faults, and say whether it went on from where it was.

    The run works in a copy, with restarts for the faults; each fault comes once. Exits with 0 only
    where every fault came, training resumed from its checkpoint, and the run succeeded.
    """
    if not given["words"]:
        raise click.UsageError("nothing to rehearse\nhint: wherry rehearse train.py --kill 1", ctx)
    ctx.exit(_rehearse(given))


rehearse.params += [p for p in run_command.params if p.name not in _NOT_HERE]


def _rehearse(given: dict[str, Any]) -> int:
    from wherry.cli import output
    from wherry.cli.main import complain
    from wherry.cli.run import examine, say
    from wherry.core.rehearsal import parse
    from wherry.sdk.contexts import context
    from wherry.sdk.rehearse import attend, prepared_with
    from wherry.sdk.submit import Draft, send

    faults = [parse(kind, text) for kind in FAULTS for text in given[kind]]  # type: ignore[arg-type]
    said = changes(given)
    if given["lease"] is not None:
        said["lease"] = given["lease"]
    draft = Draft(
        words=given["words"],
        changes=said,
        environment=given["environment"],
        python=given["python"],
        packages=given["packages"],
    )
    prepared = prepared_with(draft, faults)
    examine(given, prepared, here=context(given["on"]).endpoint is None)
    client = options.connect(given["on"])
    say(prepared)
    run = send(client, prepared)
    output.note(f"rehearsing: run {run.id}")
    try:
        found = attend(client, run, _writer(run.spec.world_size))
    except KeyboardInterrupt:
        client.stop(run.id)
        output.note(f"the run is being stopped: wherry show {run.id}")
        return 130
    if given["as_json"]:
        output.as_json(found)
    else:
        output.thing(found, _fields, json=False)
    for problem, hint in dict.fromkeys(
        [(f.problem, f.hint) for f in found.faults if f.problem] + [(found.problem, found.hint)]
    ):
        if problem:
            complain(problem, hint)
    return 0 if found.ok else 1


def _writer(ranks: int) -> Any:
    def write(line: LogLine) -> None:
        head = f"[{line.rank}] " if ranks > 1 else ""
        print(f"{head}{line.text}", file=sys.stderr, flush=True)

    return write


def _fields(found: Rehearsal) -> Iterator[tuple[str, str]]:
    attempts = "1 attempt" if found.attempts == 1 else f"{found.attempts} attempts"
    yield "run", found.run
    yield "name", found.name
    yield "state", found.state.value
    yield "took", attempts
    for one in found.faults:
        yield f"{one.fault.kind} {one.fault}", "\n".join(lines(one, found.lease))
    yield "rehearsal", "passed" if found.ok else "failed"


def lines(one: Rehearsed, lease: float | None) -> Iterator[str]:
    """What came of one fault, for people."""
    from wherry.cli.output import duration

    if one.injected is None:
        yield one.problem
        return
    yield one.message.partition(": ")[2]
    if one.noticed_after is not None:
        silent = one.fault.kind in ("stop", "partition") and lease is not None
        yield f"noticed after {duration(one.noticed_after)}" + (
            f" (the lease of this rehearsal: {lease:g} s)" if silent else ""
        )
    if one.resumed_after is not None:
        yield f"training went on after {duration(one.resumed_after)}"
    if one.resumed and one.first_step is not None:
        yield f"resumed at step {one.first_step}; the last before the fault was {one.last_step}"
        steps = "1 step" if one.steps_again == 1 else f"{one.steps_again} steps"
        work = f"{steps} done again, {duration(one.seconds_again)} of work"
        yield f"lost: {work if one.steps_again else 'nothing'}"
    elif one.resumed is False:
        yield one.problem
    elif not one.problem:
        yield "nothing had to be started again"
    else:
        yield one.problem
