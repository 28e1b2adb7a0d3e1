"""
What pre-flight found, for people and as JSON.

Called by ``wherry check`` and ``wherry run``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wherry.cli import output
from wherry.cli.colour import paint
from wherry.sdk.preflight import Finding

_STYLES = {"error": "bold red", "warning": "bold yellow"}


def show(found: Sequence[Finding], *, json: bool) -> None:
    """All of them, on stdout: they are what was asked for."""
    if json:
        output.as_json([{"level": f.level, **output.plain(f)} for f in found])
        return
    for finding in found:
        place = f"{finding.where}: " if finding.file else ""
        level = paint(finding.level + ":", _STYLES[finding.level], sys.stdout)
        output.write(f"{place}{level} {finding.message} [{finding.code}]\n")
        if finding.hint:
            output.write(f"  {paint('hint:', 'bold cyan', sys.stdout)} {finding.hint}\n")
    if not found:
        output.note("nothing found that would go wrong")


def warn(found: Sequence[Finding]) -> None:
    """The warnings alone, on stderr; the errors come as one error."""
    for finding in found:
        if finding.level == "warning":
            output.note(f"{paint('warning:', 'bold yellow', sys.stderr)} {finding}")
