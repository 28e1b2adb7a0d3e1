"""
Whether what a run imports will be there: in the standard library, or in its environment.

Called by ``sdk.preflight``. Nothing is imported to find out: an active environment is asked by its
own interpreter, one that will be built by the names in its lock.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wherry import settings
from wherry.agent.modules import ALSO, DISTRIBUTIONS, distribution
from wherry.bundle import interpreter
from wherry.bundle.requirements import normalise
from wherry.errors import EnvironmentFailed
from wherry.sdk.preflight.findings import Finding
from wherry.sdk.preflight.known import ADDED, LAUNCHERS, OWN_NAME, REMOVED
from wherry.sdk.preflight.project import Project
from wherry.sdk.preflight.source import Import
from wherry.sdk.submit import Prepared

#: Asks another interpreter which modules it can find. Top-level names alone: parents would be
#: imported.
_PROBE = """
import importlib.util, json, sys
sys.path[:] = [p for p in sys.path if p]
found = []
for name in json.load(sys.stdin):
    try:
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            found.append(name)
    except Exception:
        found.append(name)
print(json.dumps(found))
"""
_PIN = re.compile(r"(?m)^([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*(?:==\s*([^\s;\\]+)|@)")


@dataclass(frozen=True)
class Packages:
    """What an environment has: distribution → version; ``python``: an active interpreter."""

    versions: Mapping[str, str]
    version: tuple[int, int]
    python: str = ""
    locked: bool = False

    def has(self, name: str) -> str:
        """The version of a distribution; "" where it is not there."""
        return self.versions.get(normalise(name), "")


def packages_of(prepared: Prepared) -> Packages:
    """The packages that a run will have. :raises EnvironmentFailed: for a broken interpreter."""
    wanted = prepared.spec.environment
    if wanted.kind == "active":
        found = interpreter.inspect(Path(wanted.python), cache=settings.home() / "client")
        versions = {package.name: package.version for package in found.packages}
        return Packages(versions, _minor(found.version), wanted.python)
    text = prepared.blobs.get(wanted.requirements, b"").decode("utf-8", "replace")
    pins = {normalise(name): version or "0" for name, version in _PIN.findall(text)}
    return Packages(pins, _minor(wanted.python), locked=True)


def _minor(version: str) -> tuple[int, int]:
    numbers = re.findall(r"\d+", version)[:2]
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else sys.version_info[:2]


def check(project: Project, packages: Packages, env: Mapping[str, str]) -> Iterable[Finding]:
    """What will not be found, or may not be."""
    wanted = [(f, i) for f, i in project.missing if i.when != "maybe" and not i.level]
    tops = {i.top for _, i in wanted if not standard(i.top, packages.version)}
    tops -= {"wherry", "__main__", "__future__"}
    if not tops:
        return
    if packages.locked:
        absent = {top: _in_lock(top, packages) for top in tops}
    else:
        unknown = {top for top in tops if not _named(top) & packages.versions.keys()}
        there = _ask(packages.python, unknown, env, project.folder) if unknown else frozenset()
        absent = dict.fromkeys(unknown - there, "sure")
    changes = any(scan.changes_path for scan in project.scans.values())
    # Other programs, such as pytest, have an import path of their own.
    changes = changes or project.entry.program not in ("", *LAUNCHERS)
    for file, one in wanted:
        certainty = absent.get(one.top, "")
        if certainty and not (certainty == "unsure" and one.when == "later"):
            yield _finding(project, file, one, packages, sure=certainty == "sure" and not changes)


def _finding(
    project: Project, file: Path, one: Import, packages: Packages, *, sure: bool
) -> Finding:
    name = one.top
    where = "the lock" if packages.locked else f"the environment of {packages.python}"
    gone = REMOVED.get(name)
    if gone and packages.version >= (3, gone):
        message = f"Python {packages.version[0]}.{packages.version[1]} has no module {name!r}"
        hint = f"it left Python with 3.{gone}: ask for an older one, --python 3.{gone - 1}"
    else:
        verb = "is not in" if sure else "may not be in"
        message = f"the module {name!r} {verb} {where}"
        message += ", which shows only when that line is reached" if one.when == "later" else ""
        hint = f"add {distribution(name)} to the project's requirements, or --with"
        hint += f" {distribution(name)}"
        if near := _elsewhere(project, name):
            hint = f"the project has it in {near}: --env PYTHONPATH={near}"
    module = not one.line
    return Finding(
        level="error" if sure and one.when == "always" else "warning",
        code="entry-point" if module else "import",
        message=message,
        hint=hint,
        file="" if module else project.name(file),
        line=one.line,
    )


def _elsewhere(project: Project, name: str) -> str:
    """A folder of the project that has the module, as the run would name it; "" for none."""
    for path in sorted(project.travels or ()):
        head, _, last = path.rpartition("/")
        if last == "__init__.py" and head.rpartition("/")[2] == name:
            return os.path.relpath(project.root / head.rpartition("/")[0], project.folder)
        if last == f"{name}.py":
            return os.path.relpath(project.root / head, project.folder)
    return ""


def standard(top: str, version: tuple[int, int]) -> bool:
    """Whether a module is of the standard library of that Python."""
    if top in REMOVED:
        return version < (3, REMOVED[top])
    if top in ADDED:
        return version >= (3, ADDED[top])
    return top in sys.stdlib_module_names


def _in_lock(top: str, packages: Packages) -> str:
    """Whether a module is absent from what the lock installs: "", "unsure" or "sure"."""
    names = packages.versions
    if _named(top) & names.keys() or any(n.startswith(normalise(top) + "-") for n in names):
        return ""
    if top == "distutils" and "setuptools" in names:
        return ""
    known = top in DISTRIBUTIONS or top in ALSO or top in OWN_NAME or top in REMOVED
    return "sure" if known or not names else "unsure"


def _named(top: str) -> set[str]:
    """The distributions that are known to have a module, and the one that has its name."""
    return {normalise(top), normalise(DISTRIBUTIONS.get(top, top)), *ALSO.get(top, ())}


def _ask(
    python: str, tops: Collection[str], env: Mapping[str, str], folder: Path
) -> frozenset[str]:
    """Which of the modules an interpreter finds; all of them where it does not answer."""
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        return frozenset(top for top in tops if _found(top))
    environ = {**os.environ, **{k: v for k, v in env.items() if k.startswith("PYTHON")}}
    try:
        done = subprocess.run(
            [python, "-c", _PROBE],
            input=msgspec.json.encode(sorted(tops)),
            capture_output=True, env=environ, cwd=folder, check=True, timeout=30,
        )  # fmt: skip
        return frozenset(msgspec.json.decode(done.stdout, type=list[str]))
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return frozenset(tops)


def _found(top: str) -> bool:
    """Whether this very interpreter finds a module."""
    try:
        return importlib.util.find_spec(top) is not None
    except (ImportError, ValueError, AttributeError):  # one without a spec is there all the same
        return top in sys.modules


__all__ = ["EnvironmentFailed", "Packages", "check", "packages_of", "standard"]
