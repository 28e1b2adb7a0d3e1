"""``wherry context``: the control planes to talk to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from wherry.cli import options
from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.sdk.contexts import Context


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def context() -> None:
    """Manage the control planes to talk to. "local" is the one of this machine, built in."""


@context.command("list")
@options.json_option
def list_(as_json: bool) -> None:
    """List them; * marks the one in use."""
    from wherry.cli.output import Column, listing
    from wherry.sdk import contexts

    listing(
        [_data(found) for found in contexts.contexts()],
        [
            Column("", lambda row: "*" if row["current"] else ""),
            Column("NAME", lambda row: row["name"]),
            Column("URL", lambda row: row["url"] or "this machine"),
        ],
        json=as_json,
    )


@context.command()
@click.argument("name")
@click.argument("url")
@click.option(
    "--token-file", type=click.File("r"),
    help="Where the credential is; - is standard input. Else WHERRY_TOKEN, else a question.",
)  # fmt: skip
@options.json_option
def add(name: str, url: str, token_file: Any, as_json: bool) -> None:
    """Add a control plane. Its credential is never an argument: others could see that."""
    from wherry.sdk import contexts

    _print(contexts.add(name, url, _token(token_file)), as_json)


def _token(file: Any) -> str:
    token = file.read() if file is not None else os.environ.get("WHERRY_TOKEN", "")
    if not token and sys.stdin.isatty():
        token = click.prompt("token", hide_input=True, err=True)
    if not token.strip():
        raise InvalidInput("no credential", hint="--token-file FILE, or WHERRY_TOKEN")
    return str(token.strip())


@context.command()
@click.argument("name")
@options.json_option
def use(name: str, as_json: bool) -> None:
    """Talk to this one where --on does not name another."""
    from wherry.sdk import contexts

    _print(contexts.use(name), as_json)


@context.command()
@click.argument("name", default="")
@options.json_option
def check(name: str, as_json: bool) -> None:
    """Ask one whether it answers and knows the credential."""
    from wherry.cli import output
    from wherry.sdk import contexts

    status = contexts.check(name).status()
    output.thing(
        status,
        lambda s: [("url", s.url), ("version", s.version), ("pid", str(s.pid))],
        json=as_json,
    )


@context.command()
@click.argument("name")
@options.json_option
def rm(name: str, as_json: bool) -> None:
    """Forget one."""
    from wherry.cli import output
    from wherry.sdk import contexts

    contexts.remove(name)
    if as_json:
        output.as_json({"name": name})


def _data(found: Context) -> dict[str, Any]:
    """Without its credential."""
    url = found.endpoint.url if found.endpoint else None
    return {"name": found.name, "url": url, "current": found.current}


def _print(found: Context, as_json: bool) -> None:
    from wherry.cli import output

    output.thing(
        _data(found), lambda d: [("name", d["name"]), ("url", d["url"] or "this machine")],
        json=as_json,
    )  # fmt: skip
