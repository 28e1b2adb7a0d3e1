"""
What is tried again, and when.

Called by ``core.job`` (are the rules rules?) and ``core.decide``. Pure. Faults of machines
(``causes.INFRASTRUCTURE``) are tried again within ``restarts``; ``retry_on`` adds to them and
``fail_on`` takes away. A rule is an exit status (``"75"``), a range of them (``"64-78"``), a signal
(``"SIGSEGV"``), a cause (``"oom"``, ``"timeout"``) or ``"any"``.
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable

from wherry.core.causes import CAUSES, INFRASTRUCTURE
from wherry.errors import InvalidSpec

LONGEST = 300.0  #: seconds: the delay is doubled with each retry up to here
_CODES = re.compile(r"([0-9]{1,3})(?:-([0-9]{1,3}))?")


def check(rule: str) -> None:
    """:raises InvalidSpec: where it is no rule."""
    codes = _CODES.fullmatch(rule)
    if codes is not None:
        low, high = int(codes[1]), int(codes[2] or codes[1])
        if not 1 <= low <= high <= 255:
            raise InvalidSpec(
                f"{rule!r} is not an exit status of a failure", hint="they go from 1 to 255"
            )
        return
    known = ["any", *sorted(CAUSES - {"", "stopped"}), *(s.name for s in signal.Signals)]
    if rule not in known:
        near = difflib.get_close_matches(rule, known, n=1, cutoff=0.7)
        raise InvalidSpec(
            f"{rule!r} is neither an exit status nor a signal nor a cause",
            hint=f"did you mean {near[0]!r}?"
            if near
            else "for example 75, 64-78, SIGSEGV, oom, any",
        )


def again(
    cause: str,
    exit_code: int | None,
    number: int | None,
    *,
    retry_on: Iterable[str],
    fail_on: Iterable[str],
) -> bool:
    """Whether such an end is tried again. ``number``: of the signal that killed the program."""
    if _any(fail_on, cause, exit_code, number):
        return False
    return cause in INFRASTRUCTURE or _any(retry_on, cause, exit_code, number)


def delay(backoff: float, tried: int) -> float:
    """Seconds to wait before the next try, when there were ``tried`` retries before."""
    return float(min(backoff * 2 ** min(tried, 32), max(LONGEST, backoff)))


def _any(rules: Iterable[str], cause: str, code: int | None, number: int | None) -> bool:
    return any(_matches(rule, cause, code, number) for rule in rules)


def _matches(rule: str, cause: str, code: int | None, number: int | None) -> bool:
    if rule in ("any", cause):
        return True
    if rule == "exit":  # whatever more is known of why it exited
        return bool(code)
    codes = _CODES.fullmatch(rule)
    if codes is not None:
        return code is not None and int(codes[1]) <= code <= int(codes[2] or codes[1])
    try:
        wanted = signal.Signals[rule]
    except KeyError:
        return False
    # A shell says 128 + n of a program that was killed.
    return wanted in (number, (code or 0) - 128)
