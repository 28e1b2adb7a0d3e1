"""
The entry of the command line.

``wherry`` on the shell calls :func:`main`. Every sub-command lives in a module of its own that is
imported only when it was asked for: ``--help`` reads the table below and imports nothing but click.
The one place where an error becomes words on stderr and an exit status.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from wherry.errors import Internal, WherryError

#: section → name → (``module:attribute`` below ``wherry.cli``, the line that ``--help`` prints)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Run": {
        "run": ("run:run", "Run a script, module, program or job file"),
        "rehearse": ("rehearse:rehearse", "Run with faults, and see whether it resumes"),
        "check": ("run:check", "Look for mistakes in a run before it runs"),
        "retry": ("stop:retry", "Run again what ran before"),
        "stop": ("stop:stop", "Stop runs"),
        "rm": ("stop:rm", "Remove finished runs and all that they kept"),
    },
    "Look": {
        "ps": ("ps:ps", "List runs"),
        "show": ("show:show", "Show one run: state, cause, ranks, times, metrics"),
        "explain": ("explain:explain", "Say why a run waited, failed, was tried again"),
        "logs": ("logs:logs", "Print or follow what a run wrote"),
        "metrics": ("metrics:metrics", "Show the metrics of a run"),
        "files": ("files:files", "List the files that a run kept"),
        "get": ("files:get", "Copy a run's files to a folder"),
    },
    "Control plane": {
        "up": ("server:up", "Start the control plane"),
        "down": ("server:down", "Stop the control plane; runs go on"),
        "status": ("server:status", "Show the control plane"),
        "prune": ("server:prune", "Remove old runs and unused bytes"),
        "backup": ("server:backup", "Write everything to one file, while it runs"),
        "restore": ("restore:restore", "Replace everything by a backup"),
        "context": ("context:context", "Manage the control planes to talk to"),
    },
    "Wherry": {
        "version": ("version:version", "Print the version"),
        "completion": ("version:completion", "Print a completion script for a shell"),
    },
}

#: What an exit status means; ``docs/reference/exit-codes.md`` is generated from it.
EXIT_CODES: dict[int, str] = {
    0: "done; for a foreground run: the script ended with 0",
    1: "the run did not succeed and left no exit status of its own",
    2: "something you wrote is wrong: arguments, a job file, the project, its packages",
    3: "there is no such run, file or context, or the name fits several",
    4: "not possible in the present state",
    5: "the credential is missing, wrong, or does not allow this",
    6: "the control plane cannot be reached, is not ready, or is out of space",
    7: "the time to wait is over",
    70: "a defect of Wherry",
    126: "a program could not be started",
    127: "a program was not there",
    130: "interrupted by Ctrl-C",
    141: "the reader of the output went away",
}
RUN_EXIT_CODES = (
    "A foreground `wherry run` exits with the script's own status, and with 128 + n where "
    "signal n killed it."
)

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return [name for rows in COMMANDS.values() for name in rows]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import it. ``None`` where the table does not have it."""
        for rows in COMMANDS.values():
            if cmd_name in rows:
                module, _, attribute = rows[cmd_name][0].partition(":")
                loaded = __import__(f"wherry.cli.{module}", fromlist=[attribute])
                command: click.Command = getattr(loaded, attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """:raises click.UsageError: with the nearest name for one that nobody knows."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            from wherry.errors import did_you_mean

            hint = did_you_mean(name, self.list_commands(ctx))
            if name.endswith(".py") or os.path.exists(name):
                hint = f"wherry run {name}"
            raise click.UsageError(f"there is no command {name!r}\nhint: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, from the table alone."""
        width = max(len(name) for rows in COMMANDS.values() for name in rows)
        for section, rows in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in rows.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Exit codes and where to read on."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in EXIT_CODES.items()])
            formatter.write_text(RUN_EXIT_CODES)
        formatter.write_paragraph()
        formatter.write_text("Begin with `wherry run script.py`. More: `wherry COMMAND --help`.")


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from wherry._version import __version__

        click.echo(f"wherry {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings=SETTINGS)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
    help="Print the version and leave.",
)  # fmt: skip
def cli() -> None:
    """Build once, run everywhere: training jobs from a laptop to any cluster, unchanged."""


def complain(message: str, hint: str = "") -> None:
    """Say on stderr what went wrong and the way out."""
    from wherry.cli.colour import paint, visible

    print(paint("error:", "bold red", sys.stderr), visible(message), file=sys.stderr)
    if hint:
        print(paint("hint:", "bold cyan", sys.stderr), visible(hint), file=sys.stderr)


def _usage(error: click.ClickException) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return 2
    message, _, hint = error.format_message().partition("\nhint: ")
    context = getattr(error, "ctx", None)
    if not hint and context is not None:
        hint = f"{context.command_path} --help"
    complain(message[:1].lower() + message[1:].rstrip("."), hint)
    return 2


def _defect(error: Exception) -> int:
    """One line for the person; the traceback where a maintainer can read it."""
    import traceback

    text = "".join(traceback.format_exception(error))
    if os.environ.get("WHERRY_DEBUG"):
        sys.stderr.write(text)
        return Internal.exit_status
    import tempfile

    with tempfile.NamedTemporaryFile(
        "w", prefix="wherry-", suffix=".txt", delete=False, errors="backslashreplace"
    ) as file:
        file.write(f"arguments: {sys.argv[1:]!r}\n{text}")
    complain(
        f"a defect of Wherry: {type(error).__name__}: {error}",
        f"the traceback is in {file.name}; WHERRY_DEBUG=1 shows it at once; please report it",
    )
    return Internal.exit_status


def _call(args: Sequence[str]) -> int:
    """What ``click.Command.main`` does, but for its own words on Ctrl-C and closed pipes."""
    if instruction := os.environ.get("_WHERRY_COMPLETE"):
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "wherry", "_WHERRY_COMPLETE", instruction)
    try:
        with cli.make_context("wherry", list(args)) as context:
            cli.invoke(context)
        status = 0
    except click.exceptions.Exit as leave:
        status = leave.exit_code
    sys.stdout.flush()
    return status


def invoke(args: Sequence[str]) -> int:
    """Run a command line; the exit status. Raises nothing but ``SystemExit``."""
    try:
        return _call(args)
    except click.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as error:
        return _usage(error)
    except WherryError as error:
        complain(error.message, error.hint)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read us has gone. Python would complain again when it flushes at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _defect(error)


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a file name or a log line may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(invoke(sys.argv[1:]))


if __name__ == "__main__":
    main()
