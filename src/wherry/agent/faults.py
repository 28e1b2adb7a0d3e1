"""
Faults that a rehearsal injects into its own rank: a lost machine, a cut line, a slow processor.

Made by ``agent.main`` where the job has faults of this rank; polled by ``agent.watch``. It works on
any back end, since all is done from inside. Each is an EVENT "fault" of its moment, which the
control plane has before the fault can keep it back.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable

from wherry.agent import platform, protocol
from wherry.agent.journal import Journal
from wherry.agent.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

#: Metrics whose value is how far the program is, where they have no step but their own count.
COUNTERS = frozenset({"step", "steps", "global_step", "iteration", "iter", "epoch"})
_ACK = 2.0  #: seconds that the control plane has to learn of a fault before it happens
_SLICE = 0.2  #: seconds in which a slow program gets its part once
_SLOW = 30.0  #: seconds that a program is slow where nobody says
_NO_CHECKPOINT = 30.0  #: seconds after the first step: then it is taken to write none
_NO_STEP = 60.0  #: seconds after the start: then it is taken to report none


def mine(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The faults of this rank. A later incarnation, or another attempt, has none of them."""
    if config["incarnation"] != 1:
        return []
    attempt, rank = config["attempt"], config["rank"]
    faults = config["spec"].get("faults", ())
    return [f for f in faults if f["rank"] == rank and f.get("attempt", 1) == attempt]


class Progress:
    """How far the program is, by what it has reported. Fed from any thread."""

    def __init__(self) -> None:
        self.step: int | None = None  #: the highest that was seen
        self.points = 0  #: how many were seen
        self._counts: dict[str, int] = {}

    def feed(self, payload: bytes) -> None:
        """The payload of a METRIC frame."""
        for name, steps, _, values in protocol.unpack_series(payload):
            for step, value in zip(steps, values):
                self._point(name, step, value)

    def _point(self, name: str, step: int, value: float) -> None:
        self.points += 1
        count = self._counts.get(name, 0)
        if name in COUNTERS and step == count and abs(value) < 2**53:
            self._counts[name] = count + 1
            step = int(value)
        if self.step is None or step > self.step:
            self.step = step


class Machine:
    """What is done to the rank's processes and its line. The tests have one of their own."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._network: dict[str, str] = config.get("network") or {}

    @property
    def no_line(self) -> str:
        """Why there is no line to the peers that can be cut; "" where there is."""
        if "link" in self._network:
            return ""
        return self._network.get("missing") or "that is done on one machine only"

    def program(self, number: int) -> None:
        """A signal to every process of the program."""
        platform.kill([p.pid for p in platform.descendants(os.getpid())], number)

    def die(self) -> None:
        """The program and this agent, at one moment."""
        self.program(signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def stand_still(self) -> None:
        """This agent. Returns when somebody wakes it."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def notice(self) -> None:
        """The machine will go."""
        os.kill(os.getpid(), signal.SIGTERM)

    def plane(self, there: bool) -> None:
        """The line to the control plane."""
        from wherry.agent.calls import CUT

        (CUT.clear if there else CUT.set)()

    def line(self, there: bool) -> None:
        """The line to the peers, where there is one."""
        net = self._network
        if "link" in net:
            state = "up" if there else "down"
            words = [net["ip"], "-n", net["hub"], "link", "set", "dev", net["link"], state]
            with platform.helper(words) as process:
                process.wait()


class Faults:
    """
    The faults of one rank, looked at every ``pace`` seconds. ``clock`` is monotonic;
    ``sleep(seconds)`` returns early, and then true, when there is no program or it must end.
    """

    pace = 0.02

    def __init__(
        self,
        config: dict[str, Any],
        journal: Journal,
        wake: Wake,
        *,
        machine: Machine | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], bool] | None = None,
    ) -> None:
        self._faults = mine(config)
        self._rank, self._lease = config["rank"], float(config["lease"])
        self._checkpoints = config["checkpoints"]
        self._journal, self._wake, self._clock = journal, wake, clock
        self._machine = machine or Machine(config)
        self._sleep = sleep or self._rest
        self._progress = Progress()
        self._began: float | None = None
        self._first: float | None = None  # when the first step was seen
        self._kept: int | None = None  # how many points there were when a checkpoint was seen
        self._over = threading.Event()
        journal.heard = self._progress.feed

    def began(self) -> None:
        """The program has started, perhaps again."""
        self._began = self._clock() if self._began is None else self._began
        self._over.clear()

    def over(self) -> None:
        """The program has ended."""
        self._over.set()

    def tick(self, take: Callable[[], None]) -> None:
        """Inject what is due. ``take`` reads everything that the program has reported by now."""
        for fault in list(self._faults):
            if self._over.is_set() or self._wake.why:
                return
            if self._due(fault):
                self._faults.remove(fault)
                getattr(self, f"_{fault['kind']}")(fault, take)

    # --- when
    def _due(self, fault: dict[str, Any]) -> bool:
        now, began = self._clock(), self._began
        if began is None:
            return False
        step = self._progress.step
        if self._first is None and step is not None:
            self._first = now
        if "step" in fault:
            return step is not None and step >= fault["step"]
        if "after" in fault:
            return now >= began + float(fault["after"])
        if fault["kind"] == "slow":
            return self._first is not None or now >= began + _NO_STEP
        if self._kept is None and _holds_a_file(self._checkpoints):
            self._kept = self._progress.points
        if self._kept is not None and self._progress.points > self._kept:
            return True
        if self._first is None:
            return now >= began + _NO_STEP
        return self._kept is None and now >= self._first + _NO_CHECKPOINT

    # --- what
    def _kill(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        self._freeze(take)
        self._say(fault, "its program and its agent are killed")
        self._machine.die()

    def _crash(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        self._freeze(take)
        self._say(fault, "its program is killed")
        self._machine.program(signal.SIGKILL)

    def _stop(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        self._freeze(take)
        self._say(fault, "its program and its agent stand still")
        self._machine.stand_still()
        self._machine.program(signal.SIGCONT)

    def _term(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        take()
        self._say(fault, "its machine says that it will go", wait=False)
        self._machine.notice()

    def _partition(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        seconds = float(fault.get("seconds") or 2 * self._lease)
        take()
        why = self._machine.no_line
        peers = f", not from its peers: {why}" if why else " and from its peers"
        self._say(fault, f"cut off for {seconds:g} s from the control plane{peers}")
        self._aside(self._cut, seconds)

    def _cut(self, seconds: float) -> None:
        # Whoever would tell it to stop cannot reach it either.
        self._wake.deaf()
        self._machine.line(False)
        self._machine.plane(False)
        try:
            self._sleep(seconds)
        finally:
            # First to learn that it was replaced: its address may be somebody else's by now.
            self._machine.plane(True)
            self._wake.ended.wait(_ACK)
            self._machine.line(True)
            self._wake.hear()

    def _slow(self, fault: dict[str, Any], take: Callable[[], None]) -> None:
        seconds, factor = float(fault.get("seconds") or _SLOW), float(fault.get("factor") or 4.0)
        self._say(fault, f"{factor:g} times slower for {seconds:g} s", wait=False)
        self._aside(self._crawl, seconds, factor)

    def _crawl(self, seconds: float, factor: float) -> None:
        end = self._clock() + seconds
        while self._clock() < end:
            self._machine.program(signal.SIGSTOP)
            ended = self._sleep(_SLICE * (1 - 1 / factor))
            self._machine.program(signal.SIGCONT)
            if ended or self._sleep(_SLICE / factor):
                return

    # --- with what
    def _freeze(self, take: Callable[[], None]) -> None:
        """From this moment on it does nothing; what it did is told."""
        self._machine.program(signal.SIGSTOP)
        take()

    def _say(self, fault: dict[str, Any], what: str, *, wait: bool = True) -> None:
        """Tell of it, and wait until the control plane knows what it could not learn later."""
        step = self._progress.step
        where = "" if step is None else f" at step {step}"
        record = {
            "kind": "fault",
            "message": f"{fault['kind']}: rank {self._rank}{where}: {what}",
        }
        self._journal.append(protocol.EVENT, json.dumps(record).encode())
        end = time.monotonic() + _ACK
        while wait and self._journal.unsent and time.monotonic() < end:
            time.sleep(0.01)

    def _aside(self, action: Callable[..., None], *args: float) -> None:
        threading.Thread(target=action, args=args, name="fault", daemon=True).start()

    def _rest(self, seconds: float) -> bool:
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0:
            if self._over.is_set() or self._wake.ended.wait(min(left, _SLICE)):
                return True
        return False


def _holds_a_file(folder: str) -> bool:
    """Whether there is a file in it, at any depth."""
    return any(files for _, _, files in os.walk(folder))
