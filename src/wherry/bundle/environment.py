"""
The environment ladder: which Python and which packages a run gets.

Called by ``sdk`` before a run is submitted. Every rung that builds comes down to a Python version
and one hashed requirements text, a blob, from which ``agent.environment`` builds; the other rung is
the active interpreter, used where it is and recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wherry import settings
from wherry.bundle import interpreter, locks, requirements, versions
from wherry.bundle.declared import lacking
from wherry.core.job import Environment
from wherry.errors import EnvironmentFailed

Choice = Literal["auto", "active", "lock", "script", "requirements", "none"]


@dataclass(frozen=True)
class Ask:
    """What is known when a run is submitted."""

    root: Path  #: the project, absolute
    environ: Mapping[str, str] = field(repr=False)  #: for VIRTUAL_ENV, UV_*, PIP_*
    script: Path | None = None
    python: str = ""  #: a version or an interpreter's path; "": what fits
    with_packages: tuple[str, ...] = ()  #: requirements on top of what the rung gives
    choice: Choice = "auto"
    foreground: bool = False  #: in the project's folder, in front of a person


@dataclass(frozen=True)
class Resolved:
    """The answer: what goes into the JobSpec, what must be pushed, what the person is told."""

    environment: Environment
    blobs: Mapping[str, bytes] = field(repr=False)  #: by SHA-256
    notes: tuple[str, ...] = ()


def uv_path() -> str:
    """The uv to use. :raises EnvironmentFailed: where there is none."""
    if path := settings.get("uv"):
        return str(path)
    import shutil

    import uv

    try:
        return str(uv.find_uv_bin())
    except FileNotFoundError:
        if path := shutil.which("uv"):
            return path
    raise EnvironmentFailed("uv is not installed", hint="pip install uv, or set WHERRY_UV")


def resolve(ask: Ask, *, cache: Path) -> Resolved:
    """
    Settle the environment. The same question again is answered from ``cache``, a folder.

    :raises StaleLock: where a lock does not fit what it was made from.
    :raises EnvironmentFailed: where packages or a Python cannot be had, or cannot travel.
    """
    ladder = _Ladder(ask, cache)
    rungs = {
        "script": ladder.script,
        "lock": ladder.lock,
        "requirements": ladder.requirements,
        "activated": ladder.activated,
        "active": ladder.active,
        "none": ladder.none,
    }
    order: tuple[str, ...] = (ask.choice,)
    if ask.choice == "auto":
        order = ("script", "lock", "requirements", "active")
        if ask.foreground and interpreter.is_activated(ask.environ):
            order = ("script", "activated", "lock", "requirements", "active")
    for name in order:
        if (resolved := rungs[name]()) is not None:
            return resolved
    missing = {
        "script": "the script has no header with its dependencies (# /// script)",
        "lock": "there is no uv.lock in the project",
        "requirements": "there is no requirements.txt in the project",
    }
    raise EnvironmentFailed(missing[ask.choice], hint="leave out the choice to take what there is")


def freeze(
    python: Path, *, environ: Mapping[str, str], cache: Path
) -> tuple[str, tuple[str, ...], str]:
    """
    An interpreter's packages as hashed requirements that can travel: (text, notes, version).

    Editable and local packages cannot; a note names each. :raises EnvironmentFailed: where an index
    does not have what is installed.
    """
    found = interpreter.inspect(python, cache=cache)
    notes = []
    lines = []
    for package in found.packages:
        if package.source and not package.source.startswith("git+"):
            kind = "editable" if package.editable else "local"
            notes.append(f"{package.name} is {kind} ({package.source}) and stays behind")
        else:
            lines.append(package.requirement())
    uv = locks.Uv(uv_path(), str(python), found.version, environ, cache)
    text, more = locks.settle(locks.compile_requirements(uv, lines, deps=False), str(python))
    return text, (*notes, *more), found.version


class _Ladder:
    """The rungs. Each answers, or gives None where the project has nothing for it."""

    def __init__(self, ask: Ask, cache: Path) -> None:
        self.ask, self.cache = ask, cache

    def none(self) -> Resolved:
        """Python alone, and what ``--with`` adds."""
        return self.built("", self.uv(""), "no packages")

    def script(self) -> Resolved | None:
        """What the script's own header asks for (PEP 723)."""
        script = self.ask.script
        header = requirements.script_header(script) if script else None
        if script is None or header is None:
            return None
        lock = script.with_name(script.name + ".lock")
        locked = locks.requires_python(lock) if lock.exists() else ""
        uv = self.uv(str(header.get("requires-python", locked)))
        return self.built(locks.export_script(uv, script, header), uv, f"{script.name}'s header")

    def lock(self) -> Resolved | None:
        """What the nearest ``uv.lock`` says."""
        file = self.nearest("uv.lock")
        if file is None:
            return None
        pin = self.nearest(".python-version")
        uv = self.uv(locks.requires_python(file), pin.read_text("utf-8", "replace") if pin else "")
        return self.built(locks.export_project(uv, file.parent), uv, "uv.lock")

    def requirements(self) -> Resolved | None:
        """The nearest ``requirements.txt``, or the only file with a name like it."""
        file = self.requirements_file()
        if file is None:
            return None
        uv = self.uv("")
        return self.built(locks.compile_file(uv, file), uv, file.name)

    def requirements_file(self) -> Path | None:
        """The file of that rung."""
        alike = sorted(self.ask.root.glob("requirements*.txt"))
        return self.nearest("requirements.txt") or (alike[0] if len(alike) == 1 else None)

    def activated(self) -> Resolved | None:
        """The activated environment, where it has what the project declares."""
        project = self.nearest("pyproject.toml") if self.nearest("uv.lock") else None
        declaration = project or self.requirements_file()
        if declaration is not None and not self.ask.with_packages:
            python = interpreter.active_python(self.ask.environ)
            found = interpreter.inspect(python, cache=self.cache)
            if lacking(declaration, found.packages):
                return None
        return self.active()

    def active(self) -> Resolved:
        """The interpreter in use: in place, or re-locked where something is to be added."""
        ask = self.ask
        by_path = "/" in ask.python
        python = (
            Path(ask.python).expanduser() if by_path else interpreter.active_python(ask.environ)
        )
        if ask.with_packages or (ask.python and not by_path):
            text, notes, version = freeze(python, environ=ask.environ, cache=self.cache)
            uv = self.uv("")
            if uv.version != version:
                text = locks.add(uv, text, ())
            return self.built(text, uv, f"the packages of {python}", notes)
        found = interpreter.inspect(python, cache=self.cache)
        record = found.frozen().encode()
        digest = hashlib.sha256(record).hexdigest()
        origin = f"the interpreter {python}"
        environment = Environment(
            kind="active", python=str(python.absolute()), origin=origin, frozen=digest
        )
        note = f"environment: {origin}, Python {found.version}, {_packages(len(found.packages))}"
        return Resolved(environment, {digest: record}, (note,))

    def uv(self, requires: str, pinned: str = "") -> locks.Uv:
        """uv for the Python that was asked for, else for one that fits."""
        ask, path = self.ask, uv_path()
        if ask.python:
            python, version = versions.asked_for(ask.python, uv=path, cache=self.cache)
            if requires and not versions.fits(version, requires):
                raise EnvironmentFailed(
                    f"Python {version} does not satisfy requires-python {requires!r}",
                    hint="leave out --python, or loosen requires-python",
                )
        else:
            python, version = versions.choose(
                requires, ask.environ, uv=path, cache=self.cache, pinned=pinned
            )
        return locks.Uv(path, python, version, ask.environ, self.cache)

    def built(self, text: str, uv: locks.Uv, origin: str, notes: tuple[str, ...] = ()) -> Resolved:
        """The answer for a rung that builds; ``text`` as the resolver gave it."""
        extra = self.ask.with_packages
        for line in extra:
            requirements.refuse_local(line, "--with")
        if extra:
            text = locks.add(uv, text, extra)
            origin += " with " + ", ".join(extra)
        text, more = locks.settle(text, origin)
        packages = requirements.count(text)
        note = f"environment: {origin}, Python {uv.version}, {_packages(packages)}"
        blob = text.encode() if packages else b""
        digest = hashlib.sha256(blob).hexdigest() if blob else ""
        environment = Environment(
            kind="built", python=uv.version, requirements=digest, origin=origin
        )
        return Resolved(environment, {digest: blob} if blob else {}, (note, *notes, *more))

    def nearest(self, name: str) -> Path | None:
        """The file in the script's folder, or the nearest above it within the project."""
        ask = self.ask
        start = ask.script.resolve().parent if ask.script else ask.root
        for folder in (start, *start.parents):
            if not folder.is_relative_to(ask.root):
                break
            if (folder / name).is_file():
                return folder / name
        file = ask.root / name
        return file if file.is_file() else None


def _packages(number: int) -> str:
    return f"{number} package{'s' * (number != 1)}"
