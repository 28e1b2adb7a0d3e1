"""
Pre-flight: what would go wrong in a run, found in the second before it is queued.

Called by ``wherry run``, ``wherry check`` and ``wherry.run`` with a run that is ready to be sent.
Nothing of the project is run or imported. An *error* is something that is sure to fail; whatever is
not sure is a *warning*.
"""

from __future__ import annotations

from collections.abc import Iterator

from wherry.errors import EnvironmentFailed
from wherry.sdk.preflight import checks, imports
from wherry.sdk.preflight.findings import Finding, Level, ordered, refuse
from wherry.sdk.preflight.project import project_of, read
from wherry.sdk.submit import Prepared


def examine(prepared: Prepared, *, here: bool = True) -> tuple[Finding, ...]:
    """
    What would go wrong, errors first. Costs milliseconds, and one start of the interpreter where
    the active environment is used.

    :param here: the run will be on this machine.
    """
    return ordered(_all(prepared, here))


def worth_it(prepared: Prepared) -> bool:
    """Whether to look at all: Python itself tells a person at a terminal just as soon."""
    return not (prepared.spec.code.in_place and prepared.spec.world_size == 1)


def _all(prepared: Prepared, here: bool) -> Iterator[Finding]:
    spec = prepared.spec
    yield from checks.metrics(spec)
    project = project_of(prepared)
    if project is None:
        return
    try:
        packages = imports.packages_of(prepared)
    except EnvironmentFailed as error:
        yield Finding(level="error", code=error.code, message=error.message, hint=error.hint)
        return
    read(project, packages.version)
    yield from project.findings
    yield from imports.check(project, packages, spec.env)
    yield from checks.program(project, spec, here=here)
    yield from checks.data(project)
    if not spec.code.in_place:
        yield from checks.variables(project, spec)
    yield from checks.roles(project, spec)
    yield from checks.ports(project, spec, here=here)
    yield from checks.gpus(spec, packages)
    yield from checks.keras(project, spec, packages)


__all__ = ["Finding", "Level", "examine", "refuse", "worth_it"]
