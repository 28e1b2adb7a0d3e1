"""
One method per row of ``core.api``'s table.

Made by ``sdk.connect``; used by the command line and ``sdk.runs``. Safe from any thread. Answers
decode tolerantly, so that client and server may differ by a version. Every method may raise
``Unavailable``, ``Unauthorized`` and what its row says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from wherry.core import api
from wherry.core.api import (
    Cursor,
    LogLine,
    MetricSeries,
    Planned,
    Pruned,
    RunDetail,
    Status,
    Submit,
)
from wherry.core.job import JobSpec
from wherry.core.run import File, Run
from wherry.errors import Internal, Unavailable
from wherry.sdk.http import Http, segment
from wherry.sdk.wire import Broken, Refused

T = TypeVar("T")
Stream = Literal["stdout", "stderr", "system"]

_ROOT = "/api/v1"
_POLL = 30.0  # seconds of one long poll; the server allows 60


class Client:
    """A control plane, as functions."""

    def __init__(self, http: Http) -> None:
        self.http = http

    @property
    def url(self) -> str:
        """Where the control plane is now."""
        return self.http.endpoint.url

    def close(self) -> None:
        """Close idle connections. Again: no error."""
        self.http.close()

    # --- the control plane
    def status(self) -> Status:
        """What it is and holds."""
        return self._get("/status", Status)

    def shutdown(self) -> None:
        """Make it leave; runs go on."""
        self.http.call("POST", f"{_ROOT}/shutdown", again=False)

    def job_schema(self) -> dict[str, Any]:
        """The JSON schema of a job file, as people write it."""
        return self._get("/schemas/job", dict[str, Any])

    def prune(self, *, days: float | None = None, dry_run: bool = False) -> Pruned:
        """Remove runs that ended more than ``days`` ago, then what nobody refers to."""
        body = api.encode(api.Prune(days=days, dry_run=dry_run))
        return _decode(
            self.http.call("POST", f"{_ROOT}/prune", body=body, again=False, timeout=600.0), Pruned
        )

    def backup(self, path: str | Path) -> api.BackupDone:
        """Write a backup to this absolute path on the control plane's machine."""
        body = api.encode(api.Backup(path=str(path)))
        return _decode(
            self.http.call("POST", f"{_ROOT}/backup", body=body, again=False, timeout=600.0),
            api.BackupDone,
        )

    # --- blobs
    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Those of the digests that the control plane does not have."""
        body = api.encode(api.Digests(digests=tuple(digests)))
        return self._post("/blobs/missing", body, api.Digests).digests

    def push_pack(self, pack: Callable[[], Iterable[bytes]]) -> None:
        """
        Send a pack (``agent.protocol.iter_pack``). Again: harmless.

        :param pack: makes the bytes, anew for every try.
        """
        self.http.call("POST", f"{_ROOT}/blobs/pack", body=pack)

    def blob(self, digest: str) -> bytes:
        """:raises NotFound: where it is not there."""
        return self.http.call("GET", f"{_ROOT}/blobs/{segment(digest)}")

    # --- runs
    def submit(self, submit: Submit | JobSpec, *, key: str | None = None) -> Run:
        """
        Make a run. Again with the same idempotency ``key``: the run that was made then.

        A JobSpec is sent as it is, with the code and the Python that it names: ``wherry.run`` adds
        those of here.

        :raises BundleMissing: push the blobs first, then again with the same key.
        """
        if isinstance(submit, JobSpec):
            submit = Submit(spec=submit)
        return _decode(
            self.http.call("POST", f"{_ROOT}/runs", body=api.encode(submit), key=key or new_key()),
            Run,
        )

    def plan(self, submit: Submit) -> Planned:
        """What a submission would do. Nothing is written."""
        return self._post("/runs/plan", api.encode(submit), Planned)

    def runs(
        self,
        *,
        states: Iterable[str] = (),
        name: str = "",
        tags: Iterable[str] = (),
        limit: int = 100,
        before: str = "",
        everyone: bool = False,
    ) -> list[Run]:
        """
        Runs, newest first.

        :param before: the id of the last run of the page before.
        :param everyone: other owners' too.
        """
        query = {
            "state": list(states), "name": name, "tag": list(tags),
            "limit": limit, "before": before, "all": everyone,
        }  # fmt: skip
        return self._get("/runs", list[Run], query)

    def run(self, ref: str) -> RunDetail:
        """:param ref: an id, a unique prefix of one, a name (its newest run), or "last"."""
        found = self._get(f"/runs/{segment(ref)}", RunDetail)
        metrics = tuple(msgspec.structs.replace(s, last=float(s.last)) for s in found.metrics)
        return msgspec.structs.replace(found, metrics=metrics)

    def wait(self, ref: str, timeout: float | None = None) -> Run:
        """
        The run once it is finished, or as it is when ``timeout`` seconds are over; None: no end.

        A finished run is told by ``finished``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL if deadline is None else deadline - time.monotonic()
            seconds = max(0.0, min(left, _POLL))
            run = self._get(f"/runs/{segment(ref)}/wait", Run, {"timeout": f"{seconds:.3f}"})
            if run.finished or (left <= _POLL and deadline is not None):
                return run
            ref = run.id  # a name or "last" may mean another run by now

    def stop(self, ref: str, *, grace: float | None = None, reason: str = "") -> Run:
        """Ask it to stop. Again, or after the end: no error. ``reason``: see ``api.Stop``."""
        body = api.encode(api.Stop(grace=grace, reason=reason[:1000]))
        return self._post(f"/runs/{segment(ref)}/stop", body, Run)

    def retry(self, ref: str, *, name: str = "", key: str | None = None) -> Run:
        """A new run of the same spec."""
        return _decode(
            self.http.call(
                "POST",
                f"{_ROOT}/runs/{segment(ref)}/retry",
                body=api.encode(api.Retry(name=name)),
                key=key or new_key(),
            ),
            Run,
        )

    def delete(self, ref: str) -> None:
        """Remove a finished run with all it owns. :raises Conflict: while it is not finished."""
        self.http.call("DELETE", f"{_ROOT}/runs/{segment(ref)}", again=False)

    # --- what a run says
    def logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        ranks: Iterable[int] = (),
        streams: Iterable[Stream] = (),
        tail: int | None = None,
        attempt: int | None = None,
    ) -> Iterator[LogLine]:
        """
        Lines of output, oldest first.

        Resumes where a connection or the control plane breaks: no line is lost or comes twice.

        :param follow: wait for more until the run is finished, also when it has not started.
        :param tail: only so many of the last lines (and then what follows).
        """
        run = self.wait(ref, 0).id
        query: dict[str, Any] = {
            "follow": follow, "rank": list(ranks), "stream": list(streams),
            "tail": tail, "attempt": attempt,
        }  # fmt: skip
        while True:
            yield from self._log_lines(f"{_ROOT}/runs/{run}/logs", query)
            if not query["follow"]:
                return
            # A server that shuts down ends the answer too, so the run itself is asked; what came
            # in between is fetched by one more pass.
            query["follow"] = not self.wait(run, 0.2).finished

    def _log_lines(self, path: str, query: dict[str, Any]) -> Iterator[LogLine]:
        """One answer's lines, resumed until it is whole. Leaves the place to go on in ``query``."""
        deadline, pause = 0.0, 0.05
        while True:
            # Lines are handed out when their cursor has come: what came after the last one before
            # a break is sent again.
            held: list[LogLine] = []
            try:
                with self.http.open(path, query=query) as stream:
                    for raw in stream.lines():
                        deadline, pause = 0.0, 0.05
                        if not raw:
                            continue
                        item = _decode(raw, _Item)
                        if item.cursor is None:
                            held.append(item.line())
                            continue
                        query |= {"after": item.cursor, "tail": None}
                        ready, held = held, []
                        yield from ready
                yield from held
                return
            except (Refused, Broken) as error:
                deadline = deadline or time.monotonic() + self.http.patience
                self.http.pause(error, deadline, pause)
                pause = min(2 * pause, 1.0)

    def raw_logs(
        self,
        ref: str,
        *,
        follow: bool = False,
        ranks: Iterable[int] = (),
        streams: Iterable[Stream] = (),
        attempt: int | None = None,
    ) -> Iterator[bytes]:
        """
        The output as it was written, byte by byte. Not resumed: it carries no cursor.

        :raises Unavailable: where it is cut off.
        """
        query = {
            "format": "raw", "follow": follow, "rank": list(ranks), "stream": list(streams),
            "attempt": attempt,
        }  # fmt: skip
        return self._download(f"/runs/{segment(ref)}/logs", query)

    def stack(
        self, ref: str, *, ranks: Iterable[int] = (), native: bool = False
    ) -> list[api.RankStack]:
        """
        What the Python processes of these ranks, or of all, do now.

        :raises NotRunning: :raises NotFound: for a rank that it does not have.
        """
        query = {"rank": list(ranks), "native": native}
        return self._get(f"/runs/{segment(ref)}/stack", list[api.RankStack], query)

    def metrics(
        self,
        ref: str,
        *,
        names: Iterable[str] = (),
        attempt: int | None = None,
        ranks: Iterable[int] = (),
        limit: int | None = None,
    ) -> list[MetricSeries]:
        """
        What it reported, by rank and name.

        :param limit: the most points of one series; more are thinned out.
        """
        return self._series(ref, "metrics", names, attempt, ranks, limit)

    def usage(
        self,
        ref: str,
        *,
        names: Iterable[str] = (),
        attempt: int | None = None,
        ranks: Iterable[int] = (),
        limit: int | None = None,
    ) -> list[MetricSeries]:
        """What it used: ``cpu`` in cores, ``memory`` in bytes, ``gpu0.utilization`` ..."""
        return self._series(ref, "usage", names, attempt, ranks, limit)

    def files(self, ref: str) -> list[File]:
        """The files that it kept."""
        return self._get(f"/runs/{segment(ref)}/files", list[File])

    def download(self, ref: str, path: str, *, rank: int = 0) -> Iterator[bytes]:
        """
        The bytes of a file that it kept.

        :raises NotFound: :raises Unavailable: where it is cut off.
        """
        segments = "/".join(segment(part) for part in path.split("/"))
        return self._download(f"/runs/{segment(ref)}/files/{segments}", {"rank": rank})

    def result(self, ref: str) -> bytes:
        """The pickle that rank 0 left: see ``sdk.functions.load_result``. :raises NotFound:"""
        return self.http.call("GET", f"{_ROOT}/runs/{segment(ref)}/result")

    # --- the tasks of wherry.map
    def put_tasks(self, run: str, epoch: str, frames: bytes) -> api.TasksTaken:
        """Send chunks (``agent.tasks``). Again: harmless."""
        answer = self.http.call(
            "POST", f"{_ROOT}/runs/{segment(run)}/tasks", query={"epoch": epoch}, body=frames
        )
        return _decode(answer, api.TasksTaken)

    def collect_tasks(self, run: str, epoch: str, after: int, *, wait: float = 0.0) -> bytes:
        """Frames: what was answered after the first ``after`` answers, once there is something."""
        query = {"epoch": epoch, "after": after, "wait": f"{wait:g}"}
        return self.http.call("GET", f"{_ROOT}/runs/{segment(run)}/tasks", query=query)

    def end_tasks(self, run: str) -> None:
        """No more will come. Again: harmless."""
        self.http.call("DELETE", f"{_ROOT}/runs/{segment(run)}/tasks")

    # --- helpers
    def _get(self, path: str, kind: type[T], query: dict[str, Any] | None = None) -> T:
        return _decode(self.http.call("GET", _ROOT + path, query=query, timeout=90.0), kind)

    def _post(self, path: str, body: bytes, kind: type[T]) -> T:
        return _decode(self.http.call("POST", _ROOT + path, body=body), kind)

    def _series(
        self,
        ref: str,
        what: str,
        names: Iterable[str],
        attempt: int | None,
        ranks: Iterable[int],
        limit: int | None,
    ) -> list[MetricSeries]:
        query = {"name": list(names), "attempt": attempt, "rank": list(ranks), "limit": limit}
        found = self._get(f"/runs/{segment(ref)}/{what}", list[MetricSeries], query)
        return [msgspec.structs.replace(s, values=[float(v) for v in s.values]) for s in found]

    def _download(self, path: str, query: dict[str, Any]) -> Iterator[bytes]:
        with self.http.open(_ROOT + path, query=query) as stream:
            try:
                yield from stream
            except Broken as error:
                raise Unavailable(f"the answer of {self.url}{path} was cut off: {error}") from None


class _Item(msgspec.Struct):
    """A line of the log's answer: a LogLine or a Cursor."""

    time: float = 0.0
    attempt: int = 0
    rank: int = 0
    stream: str = ""
    text: str = ""
    cursor: int | None = None

    def line(self) -> LogLine:
        return LogLine(
            time=self.time, attempt=self.attempt, rank=self.rank, stream=self.stream, text=self.text
        )


def new_key() -> str:
    """A fresh idempotency key."""
    return os.urandom(16).hex()


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        name = getattr(kind, "__name__", str(kind))
        raise Internal(
            f"the control plane's answer is not a {name}: {error}",
            hint="client and server may be too far apart: wherry version shows both",
        ) from None


__all__ = ["Client", "Cursor", "Stream", "new_key"]
