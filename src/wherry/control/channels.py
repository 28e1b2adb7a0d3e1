"""
Bytes between a person and a rank, by way of the control plane: bounded, so that a slow reader slows
the writer, at either end.

Called by ``control.commands``, which hands them out, and by the routes that fill and empty them.
Lives on the event loop; what is in it is neither looked at nor kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from wherry.agent import protocol
from wherry.control.tokens import RankIdentity

LIMIT = 256 * 1024  #: bytes on their way in one direction
QUIET = 10.0  #: seconds after which a quiet line is told that it is still there
SILENCE = 60.0  #: seconds without a byte after which whoever sends is taken for gone
_NOTHING = protocol.attach_frame(protocol.ATTACH_NOTHING)


class HungUp(Exception):
    """The other end has gone."""


class Pipe:
    """One direction. ``write`` waits while it is full, ``read`` while it is empty."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._ended = self._broken = False
        self._changed = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Add all of it, as room appears. :raises HungUp: where nobody will read it."""
        view = memoryview(data)
        while view:
            if self._broken or self._ended:
                raise HungUp
            if room := self._limit - len(self._buffer):
                self._buffer += view[:room]
                view = view[room:]
                self._wake()
            else:
                await self._change()

    async def read(self) -> bytes:
        """What is there, at least a byte; b"" at the end."""
        while not self._buffer and not self._ended:
            await self._change()
        data = bytes(self._buffer)
        self._buffer.clear()
        self._wake()
        return data

    def end(self) -> None:
        """Nothing more will be written; what was is still read."""
        self._ended = True
        self._wake()

    def cut(self) -> None:
        """Neither end is wanted any more."""
        self._ended = self._broken = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


class Channel:
    """Two pipes with a person at one end and the rank ``who`` at the other."""

    def __init__(self, id: str, who: RankIdentity, forget: Callable[[str], None]) -> None:
        self.id, self.who = id, who
        self.to_rank, self.to_person = Pipe(), Pipe()
        self.taken = asyncio.Event()  #: the rank has come
        self.refused = ""  #: why it will not
        self.attended = False  #: somebody reads what comes from the rank
        self._forget = forget

    def take(self) -> None:
        """The rank has come."""
        self.taken.set()

    def refuse(self, why: str) -> None:
        """The rank will not come."""
        self.refused = why
        self.taken.set()
        self.hang_up()

    def expire(self) -> None:
        """Hang up, unless somebody reads what comes from the rank."""
        if not self.attended:
            self.hang_up()

    def hang_up(self) -> None:
        """One end has gone: the other is told, once it has read what was sent before."""
        self.to_rank.cut()
        self.to_person.end()
        self._forget(self.id)


async def outgoing(pipe: Pipe, channel: Channel) -> AsyncIterator[bytes]:
    """What a streaming answer sends: the pipe, and a sign of life where that is quiet."""
    channel.attended = channel.attended or pipe is channel.to_person
    reading = asyncio.ensure_future(pipe.read())
    try:
        while True:
            done, _ = await asyncio.wait({reading}, timeout=QUIET)
            if not done:
                yield _NOTHING
                continue
            if not (data := reading.result()):
                return
            yield data
            reading = asyncio.ensure_future(pipe.read())
    finally:
        # Also where the reader has gone, which ends this generator from outside.
        reading.cancel()
        channel.hang_up()


async def incoming(source: AsyncIterator[bytes], pipe: Pipe) -> None:
    """
    Fill the pipe from a streaming request, until its end or the other end's.

    :raises TimeoutError: where it has been silent for too long. Raises what ``source`` does.
    """
    try:
        while True:
            async with asyncio.timeout(SILENCE):
                data = await anext(source, b"")
            if not data:
                return
            await pipe.write(data)
    except HungUp:
        return
