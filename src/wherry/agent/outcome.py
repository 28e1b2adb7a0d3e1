"""
What an end means: the payload of EXIT. Pure.

Called by ``agent.main`` with everything that is known.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence

from wherry.agent.errors import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

_INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)


def outcome(
    code: int,
    why: str,
    *,
    attached: bool,
    ran_out: bool,
    error: str,
    missing: tuple[str, str] | None,
    spec: dict[str, Any],
    peak: int,
    last_lines: Sequence[str],
    shown: int = 20,
    world: int = 1,
    ports: Sequence[int] = (),
    taken: Collection[int] = (),
    ended: float = 0.0,
) -> dict[str, Any]:
    """
    EXIT's payload.

    ``code``: exit status, negative for a signal. ``why``: why we ended it. ``attached``: a person
    could interrupt it. ``ran_out``: the kernel killed for memory. ``error``: what a function
    raised. ``missing``: message and hint about a file that was left out. ``peak``: bytes of memory.
    ``last_lines``: all that is known of its end; ``shown`` of them go with a failure. ``world``:
    the world size. ``ports``: this rank's own; ``taken``: those that somebody else has now.
    ``ended``: when the program ended, seconds since the epoch.
    """
    state, cause, message = _cause(code, why, attached, ran_out or why == "oom", error)
    hint = ""
    if cause == "oom":
        limit = spec.get("resources", {}).get("memory")
        given = f"the {_mebibytes(limit)} it was given" if limit else "there is on this machine"
        seen = f"; it was seen to use {_mebibytes(peak)}" if peak else ""
        message = f"the program used more memory than {given}{seen}"
        hint = "give it more with --memory, or make batches smaller"
    elif cause == "timeout":
        message = f"the program took longer than its timeout of {spec.get('timeout'):g} s"
        hint = "give it longer with --timeout"
    elif cause in ("exit", "exception", "signal"):
        from wherry.agent.causes import diagnose  # only a failure pays for it

        found = diagnose(code, last_lines, error=error, world=world, ports=ports, taken=taken)
        if found is not None:
            cause, message, hint = found
        if missing and cause in ("exit", "exception"):
            message, hint = missing
    return {
        "state": state,
        "exit_code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "cause": cause,
        "message": with_hint(message, hint),
        "last_lines": list(last_lines[-shown:]) if code else [],
        "ended": ended,
    }


def _cause(code: int, why: str, attached: bool, oom: bool, error: str) -> tuple[str, str, str]:
    """(state, cause, message)"""
    if why in ("stopped", "round"):
        return "stopped", "stopped", "told to stop"
    if why == "preempted":
        return "stopped", "preempted", "its machine asked it to leave (SIGTERM)"
    if why == "timeout":
        return "failed", "timeout", ""
    if oom:
        return "failed", "oom", ""
    if code == 0:
        return "succeeded", "", ""
    if attached and code in _INTERRUPTED:
        return "stopped", "stopped", "interrupted from the terminal"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return "failed", "signal", f"killed by {name}"
    if error:
        return "failed", "exception", error
    return "failed", "exit", f"exited with status {code}"


def not_started(failed: Failed) -> dict[str, Any]:
    """EXIT's payload of a program that was never started."""
    return {
        "state": "stopped" if failed.cause in ("stopped", "preempted") else "failed",
        "exit_code": None,
        "signal": None,
        "cause": failed.cause,
        "message": with_hint(failed.message, failed.hint),
        "last_lines": [],
    }


def with_hint(message: str, hint: str) -> str:
    """Both in one text, as the control plane takes it apart."""
    return f"{message}\nhint: {hint}" if hint else message


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
