"""
``wherry run``: from what a person typed to a run, and to its end.

What follows the script belongs to the script. In the foreground (``foreground``) it feels like
``python script.py``; with ``--json`` the script's stdout goes to stderr, so that stdout is one
document, the run as it ended.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from wherry.cli import options
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.cli.foreground import Outcome
    from wherry.core.run import Run
    from wherry.sdk.client import Client
    from wherry.sdk.submit import Draft, Prepared


class RunCommand(click.Command):
    """Leaves what follows the script alone, also where the script is ``-m MODULE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As Python: nothing after ``-m MODULE`` is an option of ours."""
        return super().parse_args(ctx, until_module(args, self.params))


def until_module(args: Sequence[str], params: Sequence[click.Parameter]) -> list[str]:
    """``args`` with ``--`` before ``-m``, if that is where the options end."""
    at = script_at(args, params)
    module = args[at : at + 1] and args[at].startswith("-m")
    return [*args[:at], "--", *args[at:]] if module else list(args)


def script_at(args: Sequence[str], params: Sequence[click.Parameter]) -> int:
    """Where the options end: at the script, at ``-m``, at ``--``, or at the end."""
    takes_value = {
        name: not param.is_flag and param.nargs != 0
        for param in params
        if isinstance(param, click.Option)
        for name in param.opts
    }
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
        word = args[at]
        if word.startswith("--"):
            at += 2 if takes_value.get(word) else 1
            continue
        for end in range(2, len(word) + 1):  # -dw2: flags, then an option with its value
            if word[1:2] == "m":
                return at
            if takes_value.get("-" + word[end - 1]):
                at += end == len(word)
                break
        at += 1
    return at


@click.command(
    cls=RunCommand,
    context_settings={"allow_interspersed_args": False},
    epilog="Options stand before the script; what follows it belongs to the script.",
)
@click.argument("words", metavar="SCRIPT [ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--detach", "-d", is_flag=True, help="Print the run's id and leave; it goes on.")
@click.option("--dry-run", is_flag=True, help="Only show what would run.")
@click.option("--workers", "-w", metavar="N", help="How many at once; 2:8 for an elastic group.")
@click.option("--processes", type=int, help="Per worker; ranks = workers x processes.")
@click.option("--name", "-n", help="Default: from the script.")
@click.option(
    "--env", "-e", "env", multiple=True, metavar="K[=V]",
    help="A variable; K alone passes yours on.",
)  # fmt: skip
@click.option("--with", "packages", multiple=True, metavar="PKG", help="Add a package.")
@click.option("--python", default="", metavar="VERSION", help="Build with this Python.")
@click.option(
    "--environment",
    type=click.Choice(["auto", "script", "lock", "requirements", "active", "none"]),
    default="auto", help="auto: script header, lock, requirements, else the active one.",
)  # fmt: skip
@click.option("--cpu", type=float, help="Cores per rank.")
@click.option("--memory", metavar="AMOUNT", help="Per rank, such as 4Gi.")
@click.option("--gpu", type=int, help="Devices per rank.")
@click.option("--timeout", metavar="TIME", help="Of one attempt, such as 2h.")
@click.option("--restarts", type=int, help="New attempts after faults of machines.")
@click.option(
    "--retry-on", multiple=True, metavar="END",
    help="Also after: an exit status, a signal, a cause such as oom, or any.",
)  # fmt: skip
@click.option("--fail-on", multiple=True, metavar="END", help="Never after these.")
@click.option("--backoff", metavar="TIME", help="Before the first retry; doubled with each.")
@click.option("--grace", metavar="TIME", help="From SIGTERM to SIGKILL when it is stopped.")
@click.option(
    "--hold-on-failure", "hold", metavar="TIME", help="Keep a failed rank to look into, as 30m."
)
@click.option("--stall", metavar="TIME", help="Flag it after so long without a sign of life.")
@click.option("--tag", "-t", "tags", multiple=True, help="To find it by; may be repeated.")
@click.option("--note", help="Free text.")
@click.option("--priority", type=int, help="Larger goes first.")
@click.option("--group", type=click.Choice(["gang", "elastic", "pool"]), help="Default: gang.")
@click.option(
    "--metric", "rules", multiple=True, metavar="NAME=REGEX",
    help="Read a metric from stdout; the first group is the number.",
)  # fmt: skip
@click.option("--from", "source", metavar="RUN", help="Run that again, with changes.")
@click.option("--no-preflight", is_flag=True, help="Do not look for mistakes before it is queued.")
@options.on_option
@options.json_option
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """
    Run a script, recorded: like `python SCRIPT ARGS`, with its exit status.

    SCRIPT is a Python file, -m MODULE, a job file (.yaml .toml .json), or -- and any program.
    Ctrl-C is SIGINT for the script; a second one within 5 s stops the run; Ctrl-\\ detaches. With
    --json the script's stdout goes to stderr.
    """
    if not given["words"] and not given["source"]:
        raise click.UsageError("nothing to run\nhint: wherry run script.py", ctx)
    ctx.exit(_run(given))


@click.command(cls=RunCommand, context_settings={"allow_interspersed_args": False})
@click.pass_context
def check(ctx: click.Context, /, **given: Any) -> None:
    """
    Look for what would go wrong in a run, and run nothing.

    Takes what `wherry run` takes. Exits with 2 where something is sure to fail.
    """
    if not given["words"] and not given["source"]:
        raise click.UsageError("nothing to check\nhint: wherry check script.py", ctx)
    ctx.exit(_check(given))


#: What says nothing where nothing runs; taken, so that a command line can be checked as it is.
_ONLY_RUN = ("detach", "dry_run", "no_preflight")


def _for_check(param: click.Parameter) -> click.Parameter:
    if param.name in _ONLY_RUN and isinstance(param, click.Option):
        param = copy.copy(param)
        param.hidden = True
    return param


check.params[:0] = [_for_check(param) for param in run.params]


def changes(given: dict[str, Any]) -> dict[str, Any]:
    """What the options say, in a job file's form."""
    keys = (
        *("name", "processes", "timeout", "restarts", "backoff", "grace", "note", "priority"),
        *("group", "hold", "stall"),
    )
    found: dict[str, Any] = {key: given[key] for key in keys if given[key] is not None}
    resources = {k: given[k] for k in ("cpu", "memory", "gpu") if given[k] is not None}
    tables = {
        "resources": resources,
        "env": dict(_variable(text) for text in given["env"]),
        "metrics": dict(_rule(text) for text in given["rules"]),
        "tags": list(given["tags"]),
        "retry_on": list(given["retry_on"]),
        "fail_on": list(given["fail_on"]),
    }
    if given["workers"] is not None:
        found["workers"] = _workers(given["workers"])
    return found | {key: value for key, value in tables.items() if value}


def _workers(text: str) -> int | dict[str, int]:
    least, colon, most = text.partition(":")
    try:
        return {"min": int(least), "max": int(most)} if colon else int(text)
    except ValueError:
        raise InvalidInput(
            f"--workers {text}: expected a number", hint="--workers 4, or --workers 2:8 (elastic)"
        ) from None


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        if name not in os.environ:
            raise InvalidInput(f"--env {name}: it is not set here", hint=f"--env {name}=VALUE")
        value = os.environ[name]
    return name, value


def _rule(text: str) -> tuple[str, str]:
    name, equals, pattern = text.partition("=")
    if not equals:
        raise InvalidInput(
            f"--metric {text!r} has no pattern", hint="--metric 'loss=loss: ([0-9.]+)'"
        )
    return name, pattern


def _run(given: dict[str, Any]) -> int:
    from wherry.sdk.contexts import context

    here = context(given["on"]).endpoint is None
    draft = _draft(given, foreground=here and not given["detach"])
    if given["dry_run"]:
        return _dry_run(given, draft)
    if not draft.foreground:
        return _leave(given, draft, here=here)
    return _attend(given, draft)


def _draft(given: dict[str, Any], *, foreground: bool) -> Draft:
    from wherry.sdk.submit import Draft

    return Draft(
        words=given["words"],
        changes=changes(given),
        foreground=foreground,
        environment=given["environment"],
        python=given["python"],
        packages=given["packages"],
    )


def _check(given: dict[str, Any]) -> int:
    """Every finding; the control plane's own refusal is one too."""
    from wherry.cli import findings
    from wherry.core.api import Submit
    from wherry.errors import CapabilityMissing, InvalidInput
    from wherry.sdk import preflight
    from wherry.sdk.contexts import context

    draft = _draft(given, foreground=False)
    client, prepared = _prepare(given, draft)
    found = list(preflight.examine(prepared, here=context(given["on"]).endpoint is None))
    try:
        client.plan(Submit(spec=prepared.spec, parent=prepared.parent))
    except (InvalidInput, CapabilityMissing) as error:
        refused = preflight.Finding(
            level="error", code=error.code, message=error.message, hint=error.hint
        )
        found.insert(0, refused)
    findings.show(found, json=given["as_json"])
    return 2 if any(finding.level == "error" for finding in found) else 0


def examine(given: dict[str, Any], prepared: Prepared, *, here: bool) -> None:
    """Warn of what may go wrong. :raises Preflight: for what is sure to."""
    from wherry.sdk import preflight

    if given["no_preflight"] or not preflight.worth_it(prepared):
        return
    from wherry.cli import findings

    found = preflight.examine(prepared, here=here)
    findings.warn(found)
    preflight.refuse(found)


def _prepare(given: dict[str, Any], draft: Draft) -> tuple[Client, Prepared]:
    """The draft, or an earlier run with its changes, made whole; mistakes show before we call."""
    from wherry.sdk import submit

    if given["source"]:
        client = options.connect(given["on"])
        again = submit.from_run(client.run(given["source"]), draft)
        return client, submit.prepare(again)
    prepared = submit.prepare(draft)
    return options.connect(given["on"]), prepared


def _dry_run(given: dict[str, Any], draft: Draft) -> int:
    from wherry.cli import output, words
    from wherry.core.api import Submit

    client, prepared = _prepare(given, draft)
    say(prepared)
    planned = client.plan(
        Submit(spec=prepared.spec, foreground=draft.foreground, parent=prepared.parent)
    )
    if given["as_json"]:
        output.as_json(planned)
        return 0
    output.thing(planned, words.plan, json=False)
    return 0


def _leave(given: dict[str, Any], draft: Draft, *, here: bool) -> int:
    """Submit and go; from another machine's control plane, follow the log unless detached."""
    from wherry.cli import output
    from wherry.sdk import submit
    from wherry.sdk.contexts import chosen

    client, prepared = _prepare(given, draft)
    say(prepared)
    examine(given, prepared, here=here)
    run = submit.send(client, prepared, why=chosen(given["on"]))
    if not given["detach"]:
        return _follow(client, run, as_json=given["as_json"])
    if given["as_json"]:
        output.as_json(run)
    else:
        output.write(run.id + "\n")
        output.hint(f"wherry logs -f {run.id}")
    return 0


def _attend(given: dict[str, Any], draft: Draft) -> int:
    """Submit and stay until the end."""
    from wherry.cli import foreground
    from wherry.cli.attach import Listener
    from wherry.sdk import submit
    from wherry.sdk.contexts import chosen

    client, prepared = _prepare(given, draft)
    _say_unrecorded(prepared)
    if prepared.spec.world_size > 1:
        examine(given, prepared, here=True)
    with Listener() as listener:
        why = chosen(given["on"])
        run = submit.send(client, prepared, foreground=True, attach=listener.path, why=why)
        seen = foreground.attend(listener, run, lambda: client, json=given["as_json"])
    ended = seen.run or run
    if not seen.attached and not seen.detached:
        return _follow(client, ended, as_json=given["as_json"])
    return _finish(client, ended, seen, as_json=given["as_json"])


def _follow(client: Client, run: Run, *, as_json: bool) -> int:
    """The run through the control plane alone."""
    from wherry.cli import logs, output
    from wherry.cli.foreground import Outcome

    try:
        logs.follow(client, run.id, stdout=sys.stderr if as_json else sys.stdout)
    except KeyboardInterrupt:
        output.note(f"the run goes on: wherry logs -f {run.id}  (stop it: wherry stop {run.id})")
        return 130
    return _finish(client, client.wait(run.id), Outcome(attached=False), as_json=as_json)


def _finish(client: Client, run: Run, seen: Outcome, *, as_json: bool) -> int:
    """The last words, and the status to exit with."""
    from wherry.cli import output, words
    from wherry.cli.main import complain

    if as_json:
        output.as_json(run)
    if seen.detached:
        return seen.status or 0
    status = words.exit_status(run) if seen.status is None else seen.status
    if not run.finished:
        return status
    if status == 0:
        if kept := client.files(run.id):
            files = "1 file" if len(kept) == 1 else f"{len(kept)} files"
            output.note(f"kept {files}: wherry files {run.id}")
    elif run.verdict is not None and not (seen.interrupted and status in (130, 143)):
        last = run.verdict.last_lines if not seen.attached else ()
        complain(
            "\n  ".join((f"{run.name} {run.state}: {run.verdict.message}", *last)), run.verdict.hint
        )
    return status


def _say_unrecorded(prepared: Prepared) -> None:
    """One line on what a run in place uses and its record does not hold: it cannot be repeated."""
    from wherry.bundle import unrecorded
    from wherry.cli import output

    if prepared.captured and (found := unrecorded(prepared.captured.manifest)):
        more = f", and {len(found) - 1} more: wherry show" if len(found) > 1 else ""
        output.note(f"not in the record: {found[0].path} ({found[0].why}){more}")


def say(prepared: Prepared) -> None:
    """What the person should know of a copy that travels."""
    from wherry.cli import output

    for text in prepared.notes:
        output.note(text)
    for left in prepared.left_out[:10]:
        output.note(f"left out: {left.path} ({left.why})")
    if len(prepared.left_out) > 10:
        output.note(f"left out: {len(prepared.left_out) - 10} more")
