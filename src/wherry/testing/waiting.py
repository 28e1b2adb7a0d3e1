"""
Waiting for what must come to pass: look until it is so, or fail with what was seen last.

For tests, here and in plug-ins that use the shipped contracts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T | None], *, within: float = 20.0) -> T:
    """
    What ``look`` returns once that is true. ``within``: seconds, generous, for busy machines.

    :raises AssertionError: with the last answer, when the time is over.
    """
    deadline = time.monotonic() + within
    pause = 0.002
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {within} s; last seen: {found!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
