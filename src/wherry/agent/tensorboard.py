"""
Reads scalars out of TensorBoard event files while they are being written, without protobuf.

Polled by ``agent.watch``, so that a script that logs to TensorBoard is seen unchanged. A file is a
sequence of records ``u64 length | u32 crc | bytes | u32 crc``; a record is the protobuf message
``Event``, of which this file knows: wall_time (1), step (2), summary (5); in it value (1) with tag
(1), simple_value (2), tensor (8), metadata (9).
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Union

from wherry.agent import protocol
from wherry.agent.journal import Journal

_LENGTH = struct.Struct("<Q")
_LONGEST = 2**28  #: bytes; a longer record is no record
_BLOCK = 2**22
_DEPTH, _FOLDERS = 5, 5000  #: how far below a folder, and how many folders, to look
_SKIP = frozenset({"node_modules", "__pycache__", "site-packages"})
#: TensorProto: field and struct code of the typed values, by DataType
_TYPED = {1: (5, "<f"), 2: (6, "<d"), 3: (7, ""), 9: (10, "")}
_RAW = {1: "<f", 2: "<d", 3: "<i", 9: "<q", 19: "<e"}
_NO_SCALARS = frozenset({b"histograms", b"images", b"audio", b"text", b"pr_curves", b"hparams"})

_Field = Union[int, bytes]


def fields(data: bytes) -> Iterator[tuple[int, _Field]]:
    """
    (number, value) of each field of a protobuf message: an int for a varint, else bytes.

    :raises ValueError: where it is not one. :raises IndexError: where it is cut off.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + size > end:
            raise IndexError("a field is cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
        shift += 7


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def scalars(event: bytes) -> Iterator[tuple[str, int, float, float]]:
    """(tag, step, wall time, value) of each scalar in an ``Event``."""
    when, step, summaries = 0.0, 0, []
    for number, value in fields(event):
        if number == 1 and isinstance(value, bytes):
            when = struct.unpack("<d", value)[0]
        elif number == 2 and isinstance(value, int):
            step = _signed(value)
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, found = _value(value)
                if found is not None:
                    yield tag, step, when, found


def _value(data: bytes) -> tuple[str, float | None]:
    tag, found = "", None
    for number, value in fields(data):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            tag = value.decode("utf-8", "replace")
        elif number == 2:
            found = struct.unpack("<f", value)[0]
        elif number == 8:
            found = _tensor(value)
        elif number == 9 and _plugin(value) in _NO_SCALARS:
            return tag, None
    return tag, found


def _plugin(metadata: bytes) -> bytes:
    for number, value in fields(metadata):
        if number == 1 and isinstance(value, bytes):
            return next((v for n, v in fields(value) if n == 1 and isinstance(v, bytes)), b"")
    return b""


def _tensor(data: bytes) -> float | None:
    """The value of a tensor that holds one number; None for any other."""
    content = dict(fields(data))
    kind, shape = content.get(1), content.get(2, b"")
    if not isinstance(kind, int) or not isinstance(shape, bytes):
        return None
    for number, dimension in fields(shape):
        if number == 2 and isinstance(dimension, bytes) and (1, 1) not in set(fields(dimension)):
            return None
    raw = content.get(4)
    if isinstance(raw, bytes) and kind in _RAW and len(raw) == struct.calcsize(_RAW[kind]):
        return float(struct.unpack(_RAW[kind], raw)[0])
    field, code = _TYPED.get(kind, (0, ""))
    value = content.get(field)
    if isinstance(value, int):
        return float(_signed(value))
    if isinstance(value, bytes) and code and len(value) == struct.calcsize(code):
        return float(struct.unpack(code, value)[0])
    if isinstance(value, bytes) and not code and value:  # packed varints
        return float(_signed(_varint(value, 0)[0]))
    return None


class _File:
    """One event file, read up to its last whole record."""

    def __init__(self, path: str, prefix: str) -> None:
        self.path = path
        self.prefix = prefix
        self._offset = 0
        self._broken = False

    def poll(self, series: dict[str, Any]) -> None:
        if self._broken or os.stat(self.path).st_size <= self._offset:
            return
        with open(self.path, "rb") as file:
            file.seek(self._offset)
            data = file.read(_BLOCK)
            if len(data) >= 12 and _LENGTH.unpack_from(data)[0] + 16 > len(data):
                data += file.read(min(_LENGTH.unpack_from(data)[0], _LONGEST))
        at = 0
        while len(data) - at >= 12:
            size = _LENGTH.unpack_from(data, at)[0]
            if size > _LONGEST:
                self._broken = True
                break
            if at + size + 16 > len(data):
                break
            self._take(data[at + 12 : at + 12 + size], series)
            at += size + 16
        self._offset += at

    def _take(self, event: bytes, series: dict[str, Any]) -> None:
        try:
            found = list(scalars(event))
        except (ValueError, IndexError, struct.error):
            return
        for tag, step, when, value in found:
            steps, times, values = series.setdefault(self.prefix + tag, ([], [], []))
            steps.append(step)
            times.append(when)
            values.append(value)


class EventFiles:
    """
    Finds event files that were begun after ``since`` below some folders, and follows them.

    A metric is named after its tag, with the sub-folder in front (``train/loss``); folders that
    only tell runs apart (``runs/Nov24_10-31-07_host``, ``version_3``) are left out of the name.
    """

    def __init__(self, journal: Journal, roots: Sequence[Path], since: float) -> None:
        self._journal = journal
        self._roots = roots
        self._since = since
        self._files: dict[str, _File] = {}
        self._look_again = 0.0

    def poll(self, *, thorough: bool = False) -> None:
        """Take every whole record that is there; ``thorough``: look for new files in any case."""
        began = time.monotonic()
        if thorough or began >= self._look_again:
            self._find()
            # In a huge tree looking takes long: spend a twentieth of the time on it.
            took = time.monotonic() - began
            self._look_again = began + took + max(2.0, 20 * took)
        series: dict[str, Any] = {}
        for file in self._files.values():
            try:
                file.poll(series)
            except OSError:
                continue
        if series:
            self._journal.append(protocol.METRIC, protocol.pack_series(series))

    def _find(self) -> None:
        for root in self._roots:
            for folder, names in _walk(root):
                for name in names:
                    path = os.path.join(folder, name)
                    if path not in self._files and self._begun(path, name):
                        self._files[path] = _File(path, _prefix(os.path.relpath(folder, root)))

    def _begun(self, path: str, name: str) -> bool:
        stamp = re.search(r"tfevents\.([0-9]{9,11})\.", name)
        if stamp:
            return int(stamp[1]) >= int(self._since)
        try:
            return os.stat(path).st_mtime >= self._since
        except OSError:
            return False


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders below ``root`` that hold event files, with the files' names."""
    budget = _FOLDERS
    for folder, below, names in os.walk(root):
        budget -= 1
        deep = os.path.relpath(folder, root).count(os.sep) + 1 >= _DEPTH
        if deep or budget < 0:
            below.clear()
        below[:] = [
            name
            for name in below
            if name not in _SKIP
            and not name.startswith(".")
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]
        found = [name for name in names if "tfevents" in name]
        if found:
            yield folder, found


def _prefix(folder: str) -> str:
    """``logs/fit/20241124-103107/train`` → ``train/``."""
    parts = [] if folder == "." else folder.split(os.sep)[1:]
    for at in range(len(parts) - 1, -1, -1):
        digits = sum(c.isdigit() for c in parts[at])
        if digits >= 6 or re.fullmatch(r"version_\d+", parts[at]):
            parts = parts[at + 1 :]
            break
    return "".join(part + "/" for part in parts)
