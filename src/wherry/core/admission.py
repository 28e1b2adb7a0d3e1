"""
Who may start, on a back end that has no scheduler of its own.

Called by ``control.queue`` and ``control.runs``. Pure. First come, first served within a priority;
nobody overtakes a run that does not fit yet, so a large run never starves.

What a rank that says nothing gets: one core, or its share of the machine where there are fewer
cores than ranks. A foreground run that says nothing is a person at a terminal: it starts at once
and is charged nothing, as ``python train.py`` would; alone, it has the whole machine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from msgspec import Struct

from wherry.core.job import Amount, JobSpec, Resources, format_bytes
from wherry.core.roster import shares
from wherry.errors import UnsatisfiableResources


def need(spec: JobSpec, total: Amount, *, foreground: bool = False) -> Amount:
    """What the run is charged, over all its ranks."""
    parts = shares(spec)
    cpu = sum(count * ask.cpu for count, ask in parts if ask.cpu is not None)
    quiet = sum(count for count, ask in parts if ask.cpu is None)
    if not foreground:
        cpu += max(0.0, min(float(quiet), total.cpu - cpu))
    return Amount(
        cpu=cpu,
        memory=sum(count * (ask.memory or 0) for count, ask in parts),
        gpu=sum(count * ask.gpu for count, ask in parts),
    )


def threads(spec: JobSpec, ask: Resources, total: Amount, *, foreground: bool = False) -> int:
    """Cores allotted to a rank of ``spec`` that asks for ``ask``, at least 1."""
    if ask.cpu is not None:
        return max(1, math.floor(ask.cpu))
    if foreground:
        return max(1, int(total.cpu) // spec.world_size)
    return 1


def check(spec: JobSpec, total: Amount) -> None:
    """:raises UnsatisfiableResources: where even an empty back end has too little."""
    wanted = need(spec, total)
    if any(ask.cpu is not None for _, ask in shares(spec)) and wanted.cpu > total.cpu:
        _refuse("core" if wanted.cpu == 1 else "cores", f"{wanted.cpu:g}", f"{total.cpu:g}", spec)
    if wanted.memory > total.memory:
        _refuse("memory", format_bytes(wanted.memory), format_bytes(total.memory), spec)
    if wanted.gpu > total.gpu:
        _refuse("GPU" if wanted.gpu == 1 else "GPUs", str(wanted.gpu), str(total.gpu), spec)


def _refuse(kind: str, wanted: str, total: str, spec: JobSpec) -> None:
    each = f" ({spec.world_size} ranks)" if spec.world_size > 1 else ""
    raise UnsatisfiableResources(
        f"the run asks for {wanted} {kind}{each}; this back end has {total}",
        hint="ask for less, or use fewer workers: wherry status shows what there is",
    )


def fits(wanted: Amount, used: Amount, total: Amount) -> bool:
    """Whether ``wanted`` finds room beside ``used``. Rounding of fractions is forgiven."""
    return (
        used.cpu + wanted.cpu <= total.cpu + 1e-6
        and used.memory + wanted.memory <= total.memory
        and used.gpu + wanted.gpu <= total.gpu
    )


def add(a: Amount, b: Amount, sign: int = 1) -> Amount:
    """``a + sign * b``."""
    return Amount(
        cpu=a.cpu + sign * b.cpu, memory=a.memory + sign * b.memory, gpu=a.gpu + sign * b.gpu
    )


class Waiting(Struct, frozen=True, order=True):
    """A run in the queue; the order of the fields is the order of service."""

    rank: int  #: minus its priority
    order: int  #: when it came
    run: str


class Ledger:
    """The queue of one back end and what its runs are charged. In memory; rebuilt at a start."""

    def __init__(self, total: Amount) -> None:
        self.total = total
        self.used = Amount()
        self._charged: dict[str, Amount] = {}
        self._waiting: dict[str, tuple[Waiting, Amount]] = {}
        self._heap: list[Waiting] = []
        self._count = 0

    def wait(self, run: str, wanted: Amount, *, priority: int = 0) -> None:
        """Put a run at the end of its priority. Again: keeps its place."""
        if run in self._waiting or run in self._charged:
            return
        self._count += 1
        entry = Waiting(-priority, self._count, run)
        self._waiting[run] = (entry, wanted)
        heapq.heappush(self._heap, entry)

    def charge(self, run: str, wanted: Amount) -> None:
        """Note that a run has its share. Again: nothing."""
        self._waiting.pop(run, None)
        if run not in self._charged:
            self._charged[run] = wanted
            self.used = add(self.used, wanted)

    def release(self, run: str) -> None:
        """The run has left, from the queue or from its place. Again: nothing."""
        self._waiting.pop(run, None)
        if (wanted := self._charged.pop(run, None)) is not None:
            # Sums of fractions drift; an empty ledger is exactly empty.
            self.used = add(self.used, wanted, -1) if self._charged else Amount()

    def admit(self) -> list[str]:
        """Charge, in order, every waiting run that may start now, and return them."""
        admitted = []
        while self._heap:
            head = self._heap[0]
            entry = self._waiting.get(head.run)
            if entry is None or entry[0] != head:  # it has left
                heapq.heappop(self._heap)
                continue
            if not fits(entry[1], self.used, self.total):
                break
            heapq.heappop(self._heap)
            self.charge(head.run, entry[1])
            admitted.append(head.run)
        return admitted

    def holds(self, run: str) -> bool:
        """Whether the run has its share."""
        return run in self._charged

    def reason(self, run: str) -> str:
        """Why a waiting run waits, for people; "" where it does not."""
        entry = self._waiting.get(run)
        if entry is None:
            return ""
        mine, wanted = entry
        ahead = sum(other < mine for other, _ in self._waiting.values())
        parts = [f"{ahead} ahead in the queue"] if ahead else []
        parts += _lacking(wanted, self.used, self.total)
        users = len([a for a in self._charged.values() if a != Amount()])
        return f"{'; '.join(parts)}; {users} running" if parts else ""


def _lacking(wanted: Amount, used: Amount, total: Amount) -> Iterable[str]:
    if used.cpu + wanted.cpu > total.cpu + 1e-6:
        idle = max(0.0, total.cpu - used.cpu)
        yield f"needs {_count(wanted.cpu, 'core')}, {idle:.3g} of {total.cpu:g} free"
    if used.memory + wanted.memory > total.memory:
        free = format_bytes(max(0, total.memory - used.memory))
        yield f"needs {format_bytes(wanted.memory)} of memory, {free} free"
    if used.gpu + wanted.gpu > total.gpu:
        free_gpus = max(0, total.gpu - used.gpu)
        yield f"needs {_count(wanted.gpu, 'GPU')}, {free_gpus} of {total.gpu} free"


def _count(number: float, what: str) -> str:
    return f"{number:.3g} {what}{'s' * (number != 1)}"
