"""
A bar on a terminal's stderr, while ``wherry.map`` works. Called by ``sdk.map``.
"""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """How far it is. ``total`` may be None. Safe from any thread; closing it again is no error."""

    def __init__(self, title: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = self._progress.add_task(title, total=total)
        self._progress.start()

    def move(self, done: int) -> None:
        """So many are done."""
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()


def wanted(progress: bool | None) -> bool:
    """Whether to show one: where nobody said, on a terminal."""
    return sys.stderr.isatty() if progress is None else progress
