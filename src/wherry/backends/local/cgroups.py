"""
Memory and CPU limits by control groups, versions 1 and 2, where this process may make any.

Called by ``backend`` (limits of ranks) and ``machine`` (limits that hold for us). The agent moves
its program into the folders; nothing of ours runs in them. Elsewhere than on Linux there are none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 100_000  # µs over which a CPU quota is counted: the kernel's default
_UNLIMITED = 2**60  # version 1 writes "no limit" as nearly 2^63


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy and our own place in it."""

    version: int
    controllers: frozenset[str]
    root: Path  #: where it is mounted
    own: Path  #: the group of this process


@dataclass(frozen=True)
class Cgroups:
    """Where groups for ranks can be made; ``None``: this kind of limit is not to be had."""

    memory: Path | None = None
    cpu: Path | None = None
    version: int = 2

    @classmethod
    def detect(cls) -> Cgroups:
        """What this process may do. Makes nothing."""
        found = list(hierarchies())
        unified = next((h for h in found if h.version == 2), None)
        if unified is not None and not any("memory" in h.controllers for h in found):
            return cls(_delegated(unified, "memory"), _delegated(unified, "cpu"), version=2)
        places = {
            kind: h.own
            for h in found
            for kind in ("memory", "cpu")
            if h.version == 1 and kind in h.controllers and os.access(h.own, os.W_OK)
        }
        return cls(places.get("memory"), places.get("cpu"), version=1)

    def folders(self, name: str, *, memory: int | None, cpu: float | None) -> list[str]:
        """The groups that a rank with these limits needs. Pure."""
        parents = [self.memory if memory else None, self.cpu if cpu else None]
        return list(dict.fromkeys(str(p / f"wherry-{name}") for p in parents if p is not None))

    def make(self, name: str, *, memory: int | None, cpu: float | None) -> None:
        """Make them and set the limits. Again: sets them again. :raises OSError:"""
        for folder in self.folders(name, memory=memory, cpu=cpu):
            Path(folder).mkdir(exist_ok=True)
        if memory and self.memory is not None:
            self._limit_memory(self.memory / f"wherry-{name}", memory)
        if cpu and self.cpu is not None:
            self._limit_cpu(self.cpu / f"wherry-{name}", max(1000, int(cpu * _PERIOD)))

    def _limit_memory(self, group: Path, limit: int) -> None:
        if self.version == 2:
            _write(group / "memory.max", limit)
            # Swapping would hide the end of the memory behind a crawl; a rank dies as a whole.
            _write_if_there(group / "memory.swap.max", 0)
            _write_if_there(group / "memory.oom.group", 1)
        else:
            _write(group / "memory.limit_in_bytes", limit)
            _write_if_there(group / "memory.memsw.limit_in_bytes", limit)

    def _limit_cpu(self, group: Path, quota: int) -> None:
        if self.version == 2:
            _write(group / "cpu.max", f"{quota} {_PERIOD}")
        else:
            _write(group / "cpu.cfs_period_us", _PERIOD)
            _write(group / "cpu.cfs_quota_us", quota)


def remove(folders: Iterable[str], *, patience: float = 5.0) -> None:
    """
    Kill what is in the groups and remove them. Again: no error.

    :raises OSError: where a group still holds a process after ``patience`` seconds.
    """
    for folder in map(Path, folders):
        deadline = time.monotonic() + patience
        while folder.exists():
            kill(folder)
            try:
                folder.rmdir()
            except FileNotFoundError:
                break
            except OSError:  # EBUSY until the last process is reaped
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)


def kill(folder: Path) -> None:
    """SIGKILL every process in the group. None, or no group: no error."""
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def own_cpu_quota() -> float | None:
    """Cores that the groups around this process allow; ``None``: no limit."""
    found = [quota for h in hierarchies() for group in _upwards(h) if (quota := _quota(group))]
    return min(found, default=None)


def own_memory_limit() -> tuple[int, int] | None:
    """The tightest limit around this process and what is used of it, in bytes; ``None``: none."""
    found = []
    for hierarchy in hierarchies():
        names = ("memory.max", "memory.current")
        if hierarchy.version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        for group in _upwards(hierarchy):
            limit, used = (_number(group / name) for name in names)
            if limit is not None and limit < _UNLIMITED:
                found.append((limit, used or 0))
    return min(found, default=None)


def hierarchies() -> Iterator[Hierarchy]:
    """Every mounted hierarchy with our place in it."""
    try:
        places = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    own = {
        frozenset(kinds.split(",")): path for _, kinds, path in (p.split(":", 2) for p in places)
    }
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        _, _, _, shown, point = before.split(" ")[:5]
        names = frozenset(options.split(",")) if kind == "cgroup" else frozenset({""})
        path = next((p for kinds, p in own.items() if kinds <= names), None)
        if path is None:
            continue
        # A container sees its own group as the mount's root, though its path says more.
        inside = path[len(shown) :] if shown != "/" and path.startswith(shown) else path
        place = Path(point) / inside.lstrip("/")
        root = Path(point)
        yield Hierarchy(
            version=1 if kind == "cgroup" else 2,
            controllers=names,
            root=root,
            own=place if place.is_dir() else root,
        )


def _delegated(hierarchy: Hierarchy, controller: str) -> Path | None:
    """
    The nearest group around us in which a child with this controller can be made.

    A group that holds processes cannot give controllers to its children, so it is an ancestor of
    ours; never one above a limit that holds for us, which the child would then escape.
    """
    for group in _upwards(hierarchy):
        given = _text(group / "cgroup.subtree_control").split()
        # To move a process, its mover must be allowed to write the common ancestor's list.
        if controller in given and all(
            os.access(path, os.W_OK) for path in (group, group / "cgroup.procs")
        ):
            return group
        if (_number(group / "memory.max") or _UNLIMITED) < _UNLIMITED or _quota(group):
            return None
    return None


def _upwards(hierarchy: Hierarchy) -> Iterator[Path]:
    yield hierarchy.own
    if hierarchy.own != hierarchy.root:
        for parent in hierarchy.own.parents:
            yield parent
            if parent == hierarchy.root:
                return


def _quota(group: Path) -> float | None:
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    if quota is None:
        words = _text(group / "cpu.max").split()
        if len(words) != 2 or words[0] == "max":
            return None
        quota, period = int(words[0]), int(words[1])
    return quota / period if quota > 0 and period else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, value: int | str) -> None:
    path.write_text(str(value))


def _write_if_there(path: Path, value: int) -> None:
    # Kernels without swap accounting have no such file, or refuse it.
    with contextlib.suppress(OSError):
        if path.exists():
            _write(path, value)
