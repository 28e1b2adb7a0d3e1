"""
Options and arguments that several commands share, and the way to a control plane.

Called by every command module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wherry.errors import InvalidInput

if TYPE_CHECKING:
    from wherry.sdk.client import Client

F = TypeVar("F", bound=Callable[..., Any])


def connect(on: str) -> Client:
    """
    The control plane of a context; this machine's, started if need be, where none is named.

    :raises Unavailable: :raises NotFound: for an unknown context.
    """
    from wherry.sdk.connect import connect

    return connect(on)


def json_option(command: F) -> F:
    """``--json``: one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def on_option(command: F) -> F:
    """``--on``: which control plane."""
    return click.option(
        "--on", default="", metavar="CONTEXT", help="The control plane to talk to."
    )(command)


def run_argument(command: F) -> F:
    """The run a command is about: the last one where none is named."""
    return click.argument("ref", metavar="[RUN]", default="last")(command)


def duration(text: str) -> float:
    """Seconds, written ``90``, ``45m``, ``2h`` or ``1h30m``."""
    from wherry.core.job import parse_seconds

    return parse_seconds(text)


def amount(text: str) -> int:
    """Bytes, written ``512Mi``, ``4Gi`` or ``2G``."""
    from wherry.core.job import parse_bytes

    return parse_bytes(text)


def ranks(text: str) -> tuple[int, ...]:
    """Ranks, ascending, written ``0``, ``0,3`` or ``2-5``; none for ``""``."""
    found: set[int] = set()
    try:
        for part in text.split(",") if text else ():
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise InvalidInput(f"{text!r} names no ranks", hint="write 0, 0,3 or 2-5") from None
    return tuple(sorted(found))
