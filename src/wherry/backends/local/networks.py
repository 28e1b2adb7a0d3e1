"""
A network of its own for each rank of a rehearsal, so that one can be cut off from its peers.

Called by ``backend`` and ``folder``. Linux, as root, with iproute2's ``ip``. An attempt has a hub,
a namespace that holds nothing but a bridge; the program of each rank lives in a namespace that is
wired to it, and sees its peers and nobody else. The agents stay outside, where the control plane
is. The hub is out of reach of the machine's own firewall, which may drop what crosses a bridge. All
names derive from the attempt, so that nothing else need be remembered to remove it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

from wherry.core.job import JobSpec
from wherry.core.run import AttemptId
from wherry.errors import Unavailable

NAMESPACES = Path("/run/netns")  #: where ``ip netns`` mounts them
MOST = 60_000  #: ranks that have an address


class Wire(Struct, frozen=True):
    """One rank's end of the network."""

    hub: str  #: namespace with the bridge
    link: str  #: the bridge's end of the wire
    namespace: str  #: of the rank's program
    address: str

    def config(self, ip: str) -> dict[str, str]:
        """What the agent is told: see ``agent.protocol.CONFIG``."""
        return {
            "ip": ip,
            "hub": self.hub,
            "link": self.link,
            "namespace": str(NAMESPACES / self.namespace),
            "address": self.address,
        }


def wanted(spec: JobSpec, attempt: AttemptId) -> bool:
    """Whether a rank of this attempt is to be cut off."""
    return any(f.kind == "partition" and f.attempt == attempt.number for f in spec.faults)


def missing() -> str:
    """What this machine lacks for it; "" where nothing is."""
    if sys.platform != "linux":
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root"
    return "" if shutil.which("ip") else "it needs the program ip (iproute2)"


def wire(attempt: AttemptId, rank: int, incarnation: int) -> Wire:
    """Pure. The addresses are of 198.18.0.0/15, which is for tests of networks."""
    number = rank + 1
    return Wire(
        hub=f"wherry-{attempt}",
        link=f"r{rank}.{incarnation}",
        namespace=f"wherry-{attempt}-{rank}.{incarnation}",
        address=f"198.18.{number >> 8}.{number & 255}",
    )


def make(wires: Iterable[Wire]) -> None:
    """Make what is not there. Again: nothing. :raises Unavailable: with the words of ``ip``."""
    for one in wires:
        if not (NAMESPACES / one.hub).exists():
            _ip("netns", "add", one.hub)
            _ip("-n", one.hub, "link", "add", "hub", "type", "bridge")
            _ip("-n", one.hub, "link", "set", "hub", "up")
        if (NAMESPACES / one.namespace).exists():
            continue
        inside = ("-n", one.namespace)
        _ip("netns", "add", one.namespace)
        _ip(
            *("-n", one.hub, "link", "add", one.link, "type", "veth"),
            *("peer", "name", "eth0", "netns", one.namespace),
        )
        _ip("-n", one.hub, "link", "set", one.link, "master", "hub", "up")
        _ip(*inside, "addr", "add", f"{one.address}/16", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")


def remove(attempt: AttemptId) -> None:
    """Remove every namespace of the attempt, and the wires with them. None: no error."""
    hub = f"wherry-{attempt}"
    try:
        names = [entry.name for entry in os.scandir(NAMESPACES)]
    except OSError:
        return
    for name in names:
        # The hub last: it takes the wires with it, also of a namespace that somebody is still in.
        if name.startswith(f"{hub}-"):
            _ip("netns", "del", name)
    if hub in names:
        _ip("netns", "del", hub)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"ip exited with {done.returncode}"
        raise Unavailable(f"ip {' '.join(words)}: {said}")
