"""
What this machine has: cores, memory, GPUs, uv, py-spy. Linux first; macOS behind the same
functions.

Called by ``backend`` alone. Nothing here raises for a source that is missing: it falls back to
the next one.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from wherry import settings
from wherry.backends.local import cgroups
from wherry.core.job import Amount

#: Variables of the control plane that its agents get. The rest stays where it is: a person's
#: secrets do not belong into a process that outlives the terminal.
PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR"
    # How uv, or pip in its place, reaches an index.
    r"|UV_\w+|PIP_\w+|SSL_CERT_(FILE|DIR)|(?i:https?_proxy|all_proxy|no_proxy)"
)


def agent_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of ``environ`` that an agent is given."""
    return {name: value for name, value in environ.items() if PASSED.fullmatch(name)}


def uv() -> str:
    """The path of uv: the setting, the one installed with Wherry, the one on the path, or ""."""
    if chosen := str(settings.get("uv")):
        return chosen
    try:
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv") or ""


def py_spy() -> str:
    """The path of py-spy: the one installed with Wherry, the one on the path, or ""."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy") or ""


def total() -> Amount:
    """What there is for us: a container's or a service's limits count, not only the hardware."""
    return Amount(cpu=_cores(), memory=_memory()[0], gpu=len(gpus()))


def free(busy_gpus: int) -> Amount:
    """What of it nobody uses now, by the load of the last minute and the kernel's own estimate."""
    cores = _cores()
    load = os.getloadavg()[0]
    return Amount(
        cpu=max(0.0, cores - load), memory=_memory()[1], gpu=max(0, len(gpus()) - busy_gpus)
    )


def _cores() -> float:
    if hasattr(os, "sched_getaffinity"):
        cores = float(len(os.sched_getaffinity(0)))
    else:
        cores = float(os.cpu_count() or 1)
    quota = cgroups.own_cpu_quota()
    return min(cores, quota) if quota else cores


def _memory() -> tuple[int, int]:
    """Total and available bytes."""
    if sys.platform == "darwin":
        whole, available = _darwin_memory()
    else:
        whole, available = _linux_memory()
    limit = cgroups.own_memory_limit()
    if limit is not None:
        most, used = limit
        whole, available = min(whole, most), min(available, max(0, most - used))
    return whole, available


def _linux_memory() -> tuple[int, int]:
    told = Path("/proc/meminfo").read_text()
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", told, re.MULTILINE))
    return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024


def _darwin_memory() -> tuple[int, int]:
    whole = int(_output(["sysctl", "-n", "hw.memsize"]) or 0)
    stat = _output(["vm_stat"])
    page = re.search(r"page size of (\d+) bytes", stat)
    pages = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)\.", stat, re.MULTILINE)
    return whole, sum(map(int, pages)) * int(page[1] if page else 4096)


@functools.cache
def gpus() -> tuple[str, ...]:
    """
    What CUDA_VISIBLE_DEVICES may name here: indexes, or the UUIDs of MIG slices.

    The control plane's own CUDA_VISIBLE_DEVICES, where it is set, is the whole truth. Asked once:
    nvidia-smi takes half a second.
    """
    limited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limited is not None:
        return tuple(part for part in re.split(r"[,\s]+", limited) if part and part != "-1")
    return parse_gpus(_output(["nvidia-smi", "-L"])) if shutil.which("nvidia-smi") else ()


def parse_gpus(listing: str) -> tuple[str, ...]:
    """The devices in what ``nvidia-smi -L`` prints. A GPU that is cut up is not usable whole."""
    devices: list[str] = []
    for line in listing.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            devices.append(match[1])
        elif match := re.match(r"\s+MIG .*\(UUID:\s*(MIG-[^)]+)\)", line):
            if devices and devices[-1].isdigit():
                devices.pop()
            devices.append(match[1])
    return tuple(devices)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
