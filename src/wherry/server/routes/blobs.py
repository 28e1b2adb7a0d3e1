"""
Bytes by digest: how code travels to the control plane.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO, Any

from litestar import Request, Router, get, post
from litestar.params import FromPath, JSONBody
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from wherry.agent.protocol import iter_pack
from wherry.blobs.base import Blobs
from wherry.core.api import Digests
from wherry.core.bundle import check_digest
from wherry.errors import InvalidInput
from wherry.server.services import Wired


@post("/missing", status_code=HTTP_200_OK, sync_to_thread=True)
def missing(data: JSONBody[Digests], services: Wired) -> Digests:
    """Those of the digests that are not here yet."""
    wanted = [check_digest(digest) for digest in data.digests]
    return Digests(digests=tuple(services.blobs.missing(wanted)))


@post("/pack", status_code=HTTP_204_NO_CONTENT, request_max_body_size=None)
async def pack(request: Request[Any, Any, Any], services: Wired) -> None:
    """
    Store every blob of a pack. One that is cut off leaves its whole blobs behind, which does no
    harm: what they are is in their names.
    """
    with tempfile.SpooledTemporaryFile(max_size=4 << 20) as spool:
        async for part in request.stream():
            spool.write(part)
        spool.seek(0)
        await asyncio.to_thread(_unpack, services.blobs, spool)


def _unpack(blobs: Blobs, spool: IO[bytes]) -> None:
    try:
        for digest, _, pieces in iter_pack(spool.read):
            blobs.put(digest, pieces)
    except EOFError as error:
        raise InvalidInput(f"the pack does not decode: {error}") from None


@get("/{digest:str}", sync_to_thread=True)
def blob(digest: FromPath[str], services: Wired) -> Stream:
    """The bytes with this digest."""
    services.blobs.size(check_digest(digest))
    return Stream(services.blobs.get(digest), media_type="application/octet-stream")


router = Router(path="/api/v1/blobs", route_handlers=[missing, pack, blob])
