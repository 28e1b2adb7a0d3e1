"""
The journal: a rank's reports, numbered, on disk until the control plane has them.

Written by every part of the agent through :meth:`Journal.append`, read by ``agent.sender``; the
local back end reads what is left with :func:`read_folder`. A full disk never blocks or kills the
program: output is dropped and counted, everything else waits in memory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from wherry.agent import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from os import PathLike
    from typing import Union

    _Path = Union[str, PathLike[str]]

SEGMENT = 32 * 2**20  #: bytes after which a new segment starts
RETRY = 1.0  #: seconds after which a full disk is tried again
MEMORY = 16 * 2**20  #: bytes of frames that may wait in memory for room on the disk

_Frame = tuple[int, bytes]  # seq, whole frame


def segments(folder: _Path) -> list[str]:
    """The paths of the journal's files in ``folder``, oldest first; the last may not be there."""
    names = [name for name in os.listdir(folder) if name.startswith("journal.")]
    older = sorted(int(name[8:]) for name in names if name[8:].isdigit())
    return [os.path.join(folder, name) for name in (*(f"journal.{n}" for n in older), "journal")]


def read_folder(folder: _Path) -> Iterator[bytes]:
    """The whole frames that lie in ``folder``, sent or not, in order, each as bytes."""
    with contextlib.suppress(FileNotFoundError):
        for path in segments(folder):
            with contextlib.suppress(FileNotFoundError, ValueError), open(path, "rb") as file:
                for kind, seq, when, payload in protocol.iter_frames(file.read()):
                    yield protocol.frame(kind, seq, when, bytes(payload))


class Journal:
    """
    Safe from any thread. ``spool_limit``: bytes of unsent frames beyond which output is dropped.

    Opened again on a folder that has a journal, it goes on after the last whole frame.
    """

    def __init__(self, folder: _Path, spool_limit: int) -> None:
        self._folder = folder
        self._newest = os.path.join(folder, "journal")
        self._limit = spool_limit
        self._lock = threading.Lock()
        self.written = threading.Event()  #: set whenever there is something to send
        #: called with the payload of every METRIC frame, once it was added
        self.heard: Callable[[bytes], None] | None = None
        self.acked = 0
        self.last = 0  #: the newest frame's number
        self._sealed: deque[tuple[int, str, int]] = deque()  # last seq, file, bytes
        self._size = 0  # of the newest segment
        self._sent = 0  # bytes at its beginning that are acknowledged
        self._memory: deque[_Frame] = deque()
        self._in_memory = 0
        self._retry_at = 0.0  # until then the disk is taken to be full
        self._dropped = [0, 0, 0]  # bytes and lines of output, other frames
        self._cursor: tuple[int, str, int] | None = None  # next seq, its file, offset there
        self._recover()
        self._fd = os.open(self._newest, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._acked_fd = os.open(os.path.join(folder, "acked"), os.O_RDWR | os.O_CREAT, 0o600)

    def append(self, kind: int, payload: bytes, when: float | None = None) -> None:
        """Add a frame of this moment, or of ``when`` (seconds since the epoch). Never raises."""
        with self._lock:
            if any(self._dropped) and self._has_room():
                self._confess()
            self._append(kind, payload, time.time() if when is None else when)
        self.written.set()
        if self.heard is not None and kind == protocol.METRIC:
            self.heard(payload)

    def say(self, text: str) -> None:
        """Add a line of our own to the log."""
        self.append(protocol.LOG, bytes([protocol.SYSTEM]) + text.encode() + b"\n")

    def read(self, limit: int) -> tuple[bytes, int]:
        """
        The frames after ``acked``, at least one if there is one, else up to ``limit`` bytes; and
        the last one's number (``acked`` where there is none).
        """
        with self._lock:
            data, last = self._read_disk(limit)
            if data:
                return data, last
            parts: list[bytes] = []
            size, last = 0, self.acked
            for seq, frame in self._memory:
                if seq > self.acked and (not parts or size + len(frame) <= limit):
                    parts.append(frame)
                    size += len(frame)
                    last = seq
            return b"".join(parts), last

    def acknowledge(self, seq: int) -> None:
        """The control plane has everything up to ``seq``: forget it."""
        with self._lock:
            self.acked = max(self.acked, min(seq, self.last))
            self._forget_segments()
            while self._memory and self._memory[0][0] <= self.acked:
                self._in_memory -= len(self._memory.popleft()[1])
            if self._cursor and self._cursor[0] == self.acked + 1:
                self._sent = self._cursor[2] if self._cursor[1] == self._newest else 0
            # At once where the disk is full: this may be all the room that there is.
            if self.acked == self.last and (self._size > SEGMENT // 4 or any(self._dropped)):
                os.ftruncate(self._fd, 0)
                self._size, self._sent, self._cursor, self._retry_at = 0, 0, None, 0.0
            # Written over in place: this needs no room on a full disk.
            with contextlib.suppress(OSError):
                os.pwrite(self._acked_fd, b"%020d" % self.acked, 0)

    @property
    def unsent(self) -> bool:
        """Whether something waits for its acknowledgement."""
        return self.acked < self.last

    # --- writing
    def _append(self, kind: int, payload: bytes, when: float) -> bool:
        """Whether the frame was kept."""
        frame = protocol.frame(kind, self.last + 1, when, payload)
        output = kind == protocol.LOG and payload[0] != protocol.SYSTEM
        fits = not output or self._spooled() + len(frame) <= self._limit
        if fits and not self._memory and self._write(frame):
            self.last += 1
            return True
        if output:
            self._dropped[0] += len(payload) - 1
            self._dropped[1] += payload.count(b"\n")
            return False
        if self._in_memory + len(frame) > MEMORY and kind != protocol.EXIT:
            self._dropped[2] += 1
            return False
        self.last += 1
        self._memory.append((self.last, frame))
        self._in_memory += len(frame)
        return True

    def _write(self, frame: bytes) -> bool:
        if self._retry_at and time.monotonic() < self._retry_at:
            return False
        try:
            if self._size + len(frame) > SEGMENT and self._size:
                self._seal()
            whole = os.write(self._fd, frame) == len(frame)
        except OSError:
            whole = False
        if whole:
            self._size += len(frame)
            self._retry_at = 0.0
        else:
            self._retry_at = time.monotonic() + RETRY
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
        return whole

    def _seal(self) -> None:
        """Rename the current segment after its first frame and start a new one."""
        first = os.pread(self._fd, protocol.HEADER.size, 0)
        seq = protocol.HEADER.unpack(first)[2]
        path = f"{self._newest}.{seq}"
        os.rename(self._newest, path)
        self._sealed.append((self.last, path, self._size - self._sent))
        if self._cursor and self._cursor[1] == self._newest:
            self._cursor = self._cursor[0], path, self._cursor[2]
        os.close(self._fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._fd = os.open(self._newest, flags, 0o600)
        self._size = self._sent = 0
        self._forget_segments()

    def _forget_segments(self) -> None:
        while self._sealed and self._sealed[0][0] <= self.acked:
            _, path, _ = self._sealed.popleft()
            if self._cursor and self._cursor[1] == path:
                self._cursor = None
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _has_room(self) -> bool:
        """Whether output is kept again; first moves to the disk what waits in memory."""
        while self._memory and self._write(self._memory[0][1]):
            self._in_memory -= len(self._memory.popleft()[1])
        # Not at once, or every line would be followed by a line about it.
        waited = time.monotonic() >= self._retry_at
        return waited and not self._memory and self._spooled() < self._limit * 3 // 4

    def _confess(self) -> None:
        """Say how much was not kept, once there is room to say it."""
        size, lines, others = self._dropped
        also = f" and {others} other reports" if others else ""
        text = f"{size} bytes ({lines} lines) of output{also} were not kept: there was no room\n"
        if self._append(protocol.LOG, bytes([protocol.SYSTEM]) + text.encode(), time.time()):
            self._dropped = [0, 0, 0]

    def _spooled(self) -> int:
        """Bytes on disk that are not acknowledged."""
        return sum(size for _, _, size in self._sealed) + self._size - self._sent

    # --- reading
    def _read_disk(self, limit: int) -> tuple[bytes, int]:
        """Whole frames after ``acked`` from the disk, and the last one's number."""
        want = self.acked + 1
        seq, path, offset = self._cursor or (0, self._newest, 0)
        if seq != want:
            path = next((p for last, p, _ in self._sealed if last >= want), self._newest)
            offset = _skip(path, want)
        while True:
            data, last = _read_frames(path, offset, limit)
            if data or path == self._newest:
                self._cursor = last + 1 if data else want, path, offset + len(data)
                return data, last
            after = [p for _, p, _ in self._sealed]
            path = [*after, self._newest][after.index(path) + 1]
            offset = 0

    def _recover(self) -> None:
        """Take up what an earlier process left."""
        acked = os.path.join(self._folder, "acked")
        with contextlib.suppress(OSError, ValueError), open(acked) as file:
            self.acked = int(file.read() or 0)
        self.last = self.acked
        for path in segments(self._folder):
            with contextlib.suppress(FileNotFoundError):
                data, last = _read_frames(path, 0, os.path.getsize(path))
                self.last = max(self.last, last)
                if path == self._newest:
                    os.truncate(path, len(data))
                    self._size = len(data)
                else:
                    self._sealed.append((last, path, len(data)))


def _skip(path: str, seq: int) -> int:
    """The offset of frame ``seq`` in a segment, or of its end."""
    with open(path, "rb") as file:
        data, offset = file.read(), 0
    while len(data) - offset >= protocol.HEADER.size:
        length, _, found, _ = protocol.HEADER.unpack_from(data, offset)
        if found >= seq:
            break
        offset += 4 + length
    return offset


def _read_frames(path: str, offset: int, limit: int) -> tuple[bytes, int]:
    """Whole frames of at most ``limit`` bytes together, or one; and the last one's number."""
    header = protocol.HEADER
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(limit)
        if len(data) >= header.size:
            first = 4 + header.unpack_from(data)[0]
            data += file.read(max(0, first - len(data)))
    end = last = 0
    while len(data) - end >= header.size:
        length, _, seq, _ = header.unpack_from(data, end)
        if end + 4 + length > len(data):
            break
        end, last = end + 4 + length, seq
    return data[:end], last
