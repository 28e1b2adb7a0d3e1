"""
Checkpoints that agents send and fetch, below ``/agent/v1``: each those of its own run.

The bytes go to ``/agent/v1/blobs``; a checkpoint is stored when all of them are there, so an upload
that is cut off is never seen.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from litestar import Request, Router, get, post
from litestar.params import JSONBody
from litestar.status_codes import HTTP_204_NO_CONTENT

from wherry.control.tokens import RankIdentity
from wherry.core.checkpoint import Checkpoint, Kept, complete
from wherry.errors import Conflict
from wherry.server.services import Services, Wired


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, a shard of one, or with the name "" the program's own files."""

    name: str
    step: int = 0
    shard: int | None = None
    shards: int = 1
    files: tuple[Kept, ...] = ()
    gone: tuple[str, ...] = ()


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of the newest complete checkpoint; with the name "" the program's own files."""

    name: str
    files: tuple[Kept, ...]


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What to put back."""

    parts: tuple[Part, ...]


def _who(request: Request[Any, Any, Any]) -> RankIdentity:
    identity = request.scope["state"]["identity"]
    assert isinstance(identity, RankIdentity)
    return identity


def _member(services: Services, who: RankIdentity) -> int:
    """The members of a pool are independent: each has checkpoints of its own."""
    return who.rank if services.store.run(who.attempt.run).spec.group == "pool" else 0


@get("/checkpoints", sync_to_thread=True)
def fetch(request: Request[Any, Any, Any], services: Wired) -> Parts:
    """The newest complete checkpoint of the rank's run, and what the program wrote by itself."""
    who = _who(request)
    member = _member(services, who)
    rows = [one for one in services.store.checkpoints(who.attempt.run) if one.member == member]
    newest = next(iter(complete(rows)), [])
    found = [*newest, *(one for one in rows if not one.name)]
    return Parts(parts=tuple(Part(name=one.name, files=one.files) for one in found))


@post("/checkpoints", status_code=HTTP_204_NO_CONTENT)
async def store(request: Request[Any, Any, Any], data: JSONBody[Sent], services: Wired) -> None:
    """A checkpoint of the rank's run is there, its blobs stored already."""
    await asyncio.to_thread(_store, services, _who(request), data)


def _store(services: Services, who: RankIdentity, sent: Sent) -> None:
    made = Checkpoint(
        run=who.attempt.run,
        attempt=who.attempt.number,
        rank=who.rank,
        member=_member(services, who),
        name=sent.name,
        step=sent.step,
        shard=sent.shard,
        shards=sent.shards,
        created=time.time(),
        files=sent.files,
    ).check()
    missing = services.blobs.missing(file.digest for file in made.files)
    if missing:
        raise Conflict(f"{len(missing)} blobs of {sent.name!r} are not here, e.g. {missing[0]}")
    services.store.keep_checkpoint(made, who.incarnation, gone=sent.gone)


router = Router(path="/agent/v1", route_handlers=[fetch, store])
