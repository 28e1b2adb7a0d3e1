"""
Which Python a run is built with.

Called by ``bundle.environment``. The version that a person works with is taken wherever it is
allowed: what ran here runs there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from wherry.agent.uv import find_python
from wherry.bundle.interpreter import active_python, inspect
from wherry.errors import EnvironmentFailed

_CLAUSE = re.compile(r"(===|==|!=|<=|>=|<|>|~=)\s*(\d+(?:\.\d+)*)(\.\*)?")
#: Newest first: which minor versions are tried where the active one does not fit.
_MINORS = tuple(f"3.{minor}" for minor in range(14, 8, -1))


def fits(version: str, wanted: str) -> bool:
    """Whether ``3.12.1`` satisfies ``>=3.11,<3.13``. Clauses that are not understood are met."""
    ours = [int(n) for n in re.findall(r"\d+", version)[:3]]
    for operator, text, star in _CLAUSE.findall(wanted):
        theirs = [int(n) for n in text.split(".")]
        size = max(len(ours), len(theirs))
        a, b = (x + [0] * (size - len(x)) for x in (ours, theirs))
        same = ours[: len(theirs)] == theirs if star else a == b
        prefix = theirs[:-1]
        met = {
            "==": same,
            "===": same,
            "!=": not same,
            "<=": a <= b,
            ">=": a >= b,
            "<": a < b,
            ">": a > b,
            "~=": a >= b and ours[: len(prefix)] == prefix,
        }
        if not met[operator]:
            return False
    return True


def asked_for(text: str, *, uv: str, cache: Path) -> tuple[str, str]:
    """
    What ``--python`` names, a version or a path: (interpreter or version, version).

    :raises EnvironmentFailed: where it is neither.
    """
    if "/" in text:
        path = Path(text).expanduser().absolute()
        return str(path), inspect(path, cache=cache).version
    if not re.fullmatch(r"3(\.\d+){0,2}", text):
        raise EnvironmentFailed(
            f"{text!r} is neither a version of Python nor a path", hint="--python 3.12"
        )
    found = find_python(text, uv)
    return (found, inspect(Path(found), cache=cache).version) if found else (text, text)


def choose(
    wanted: str, environ: Mapping[str, str], *, uv: str, cache: Path, pinned: str = ""
) -> tuple[str, str]:
    """
    (interpreter or version, version) for a ``requires-python`` such as ``>=3.11``.

    ``pinned``: the text of ``.python-version``. Else the active interpreter if it fits, else the
    newest on this machine that does, else a version for uv to fetch.

    :raises EnvironmentFailed: where no Python that Wherry knows of fits.
    """
    if match := re.fullmatch(r"(?:cpython[-@])?(3\.\d+(?:\.\d+)?)", pinned.strip()):
        return asked_for(match[1], uv=uv, cache=cache)
    active = active_python(environ)
    version = inspect(active, cache=cache).version
    if fits(version, wanted):
        return str(active), version
    fitting = [m for m in _MINORS if fits(m, wanted) or fits(f"{m}.99", wanted)]
    for minor in fitting:
        if found := find_python(minor, ""):
            version = inspect(Path(found), cache=cache).version
            if fits(version, wanted):
                return found, version
    if not fitting:
        raise EnvironmentFailed(
            f"no Python satisfies requires-python {wanted!r}", hint="loosen it: >=3.11"
        )
    return asked_for(fitting[0], uv=uv, cache=cache)
