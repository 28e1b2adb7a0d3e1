"""
Which programs start the processes of a worker themselves.

Called by ``core.job``. Pure. Under a launcher a worker has one agent, whatever ``processes`` says:
that number goes to the launcher.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_MPI = frozenset({"mpirun", "mpiexec", "orterun", "mpirun.openmpi", "mpiexec.openmpi"})
_TORCHRUN_MODULES = frozenset({"torch.distributed.run", "torch.distributed.launch"})


def launcher(command: Sequence[str]) -> str:
    """``"torchrun"``, ``"mpi"``, or ``""`` for a command that is a worker's one process."""
    if not command:
        return ""
    name = command[0].rpartition("/")[2]
    if name == "torchrun":
        return "torchrun"
    if name in _MPI:
        return "mpi"
    if re.fullmatch(r"python[0-9.]*", name):
        for flag, value in pairwise(command[1:]):
            if flag == "-m":
                return "torchrun" if value in _TORCHRUN_MODULES else ""
            if not flag.startswith("-"):
                break
    return ""
