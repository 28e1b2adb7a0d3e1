"""
Looking into ranks that run: a program beside theirs, and their stacks.

The frames of a channel are passed on as they are; ``agent.protocol`` describes them.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from litestar import Request, Router, get, post
from litestar.exceptions import InternalServerException
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from wherry.control.channels import Pipe, incoming, outgoing
from wherry.core.api import Exec, RankStack
from wherry.core.run import Run
from wherry.server.services import Services, Wired

FRAMES = "application/octet-stream"


def _find(services: Services, ref: str) -> Run:
    return services.runs.find(ref, owner=services.owner)


@post("/runs/{ref:str}/exec", status_code=HTTP_200_OK)
async def exec_(ref: FromPath[str], data: JSONBody[Exec], services: Wired) -> Stream:
    """Run something beside a rank's program: what it writes, for as long as it runs."""

    run = await asyncio.to_thread(_find, services, ref)
    who = await asyncio.to_thread(services.look.rank, run, number=data.attempt, rank=data.rank)
    channel = await services.look.commands.open(who)
    headers = {"wherry-channel": channel.id, "wherry-rank": str(who.rank)}
    body = outgoing(channel.to_person, channel)
    return Stream(body, media_type=FRAMES, headers=headers, status_code=HTTP_200_OK)


@post("/channels/{id:str}", status_code=HTTP_204_NO_CONTENT, request_max_body_size=None)
async def send(request: Request[Any, Any, Any], id: FromPath[str], services: Wired) -> None:
    """What a person sends to the program."""
    await fill(request, services.look.commands.channel(id).to_rank)


async def fill(request: Request[Any, Any, Any], pipe: Pipe) -> None:
    """Pass the request's body on, then hang up on this side, also where it was cut off."""
    try:
        await incoming(request.stream(), pipe)
    except (InternalServerException, TimeoutError):
        pass  # whoever sent it is gone, which the other end learns by the end of the pipe
    finally:
        pipe.end()


@get("/runs/{ref:str}/stack")
async def stack(
    ref: FromPath[str],
    services: Wired,
    ranks: Annotated[list[int] | None, QueryParameter(name="rank")] = None,
    native: FromQuery[bool] = False,
) -> list[RankStack]:
    """What every rank's Python processes do at this moment."""
    run = await asyncio.to_thread(_find, services, ref)
    chosen = await asyncio.to_thread(services.look.ranks, run, ranks or ())
    return await services.look.stacks(chosen, native=native)


router = Router(path="/api/v1", route_handlers=[exec_, send, stack])
