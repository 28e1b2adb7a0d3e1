"""
How the tasks of ``wherry.map`` travel: between driver, control plane and workers.

Used by ``sdk.pool`` (the driver), ``control.tasks`` (the broker) and ``agent.pool`` (a worker,
which loads this file by its path). Standard library only.

A **chunk** is some tasks that one worker does in a row. The driver numbers its chunks from 1 and
never uses a number twice; to the broker a chunk is bytes. Bodies are frames::

    u32 length of payload | u8 kind | u64 number of the chunk, or 0 | payload

======= ============================================================================================
CHUNK   driver → worker: ``u8 flags`` then what ``agent.parcels`` packs
CANCEL  driver → broker: forget this chunk unless a worker has it
GRANT   driver → broker: SHA-256 digests, 32 bytes each: blobs that this run's workers may read
RESULT  worker → driver: the chunk's last outcomes; it is over, and what is missing was not begun.
        Of chunk 0: the initializer has raised
PART    worker → driver: outcomes so far; the chunk goes on
LOST    broker → driver: JSON ``{"why"}``: its worker is gone; what was not answered is yours again
STATE   broker → driver: JSON ``{"epoch", "next", "state", "workers", "replaced"}``; first in every
        answer. ``next``: how many answers there were, with these; ``state``: the run's;
        ``workers``: how many run; ``replaced``: how many died and were replaced
END     broker → worker: there will be no more
======= ============================================================================================

The broker keeps everything in memory. The **epoch** names its memory: where an answer has another
than the driver knows, the broker has started anew and the driver sends again what is unanswered.

=================================== ================================================================
POST /agent/v1/tasks/next           ``?want=&wait=``, body: u64 numbers of the chunks that this
                                    worker has → CHUNK and END frames. What it was given and does
                                    not name is given to another.
POST /agent/v1/tasks                RESULT and PART frames → 204
=================================== ================================================================
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator

CHUNK, CANCEL, GRANT, RESULT, PART, LOST, STATE, END = range(1, 9)

#: A flag of CHUNK: it takes an instant, so it may wait behind another at the same worker.
SHORT = 1
#: Another: it was sent before to a broker that has started anew, so that a worker may have it.
AGAIN = 2

HEAD = struct.Struct("<IBQ")


def frame(kind: int, number: int = 0, payload: bytes = b"") -> bytes:
    """One frame as bytes."""
    return HEAD.pack(len(payload), kind, number) + payload


def iter_frames(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """``(kind, number, payload)`` of each frame. :raises ValueError: where they are not frames."""
    view, at = memoryview(data), 0
    while at < len(view):
        if len(view) - at < HEAD.size:
            raise ValueError("a frame is cut off")
        size, kind, number = HEAD.unpack_from(view, at)
        at += HEAD.size
        if at + size > len(view) or not CHUNK <= kind <= END:
            raise ValueError(f"not a frame at byte {at - HEAD.size}")
        yield kind, number, view[at : at + size]
        at += size


def pack_numbers(numbers: Iterable[int]) -> bytes:
    """Numbers of chunks as bytes."""
    return array("Q", numbers).tobytes()


def unpack_numbers(data: bytes) -> list[int]:
    """The inverse. :raises ValueError: where they are not numbers."""
    found = array("Q")
    found.frombytes(data)
    return found.tolist()
