"""
Who is who in a job: each rank with its role, command and resources.

Called by ``core.admission``, ``core.decide`` and the back ends. Pure. Ranks are numbered in the
order in which the job names its roles; a job without roles has one kind of rank, without a name.

Which roles' success ends the run, where ``ends_with`` does not say: a chief (or ``master``) alone,
as TensorFlow has it; else every role but those that serve and never end: ``ps``, ``server``,
``scheduler``, ``evaluator``.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from wherry.core.job import JobSpec, Resources

#: Roles whose end is the run's.
CHIEFS = frozenset({"chief", "master"})
#: Roles that never end by themselves.
SERVANTS = frozenset({"ps", "server", "scheduler", "evaluator"})


class Place(Struct, frozen=True):
    """One rank's part in a job."""

    rank: int
    role: str  #: "" in a job without roles
    index: int  #: within its role


def roster(spec: JobSpec) -> tuple[Place, ...]:
    """Every rank, in order."""
    if not spec.roles:
        return tuple(Place(rank, "", rank) for rank in range(spec.world_size))
    names = [(name, i) for name, role in spec.roles.items() for i in range(role.count)]
    return tuple(Place(rank, name, i) for rank, (name, i) in enumerate(names))


def label(spec: JobSpec, rank: int) -> str:
    """What to call a rank among people: ``rank 2``, or ``rank 2 (worker 1)``."""
    if not spec.roles:
        return f"rank {rank}"
    place = roster(spec)[rank]
    alone = spec.roles[place.role].count == 1
    return f"rank {rank} ({place.role if alone else f'{place.role} {place.index}'})"


def own_spec(spec: JobSpec, place: Place) -> JobSpec:
    """The job as this rank has it: with its role's command, resources and variables."""
    if not spec.roles:
        return spec
    role = spec.roles[place.role]
    return replace(
        spec,
        command=role.command or spec.command,
        resources=role.resources or spec.resources,
        env={**spec.env, **role.env},
    )


def shares(spec: JobSpec) -> list[tuple[int, Resources]]:
    """How many ranks ask for what."""
    if not spec.roles:
        return [(spec.world_size, spec.resources)]
    return [(role.count, role.resources or spec.resources) for role in spec.roles.values()]


def ends_with(spec: JobSpec) -> frozenset[str]:
    """The roles whose success ends the run; empty in a job without roles: all ranks' does."""
    if spec.ends_with or not spec.roles:
        return frozenset(spec.ends_with)
    names = frozenset(spec.roles)
    return (names & CHIEFS) or (names - SERVANTS) or names
