"""
What the program leaves in ``output_dir`` becomes the run's files; so does a function's result.

Called by ``agent.main`` when the program has ended. A file is announced after its bytes are stored,
so an upload that is cut off is invisible.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wherry.agent import protocol
from wherry.agent.calls import Control, Refused, persist
from wherry.agent.journal import Journal

_BLOCK = 2**20
_TRIES = 3  #: for a file that changes while it is being sent


class Uploader:
    """``stopped``: once set, what the control plane does not answer is given up."""

    def __init__(self, control: Control, journal: Journal, stopped: threading.Event) -> None:
        self._control = control
        self._journal = journal
        self._stopped = stopped
        self._announced: set[str] = set()

    def keep(self, root: Path, paths: Iterable[str]) -> None:
        """Send the files at ``paths``, relative to ``root``, and announce them by these names."""
        for path in paths:
            if path in self._announced:
                continue
            if "\\" in path or not path.isprintable() or len(path) > 4096:
                self._journal.say(f"{path!r} is not kept: no name that every system can hold")
                continue
            try:
                digest, size, modified = self.store(root / path)
            except (OSError, Refused) as error:
                self._journal.say(f"{path} is not kept: {error}")
                continue
            record = {"path": path, "digest": digest, "size": size, "modified": modified}
            self._journal.append(protocol.FILE, json.dumps(record).encode())
            self._announced.add(path)

    def store(self, path: Path) -> tuple[str, int, float]:
        """
        Send one file's bytes: (digest, size, time of change).

        :raises OSError: where it cannot be read. :raises Refused: where it changed all the time.
        """
        for left in reversed(range(_TRIES)):
            digest, size, modified = _digest(path)
            try:
                persist(partial(self._put, path, digest, size), self._stopped)
                return digest, size, modified
            except Refused:
                if not left:
                    raise
        raise AssertionError

    def _put(self, path: Path, digest: str, size: int) -> Any:
        with open(path, "rb") as file:
            return self._control.call("PUT", f"/blobs/{digest}", _exactly(file, size), size=size)


def _digest(path: Path) -> tuple[str, int, float]:
    check, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            check.update(block)
            size += len(block)
        return check.hexdigest(), size, os.fstat(file.fileno()).st_mtime


def _exactly(file: Any, size: int) -> Iterator[bytes]:
    """
    ``size`` bytes, as the header has promised, also of a file that has become longer or shorter.

    The digest tells the control plane that they are not the right ones.
    """
    while size:
        block = file.read(min(_BLOCK, size)) or b"\0" * min(_BLOCK, size)
        size -= len(block)
        yield block


def outputs(root: Path, journal: Journal) -> list[str]:
    """The regular files below ``root``, sorted. What cannot be kept is said in the log."""
    found = []
    for folder, below, names in os.walk(root):
        below.sort()
        for name in sorted([*names, *(n for n in below if os.path.islink(f"{folder}/{n}"))]):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            inside = root.resolve() in Path(path).resolve().parents
            try:
                kind = os.stat(path).st_mode
            except OSError as error:
                journal.say(f"{relative} is not kept: {error.strerror}")
                continue
            if not inside:
                journal.say(f"{relative} is not kept: it is a link out of the output folder")
            elif stat.S_ISREG(kind):
                found.append(relative)
            elif not stat.S_ISDIR(kind) or os.path.islink(path):
                journal.say(f"{relative} is not kept: it is neither a file nor a folder")
    return found
