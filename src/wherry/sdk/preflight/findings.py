"""
What pre-flight finds. Made by the other modules here; shown by the command line and ``wherry.run``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from wherry.errors import Preflight

Level = Literal["error", "warning"]


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that would go wrong in the run (``error``), or may (``warning``)."""

    level: Level
    code: str  #: a stable word: ``import``, ``syntax``, ``data-left-out``, ...
    message: str
    hint: str = ""  #: what to do
    file: str = ""  #: relative to the project
    line: int = 0  #: 0: not of one line

    @property
    def where(self) -> str:
        """``train.py:3``; "" where it is of no file."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        place = f"{self.where}: " if self.file else ""
        return f"{place}{self.message}" + (f"; {self.hint}" if self.hint else "")


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by place; each once."""
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda f: (f.level, f.file, f.line, f.code, f.message)))


def refuse(findings: Iterable[Finding]) -> None:
    """:raises Preflight: with every error at once, where there is one."""
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    lines = [f"{len(errors)} error{'s' * (len(errors) != 1)} found before anything was queued"]
    lines += [f"  {finding}" for finding in errors]
    raise Preflight(
        "\n".join(lines), hint="--no-preflight (preflight=False) submits it all the same"
    )
