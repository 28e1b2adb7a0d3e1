"""
Writes the reference pages that have a table as their source.

``python -m wherry.cli.reference docs/reference`` writes them; ``make docs`` and a test call it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from wherry import errors, settings
from wherry.cli.main import COMMANDS, EXIT_CODES, RUN_EXIT_CODES, cli

_HEAD = "<!-- written by `python -m wherry.cli.reference docs/reference`; do not edit -->\n\n"


def command_line() -> str:
    """Every command with its options, from the click tree."""
    context = click.Context(cli, info_name="wherry", **cli.context_settings)
    parts = ["# The command line\n", _help(cli)]
    for section, rows in COMMANDS.items():
        parts.append(f"## {section}\n")
        for name in rows:
            command = cli.get_command(context, name)
            assert command is not None
            parts += _command(command, name, context)
    return "\n".join(parts)


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, parent, name, **command.context_settings)
    path = context.command_path
    yield f"### {path}\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```console\n$ {path} {usage}\n```\n"
    yield _help(command)
    rows = [param for param in command.params if isinstance(param, click.Option)]
    if rows:
        yield "| option | what it does |\n| --- | --- |"
    for option in rows:
        names, text = option.get_help_record(context) or ("", "")
        yield f"| `{_cell(names)}` | {_cell(text)} |"
    yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, name, context)


def _help(command: click.Command) -> str:
    parts = [command.help or "", command.epilog or ""]
    paragraphs = "\n\n".join(parts).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def exit_codes() -> str:
    """What an exit status means."""
    rows = "".join(f"| {code} | {text} |\n" for code, text in EXIT_CODES.items())
    return f"# Exit codes\n\n{RUN_EXIT_CODES}\n\n| status | meaning |\n| --- | --- |\n{rows}"


def all_settings() -> str:
    """``settings.SETTINGS``."""
    rows = "".join(
        f"| `{s.variable}` | {_default(s.default)} | {s.unit} | {s.help} |\n"
        for s in settings.SETTINGS
    )
    return (
        "# Settings\n\nEnvironment variables.\n\n"
        f"| variable | default | unit | what it is |\n| --- | --- | --- | --- |\n{rows}"
    )


def _default(value: object) -> str:
    return f"`{value}`" if value != "" else "none"


def all_errors() -> str:
    """The tree of ``errors``."""
    rows = "".join(
        f"| `{code}` | `{cls.__name__}` | {cls.http_status} | {cls.exit_status} "
        f"| {(cls.__doc__ or '').strip().splitlines()[0]} |\n"
        for code, cls in sorted(errors.BY_CODE.items())
    )
    return (
        "# Errors\n\nAn HTTP answer carries an error as "
        '`{"error": {"code", "message", "hint"}}`; the Python client raises its class, the command '
        "line prints it and exits with its status.\n\n"
        f"| code | class | HTTP | exit | meaning |\n| --- | --- | --- | --- | --- |\n{rows}"
    )


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": command_line,
    "exit-codes.md": exit_codes,
    "settings.md": all_settings,
    "errors.md": all_errors,
}


def write(folder: Path) -> None:
    """Every page. Again: the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(_HEAD + page().rstrip() + "\n", "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
