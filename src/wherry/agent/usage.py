"""
What the program uses: CPU, memory, GPUs; and whether it uses more memory than it was given.

Polled by ``agent.watch``. Where a cgroup enforces the memory limit, the kernel kills and this file
finds out; where none does, :meth:`Usage.poll` says that the limit is passed and the agent kills.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from typing import Any

from wherry.agent import platform, protocol
from wherry.agent.journal import Journal

_GPU_PERIOD = 10.0  #: seconds: nvidia-smi takes up to half a second of its own
_QUERY = "index,utilization.gpu,memory.used"


class Usage:
    """
    The use of everything below this process, as USAGE frames.

    ``kills``: how many processes the kernel had killed for memory when the program started.
    """

    def __init__(self, journal: Journal, limits: dict[str, Any], kills: int) -> None:
        self._journal = journal
        self._limit: int | None = limits.get("memory")
        self._cgroups: list[str] = list(limits.get("cgroup") or ())
        self._enforced = platform.enforced(self._cgroups)
        self._kills = kills
        self._cpu: dict[int, float] = {}
        self._at = time.monotonic()
        self._smi = shutil.which("nvidia-smi")
        self._gpu_due = 0.0
        self._peak = 0
        self._polled = False
        self._before = (self._at, *_ended())
        self.period = 2.0  #: seconds between two points
        self.spent = 0.0  #: seconds of CPU in the last period
        self.stopped: list[int] = []  #: processes that a signal had stopped when last looked at

    def poll(self) -> bool:
        """Add a point; whether the program is over its limit and nobody but us enforces it."""
        self._polled = True
        found = platform.descendants(os.getpid())
        now = time.monotonic()
        spent = sum(p.cpu - self._cpu.get(p.pid, 0.0) for p in found if p.pid in self._cpu)
        fresh = sum(p.cpu for p in found if p.pid not in self._cpu)
        memory = sum(p.memory for p in found)
        self.stopped = sorted(p.pid for p in found if p.stopped)
        self.spent = max(0.0, spent + fresh)
        points = {
            "cpu": self.spent / max(now - self._at, 0.001),
            "memory": float(platform.cgroup_memory(self._cgroups) or memory),
        }
        self._cpu, self._at = {p.pid: p.cpu for p in found}, now
        over = False
        if self._limit and not self._enforced and memory > self._limit:
            # Forked workers share pages: count those once before calling it too much.
            memory = platform.proportional_memory(p.pid for p in found) or memory
            points["memory"] = float(memory)
            over = memory > self._limit
        self._peak = max(self._peak, int(points["memory"]))
        if self._smi and now >= self._gpu_due:
            self._gpu_due = now + _GPU_PERIOD
            points.update(self._gpus())
        self._append(points)
        return over

    def finish(self) -> None:
        """The program has ended: one point for all of it, where it was too short for any."""
        if self._polled:
            return
        began, cpu_before, memory_before = self._before
        cpu, memory = _ended()
        points = {"cpu": max(0.0, cpu - cpu_before) / max(time.monotonic() - began, 0.001)}
        if memory > memory_before:  # else something of ours was larger
            points["memory"] = float(memory)
        self._append(points)

    def _append(self, points: dict[str, float]) -> None:
        stamp = time.time()
        series = {name: ([int(stamp)], [stamp], [value]) for name, value in points.items()}
        self._journal.append(protocol.USAGE, protocol.pack_series(series), stamp)

    @property
    def peak(self) -> int:
        """Bytes: the most that was seen."""
        return max(self._peak, platform.cgroup_memory(self._cgroups, peak=True))

    def ran_out(self, code: int) -> bool:
        """Whether a program that ended with ``code`` did so as the kernel killed for memory."""
        if code == 0 or platform.oom_kills(self._cgroups) <= self._kills:
            return False
        # Without a cgroup of its own, the kernel may have killed for somebody else.
        return self._enforced or code in (-9, 137)

    def _gpus(self) -> dict[str, float]:
        """Utilization (0-1) and memory (bytes) of each device that this process may see."""
        command = [self._smi or "", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        found: dict[str, float] = {}
        try:
            with platform.helper(command) as process:
                answer = process.communicate(timeout=5)[0].decode("utf-8", "replace")
            for line in answer.splitlines():
                index, busy, used = (word.strip() for word in line.split(","))
                found[f"gpu{index}.utilization"] = float(busy) / 100
                found[f"gpu{index}.memory"] = float(used) * 2**20
        except (OSError, ValueError, subprocess.SubprocessError):
            self._smi = None  # no driver, or a device that does not say: do not ask again
        return found


def _ended() -> tuple[float, int]:
    """Seconds of CPU of the children that have ended, and the most bytes that one of them held."""
    import resource

    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return spent.ru_utime + spent.ru_stime, spent.ru_maxrss * unit
