"""
``mpirun`` as a run's command: rank 0 runs it, and the others start what it asks them to.

Called by ``agent.prepare``; ``agent.remote`` is what runs. Ranks that share an address are one host
with as many slots: Open MPI starts those of its own machine itself, and the other agents of that
machine stand by.
"""

from __future__ import annotations

import json
import os
import shlex
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

    Peers = list[dict[str, Any]]


def hosts(peers: Peers, processes: int) -> list[tuple[str, int, int]]:
    """``(address, slots, rank)`` of every machine, in the order of the ranks; the first rank's."""
    found: dict[str, list[int]] = {}
    for rank, peer in enumerate(peers):
        found.setdefault(str(peer["address"]), []).append(rank)
    return [(address, len(r) * processes, r[0]) for address, r in found.items()]


def mpi_variables(
    folder: str, machines: list[tuple[str, int, int]], *, root: bool, cores: int
) -> dict[str, str]:
    """
    What Open MPI reads: ``OMPI_`` up to version 4, ``PRTE_`` from 5 on. ``root``: who runs it is
    root. ``cores``: of this machine.
    """
    file = os.path.join(folder, "hosts")
    found = {
        "WHERRY_MPI": folder,
        "OMPI_MCA_orte_default_hostfile": file,
        "PRTE_MCA_prte_default_hostfile": file,
        # Two runs on a machine would both sit on its first cores.
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        # Containers forbid it, and Open MPI says so on each start.
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    }
    if max(slots for _, slots, _ in machines) > cores:
        # Who waits for a message does so at full speed otherwise, on the core of who would send it.
        found["OMPI_MCA_mpi_yield_when_idle"] = "1"
    if len(machines) > 1:
        found["OMPI_MCA_plm"] = "rsh"
        found["OMPI_MCA_plm_rsh_agent"] = "wherry-rsh"
        found["PRTE_MCA_plm"] = "ssh"
        found["PRTE_MCA_plm_ssh_agent"] = "wherry-rsh"
        # A daemon of version 5 may wait for ever for its first word: in 8 of 60 starts where it
        # detaches itself, in 2 of 145 where it does not (5.0.11; never with 4.1).
        found["PRTE_MCA_prte_leave_session_attached"] = "1"
    if root:
        for name in ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"):
            found[name] = found[f"{name}_CONFIRM"] = "1"
    return found


def write(
    folder: str,
    rank: int,
    peers: Peers,
    machines: list[tuple[str, int, int]],
    *,
    own: int,
    script: str,
) -> None:
    """
    Write ``hosts``, ``ranks.json`` and ``wherry-rsh``. ``own``: which of the ports is the
    listener's. Again: the same.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    told = {
        "rank": rank,
        "ranks": [
            {"address": p["address"], "port": p["ports"][own], "key": p.get("key", "")}
            for p in peers
        ],
        "names": {address: first for address, _, first in machines},
    }
    texts = {
        "hosts": "".join(f"{address} slots={slots}\n" for address, slots, _ in machines),
        "ranks.json": json.dumps(told),
        # By its name on PATH: Open MPI takes the words of a path with spaces for options.
        "wherry-rsh": f'#!/bin/sh\nexec {shlex.join(_python(script))} "$@"\n',
    }
    for name, text in texts.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        mode = 0o700 if name == "wherry-rsh" else 0o600
        with os.fdopen(os.open(os.path.join(folder, name), flags, mode), "w") as file:
            file.write(text)


def command(words: list[str], rank: int, script: str) -> list[str]:
    """What a rank starts in place of ``words``, which is ``mpirun`` with its arguments."""
    return [*_python(script), *(["--listen"] if rank else ["--launch", *words])]


def _python(script: str) -> list[str]:
    """The agent's own interpreter: the program's may be older, or none."""
    return [sys.executable, "-I", "-S", script]
