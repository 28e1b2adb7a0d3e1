"""
The tasks of ``wherry.map``: what drivers call, below ``/api/v1``, and workers, below ``/agent/v1``.

``agent.tasks`` has the frames. A driver comes with the owner's token, a worker with its rank's: so
it reaches the tasks of its own run and no others.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Request, Response, Router, delete, get, post
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from wherry.agent import tasks as t
from wherry.control.tasks import Broker, Worker
from wherry.core.api import TasksTaken
from wherry.errors import InvalidInput
from wherry.server.routes.agents import identity, still_current
from wherry.server.services import Services, Wired

Wait = Annotated[float, QueryParameter(ge=0, le=60)]
_BYTES = "application/octet-stream"
_MAX = 32 * 2**20  # bytes of one request; larger payloads are blobs


async def _broker(services: Services, ref: str) -> Broker:
    if (found := services.tasks.known(ref)) is not None:
        return found  # the full id, at each of many calls
    run = await asyncio.to_thread(services.runs.find, ref, owner=services.owner)
    return await services.tasks.of(run.id)


@post("/", status_code=HTTP_200_OK, request_max_body_size=_MAX)
async def put(
    ref: FromPath[str],
    request: Request[Any, Any, Any],
    services: Wired,
    epoch: FromQuery[str] = "",
) -> TasksTaken:
    """Chunks of tasks for the run's workers; with an old epoch: none is taken."""
    body = await request.body()
    return (await _broker(services, ref)).put(epoch, body)


@get("/")
async def collect(
    ref: FromPath[str],
    services: Wired,
    epoch: FromQuery[str] = "",
    after: FromQuery[int] = 0,
    wait: Wait = 0.0,
) -> Response[bytes]:
    """What the workers answered after the first ``after`` answers, or that nothing is there."""
    broker = await _broker(services, ref)
    deadline = asyncio.get_running_loop().time() + wait
    while (body := broker.collect(epoch, after)) is None:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or services.tasks.closing:
            body = broker.said()
            break
        await broker.wait_for_answer(left)
    return Response(body, media_type=_BYTES)


@delete("/", status_code=HTTP_204_NO_CONTENT)
async def end(ref: FromPath[str], services: Wired) -> None:
    """No more will come: the workers leave, and the run succeeds."""
    (await _broker(services, ref)).end()


router = Router(path="/api/v1/runs/{ref:str}/tasks", route_handlers=[put, collect, end])


async def _worker(request: Request[Any, Any, Any], services: Services) -> tuple[Broker, Worker]:
    """Who asks, and the broker of its run. :raises StaleToken: for one that was replaced."""
    who = identity(request)
    broker = await services.tasks.of(who.attempt.run)
    worker = Worker(who.attempt.number, who.rank, who.incarnation)
    if worker not in broker.known:
        await asyncio.to_thread(still_current, services, who)
        broker.known.add(worker)
    return broker, worker


@post("/next", status_code=HTTP_200_OK)
async def take(
    request: Request[Any, Any, Any],
    services: Wired,
    want: Annotated[int, QueryParameter(ge=0, le=100)] = 1,
    wait: Wait = 0.0,
) -> Response[bytes]:
    """Chunks for this worker, once there are any or ``wait`` seconds are over."""
    broker, worker = await _worker(request, services)
    try:
        held = t.unpack_numbers(await request.body())
    except ValueError as error:
        raise InvalidInput(f"the body is no list of numbers: {error}") from None
    question = broker.asks(worker, held)
    deadline = asyncio.get_running_loop().time() + wait
    while broker.stands(worker, question) and not services.tasks.closing:
        if body := broker.take(worker, want):
            return Response(body, media_type=_BYTES)
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            break
        await broker.wait_for_chunk(worker, left)
    broker.offer()  # what this one was woken for is for another
    return Response(b"", media_type=_BYTES)


@post("/", status_code=HTTP_204_NO_CONTENT, request_max_body_size=_MAX)
async def answer(request: Request[Any, Any, Any], services: Wired) -> None:
    """Outcomes of this worker, for its driver."""
    body = await request.body()
    broker, worker = await _worker(request, services)
    broker.answer(worker, body)


workers = Router(path="/agent/v1/tasks", route_handlers=[take, answer])
