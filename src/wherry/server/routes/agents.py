"""
What agents call, below ``/agent/v1``. The guard has put a rank's identity into the request.

The protocol is described in ``agent.protocol``.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, get, post, put
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED, HTTP_204_NO_CONTENT

from wherry.agent.protocol import pack_item
from wherry.blobs.base import Blobs
from wherry.control.reports import parse
from wherry.control.tokens import RankIdentity
from wherry.core import elastic
from wherry.core.api import Digests
from wherry.core.bundle import check_digest
from wherry.core.run import Attempt, Event, Rank
from wherry.core.states import RANK_TERMINAL, RankState
from wherry.errors import Forbidden, NotFound, StaleToken
from wherry.server.services import Services, Wired

_INLINE = 64 * 1024  # bytes of frames that are parsed on the event loop
_MAX_REPORT = 64 * 2**20


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """An agent introduces itself."""

    protocol: int
    address: str
    ports: tuple[int, ...] = ()
    host: str = ""
    pid: int = 0
    python: str = ""


def identity(request: Request[Any, Any, Any]) -> RankIdentity:
    """Whose token came with the request."""
    who = request.scope["state"]["identity"]
    assert isinstance(who, RankIdentity)
    return who


@post("/hello", status_code=HTTP_200_OK)
async def hello(
    request: Request[Any, Any, Any], data: JSONBody[Hello], services: Wired
) -> dict[str, int | float]:
    """An agent has come up; it learns what was stored of it already."""
    who = identity(request)
    try:
        rank = await asyncio.to_thread(
            services.store.arrive,
            who.attempt,
            who.rank,
            who.incarnation,
            address=data.address,
            ports=data.ports,
        )
    except StaleToken:
        await asyncio.to_thread(_turned_away, services, who)
        raise
    services.live.heard(who.attempt, who.rank)
    services.bus.publish(who.attempt.run)
    return {"acked": rank.acked, "lease": services.live.lease}


def _turned_away(services: Services, who: RankIdentity) -> None:
    """Note that a rank came back for which another one had been put in place."""
    message = f"rank {who.rank} came back, too late, and was turned away"
    run, number = who.attempt.run, who.attempt.number
    with contextlib.suppress(NotFound):
        services.store.add_event(
            Event(
                run=run, time=time.time(), kind="refused", message=message,
                attempt=number, rank=who.rank,
            )
        )  # fmt: skip


@get("/peers")
async def peers(
    request: Request[Any, Any, Any],
    services: Wired,
    wait: Annotated[float, QueryParameter(ge=0, le=60)] = 20.0,
    round: Annotated[int, QueryParameter(ge=0)] = 0,
) -> Response[dict[str, Any]]:
    """
    Every rank's address once all have arrived; until then, after ``wait``, who is missing.

    In an elastic group: those of the round after ``round``, which this rank has left.
    """
    who = identity(request)
    rounds = await asyncio.to_thread(_ask, services, who, round)
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        version = services.bus.version(who.attempt.run)
        attempt = await asyncio.to_thread(services.store.attempt, who.attempt)
        services.live.heard(who.attempt, who.rank)
        ready = services.live.ready(who.attempt)
        if met := _met(attempt, who) if rounds else _all(attempt, ready):
            found = [
                {
                    "rank": r.rank,
                    "address": r.address,
                    "ports": list(r.ports),
                    "key": services.tokens.key(who.attempt, r.rank),
                }
                for r in met
            ]
            return Response({"round": attempt.round, "peers": found})
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0 or services.live.stopping(who.attempt) or services.bus.closed:
            missing = [r.rank for r in attempt.ranks if not _there(r, ready)]
            return Response({"missing": missing}, status_code=HTTP_202_ACCEPTED)
        await services.bus.wait(who.attempt.run, version, timeout=left)


def _ask(services: Services, who: RankIdentity, round: int) -> bool:
    """Note that the rank is ready to meet the others; whether its group has rounds."""
    still_current(services, who)
    run = who.attempt.run
    rounds = services.store.run(run).spec.group == "elastic"
    if rounds and round:
        services.store.leave_round(who.attempt, who.rank, round)
    services.live.wait(who.attempt, who.rank)
    services.bus.publish(run)
    if rounds:
        services.reconciler.mark(run)
    return rounds


def _there(rank: Rank, ready: frozenset[int]) -> bool:
    """Whether it has everything but the others."""
    asks = rank.rank in ready or rank.state not in (RankState.PENDING, RankState.ARRIVED)
    return asks and bool(rank.address)


def _all(attempt: Attempt, ready: frozenset[int]) -> list[Rank]:
    return list(attempt.ranks) if all(_there(r, ready) for r in attempt.ranks) else []


def _met(attempt: Attempt, who: RankIdentity) -> list[Rank]:
    """Those whom the rank has met in the present round."""
    if who.rank not in elastic.inside(attempt):
        return []
    return [attempt.ranks[n] for n in attempt.members]


@post("/reports", status_code=HTTP_200_OK, request_max_body_size=_MAX_REPORT)
async def reports(request: Request[Any, Any, Any], services: Wired) -> dict[str, Any]:
    """Frames, or none for a heartbeat. What is acknowledged is on disk."""
    who = identity(request)
    body = await request.body()
    if len(body) > _INLINE:
        report = await asyncio.to_thread(parse, who, body)
    else:
        report = parse(who, body)
    if report is None:
        acked = await asyncio.to_thread(still_current, services, who)
    else:
        acked = await services.ingest.add(report)
    services.live.heard(who.attempt, who.rank)
    return {
        "acked": acked,
        "stop": services.live.stopping(who.attempt),
        "round": services.live.round(who.attempt),
    }


def still_current(services: Services, who: RankIdentity) -> int:
    """What was stored of this rank. :raises StaleToken: where it was declared over."""
    attempt = services.store.attempt(who.attempt)
    rank = attempt.ranks[who.rank]
    if rank.incarnation != who.incarnation or attempt.ended is not None:
        raise StaleToken(f"rank {who.rank} of attempt {who.attempt} was replaced")
    if rank.state in RANK_TERMINAL and rank.cause in ("lease", "agent-lost"):
        raise StaleToken(f"rank {who.rank} of attempt {who.attempt} was declared lost")
    return rank.acked


@get("/blobs/{digest:str}")
async def fetch(request: Request[Any, Any, Any], digest: FromPath[str], services: Wired) -> Stream:
    """One blob that belongs to the rank's run."""
    await asyncio.to_thread(_allow, services, identity(request), [check_digest(digest)])
    services.blobs.size(digest)
    return Stream(services.blobs.get(digest), media_type="application/octet-stream")


@post("/blobs/fetch", status_code=HTTP_200_OK)
async def fetch_many(
    request: Request[Any, Any, Any], data: JSONBody[Digests], services: Wired
) -> Stream:
    """Many blobs that belong to the rank's run, as one pack."""
    await asyncio.to_thread(_allow, services, identity(request), list(data.digests))
    return Stream(_pack(services.blobs, data.digests), media_type="application/octet-stream")


def _pack(blobs: Blobs, digests: tuple[str, ...]) -> Iterator[bytes]:
    for digest in digests:
        yield pack_item(digest, blobs.size(digest))
        yield from blobs.get(digest)


def _allow(services: Services, who: RankIdentity, digests: list[str]) -> None:
    """:raises Forbidden: for a blob that is no part of the rank's run."""
    spec = services.store.run(who.attempt.run).spec
    allowed = {
        spec.code.bundle,
        spec.environment.requirements,
        spec.call.payload if spec.call else "",
    }
    if spec.code.bundle:
        allowed |= services.bundled(spec.code.bundle)
    if spec.call and spec.call.tasks:
        allowed |= services.tasks.granted(who.attempt.run)
    for digest in digests:
        if digest not in allowed:
            raise Forbidden(f"blob {digest[:80]} is no part of run {who.attempt.run}")


@put("/blobs/{digest:str}", status_code=HTTP_204_NO_CONTENT, request_max_body_size=None)
async def store(request: Request[Any, Any, Any], digest: FromPath[str], services: Wired) -> None:
    """Keep a blob; it can be seen when it is whole."""
    await asyncio.to_thread(still_current, services, identity(request))
    await receive(services.blobs, check_digest(digest), request.stream())


async def receive(blobs: Blobs, digest: str, stream: AsyncIterator[bytes]) -> None:
    """Spool a body to disk, then store it: a slow sender holds no lock and no thread."""
    with tempfile.SpooledTemporaryFile(max_size=1 << 20) as spool:
        async for part in stream:
            spool.write(part)
        spool.seek(0)
        await asyncio.to_thread(blobs.put, digest, iter(lambda: spool.read(1 << 20), b""))


router = Router(path="/agent/v1", route_handlers=[hello, peers, reports, fetch, fetch_many, store])
