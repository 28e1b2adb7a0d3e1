"""
Runs: submit, list, show, wait, stop, retry, remove; and what they keep.
"""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import quote

from litestar import Router, delete, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_201_CREATED, HTTP_204_NO_CONTENT

from wherry.control.logs import PointQuery, points
from wherry.core.api import MetricSeries, Planned, Retry, RunDetail, Stop, Submit
from wherry.core.run import File, Run
from wherry.core.states import RunState
from wherry.errors import InvalidInput
from wherry.server.services import Services, Wired
from wherry.store.base import ChunkKind, RunFilter

Key = Annotated[str, HeaderParameter(name="Idempotency-Key", max_length=200)]


@post("/", status_code=HTTP_201_CREATED, sync_to_thread=True)
def submit(data: JSONBody[Submit], services: Wired, idempotency_key: Key = "") -> Run:
    """Make a run; with the same key again, the run that was made then."""
    return services.runs.submit(data, owner=services.owner, key=idempotency_key)


@post("/plan", status_code=HTTP_200_OK, sync_to_thread=True)
def plan(data: JSONBody[Submit], services: Wired) -> Planned:
    """What submitting would send to the back end; nothing is written."""
    return services.runs.plan(data)


@get("/", sync_to_thread=True)
def runs(
    services: Wired,
    states: Annotated[list[str] | None, QueryParameter(name="state")] = None,
    name: FromQuery[str] = "",
    tag: FromQuery[list[str] | None] = None,
    before: FromQuery[str] = "",
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 100,
) -> list[Run]:
    """Runs, newest first; ``before`` is the id of the last run of the page before."""
    where = RunFilter(
        owner=services.owner,
        states=frozenset(_state(s) for s in states or ()),
        name=name,
        tags=frozenset(tag or ()),
        before=before,
        limit=limit,
    )
    return services.runs.list(where)


def _state(text: str) -> RunState:
    try:
        return RunState(text)
    except ValueError:
        known = ", ".join(RunState)
        raise InvalidInput(f"{text[:80]!r} is not a state", hint=f"known: {known}") from None


def _find(services: Services, ref: str) -> Run:
    return services.runs.find(ref, owner=services.owner)


@get("/{ref:str}", sync_to_thread=True)
def show(ref: FromPath[str], services: Wired) -> RunDetail:
    """One run with its attempts, ranks, parameters, metrics and events."""
    return services.runs.detail(_find(services, ref))


@get("/{ref:str}/wait")
async def wait(
    ref: FromPath[str],
    services: Wired,
    timeout: Annotated[float, QueryParameter(ge=0, le=60)] = 30.0,
) -> Run:
    """The run once it is finished, or as it is when ``timeout`` seconds are over."""
    run = await asyncio.to_thread(_find, services, ref)
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        version = services.bus.version(run.id)
        run = await asyncio.to_thread(services.store.run, run.id)
        left = deadline - asyncio.get_running_loop().time()
        if run.finished or left <= 0 or services.bus.closed:
            return run
        await services.bus.wait(run.id, version, timeout=left)


@post("/{ref:str}/stop", status_code=HTTP_200_OK, sync_to_thread=True)
def stop(ref: FromPath[str], data: JSONBody[Stop], services: Wired) -> Run:
    """Ask for the end of a run. Again, or after the end: nothing."""
    return services.runs.stop(_find(services, ref), data)


@post("/{ref:str}/retry", status_code=HTTP_201_CREATED, sync_to_thread=True)
def retry(
    ref: FromPath[str], data: JSONBody[Retry], services: Wired, idempotency_key: Key = ""
) -> Run:
    """A new run of the same spec."""
    run = _find(services, ref)
    return services.runs.retry(run, data, owner=services.owner, key=idempotency_key)


@delete("/{ref:str}", status_code=HTTP_204_NO_CONTENT, sync_to_thread=True)
def remove(ref: FromPath[str], services: Wired) -> None:
    """Remove a finished run with everything that it kept."""
    services.runs.delete(_find(services, ref))


@get("/{ref:str}/metrics", sync_to_thread=True)
def metrics(
    ref: FromPath[str],
    services: Wired,
    name: FromQuery[list[str] | None] = None,
    attempt: FromQuery[int | None] = None,
    rank: FromQuery[list[int] | None] = None,
    limit: Annotated[int, QueryParameter(ge=0)] = 0,
) -> list[MetricSeries]:
    """The points of the run's metrics; ``limit``: the last so many of each."""
    query = _points(name, attempt, rank, limit)
    return points(services.store, _find(services, ref).id, "metric", query)


@get("/{ref:str}/usage", sync_to_thread=True)
def usage(
    ref: FromPath[str],
    services: Wired,
    name: FromQuery[list[str] | None] = None,
    attempt: FromQuery[int | None] = None,
    rank: FromQuery[list[int] | None] = None,
    limit: Annotated[int, QueryParameter(ge=0)] = 0,
) -> list[MetricSeries]:
    """CPU (cores), memory (bytes) and GPU use over time."""
    kind: ChunkKind = "usage"
    query = _points(name, attempt, rank, limit)
    return points(services.store, _find(services, ref).id, kind, query)


def _points(
    name: list[str] | None, attempt: int | None, rank: list[int] | None, limit: int
) -> PointQuery:
    return PointQuery(
        names=frozenset(name or ()), attempt=attempt, ranks=frozenset(rank or ()), limit=limit
    )


@get("/{ref:str}/files", sync_to_thread=True)
def files(ref: FromPath[str], services: Wired) -> list[File]:
    """The files that the run kept."""
    return services.store.files(_find(services, ref).id)


@get("/{ref:str}/files/{path:path}", sync_to_thread=True)
def download(
    ref: FromPath[str], path: FromPath[str], services: Wired, rank: FromQuery[int] = 0
) -> Stream:
    """
    The bytes of one file. Always an attachment in a sandbox: what a run wrote is never shown as a
    page of this server.
    """
    file = services.runs.file(_find(services, ref), path.lstrip("/"), rank=rank)
    name = quote(file.path.rpartition("/")[2])
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "content-length": str(file.size),
        "content-security-policy": "sandbox",
        "x-content-type-options": "nosniff",
        "etag": f'"{file.digest}"',
    }
    services.blobs.size(file.digest)
    data = services.blobs.get(file.digest)
    return Stream(data, media_type="application/octet-stream", headers=headers)


@get("/{ref:str}/result", sync_to_thread=True)
def result(ref: FromPath[str], services: Wired) -> Stream:
    """The pickle that rank 0's function returned, as bytes."""
    digest = services.runs.result(_find(services, ref))
    services.blobs.size(digest)
    return Stream(services.blobs.get(digest), media_type="application/octet-stream")


router = Router(
    path="/api/v1/runs",
    route_handlers=[
        submit,
        plan,
        runs,
        show,
        wait,
        stop,
        retry,
        remove,
        metrics,
        usage,
        files,
        download,
        result,
    ],
)
