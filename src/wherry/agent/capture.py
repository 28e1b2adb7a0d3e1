"""
What the program writes, as frames of the journal: whole lines, with the time when they were read.

Fed by ``agent.supervise`` with the blocks it reads. A frame holds all the whole lines of a block,
so that a chatty program costs a frame per read and not per line. Bytes stay as they were: nothing
is decoded on the way, so output that is no text, or a character cut in two, is not harmed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

from wherry.agent import protocol
from wherry.agent.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

LONGEST = 6 * 2**20  #: bytes after which a line is cut, so that it fits into one request
_TAIL = 16 * 2**10  #: bytes kept for the last lines
_NUMBER = r"(?ai)[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)"


def strict_number(text: str) -> float | None:
    """The number, NaN and infinities too, that the whole text is; None where it is none."""
    return float(text) if re.fullmatch(_NUMBER, text) else None


class MetricRules:
    """``spec.metrics``: reads numbers out of lines. The step is the count of a metric's points."""

    def __init__(self, rules: Mapping[str, Mapping[str, str]]) -> None:
        self._rules = [
            (name, re.compile(rule["pattern"]), rule.get("from", "stdout"))
            for name, rule in rules.items()
        ]
        self._count = dict.fromkeys(rules, 0)

    def scan(self, stream: str, block: bytes, when: float) -> dict[str, Any]:
        """The points in whole lines of a stream, as ``protocol.pack_series`` takes them."""
        rules = [(name, pattern) for name, pattern, source in self._rules if source == stream]
        series: dict[str, Any] = {}
        if not rules:
            return series
        for line in block.decode("utf-8", "replace").splitlines():
            for name, pattern in rules:
                for match in pattern.finditer(line):
                    value = strict_number(match[1] or "")
                    if value is not None:
                        steps, times, values = series.setdefault(name, ([], [], []))
                        steps.append(self._count[name])
                        times.append(when)
                        values.append(value)
                        self._count[name] += 1
        return series


class Output:
    """What becomes of the output, beside what is shown: nothing. ``Capture`` keeps it."""

    def feed(self, stream: int, block: bytes) -> None:
        """Take what the program wrote."""

    def close(self) -> None:
        """There is no more."""


class Capture(Output):
    """Cuts blocks into whole lines. ``terminal``: both streams are one, and lines end in CR LF."""

    def __init__(self, journal: Journal, rules: MetricRules, *, terminal: bool) -> None:
        self._journal = journal
        self._rules = rules
        self._terminal = terminal
        self._partial: dict[int, list[bytes]] = {protocol.STDOUT: [], protocol.STDERR: []}
        self._pending = dict.fromkeys(self._partial, 0)
        self.blocks = 0  #: how many were taken
        self._tail = dict.fromkeys(self._partial, b"")

    def feed(self, stream: int, block: bytes) -> None:
        """Take a block as it was read."""
        self.blocks += 1
        cut = block.rfind(b"\n") + 1
        if cut:
            self._keep(stream, block[:cut])
            block = block[cut:]
        if block:
            self._partial[stream].append(block)
            self._pending[stream] += len(block)
            if self._pending[stream] > LONGEST:
                self._keep(stream, b"")

    def close(self) -> None:
        """The program has ended: keep what has no newline."""
        for stream, pending in self._pending.items():
            if pending:
                self._keep(stream, b"")

    def last_lines(self, count: int = 20) -> list[str]:
        """The last lines of stderr, or of stdout where stderr is empty."""
        tail = self._tail[protocol.STDERR] or self._tail[protocol.STDOUT]
        lines = tail.decode("utf-8", "replace").split("\n")
        # A progress bar rewrites its line: what stands there at last is what a person saw.
        shown = [line.rstrip("\r").rpartition("\r")[2][:2000] for line in lines]
        return [line for line in shown if line.strip()][-count:]

    def _keep(self, stream: int, end: bytes) -> None:
        data = b"".join([*self._partial[stream], end])
        self._partial[stream].clear()
        self._pending[stream] = 0
        if self._terminal:
            data = data.replace(b"\r\n", b"\n")
        now = time.time()
        self._journal.append(protocol.LOG, bytes([stream]) + data, now)
        self._tail[stream] = (self._tail[stream] + data[-_TAIL:])[-_TAIL:]
        names = ("stdout", "stderr") if self._terminal else (protocol.STREAMS[stream],)
        for name in names:
            series = self._rules.scan(name, data, now)
            if series:
                self._journal.append(protocol.METRIC, protocol.pack_series(series), now)
