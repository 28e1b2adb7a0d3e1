"""
``wherry.run(...)`` and the handle that it returns.

Called by people: in scripts, in notebooks and at the prompt. It needs no event loop and sets no
signal handler; leaving Python leaves the runs as they are.
"""

from __future__ import annotations

import hashlib
import html
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.core import files
from wherry.core.api import LogLine, MetricSeries, RunDetail
from wherry.core.bundle import check_path
from wherry.core.explain import Fact, explain
from wherry.core.job import Group, JobSpec, Scalar
from wherry.core.run import File, Verdict
from wherry.core.run import Run as Snapshot
from wherry.core.schema import FILLED_IN
from wherry.core.states import RunState
from wherry.errors import InvalidInput, NestedSubmit, NotFound, RunFailed, Unavailable, WaitTimeout
from wherry.sdk.client import Client, Stream
from wherry.sdk.connect import connect
from wherry.sdk.contexts import chosen, context
from wherry.sdk.functions import Function, load_result
from wherry.sdk.submit import Draft, Prepared, prepare, send

if TYPE_CHECKING:
    from wherry.bundle.environment import Choice

Target = str | os.PathLike[str] | JobSpec | Callable[..., Any]


def run(
    target: Target | None = None,
    /,
    *args: Any,
    module: str = "",
    on: str = "",
    name: str | None = None,
    workers: int | tuple[int, int] | None = None,
    group: Group | None = None,
    processes: int | None = None,
    cpu: float | None = None,
    memory: str | int | None = None,
    gpu: int | None = None,
    env: Mapping[str, str] | None = None,
    params: Mapping[str, Scalar] | None = None,
    metrics: Mapping[str, Any] | None = None,
    restarts: int | None = None,
    retry_on: Iterable[str | int] | None = None,
    fail_on: Iterable[str | int] | None = None,
    backoff: str | float | None = None,
    timeout: str | float | None = None,
    grace: str | float | None = None,
    priority: int | None = None,
    tags: Iterable[str] | None = None,
    note: str | None = None,
    environment: Choice = "auto",
    python: str = "",
    packages: Iterable[str] = (),
    folder: str | os.PathLike[str] | None = None,
    preflight: bool = True,
    **kwargs: Any,
) -> Run:
    """
    Submit a run and return at once. It works in a copy of the project.

    ::

        wherry.run("train.py", "--epochs", 3, workers=4)
        wherry.run(module="package.train")
        wherry.run("job.yaml", workers=8)
        wherry.run(wherry.JobSpec(command=("python", "train.py"), workers=4))
        wherry.run(train, epochs=3).result()

    The options are keyword-only. All other keywords go to the function; where one of them has the
    name of an option, bind it before: ``wherry.run(functools.partial(train, name="x"))``.

    :param target: a script, a job file, a command, or a function; ``args`` are its arguments. Or a
        JobSpec: its command in a copy of the project, in the environment that ``environment`` says.
    :param module: a module to run as ``python -m``, instead of ``target``.
    :param on: a context's name; "" is the one in use.
    :param workers: how many at once; ``(2, 8)``: an elastic group of 2 to 8.
    :param retry_on: what else is tried again within ``restarts``: exit statuses, signals, causes.
    :param backoff: before the first retry, seconds or "1m"; doubled with each.
    :param cpu: cores of one rank. :param memory: of one rank, bytes or "4Gi". :param gpu: devices.
    :param timeout: of one attempt, seconds or "2h". :param grace: from SIGTERM to SIGKILL.
    :param metrics: how to read metrics from output: ``{"accuracy": "accuracy=([0-9.]+)"}``.
    :param environment: "auto", or one rung of the ladder: "script", "lock", "requirements",
        "active" (the interpreter in use), "none" (Python alone).
    :param python: build the environment with this version. :param packages: and with these.
    :param folder: the working folder; by default the current one.
    :param preflight: look for mistakes before anything is queued; what may be one is a Python
        warning. :raises Preflight: for what is sure to fail.
    :raises NestedSubmit: in a rank of another run. :raises WherryError: what is wrong, and a hint.
    """
    refuse_nested()
    resources = {"cpu": cpu, "memory": memory, "gpu": gpu}
    said: dict[str, Any] = {
        "name": name, "workers": _workers(workers), "group": group, "processes": processes,
        "resources": _said(resources) or None, "env": env, "params": params, "metrics": metrics,
        "restarts": restarts, "retry_on": _words(retry_on), "fail_on": _words(fail_on),
        "backoff": backoff, "timeout": timeout, "grace": grace, "priority": priority,
        "tags": None if tags is None else tuple(tags), "note": note,
    }  # fmt: skip
    base = _changes(target) if isinstance(target, JobSpec) else {}
    words, function = _work(target, module, args, kwargs)
    draft = Draft(
        words=words,
        function=function,
        changes=files.merge(base, _said(said)),
        folder=Path(folder) if folder is not None else None,
        environment=environment,
        python=python,
        packages=tuple(packages),
    )
    prepared = prepare(draft)
    if preflight:
        _examine(prepared, on)
    client = connect(on)
    return Run(client, send(client, prepared, why=chosen(on)))


def _examine(prepared: Prepared, on: str) -> None:
    import warnings

    from wherry.sdk import preflight

    found = preflight.examine(prepared, here=context(on).endpoint is None)
    for finding in found:
        if finding.level == "warning":
            warnings.warn(str(finding), stacklevel=3)
    preflight.refuse(found)


class Run:
    """
    A run, seen from here. Its properties are as of the last look: ``refresh`` looks again.

    Safe from any thread.
    """

    def __init__(self, client: Client, snapshot: Snapshot) -> None:
        self._client = client
        self._snapshot = snapshot

    @property
    def id(self) -> str:
        """Its id."""
        return self._snapshot.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._snapshot.name

    @property
    def spec(self) -> JobSpec:
        """What was asked for, in full."""
        return self._snapshot.spec

    @property
    def state(self) -> RunState:
        """Where it is, after a look."""
        return self.refresh()._snapshot.state

    @property
    def finished(self) -> bool:
        """Whether it is over, after a look."""
        return self.refresh()._snapshot.finished

    @property
    def verdict(self) -> Verdict | None:
        """Why it ended as it did; None while it has not."""
        return self._snapshot.verdict

    def refresh(self) -> Run:
        """Look again where it is. Returns itself."""
        if not self._snapshot.finished:
            self._snapshot = self._client.wait(self.id, 0)
        return self

    def detail(self) -> RunDetail:
        """Everything known of it: attempts, ranks, parameters, metrics at a glance, events."""
        return self._client.run(self.id)

    def explain(self) -> tuple[Fact, ...]:
        """Why it waited, failed, was tried again, went there: from recorded facts, in order."""
        return explain(self.detail())

    def wait(self, timeout: float | None = None) -> Run:
        """
        Wait until it is over, however it ends. Returns itself.

        :param timeout: seconds; None: no end. :raises WaitTimeout: when they are over.
        """
        if not self._snapshot.finished:
            self._snapshot = self._client.wait(self.id, timeout)
        if not self._snapshot.finished:
            raise WaitTimeout(
                f"run {self.id} is {self._snapshot.state} after {timeout:g} s",
                hint=self._snapshot.reason or "it goes on; wait again, or stop it",
            )
        return self

    def result(self, timeout: float | None = None) -> Any:
        """
        What rank 0's function returned; None for a script.

        :param timeout: seconds to wait for the end; None: no end.
        :raises WaitTimeout: :raises RunFailed: with the verdict, where it did not succeed. Where
            the function raised: that exception, with the traceback of there as its cause.
        """
        self.wait(timeout)
        if self._snapshot.state != RunState.SUCCEEDED:
            if pickled := self._exception():
                load_result(pickled)
            raise failure(self._snapshot)
        return None if self.spec.call is None else load_result(self._client.result(self.id))

    def logs(
        self,
        *,
        follow: bool = False,
        rank: int | None = None,
        stream: Stream | None = None,
        tail: int | None = None,
    ) -> Iterator[LogLine]:
        """
        Lines of output; ``print`` shows their text.

        :param follow: until the run is over, also where it has not started.
        """
        return self._client.logs(
            self.id,
            follow=follow,
            ranks=() if rank is None else (rank,),
            streams=() if stream is None else (stream,),
            tail=tail,
        )

    def metrics(self, *names: str, rank: int | None = None) -> list[MetricSeries]:
        """What was reported: one series for each name, rank and attempt."""
        return self._client.metrics(self.id, names=names, ranks=() if rank is None else (rank,))

    def stop(self, *, grace: float | None = None) -> Run:
        """
        Ask it to stop; returns itself at once. Again, or after the end: no error.

        :param grace: seconds from SIGTERM to SIGKILL.
        """
        self._snapshot = self._client.stop(self.id, grace=grace)
        return self

    def files(self) -> list[File]:
        """The files that it kept."""
        return self._client.files(self.id)

    def download(self, folder: str | os.PathLike[str] = ".", *paths: str) -> list[Path]:
        """See :func:`download`."""
        return download(self._client, self.id, Path(folder), paths=paths)

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.name!r} {self._snapshot.state.value}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        shot = self._snapshot
        rows = {"run": shot.id, "name": shot.name, "state": shot.state.value}
        if why := (shot.verdict.message if shot.verdict else shot.reason):
            rows["why"] = why
        cells = "".join(
            f"<tr><th style='text-align:left'>{key}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for key, value in rows.items()
        )
        return f"<table>{cells}</table>"

    def _exception(self) -> bytes:
        """The pickle that the rank which failed first left of its exception; empty if none."""
        verdict = self._snapshot.verdict
        if self.spec.call is None or verdict is None:
            return b""
        ranks = self.detail().attempts[-1].ranks
        digest = next((r.result for r in ranks if r.rank == verdict.rank), "")
        return self._client.blob(digest) if digest else b""


def download(
    client: Client, ref: str, folder: Path, *, paths: Iterable[str] = (), rank: int | None = None
) -> list[Path]:
    """
    Copy a run's files into ``folder``; all of them unless ``paths`` names some.

    Files of rank 0 lie there as they were named, those of other ranks below ``rank-N``. Each
    appears whole or not at all; one that is there already is replaced.

    :raises NotFound: for a path that it did not keep. :raises UnsafePath:
    """
    kept = [f for f in client.files(ref) if rank is None or f.rank == rank]
    wanted = set(paths)
    if unknown := wanted - {f.path for f in kept}:
        raise NotFound(
            f"the run keeps no file {min(unknown)!r}",
            hint="it keeps: " + (", ".join(sorted({f.path for f in kept})[:20]) or "none"),
        )
    written = []
    for file in kept:
        if not wanted or file.path in wanted:
            below = folder / f"rank-{file.rank}" if file.rank and rank is None else folder
            target = below / check_path(file.path)
            _fetch(client, ref, file, target)
            written.append(target)
    return written


def _fetch(client: Client, ref: str, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    sha = hashlib.sha256()
    try:
        with open(partial, "wb") as out:
            for piece in client.download(ref, file.path, rank=file.rank):
                sha.update(piece)
                out.write(piece)
        if sha.hexdigest() != file.digest:
            raise Unavailable(f"{file.path} arrived with another content than was kept")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def refuse_nested() -> None:
    """:raises NestedSubmit: in a rank of a run."""
    if run_id := os.environ.get("WHERRY_RUN_ID"):
        main = os.path.basename(getattr(sys.modules["__main__"], "__file__", "") or "")
        # Where the rank runs a function, the file that has it is imported, and only then.
        hint = 'a rank imports this file too: put the call below  if __name__ == "__main__":'
        if main != "wherry_call.py":
            hint = f"start it with  python {main or 'SCRIPT'}:  a run cannot submit runs"
        raise NestedSubmit(
            f"this is rank {os.environ.get('WHERRY_RANK', '0')} of run {run_id}: it cannot submit",
            hint=hint,
        )


def _changes(spec: JobSpec) -> dict[str, Any]:
    """What a JobSpec says beside its command and what Wherry fills in."""
    if spec.call is not None:
        raise InvalidInput(
            "a JobSpec with a call cannot be sent from here",
            hint="wherry.run(function, ...); what ran before: wherry retry, wherry run --from",
        )
    return {k: v for k, v in files.dump(spec).items() if k not in {"command", *FILLED_IN}}


def _work(
    target: Target | None, module: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[str, ...], Function | None]:
    """What to run: words, or a function with its arguments."""
    if isinstance(target, JobSpec):
        if module or kwargs:
            word = "module" if module else next(iter(kwargs))
            raise InvalidInput(f"wherry.run has no option {word!r} beside a JobSpec")
        return (*target.check().command, *map(str, args)), None
    if target is not None and not isinstance(target, str | os.PathLike):
        if module:
            raise InvalidInput("both a function and a module were given")
        return (), Function(target, args, kwargs)
    if kwargs:
        from wherry.errors import did_you_mean

        word = next(iter(kwargs))
        raise InvalidInput(
            f"wherry.run has no option {word!r}", hint=did_you_mean(word, _options())
        )
    if module:
        first = () if target is None else (os.fspath(target),)
        return ("-m", module, *first, *map(str, args)), None
    if target is None:
        raise InvalidInput("nothing to run", hint='wherry.run("train.py"), or a function')
    return (os.fspath(target), *map(str, args)), None


def _options() -> list[str]:
    import inspect

    parameters = inspect.signature(run).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _workers(workers: int | tuple[int, int] | None) -> Any:
    return {"min": workers[0], "max": workers[1]} if isinstance(workers, tuple) else workers


def _words(ends: Iterable[str | int] | None) -> list[str] | None:
    return None if ends is None else [str(end) for end in ends]


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def failure(shot: Snapshot) -> RunFailed:
    """The error that says how a run ended."""
    verdict = shot.verdict or Verdict()
    message = f"run {shot.id} ({shot.name}) {_ENDED[shot.state]}"
    if verdict.message:
        message += f": {verdict.message}"
    if verdict.last_lines:
        message += "\n" + "\n".join(f"  {line}" for line in verdict.last_lines)
    return RunFailed(message, hint=verdict.hint or f"the whole log: wherry logs {shot.id}")


_ENDED = {
    RunState.FAILED: "failed",
    RunState.STOPPED: "was stopped",
    RunState.LOST: "was lost",
}
