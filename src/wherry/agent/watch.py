"""
The watch: a thread that looks at the program from outside, a few times a second.

Started by ``agent.main`` when the program runs: reports, event files, and the use of the machine.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from pathlib import Path
from typing import Callable

from wherry.agent.reports import ReportTail
from wherry.agent.tensorboard import EventFiles
from wherry.agent.usage import PERIOD, Usage

_PACE = 0.2  #: seconds between two looks at the report file


class Watch(threading.Thread):
    """``on_oom()`` is called, perhaps again, when the program is over its memory limit."""

    def __init__(
        self,
        reports: ReportTail,
        events: EventFiles,
        usage: Usage,
        on_oom: Callable[[], None],
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._reports, self._events, self._usage = reports, events, usage
        self._on_oom = on_oom
        self._ended = threading.Event()

    def run(self) -> None:
        """The thread."""
        due = time.monotonic() + 0.5
        while not self._ended.wait(_PACE):
            try:
                self._reports.poll()
                if time.monotonic() >= due:
                    due = time.monotonic() + PERIOD
                    self._events.poll()
                    if self._usage.poll():
                        self._on_oom()
            except Exception:
                # To lose a point is better than to lose the rest of them.
                traceback.print_exc()

    def finish(self) -> None:
        """The program has ended: take the last of it."""
        self._ended.set()
        self.join()
        self._reports.poll()
        self._events.poll(thorough=True)


def event_folders(cwd: Path, output: Path, argv: list[str], rank: int) -> list[Path]:
    """
    Where event files may appear: in ``output``, and, for rank 0, since the ranks of a machine share
    it, in the working folder and in the folders that the command line names (``--logdir runs/a``).
    """
    if rank != 0:
        return [output]
    words = [part for word in argv for part in (word, word.partition("=")[2])]
    named = [cwd / word for word in words if word and not word.startswith("-")]
    outside = [p for p in named if os.path.isdir(p) and cwd not in p.resolve().parents]
    return list(dict.fromkeys([output, cwd, *outside]))
