"""
What people do with ranks that run: a program beside theirs, their stacks.

Called by ``server.routes.look``. Which rank is meant is decided here; how it is reached is
``control.commands``'s business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import msgspec

from wherry.control.commands import Commands
from wherry.control.tokens import RankIdentity
from wherry.core.api import Call, Problem, ProcessStack, RankStack, ThreadStack
from wherry.core.decide import held
from wherry.core.run import Attempt, AttemptId, Rank, Run
from wherry.core.states import RANK_TERMINAL, RankState
from wherry.errors import NotFound, NotRunning, RankUnreachable
from wherry.store.base import Store

STACK = 30.0  #: seconds for a rank to tell its stacks


def choose(run: Run, attempt: Attempt | None, *, number: int | None, rank: int | None) -> Rank:
    """
    The rank that is meant. Pure. ``number``: of the attempt that was asked for.

    :raises NotRunning: :raises NotFound: where the run has no such rank.
    """
    ranks = _ranks(run, attempt, number)
    if rank is None:
        rank = min(held(run, attempt) if attempt else (), default=ranks[0].rank)
    chosen = _rank(run, ranks, rank)
    if chosen.state in RANK_TERMINAL:
        raise NotRunning(f"rank {rank} of run {run.id} {_did(chosen.state)}", hint=_keep(run))
    if chosen.state is RankState.ENDING and not (run.spec.hold and chosen.cause):
        raise NotRunning(f"the program of rank {rank} of run {run.id} is over", hint=_keep(run))
    if chosen.state in (RankState.PENDING, RankState.ARRIVED):
        raise NotRunning(
            f"rank {rank} of run {run.id} has not started its program yet: it is {chosen.state}",
            hint=f"wherry logs -f {run.id} --stream system",
        )
    return chosen


def started(run: Run, attempt: Attempt | None, *, ranks: Collection[int]) -> list[Rank]:
    """
    Those of ``ranks``, or of all, whose programs run. Pure.

    :raises NotRunning: where none does. :raises NotFound:
    """
    if ranks:
        return [choose(run, attempt, number=None, rank=rank) for rank in sorted(ranks)]
    found = [rank for rank in _ranks(run, attempt, None) if rank.state is RankState.RUNNING]
    if not found:
        raise NotRunning(f"no rank of run {run.id} runs now", hint=f"wherry show {run.id}")
    return found


def _ranks(run: Run, attempt: Attempt | None, number: int | None) -> tuple[Rank, ...]:
    if run.finished:
        raise NotRunning(f"run {run.id} {_did(run.state)}", hint=_keep(run))
    if attempt is None:
        raise NotRunning(f"run {run.id} is {run.state}", hint=run.reason)
    if number is not None and number != run.attempt:
        raise NotRunning(
            f"attempt {number} of run {run.id} does not run", hint=f"attempt {run.attempt} does"
        )
    return attempt.ranks


def _rank(run: Run, ranks: tuple[Rank, ...], number: int) -> Rank:
    for rank in ranks:
        if rank.rank == number:
            return rank
    last = ranks[-1].rank
    has = f"its ranks are 0 to {last}" if last else "it has rank 0 alone"
    raise NotFound(f"run {run.id} has no rank {number}", hint=has)


def _did(state: str) -> str:
    return f"was {state}" if state in ("stopped", "lost") else f"has {state}"


def _keep(run: Run) -> str:
    return f"to look into a failed rank: wherry run --from {run.id} --hold-on-failure 30m"


class Look:
    """Looks into the ranks of one control plane, by way of ``commands``."""

    def __init__(self, store: Store, commands: Commands) -> None:
        self._store, self.commands = store, commands

    def rank(self, run: Run, *, number: int | None, rank: int | None) -> RankIdentity:
        """The incarnation that is meant. Raises as ``choose``."""
        return _identity(choose(run, self._attempt(run), number=number, rank=rank))

    def ranks(self, run: Run, ranks: Collection[int]) -> list[RankIdentity]:
        """The incarnations whose programs run. Raises as ``started``."""
        return [_identity(one) for one in started(run, self._attempt(run), ranks=ranks)]

    def _attempt(self, run: Run) -> Attempt | None:
        return self._store.attempt(AttemptId(run.id, run.attempt)) if run.attempt else None

    async def stacks(self, ranks: list[RankIdentity], *, native: bool) -> list[RankStack]:
        """The stacks of these ranks, taken at once; what cannot be had is among the problems."""
        return list(await asyncio.gather(*(self._stack(who, native) for who in ranks)))

    async def _stack(self, who: RankIdentity, native: bool) -> RankStack:
        try:
            found = await self.commands.ask(who, "stack", {"native": native}, timeout=STACK)
            return read_stack(who.rank, found)
        except RankUnreachable as error:
            problem = Problem(code=error.code, message=error.message, hint=error.hint)
        except msgspec.ValidationError as error:
            problem = Problem(code="not-understood", message=f"rank {who.rank}: {error}")
        return RankStack(rank=who.rank, problems=(problem,))


def _identity(rank: Rank) -> RankIdentity:
    return RankIdentity(rank.attempt, rank.rank, rank.incarnation)


class _Frame(msgspec.Struct):
    name: str
    filename: str = ""
    line: int = 0


class _Thread(msgspec.Struct):
    thread_name: str | None = None
    thread_id: int = 0
    active: bool = False
    owns_gil: bool = False
    frames: list[_Frame] = []


class _Process(msgspec.Struct):
    pid: int
    command: str
    threads: list[_Thread]


class _Answer(msgspec.Struct):
    processes: list[_Process] = []
    problems: list[Problem] = []


def read_stack(rank: int, answer: dict[str, Any]) -> RankStack:
    """What an agent answered. :raises msgspec.ValidationError: where it is nonsense."""
    said = msgspec.convert(answer, _Answer)
    return RankStack(
        rank=rank,
        processes=tuple(
            ProcessStack(pid=p.pid, command=p.command, threads=tuple(map(_thread, p.threads)))
            for p in said.processes
        ),
        problems=tuple(said.problems),
    )


def _thread(thread: _Thread) -> ThreadStack:
    return ThreadStack(
        name=thread.thread_name or f"thread {thread.thread_id:#x}",
        calls=tuple(Call(name=f.name, file=f.filename, line=f.line) for f in thread.frames),
        active=thread.active,
        gil=thread.owns_gil,
    )
