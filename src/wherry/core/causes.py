"""
Why a rank ended badly: one table.

Called by ``core.run`` (the type), ``core.retry`` (what is tried again) and ``core.decide``.
"""

from __future__ import annotations

from typing import Literal, get_args

Cause = Literal[
    "",  # ended well
    "exit",  # the program exited with a status that is not 0
    "signal",  # the program was killed by a signal that nobody of ours sent
    "oom",  # the program used more memory than it was given
    "exception",  # Python raised, and nobody caught it
    "timeout",  # the attempt took longer than its timeout
    "environment",  # packages or interpreter could not be made
    "bundle",  # the code could not be fetched
    "start",  # the program could not be started
    "barrier",  # not all ranks arrived in time
    "agent-lost",  # the agent died
    "lease",  # the agent was silent for longer than its lease
    "launch",  # the back end could not launch it
    "preempted",  # its machine asked it to leave
    "port",  # a port that was free when it was chosen was taken when the program wanted it
    "peer",  # it missed another rank: a consequence, not a reason
    "collective",  # a collective operation timed out
    "rendezvous",  # the framework's own meeting of ranks timed out
    "stopped",  # it was told to stop
]
CAUSES: frozenset[str] = frozenset(get_args(Cause))
#: Faults of machines, not of people: tried again within ``restarts`` without being asked.
INFRASTRUCTURE: frozenset[str] = frozenset(
    {"agent-lost", "lease", "launch", "barrier", "bundle", "preempted", "port"}
)
#: Faults of ours: a new attempt costs no restart.
FREE: frozenset[str] = frozenset({"port"})
#: What a rank says when another one was lost or never came; the nearest to the reason first.
SYMPTOMS: tuple[str, ...] = ("rendezvous", "collective", "peer")
