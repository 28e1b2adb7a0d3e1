"""
Logs: from the start, from the end, or live.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from litestar import Router, get
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from wherry.control import logs as read
from wherry.core.api import Cursor, encode
from wherry.core.run import Run
from wherry.errors import InvalidInput, NotFound
from wherry.server.services import Services, Wired
from wherry.store.base import Chunk

_KEEP_OPEN = 10.0  # seconds between blank lines
_STREAMS = frozenset({"stdout", "stderr", "system"})


@get("/{ref:str}/logs")
async def logs(
    ref: FromPath[str],
    services: Wired,
    follow: FromQuery[bool] = False,
    rank: FromQuery[list[int] | None] = None,
    stream: FromQuery[list[str] | None] = None,
    tail: Annotated[int | None, QueryParameter(ge=0)] = None,
    attempt: FromQuery[int | None] = None,
    after: Annotated[int, QueryParameter(ge=0)] = 0,
    format: FromQuery[Literal["ndjson", "raw"]] = "ndjson",
) -> Stream:
    """
    The run's lines, oldest first, each a JSON object; ``format=raw``: the bytes as written.

    With ``follow`` until the run is finished, also before it has started. After each group of lines
    a ``{"cursor": N}`` says from where ``after=N`` goes on.
    """
    run = await asyncio.to_thread(services.runs.find, ref, owner=services.owner)
    if unknown := set(stream or ()) - _STREAMS:
        raise InvalidInput(f"no such stream: {', '.join(sorted(unknown))}")
    query = read.LogQuery(
        attempt=attempt, ranks=frozenset(rank or ()), streams=frozenset(stream or ())
    )
    raw = format == "raw"
    body = _body(services, run, query, follow=follow, tail=tail, after=after, raw=raw)
    kind = "application/octet-stream" if raw else "application/x-ndjson"
    return Stream(body, media_type=kind, headers={"x-content-type-options": "nosniff"})


async def _body(
    services: Services,
    run: Run,
    query: read.LogQuery,
    *,
    follow: bool,
    tail: int | None,
    after: int,
    raw: bool,
) -> AsyncIterator[bytes]:
    if tail is not None and not raw:
        lines, after = await asyncio.to_thread(read.tail, services.store, run.id, query, tail)
        text = b"".join(encode(line) + b"\n" for line in lines)
        yield text + encode(Cursor(cursor=after)) + b"\n"
    while True:
        version = services.bus.version(run.id)
        try:
            run = await asyncio.to_thread(services.store.run, run.id)
        except NotFound:  # removed while it was followed
            return
        while chunks := await asyncio.to_thread(
            read.page, services.store, run.id, query, after=after
        ):
            for chunk in chunks:
                yield await asyncio.to_thread(_render, chunk, query, raw)
            after = chunks[-1].id
        if run.finished or not follow or services.bus.closed:
            return
        if not await services.bus.wait(run.id, version, timeout=_KEEP_OPEN) and not raw:
            yield b"\n"


def _render(chunk: Chunk, query: read.LogQuery, raw: bool) -> bytes:
    if raw:
        return b"".join(data for _, _, data in read.blocks(chunk, query))
    parts = [encode(line) for line in read.lines(chunk, query)]
    parts.append(encode(Cursor(cursor=chunk.id)))
    return b"\n".join(parts) + b"\n"


router = Router(path="/api/v1/runs", route_handlers=[logs])
