"""
Faults that a rehearsal injects: what may go wrong, to whom and when.

Called by ``core.job`` (a JobSpec carries them) and ``core.rehearsal``. The agent of the rank does
the rest, see ``agent.faults``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from wherry.errors import InvalidSpec

FaultKind = Literal["kill", "crash", "stop", "term", "partition", "slow"]

#: What each kind does, for people.
FAULTS: dict[str, str] = {
    "kill": "the rank's machine is lost: its program and its agent are killed at one moment",
    "crash": "the rank's program is killed by SIGKILL; its agent can tell",
    "stop": "the rank's machine is frozen: program and agent stand still, until they are replaced",
    "term": "the rank's machine says that it will go (SIGTERM): the program has its grace",
    "partition": "the rank is cut off: from the control plane, and as root from its peers",
    "slow": "the rank's program gets only a part of its time",
}
#: Those that end an attempt: something has to be tried again.
ENDING = frozenset({"kill", "crash", "stop", "term", "partition"})
#: Those of which only silence tells.
SILENT = frozenset({"stop", "partition"})


class Fault(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    One fault, injected once.

    Neither ``step`` nor ``after``: at the first step that follows a checkpoint; a slow rank from
    its first step on. ``agent.faults`` has the rule for programs that write none.
    """

    kind: FaultKind
    rank: Annotated[int, Meta(ge=0)]
    step: int | None = None  #: once a metric of the rank reaches this step
    after: Annotated[float, Meta(ge=0)] | None = None  #: seconds after the start of its program
    seconds: Annotated[float, Meta(gt=0)] | None = None  #: how long, of partition and slow
    factor: Annotated[float, Meta(gt=1, le=1000)] = 4.0  #: of slow: so many times slower
    attempt: Annotated[int, Meta(ge=1)] = 1  #: in which attempt of a gang

    def __str__(self) -> str:
        """As it is written after its option: ``2@step:10``."""
        text = f"{self.rank}"
        if self.kind == "slow" and self.factor != 4.0:
            text += f"x{self.factor:g}"
        if self.step is not None:
            text += f"@step:{self.step}"
        elif self.after is not None:
            text += f"@{self.after:g}s"
        return text if self.seconds is None else f"{text}+{self.seconds:g}s"

    def check(self, world_size: int) -> None:
        """:raises InvalidSpec: where there is no such rank, or it says too much."""
        if self.rank >= world_size:
            last = world_size - 1
            raise InvalidSpec(
                f"{self.kind} {self}: there is no rank {self.rank}",
                hint=f"the ranks go from 0 to {last}" if last else "the only rank is 0",
            )
        if self.step is not None and self.after is not None:
            raise InvalidSpec(f"{self.kind} {self}: a step and a time", hint="say one of them")
        if self.seconds is not None and self.kind not in ("partition", "slow"):
            raise InvalidSpec(
                f"{self.kind} {self}: it has no end",
                hint="only partition and slow have: --partition 3@step:10+20s",
            )
