"""
What of a project a run will run: its entry point, and the files that this imports.

Called by ``sdk.preflight``. Reads files, runs nothing.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wherry.sdk.preflight.findings import Finding
from wherry.sdk.preflight.source import Import, Scan, scan
from wherry.sdk.submit import Prepared

_MOST_FILES = 300
_VALUES = ("-W", "-X", "--check-hash-based-pycs")


@dataclass(frozen=True)
class Entry:
    """What starts: a ``file``, a ``module``, or only a ``program`` that nobody looks into."""

    file: Path | None = None
    module: str = ""
    program: str = ""


@dataclass
class Project:
    """The project as the run will see it."""

    root: Path
    folder: Path  #: where the run works
    entries: tuple[Entry, ...]  #: one for each command; roles may have their own
    path: tuple[Path, ...]  #: folders of the project that Python imports from
    travels: frozenset[str] | None  #: what the bundle has; None: the run works in the folder itself
    left_out: dict[str, str] = field(default_factory=dict)  #: path → why
    scans: dict[Path, Scan] = field(default_factory=dict)
    missing: list[tuple[Path, Import]] = field(default_factory=list)  #: not of the project
    findings: list[Finding] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """A file as the person calls it."""
        return os.path.relpath(path, self.root) if path.is_relative_to(self.root) else str(path)

    def there(self, path: Path) -> bool:
        """Whether the run will have this file or folder, which is here."""
        if self.travels is None:
            return True
        try:
            inside = path.resolve().relative_to(self.root).as_posix()
        except ValueError:
            return True  # outside of the project: absolute paths are the person's own
        return inside in self.travels or any(p.startswith(inside + "/") for p in self.travels)


def project_of(prepared: Prepared) -> Project | None:
    """The project of a run; None where its code is that of an earlier run."""
    captured, draft, spec = prepared.captured, prepared.draft, prepared.spec
    if captured is None or draft is None:
        return None
    folder = (captured.root / spec.code.workdir).resolve()
    commands = [spec.command, *(role.command for role in spec.roles.values())]
    entries = [_entry(command, folder) for command in dict.fromkeys(commands) if command]
    scripts = [entry.file.parent for entry in entries if entry.file]
    if draft.function:
        entries, scripts = [Entry(file=draft.function.file)], []
    roots = scripts or [folder]
    roots += [folder / p for p in spec.env.get("PYTHONPATH", "").split(os.pathsep) if p]
    if spec.environment.kind == "built":
        roots.append(captured.root / "src")
    in_place = bool(spec.code.in_place)
    travels = None if in_place else frozenset(e.path for e in captured.manifest.entries)
    return Project(
        root=captured.root,
        folder=folder,
        entries=tuple(entries),
        path=tuple(dict.fromkeys(r.resolve() for r in roots if r.is_dir())),
        travels=travels,
        left_out={left.path: left.why for left in captured.manifest.left_out},
    )


def _entry(command: tuple[str, ...], folder: Path) -> Entry:
    words = list(command)
    if words[:1] == ["python"]:
        at = 1
        while at < len(words) and words[at].startswith("-"):
            if words[at] == "-m":
                return Entry(module=words[at + 1] if at + 1 < len(words) else "")
            if words[at] == "-c":
                return Entry()
            at += 2 if words[at] in _VALUES else 1
        if at >= len(words):
            return Entry()
        script = folder / words[at]
        return Entry(file=script / "__main__.py" if script.is_dir() else script)
    scripts = (folder / w for w in words[1:] if w.endswith(".py"))
    return Entry(
        file=next((s for s in scripts if s.is_file()), None), program=words[0] if words else ""
    )


def read(project: Project, version: tuple[int, int]) -> None:
    """
    Scan the entry and every module of the project that it imports.

    :param version: of the Python that will run it.
    """
    todo: list[Path] = []
    for entry in project.entries:
        if entry.file is not None and entry.file.suffix in (".py", "") and not entry.file.is_file():
            project.findings.append(_no_script(project, entry.file))
        elif entry.file is not None:
            todo.append(entry.file)
        elif entry.module:
            found = list(_local(project, entry.module))
            main = [f.parent / "__main__.py" for f in found[-1:] if f.name == "__init__.py"]
            todo += [*found, *(f for f in main if f.is_file())]
            if not found or not _is_whole(entry.module, found[-1]):
                project.missing.append((project.folder, Import(entry.module, 0, "always")))
    while todo and len(project.scans) < _MOST_FILES:
        file = todo.pop().resolve()
        if file in project.scans or file.suffix not in (".py", "") or not file.is_file():
            continue
        seen = _parse(project, file, version)
        project.scans[file] = seen
        for wanted in seen.imports:
            todo += _follow(project, file, wanted)


def _is_whole(module: str, file: Path) -> bool:
    """Whether ``file``, the deepest that was found, is the module, not a package above it."""
    last = module.rpartition(".")[2]
    return (file.parent.name if file.name == "__init__.py" else file.stem) == last


def _no_script(project: Project, file: Path) -> Finding:
    """The script of a role; that of the job itself is looked for before anything else."""
    return Finding(
        level="error",
        code="entry-point",
        message=f"there is no file {project.name(file)}",
        hint="the command of a role is relative to the folder that the run works in",
    )


def _parse(project: Project, file: Path, version: tuple[int, int]) -> Scan:
    source = file.read_bytes()
    import sys

    older = version if version < sys.version_info[:2] else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scan(ast.parse(source, filename=str(file), feature_version=older))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 0) or 0
        words = getattr(error, "msg", "") or str(error)
        python = f"Python {version[0]}.{version[1]}"
        newer = version > sys.version_info[:2]
        project.findings.append(
            Finding(
                level="warning" if newer else "error",
                code="syntax",
                message=f"it does not compile for {python}: {words}",
                hint="mend it, or ask for another Python with --python",
                file=project.name(file),
                line=line,
            )
        )
        return Scan()


def _follow(project: Project, file: Path, wanted: Import) -> Iterator[Path]:
    """The files of the project that an import loads; what is not the project's is noted."""
    if wanted.level:
        package = file.parent
        for _ in range(wanted.level - 1):
            package = package.parent
        found = list(_inside(package, wanted))
    else:
        found = list(_local(project, wanted.module))
        found += _names(found, wanted)
    if not found and (not wanted.level or wanted.module):
        project.missing.append((file, wanted))
    for path in found:
        if not project.there(path):
            inside = project.name(path)
            project.findings.append(
                Finding(
                    level="error" if wanted.when == "always" else "warning",
                    code="import-left-out",
                    message=f"it imports {inside}, which is left out of the bundle"
                    + _why(project, inside),
                    hint=f"write !{inside} into .wherryignore",
                    file=project.name(file),
                    line=wanted.line,
                )
            )
    yield from found


def _why(project: Project, path: str) -> str:
    for left, why in project.left_out.items():
        if path == left.rstrip("/") or path.startswith(left.rstrip("/") + "/"):
            return f" ({why})"
    return " (an ignore rule)"


def _inside(package: Path, wanted: Import) -> Iterator[Path]:
    """``from .a.b import c`` in a package's folder."""
    target = package
    for part in filter(None, wanted.module.split(".")):
        if (target / f"{part}.py").is_file():
            yield target / f"{part}.py"
            return
        target /= part
        if (target / "__init__.py").is_file():
            yield target / "__init__.py"
        elif not target.is_dir():
            return
    for name in wanted.names:
        if (target / f"{name}.py").is_file():
            yield target / f"{name}.py"
        elif (target / name / "__init__.py").is_file():
            yield target / name / "__init__.py"


def _names(found: list[Path], wanted: Import) -> list[Path]:
    """The modules among the names of ``from package import names``."""
    if not found or (found[-1].name != "__init__.py" and not found[-1].is_dir()):
        return []
    folder = found[-1] if found[-1].is_dir() else found[-1].parent
    return [p for n in wanted.names if (p := folder / f"{n}.py").is_file()]


def _local(project: Project, module: str) -> Iterator[Path]:
    """The project's files that ``import module`` loads, packages first; none: it is not here."""
    parts = module.split(".")
    for root in project.path:
        found = []
        folder = root
        for part in parts:
            file, package = folder / f"{part}.py", folder / part / "__init__.py"
            if package.is_file():
                found.append(package)
                folder /= part
            elif file.is_file():
                found.append(file)
                break
            elif any(folder.glob(f"{part}.*.so")) or any(folder.glob(f"{part}.so")):
                found += [*folder.glob(f"{part}.*.so"), *folder.glob(f"{part}.so")][:1]
                break
            elif folder != root or _namespace(folder / part):
                folder /= part  # a namespace package, or an attribute of the one before
                if not folder.is_dir():
                    break
            else:
                break
        if found or (folder != root and folder.is_dir()):
            yield from found or [folder]
            return


def _namespace(folder: Path) -> bool:
    """Whether a folder without ``__init__.py`` holds modules of its own."""
    return folder.is_dir() and (any(folder.glob("*.py")) or any(folder.glob("*/__init__.py")))
