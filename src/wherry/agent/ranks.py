"""
How the ranks of an attempt meet.

Called by ``agent.prepare``. Each rank holds some free ports, says so (``agent.sender``), and waits
until all have; then all get the same list.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any

from wherry.agent.calls import Control, Unreachable, backoff
from wherry.agent.errors import Failed
from wherry.agent.wake import Wake

_ASK = 10.0  #: seconds of one question


class Ports:
    """Free ports of this machine, held until ``release``, just before the program starts."""

    def __init__(self, count: int) -> None:
        self._sockets = []
        for _ in range(count):
            held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # A port that was only bound, never listened on, can be bound again at once.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
            self._sockets.append(held)
        self.numbers = [int(held.getsockname()[1]) for held in self._sockets]

    def release(self) -> None:
        """Let the program have them. Again: no error."""
        for held in self._sockets:
            held.close()

    def taken(self) -> list[int]:
        """Those that somebody else listens on by now: ask when the program has ended."""
        found = []
        for number in self.numbers:
            with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("", number))
                except OSError:
                    found.append(number)
        return found


def meet(config: dict[str, Any], wake: Wake, round: int = 0) -> tuple[int, list[dict[str, Any]]]:
    """
    The round and ``[{"rank", "address", "ports"}]`` of its ranks, once all have arrived.

    ``round``: of an elastic group: the one that this rank has left. Time in which the control plane
    does not answer does not count. :raises Failed: with cause "barrier", naming who is missing.
    """
    control = Control(config)
    waited, patience, missing = 0.0, float(config["barrier_timeout"]), []
    delays = backoff()
    while not wake.why:
        began = time.monotonic()
        try:
            ask = max(0.0, min(_ASK, patience - waited))
            answer = control.call("GET", f"/peers?wait={ask:.3f}&round={round}")
        except Unreachable:
            time.sleep(next(delays))
            continue
        delays = backoff()
        if answer["status"] == 200:
            control.close()
            return int(answer["round"]), answer["peers"]
        missing = answer["missing"]
        waited += time.monotonic() - began
        if waited >= patience:
            raise _not_met(config["run"], missing, patience)
        time.sleep(0.02)
    raise Failed("stopped", "told to stop before the ranks had met")


def _not_met(run: str, missing: list[int], patience: float) -> Failed:
    """Who did not arrive: ``core.blame`` reads the numbers, and gives the verdict on those."""
    longer = "WHERRY_BARRIER_TIMEOUT gives longer"
    if not missing:
        return Failed("barrier", f"the ranks did not meet within {patience:g} s", longer)
    parts: list[list[int]] = []
    for rank in sorted(missing):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    who = ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
    return Failed(
        "barrier",
        f"rank{'s' * (len(missing) > 1)} {who} did not arrive within {patience:g} s",
        f"why: wherry logs {run} --rank {parts[0][0]} --stream system; {longer}",
    )
