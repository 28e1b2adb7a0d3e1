"""
What agents report: taken apart, then committed in groups.

Called by the agents' routes. One thread writes; while it commits, the next group gathers, so a
thousand ranks cost few transactions. A report is acknowledged after its commit, never before.
"""

from __future__ import annotations

import asyncio
import math
import queue
import struct
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from wherry.agent import protocol
from wherry.control.live import Live
from wherry.control.tokens import RankIdentity
from wherry.core.bundle import check_digest, check_path
from wherry.core.causes import CAUSES
from wherry.core.job import Scalar
from wherry.core.run import Event, File, Series
from wherry.core.states import RankState
from wherry.errors import InvalidInput
from wherry.store.base import Chunk, ChunkKind, Exit, Report, Store

#: In a stored log chunk each block is ``f64 time | u8 stream | u32 length`` and its bytes.
BLOCK = struct.Struct("<dBI")
_GROUP = 64  # reports in one transaction at the most
_MESSAGE = 64 * 1024  # characters of an event: the stacks of a stalled rank fit


class _Exit(msgspec.Struct):
    state: str
    exit_code: int | None = None
    signal: int | None = None
    cause: str = ""
    message: str = ""
    last_lines: tuple[str, ...] = ()
    ended: float = 0.0  #: when the program ended, which is before its files were sent


class _Event(msgspec.Struct):
    kind: str
    message: str = ""


class _File(msgspec.Struct):
    path: str
    digest: str
    size: int
    modified: float = 0.0


_ENDS = {s.value: s for s in (RankState.SUCCEEDED, RankState.FAILED, RankState.STOPPED)}


def parse(who: RankIdentity, body: bytes) -> Report | None:
    """
    The report that these frames make; None where there are none.

    :raises InvalidInput: where they are no frames, are not consecutive, or hold nonsense.
    """
    builder = _Builder(who)
    try:
        for kind, seq, time, payload in protocol.iter_frames(body):
            builder.add(kind, seq, time, payload)
        return builder.report()
    except (ValueError, msgspec.DecodeError, struct.error) as error:
        raise InvalidInput(f"a report of rank {who.rank} does not decode: {error}") from None


_POINTS: dict[int, ChunkKind] = {protocol.METRIC: "metric", protocol.USAGE: "usage"}


class _Points:
    """The packed series of one kind in one request."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.count = 0
        self.first, self.last = math.inf, 0.0


class _Builder:
    """Gathers the frames of one request."""

    def __init__(self, who: RankIdentity) -> None:
        self.who = who
        self.first = self.last = 0
        self.logs: list[bytes] = []
        self.lines = 0
        self.log_times: list[float] = []
        self.points: dict[ChunkKind, _Points] = {}
        self.series: list[Series] = []
        self.fields: dict[str, Any] = {}
        self.files: list[File] = []
        self.params: dict[str, Scalar] = {}
        self.phases: dict[str, float] = {}
        self.events: list[Event] = []

    def add(self, kind: int, seq: int, time: float, payload: memoryview) -> None:
        if self.last and seq != self.last + 1:
            raise ValueError(f"frame {seq} follows frame {self.last}")
        self.first, self.last = self.first or seq, seq
        if kind == protocol.LOG:
            self._log(time, payload)
        elif kind in _POINTS:
            self._add_points(_POINTS[kind], bytes(payload))
        else:
            self._record(kind, time, bytes(payload))

    def _log(self, time: float, payload: memoryview) -> None:
        text = bytes(payload[1:])
        self.logs += [BLOCK.pack(time, payload[0], len(text)), text]
        self.lines += text.count(b"\n") + (not text.endswith(b"\n"))
        self.log_times.append(time)

    def _add_points(self, kind: ChunkKind, payload: bytes) -> None:
        found = self.points.setdefault(kind, _Points())
        found.parts.append(payload)
        for name, steps, times, values in protocol.unpack_series(payload):
            if steps:
                found.count += len(steps)
                found.first, found.last = min(found.first, times[0]), max(found.last, times[-1])
                if kind == "metric":
                    self.series.append(_summary(self.who, name, steps, times, values))

    def _record(self, kind: int, time: float, payload: bytes) -> None:
        if kind == protocol.PARAMS:
            self.params.update(msgspec.json.decode(payload, type=dict[str, Scalar]))
        elif kind == protocol.FILE:
            file = msgspec.json.decode(payload, type=_File)
            self.files.append(
                File(
                    path=check_path(file.path),
                    digest=check_digest(file.digest),
                    size=file.size,
                    attempt=self.who.attempt.number,
                    rank=self.who.rank,
                    modified=file.modified,
                )
            )
        elif kind == protocol.PHASE:
            phase = msgspec.json.decode(payload, type=dict[str, str | float])
            self.phases[str(phase["phase"])] = float(phase["seconds"])
        elif kind == protocol.STARTED:
            # In an elastic group a program may end and begin again within one request.
            self.fields |= {"state": RankState.RUNNING, "started": time, "ended": None}
        elif kind == protocol.ENDED:
            self.fields["ended"] = self._exit(time, msgspec.json.decode(payload, type=_Exit))
        elif kind == protocol.EVENT:
            self._event(time, msgspec.json.decode(payload, type=_Event))
        elif kind == protocol.RESULT:
            self.fields["result"] = check_digest(msgspec.json.decode(payload)["digest"])
        elif kind == protocol.EXIT:
            self.fields["exit"] = self._exit(time, msgspec.json.decode(payload, type=_Exit))

    def _event(self, time: float, said: _Event) -> None:
        attempt, rank = self.who.attempt, self.who.rank
        self.events.append(
            Event(
                run=attempt.run,
                time=time,
                kind=said.kind[:40],
                message=said.message[:_MESSAGE],
                attempt=attempt.number,
                rank=rank,
            )
        )

    def _exit(self, time: float, said: _Exit) -> Exit:
        if said.state not in _ENDS or said.cause not in CAUSES:
            raise ValueError(f"no such end: {said.state!r}, {said.cause!r}")
        cause: Any = said.cause
        return Exit(
            state=_ENDS[said.state],
            time=said.ended or time,
            exit_code=said.exit_code,
            signal=said.signal,
            cause=cause,
            message=said.message[:4000],
            last_lines=tuple(line[:2000] for line in said.last_lines[-50:]),
        )

    def report(self) -> Report | None:
        if not self.last:
            return None
        return Report(
            attempt=self.who.attempt,
            rank=self.who.rank,
            incarnation=self.who.incarnation,
            first_seq=self.first,
            last_seq=self.last,
            chunks=tuple(self._chunks()),
            series=tuple(self.series),
            files=tuple(self.files),
            params=self.params,
            phases=self.phases,
            events=tuple(self.events),
            **self.fields,
        )

    def _chunks(self) -> Iterator[Chunk]:
        if self.logs:
            yield Chunk(
                kind="log",
                payload=b"".join(self.logs),
                count=self.lines,
                first=self.log_times[0],
                last=self.log_times[-1],
            )
        for kind, found in self.points.items():
            yield Chunk(
                kind=kind,
                payload=b"".join(found.parts),
                count=found.count,
                first=found.first,
                last=found.last,
            )


def _summary(
    who: RankIdentity, name: str, steps: array[int], times: array[float], values: array[float]
) -> Series:
    # A finite sum proves that every value is finite; most batches are.
    finite: Any = values
    if not math.isfinite(math.fsum(values[:1]) if len(values) == 1 else sum(values)):
        finite = [v for v in values if math.isfinite(v)]
    return Series(
        name=name,
        attempt=who.attempt.number,
        rank=who.rank,
        count=len(steps),
        last=values[-1],
        last_step=steps[-1],
        last_time=times[-1],
        min=min(finite, default=None),
        max=max(finite, default=None),
    )


class Ingest:
    """The one writer. ``add`` from any thread; the future holds the last frame stored."""

    def __init__(self, store: Store, live: Live, changed: Callable[[Report], None]) -> None:
        self._store, self._live, self._changed = store, live, changed
        self._queue: queue.SimpleQueue[tuple[Report, _Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, then end."""
        self._queue.put(None)
        self._thread.join()

    async def add(self, report: Report) -> int:
        """Store; the last frame stored. :raises WherryError: where the store refuses it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()

        def done(outcome: int | Exception) -> None:
            loop.call_soon_threadsafe(_settle, future, outcome)

        self._queue.put((report, done))
        return await future

    def add_now(self, report: Report) -> int:
        """The same for threads: blocks until it is stored."""
        ready = threading.Event()
        box: list[int | Exception] = []

        def done(outcome: int | Exception) -> None:
            box.append(outcome)
            ready.set()

        self._queue.put((report, done))
        ready.wait()
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            group = [first]
            try:
                while len(group) < _GROUP:
                    entry = self._queue.get_nowait()
                    if entry is None:
                        self._queue.put(None)
                        break
                    group.append(entry)
            except queue.Empty:
                pass
            self._commit(group)

    def _commit(self, group: list[tuple[Report, _Done]]) -> None:
        try:
            outcomes = self._store.ingest([report for report, _ in group])
        except Exception as error:  # e.g. StorageFull: nobody is acknowledged, all send again
            outcomes = [error] * len(group)
        for (report, done), outcome in zip(group, outcomes, strict=True):
            done(outcome)
            if not isinstance(outcome, Exception):
                self._changed(report)


_Done = Callable[["int | Exception"], None]


def _settle(future: asyncio.Future[int], outcome: int | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
