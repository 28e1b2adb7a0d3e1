"""
The watch: a thread that looks at the program from outside, a few times a second.

Started by ``agent.main`` when the program runs: reports, event files, and the use of the machine.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable

from wherry.agent import platform
from wherry.agent.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from pathlib import Path
    from typing import Any

    from wherry.agent.faults import Faults
    from wherry.agent.reports import ReportTail
    from wherry.agent.stall import Stall
    from wherry.agent.tensorboard import EventFiles
    from wherry.agent.usage import Usage

_PACE = 0.2  #: seconds between two looks at the report file
_FIRST = 0.5  #: seconds until the first look at the rest


class Watch(threading.Thread):
    """
    ``env``, ``cwd`` and ``command`` are the program's. ``on_oom()`` is called, perhaps again, when
    it is over its memory limit. ``faults``: of a rehearsal. ``signs()`` grows with its output,
    ``stacks()`` says in words what it does. ``reports`` and ``usage`` are there after ``finish``.
    """

    def __init__(
        self,
        config: dict[str, Any],
        journal: Journal,
        *,
        env: dict[str, str],
        cwd: str,
        command: list[str],
        on_oom: Callable[[], None],
        signs: Callable[[], int],
        stacks: Callable[[], str],
        faults: Faults | None = None,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._config, self._journal = config, journal
        self._env, self._cwd, self._command = env, cwd, command
        self._on_oom, self._signs, self._stacks = on_oom, signs, stacks
        self._faults = faults
        self._pace = _PACE if faults is None else faults.pace
        self._began = time.time() - 1
        self._kills = platform.oom_kills(config["limits"].get("cgroup") or ())
        self._ended = threading.Event()
        self.reports: ReportTail
        self.usage: Usage
        self._events: EventFiles
        self._stall: Stall | None = None

    def run(self) -> None:
        """The thread."""
        # The program's own start, and its first line, go before what is imported for this.
        self._ended.wait(_PACE)
        self._make()
        due = time.monotonic() + _FIRST - _PACE
        while not self._ended.wait(self._pace):
            try:
                self.reports.poll()
                if self._faults is not None:
                    self._faults.tick(self._take)
                if time.monotonic() >= due:
                    due = time.monotonic() + self.usage.period
                    self._events.poll()
                    if self.usage.poll():
                        self._on_oom()
                    if self._stall:
                        self._stall.poll(self.usage.spent, self.usage.stopped)
            except Exception:
                # To lose a point is better than to lose the rest of them.
                traceback.print_exc()

    def finish(self) -> None:
        """The program has ended: take the last of it."""
        self._ended.set()
        self.join()
        self._take()

    def _take(self) -> None:
        """Everything that the program has reported by now."""
        self.reports.poll()
        self._events.poll(thorough=True)
        self.usage.finish()

    def _make(self) -> None:
        from pathlib import Path

        from wherry.agent.reports import ReportTail
        from wherry.agent.tensorboard import EventFiles
        from wherry.agent.usage import Usage

        self.reports = ReportTail(Path(self._env["WHERRY_REPORT"]), self._journal)
        self.usage = Usage(self._journal, self._config["limits"], self._kills)
        if limit := float(self._config.get("stall") or 0.0):
            from wherry.agent.stall import Stall

            signs, journal = self._signs, self._journal
            self._stall = Stall(limit, journal, lambda: signs() + journal.metrics, self._stacks)
            self.usage.period = min(self.usage.period, limit / 2)
        output = Path(self._env["WHERRY_OUTPUT_DIR"])
        rank = self._config["rank"]
        folders = event_folders(Path(self._cwd), output, self._command, rank)
        self._events = EventFiles(self._journal, folders, self._began)


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
