"""``wherry stack``: what every rank's Python does now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import click

from wherry.cli import options

if TYPE_CHECKING:
    from wherry.core.api import Call, Problem, ProcessStack, RankStack

Key: TypeAlias = "tuple[tuple[str, tuple[Call, ...]], ...]"  # the threads' names and calls
_NONE = 4  # exit status where nothing could be looked into


@click.command()
@options.run_argument
@click.option("--rank", "-r", default="", metavar="RANKS", help="Only these: 0, 0,3 or 2-5.")
@click.option("--native", is_flag=True, help="C, C++ and Cython calls too, where they can be read.")
@options.on_option
@options.json_option
@click.pass_context
def stack(ctx: click.Context, ref: str, rank: str, native: bool, on: str, as_json: bool) -> None:
    """
    Show the Python stack of every rank, all taken at once; the latest call first.

    All Python processes below a rank's program are shown. Ranks that do the same are shown once.
    """
    from wherry.cli import output
    from wherry.cli.main import complain

    found = options.connect(on).stack(ref, ranks=options.ranks(rank), native=native)
    if as_json:
        output.as_json(found)
    else:
        output.write("".join(f"{line}\n" for line in lines(found)))
        for ranks, problem in problems(found):
            complain(f"{ranks} {problem.message}", problem.hint)
    if not any(one.processes for one in found):
        ctx.exit(_NONE)


def lines(found: Sequence[RankStack]) -> Iterator[str]:
    """The stacks in words, those that are the same under the ranks that have them. Pure."""
    same: dict[Key, list[tuple[int, ProcessStack]]] = {}
    for rank in found:
        for process in rank.processes:
            key = tuple((thread.name, thread.calls) for thread in process.threads)
            same.setdefault(key, []).append((rank.rank, process))
    for at, group in enumerate(same.values()):
        if at:
            yield ""
        processes = [process for _, process in group]
        yield f"{brackets([rank for rank, _ in group])} {processes[0].command}"
        yield from _threads(processes)


def problems(found: Sequence[RankStack]) -> list[tuple[str, Problem]]:
    """What could not be had, with the ranks that it is about. Pure."""
    same: dict[Problem, list[int]] = {}
    for rank in found:
        for problem in rank.problems:
            same.setdefault(problem, []).append(rank.rank)
    return [(brackets(ranks), problem) for problem, ranks in same.items()]


def brackets(ranks: Sequence[int]) -> str:
    """``[0-3,7]`` for the ranks; one that has several such processes is named once. Pure."""
    from wherry.core.remarks import spans

    return f"[{spans(sorted(set(ranks)))}]"


def _threads(processes: Sequence[ProcessStack]) -> Iterator[str]:
    """The threads of processes with the same stacks; what they do only where all do."""
    for thread, *others in zip(*(process.threads for process in processes), strict=True):
        doing = []
        if thread.active and all(other.active for other in others):
            doing.append("active")
        if thread.gil and all(other.gil for other in others):
            doing.append("holds the GIL")
        yield f"  {thread.name}" + (f" ({', '.join(doing)})" if doing else "")
        for call in thread.calls:
            where = f"{call.file}:{call.line}" if call.line else call.file
            yield f"    {call.name} ({where})"
