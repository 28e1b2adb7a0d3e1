"""
Two machines of its own: network namespaces, joined by a wire, that reach nothing else.

Needs root and iproute2. What runs in one of them has the other's address only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

ADDRESSES = ("10.213.77.1", "10.213.77.2")
#: Shared memory and a name of its own, as a machine has.
_OWN = 'mount -t tmpfs none /dev/shm && hostname "$0" && exec "$@"'
_APART = ("unshare", "--mount", "--uts", "sh", "-c", _OWN)


def possible() -> bool:
    """Whether this user may make them here."""
    if os.geteuid() or not shutil.which("ip"):
        return False
    name = f"wherry-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


@contextmanager
def two_machines() -> Iterator[list[list[str]]]:
    """For each of ``ADDRESSES`` the words that run a command there."""
    names = [f"wherry{os.getpid()}{letter}" for letter in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        other_end = ("peer", "name", "wire", "netns", names[1])
        _ip("link", "add", "wire", "netns", names[0], "type", "veth", *other_end)
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _ip("-n", name, "link", "set", device, "up")
        yield [["ip", "netns", "exec", name, *_APART, name] for name in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
