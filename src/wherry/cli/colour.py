"""
Whether and how to colour: the one reader of ``NO_COLOR`` and ``CLICOLOR_FORCE``.

Called by everything in ``cli`` that writes for people. Imports next to nothing, so it is free.
"""

from __future__ import annotations

import os
import re
from typing import IO, Any

_CODES = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34",
    "magenta": "35", "cyan": "36",
}  # fmt: skip
#: One per rank, in turn.
RANKS = ("cyan", "green", "yellow", "magenta", "blue", "red")


_SGR = re.compile(r"\x1b\[[0-9;:]*m")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """
    ``text`` that a terminal shows and does not obey.

    Colours go; other control characters but line feed and tab are written out.
    """
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], _SGR.sub("", text))


def is_terminal(stream: IO[Any] | None) -> bool:
    """Whether a person looks at the stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def wants_colour(stream: IO[Any] | None) -> bool:
    """``NO_COLOR`` says no, then ``CLICOLOR_FORCE`` yes, then a capable terminal does."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: IO[Any] | None) -> str:
    """``text`` in a style such as ``bold red``, if the stream is to have colours."""
    if not style or not wants_colour(stream):
        return text
    return f"\x1b[{';'.join(_CODES[word] for word in style.split())}m{text}\x1b[0m"
