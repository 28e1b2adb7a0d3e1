"""
Reading what ranks reported: log lines, bytes, metric points.

Called by ``server.routes``. Stored chunks go out as lines; nothing here writes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator

from msgspec import Struct

from wherry.agent import protocol
from wherry.control.reports import BLOCK
from wherry.core.api import LogLine, MetricSeries, json_number
from wherry.store.base import Chunk, ChunkKind, Store

_PAGE = 64  # chunks read at a time


class LogQuery(Struct, frozen=True, kw_only=True):
    """Which lines: of all attempts, ranks and streams unless said."""

    attempt: int | None = None
    ranks: frozenset[int] = frozenset()
    streams: frozenset[str] = frozenset()


def blocks(chunk: Chunk, query: LogQuery) -> Iterator[tuple[float, str, bytes]]:
    """(time, stream, bytes) of each block that the agent read at once."""
    at, payload = 0, chunk.payload
    while at < len(payload):
        time, stream, length = BLOCK.unpack_from(payload, at)
        at += BLOCK.size
        name = protocol.STREAMS.get(stream, "system")
        if not query.streams or name in query.streams:
            yield time, name, payload[at : at + length]
        at += length


def lines(chunk: Chunk, query: LogQuery) -> Iterator[LogLine]:
    """The chunk's lines."""
    for time, stream, data in blocks(chunk, query):
        for line in data.removesuffix(b"\n").split(b"\n"):
            text = line.decode("utf-8", "replace")
            yield LogLine(
                time=time, attempt=chunk.attempt, rank=chunk.rank, stream=stream, text=text
            )


def page(store: Store, run_id: str, query: LogQuery, *, after: int) -> list[Chunk]:
    """The next chunks after a cursor, oldest first; none: nothing newer yet."""
    return store.chunks(
        run_id,
        "log",
        after=after,
        attempt=query.attempt,
        ranks=query.ranks or None,
        limit=_PAGE,
    )


def tail(store: Store, run_id: str, query: LogQuery, count: int) -> tuple[list[LogLine], int]:
    """The last ``count`` lines and the cursor after them. Reads backwards only as far as needed."""
    found: deque[LogLine] = deque()
    cursor, before = 0, None
    while len(found) < count or before is None:
        chunks = store.chunks(
            run_id,
            "log",
            before=before,
            attempt=query.attempt,
            ranks=query.ranks or None,
            limit=_PAGE,
            newest=True,
        )
        if not chunks:
            break
        cursor = cursor or chunks[-1].id
        before = chunks[0].id
        for chunk in reversed(chunks):
            found.extendleft(reversed(list(lines(chunk, query))))
            if len(found) >= count:
                break
    return list(found)[len(found) - min(count, len(found)) :], cursor


class PointQuery(Struct, frozen=True, kw_only=True):
    """Which points; ``limit``: the last so many of each series."""

    names: frozenset[str] = frozenset()
    attempt: int | None = None
    ranks: frozenset[int] = frozenset()
    limit: int = 0


def points(store: Store, run_id: str, kind: ChunkKind, query: PointQuery) -> list[MetricSeries]:
    """Every series of the run with its points, by attempt, rank and name."""
    found: dict[tuple[int, int, str], tuple[list[int], list[float], list[float | str]]]
    found = defaultdict(lambda: ([], [], []))
    for chunk in _all(store, run_id, kind, query.attempt, query.ranks):
        for name, steps, times, values in protocol.unpack_series(chunk.payload):
            if query.names and name not in query.names:
                continue
            series = found[chunk.attempt, chunk.rank, name]
            series[0].extend(steps)
            series[1].extend(times)
            series[2].extend(json_number(v) for v in values)
    keep = slice(-query.limit if query.limit else None, None)
    return [
        MetricSeries(
            name=name, attempt=attempt, rank=rank, steps=s[keep], times=t[keep], values=v[keep]
        )
        for (attempt, rank, name), (s, t, v) in sorted(found.items())
    ]


def _all(
    store: Store, run_id: str, kind: ChunkKind, attempt: int | None, ranks: Iterable[int]
) -> Iterator[Chunk]:
    after = 0
    while chunks := store.chunks(
        run_id, kind, after=after, attempt=attempt, ranks=list(ranks) or None, limit=_PAGE
    ):
        yield from chunks
        after = chunks[-1].id
