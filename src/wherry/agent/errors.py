"""The one exception by which the agent's parts say that the program cannot be run, and why."""

from __future__ import annotations


class Failed(Exception):
    """``cause``: one of ``core.run.Cause``. ``hint``: the way out, for people; "" where unknown."""

    def __init__(self, cause: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.cause, self.message, self.hint = cause, message, hint
