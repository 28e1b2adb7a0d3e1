"""
Reads what the user's process reports through ``wherry.report`` and turns it into frames.

Polled by ``agent.watch``. The file's format is in ``agent.protocol``; a line that does not follow
it is left out and never stops the rest.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from wherry.agent import protocol
from wherry.agent.journal import Journal

_BLOCK = 2**20  #: bytes per frame of points, about 20,000 of them
_INT64 = 2**63


class ReportTail:
    """Follows the file from its beginning; ``result`` and ``error`` are final after the end."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._journal = journal
        self._offset = 0
        self.result = ""  #: path of the pickled result, whole on disk
        self.error = ""  #: what the function raised, in one line; "" where it returned

    def poll(self) -> None:
        """Take every whole line that is there."""
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            file.seek(self._offset)
            rest = b""
            while True:
                block = file.read(_BLOCK)
                lines, newline, rest = (rest + block).rpartition(b"\n")
                if lines:
                    self._take(lines)
                self._offset += len(lines) + len(newline)
                if not block:
                    return

    def _take(self, lines: bytes) -> None:
        try:
            records = json.loads(b"[" + lines.replace(b"\n", b",") + b"]")
        except ValueError:
            records = list(filter(None, map(_decode, lines.split(b"\n"))))
        series: dict[str, Any] = {}
        for record in records:
            try:
                self._record(record, series)
            except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
                continue
        if series:
            self._journal.append(protocol.METRIC, protocol.pack_series(series))

    def _record(self, record: dict[str, Any], series: dict[str, Any]) -> None:
        points = record.get("m")
        if points is not None:
            when, step = float(record["t"]), int(record["s"])
            if not -_INT64 <= step < _INT64:
                raise ValueError(step)
            for name, value in points.items():
                value = float(value)
                if name not in series:
                    series[name] = ([], [], [])
                steps, times, values = series[name]
                steps.append(step)
                times.append(when)
                values.append(value)
        elif "p" in record:
            self._journal.append(protocol.PARAMS, json.dumps(dict(record["p"])).encode())
        elif "r" in record:
            self.result, self.error = str(record["r"]), str(record.get("e", ""))


def _decode(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
