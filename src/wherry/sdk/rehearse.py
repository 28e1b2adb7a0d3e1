"""
``wherry.rehearse(...)``: run a job, let things go wrong in it, and see whether it survives.

Called by people and by ``wherry rehearse``. ``core.rehearsal`` decides what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.core import files
from wherry.core.api import LogLine
from wherry.core.faults import Fault, FaultKind
from wherry.core.rehearsal import Rehearsal, arrange, judge, parse
from wherry.errors import InvalidInput
from wherry.sdk.client import Client
from wherry.sdk.connect import connect
from wherry.sdk.functions import Function
from wherry.sdk.submit import Draft, Prepared, prepare, send

if TYPE_CHECKING:
    from wherry.core.run import Run

Written = str | int | Iterable[str | int]


def rehearse(
    target: str | os.PathLike[str] | Callable[..., Any],
    /,
    *args: Any,
    kill: Written = (),
    crash: Written = (),
    stop: Written = (),
    term: Written = (),
    partition: Written = (),
    slow: Written = (),
    on: str = "",
    folder: str | os.PathLike[str] | None = None,
    log: Callable[[LogLine], None] | None = None,
    **options: Any,
) -> Rehearsal:
    """
    Run a script or a function with faults, wait for the end, and say what came of it.

    ::

        found = wherry.rehearse("train.py", workers=4, kill="2@step:10")
        assert found.ok, found

    :param kill: ranks, and when: ``2``, ``"2@step:10"``, ``"2@30s"``, or several of them. The
        others likewise; ``core.faults.FAULTS`` says what each of them does.
    :param on: a context's name. :param folder: the working folder.
    :param log: is called with each line of output as it comes.
    :param options: a job's keys, as in a job file: ``workers=4, restarts=2, metrics={...}``.
    :raises WherryError: where it cannot begin. A run that fails is no exception but a finding.
    """
    written: dict[FaultKind, Written] = {
        "kill": kill, "crash": crash, "stop": stop, "term": term, "partition": partition,
        "slow": slow,
    }  # fmt: skip
    faults = [parse(kind, text) for kind, said in written.items() for text in _each(said)]
    function = None
    words: tuple[str, ...] = ()
    if isinstance(target, str | os.PathLike):
        words = (os.fspath(target), *map(str, args))
    else:
        function = Function(target, args, {})
    draft = Draft(
        words=words,
        function=function,
        changes=options,
        folder=None if folder is None else Path(folder),
    )
    prepared = prepared_with(draft, faults)
    client = connect(on)
    return attend(client, send(client, prepared), log)


def prepared_with(draft: Draft, faults: Iterable[Fault]) -> Prepared:
    """The draft, ready to be sent, with its faults. Raises as ``prepare``, and ``InvalidSpec``."""
    if draft.foreground or draft.in_place:
        raise InvalidInput("a rehearsal works in a copy")
    prepared = prepare(draft)
    spec = arrange(prepared.spec, tuple(faults), restarts=draft.changes.get("restarts"))
    # A project that is edited while it is sent is captured again, from the draft.
    data = files.dump(spec)
    changes = {**draft.changes, **{key: data[key] for key in _ARRANGED if key in data}}
    return replace(prepared, spec=spec, draft=replace(draft, changes=changes))


def attend(client: Client, run: Run, log: Callable[[LogLine], None] | None = None) -> Rehearsal:
    """Wait for the end of a rehearsed run, and judge it. ``log`` gets its output meanwhile."""
    if log is not None:
        for line in client.logs(run.id, follow=True):
            log(line)
    client.wait(run.id)
    return judge(client.run(run.id), client.metrics(run.id))


_ARRANGED = ("faults", "restarts", "lease", "retry_on")


def _each(written: Written) -> list[str]:
    if isinstance(written, str | int):
        return [str(written)]
    return [str(one) for one in written]
