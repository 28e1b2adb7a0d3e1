"""
Checkpoints on disk: written so that a crash at any moment leaves a whole one or none.

Called by ``agent.user`` in the user's process, and by ``agent.carry``, which sends them where no
folder survives attempts. Below ``checkpoint_dir``::

    step-20/                     a checkpoint: the program's files and a manifest, written last
    step-20.2/                   the same step, saved again; ``step-20`` is removed after it
    step-20/shard-1/             one rank's part; complete once every part of an attempt is there
    .wherry-unfinished-XXXX/     being written, by whoever holds the lock on the folder
    .wherry-...                  of Wherry, never a checkpoint

Everything else is the program's own, and left alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # user code pays for what is imported here
    from typing import Any

MANIFEST = "wherry-checkpoint.json"
OURS = ".wherry-"  #: how names begin that are no program's
_UNFINISHED, _GONE = f"{OURS}unfinished-", f"{OURS}gone-"
_NAME = re.compile(r"step-([0-9]{1,18})(?:\.([0-9]{1,9}))?")
_SHARD = re.compile(r"shard-([0-9]{1,9})")
_BLOCK = 2**20
_STALE = 60.0  #: seconds after which what nobody holds is removed


class Part:
    """A folder with a manifest: a checkpoint, or one shard of it. ``name``: relative."""

    def __init__(self, root: Path, name: str, manifest: dict[str, Any]) -> None:
        self.path, self.name = root / name, name
        self.step, self.shard = int(manifest["step"]), manifest["shard"]
        self.shards, self.attempt = int(manifest["shards"]), int(manifest["attempt"])
        self.by = str(manifest["by"])  #: RUN-ATTEMPT/RANK/INCARNATION; "" outside a run
        self.files: list[dict[str, Any]] = manifest["files"]

    def problem(self, *, thorough: bool) -> str:
        """What is wrong with its files; "" where nothing is. ``thorough``: digests as well."""
        for file in self.files:
            path = self.path / file["path"]
            try:
                size = path.stat().st_size
                wrong = size != file["size"] or (thorough and digest_of(path) != file["digest"])
            except OSError as error:
                return f"{file['path']}: {error.strerror}"
            if size != file["size"]:
                return f"{file['path']} has {size} bytes, not {file['size']}"
            if wrong:
                return f"{file['path']} has other bytes than were saved"
        return ""


class Found:
    """What a ``step-N`` folder holds. ``problem``: why it does not count, as far as names tell."""

    def __init__(self, path: Path, step: int, again: int) -> None:
        self.path, self.step, self.again = path, step, again
        parts = [p for name in _parts(path) if (p := _part(path.parent, name))]
        self.attempt = max((p.attempt for p in parts), default=-1)
        #: shards of attempts before are left behind by a crash
        self.parts = [p for p in parts if p.attempt == self.attempt]
        self.problem = self._problem()

    def check(self, *, thorough: bool) -> str:
        """The first thing that is wrong; "" where it is complete."""
        found = (part.problem(thorough=thorough) for part in self.parts)
        return self.problem or next(filter(None, found), "")

    def _problem(self) -> str:
        if not self.parts:
            return "it has no readable manifest"
        if self.parts[0].shard is None:
            return ""
        wanted = set(range(self.parts[0].shards))
        there = {p.shard for p in self.parts}
        if any(p.shards != len(wanted) for p in self.parts) or there - wanted:
            return "its shards do not belong together"
        missing = ", ".join(map(str, sorted(wanted - there)))
        return f"it lacks shards of {len(wanted)}: {missing}" if missing else ""


def look(root: Path) -> list[Found]:
    """
    Every ``step-N`` folder, newest first: by attempt, then by step. Reads manifests only.

    One that has no manifest counts to the latest attempt: it may be what was being saved last.
    """
    found = _found(root)
    latest = max((one.attempt for one in found), default=-1)

    def order(one: Found) -> tuple[int, int, int]:
        return (one.attempt if one.parts else latest, one.step, one.again)

    return sorted(found, key=order, reverse=True)


def newest(root: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint; ``warn`` is told of newer ones that are not complete."""
    for one in look(root):
        problem = one.check(thorough=True)
        if not problem:
            return one.path
        warn(f"checkpoint {one.path.name} is skipped: {problem}")
    return None


def parts(root: Path) -> list[Part]:
    """Every part below ``root``, oldest first."""
    return [part for one in reversed(look(root)) for part in one.parts]


class Writer:
    """
    ``with Writer(...) as folder``: what is written there becomes a checkpoint when the block ends,
    unless it raises, or wrote nothing. ``keep``: remove all complete ones but the newest so many.
    """

    def __init__(
        self, root: Path, step: int | None, shard: int | None, shards: int, keep: int | None
    ) -> None:
        if step is not None and step < 0:
            raise ValueError(f"step {step} is less than 0")
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: the newest one is always kept")
        if shard is not None and (step is None or not 0 <= shard < shards):
            raise ValueError(f"shard {shard} of {shards} at step {step}: it needs a step")
        self._root, self._step, self._keep = root, step, keep
        self._shard, self._shards = shard, shards
        self._lock = -1
        self._folder = Path()

    def __enter__(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        _sweep(self._root)
        self._folder = self._root / f"{_UNFINISHED}{os.urandom(8).hex()}"
        self._folder.mkdir()
        self._lock = os.open(self._folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._folder

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._complete()
        finally:
            os.close(self._lock)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _complete(self) -> None:
        files = [_saved(self._folder, path) for path in _files(self._folder)]
        if not files:
            return
        step = 1 + _highest(self._root) if self._step is None else self._step
        mark = os.environ.get("WHERRY_MARK", "")
        manifest = {
            "version": 1,
            "step": step,
            "shard": self._shard,
            "shards": self._shards,
            "attempt": int(os.environ.get("WHERRY_ATTEMPT") or 0),
            "by": mark,
            "created": time.time(),
            "files": files,
        }
        with open(self._folder / MANIFEST, "x", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        for folder, _, _ in os.walk(self._folder, topdown=False):
            _sync(Path(folder))
        if self._shard is None:
            self._place(step)
        else:
            self._place_shard(step, self._shard)
        _sync(self._root)
        if self._keep is not None:
            _remove_old(self._root, self._keep)

    def _place(self, step: int) -> None:
        """Give it the step's name, or, where that is taken, the next one; then remove the other."""
        older = sorted(one.again for one in _found(self._root, step))
        again = older[-1] + 1 if older else 1
        while not _rename(self._folder, self._root / _named(step, again)):
            again += 1
        for one in _found(self._root, step):
            if one.again < again and one.parts and one.parts[0].shard is None:
                _remove(one.path)

    def _place_shard(self, step: int, shard: int) -> None:
        again = 1
        while (self._root / _named(step, again) / MANIFEST).exists():
            again += 1
        parent = self._root / _named(step, again)
        parent.mkdir(exist_ok=True)
        target = parent / f"shard-{shard}"
        while not _rename(self._folder, target):
            _remove(target, self._root)
        _sync(parent)


# --- names


def _named(step: int, again: int) -> str:
    return f"step-{step}" if again == 1 else f"step-{step}.{again}"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _highest(root: Path) -> int:
    steps = (int(match[1]) for name in _names(root) if (match := _NAME.fullmatch(name)))
    return max(steps, default=-1)


def _found(root: Path, step: int | None = None) -> list[Found]:
    """The folders of all steps, or of one."""
    names = [(name, _NAME.fullmatch(name)) for name in _names(root)]
    return [
        Found(root / name, int(match[1]), int(match[2] or 1))
        for name, match in names
        if match and step in (None, int(match[1])) and (root / name).is_dir()
    ]


def _parts(path: Path) -> list[str]:
    """The names, relative to the root, of the folders of ``path`` that may be parts."""
    names = _names(path)
    if MANIFEST in names:
        return [path.name]
    return [f"{path.name}/{name}" for name in names if _SHARD.fullmatch(name)]


def _part(root: Path, name: str) -> Part | None:
    try:
        manifest = json.loads((root / name / MANIFEST).read_bytes())
        return Part(root, name, manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- files


def _files(folder: Path) -> Iterator[str]:
    """The paths of the regular files below ``folder``. :raises ValueError: for anything else."""
    for inner, below, names in os.walk(folder):
        below.sort()
        links = [name for name in below if os.path.islink(os.path.join(inner, name))]
        for name in sorted(names + links):
            path = os.path.join(inner, name)
            if not os.path.isfile(path):
                raise ValueError(f"{path} is neither a file nor a folder")
            yield os.path.relpath(path, folder)


def _saved(folder: Path, path: str) -> dict[str, Any]:
    """Make sure that a file is on the disk; its entry in the manifest."""
    _sync(folder / path)
    size = (folder / path).stat().st_size
    return {"path": path, "size": size, "digest": digest_of(folder / path)}


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    check = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            check.update(block)
    return check.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # no such thing on this file system
            raise
    finally:
        os.close(fd)


def _rename(source: Path, target: Path) -> bool:
    """False where the name is taken."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _remove(path: Path, root: Path | None = None) -> None:
    """Make it disappear at once, then remove it. By two at once: no error."""
    aside = (root or path.parent) / f"{_GONE}{os.urandom(8).hex()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_old(root: Path, keep: int) -> None:
    """All that is older than the newest ``keep`` complete ones, and has a manifest."""
    complete = 0
    for one in look(root):
        if complete >= keep and one.parts:
            _remove(one.path)
        elif not one.check(thorough=False):
            complete += 1


def _sweep(root: Path) -> None:
    """Remove what a crash left unfinished: what nobody holds, for a while."""
    for name in _names(root):
        if not name.startswith((_UNFINISHED, _GONE)):
            continue
        with contextlib.suppress(OSError):
            fd = os.open(root / name, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(fd).st_mtime > _STALE:
                    shutil.rmtree(root / name, ignore_errors=True)
            finally:
                os.close(fd)
