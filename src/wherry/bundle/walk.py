"""
Which files a project has.

Called by ``capture``. Git is asked where there is a work tree; elsewhere the folders are walked and
``.gitignore`` is honoured all the same. ``.wherryignore`` in the root is layered over either: it
leaves out more, and ``!path`` brings back what ``.gitignore`` hides.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wherry.bundle.guards import NEVER, VENV_MARK

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

IGNORE_FILE = ".wherryignore"


class TooManyFiles(Exception):
    """The folder is no project: more files than anyone writes."""


def too_broad(folder: Path) -> bool:
    """Whether the folder is one that no project fills: the home, the root, a temporary one."""
    temporary = (os.environ.get("TMPDIR") or "/tmp", "/tmp", "/var/tmp")
    return folder in {Path.home(), Path(folder.anchor), *(Path(t).resolve() for t in temporary)}


def find_root(start: Path) -> Path:
    """
    The project that ``start`` (a folder) belongs to, absolute and without links.

    The git work tree around it, else the nearest folder above with a ``pyproject.toml``, else
    ``start``. A home folder under git is no project.
    """
    start = start.resolve()
    for mark in (".git", "pyproject.toml"):
        for folder in (start, *start.parents):
            if (folder / mark).exists() and not too_broad(folder):
                return folder
    return start


def list_files(root: Path, *, limit: int) -> tuple[set[str], set[str]]:
    """
    The project's files (relative paths, links included, never a folder), and those of them that
    ``.wherryignore`` asks for by ``!path``.

    :raises TooManyFiles: where there is no marker of a project and more than ``limit`` files.
    """
    in_git = any((folder / ".git").exists() for folder in (root, *root.parents))
    paths = _git_files(root) if in_git else None
    if paths is None:
        marked = in_git or (root / "pyproject.toml").exists()
        paths = set()
        for path in _walk_files(root):
            paths.add(path)
            if len(paths) > limit and not marked:
                raise TooManyFiles
    paths = _without_never(paths)
    ignore = root / IGNORE_FILE
    return _overlay(root, ignore, paths) if ignore.is_file() else (paths, set())


def _git_files(root: Path) -> set[str] | None:
    """What git lists below ``root``; None where git is not there or refuses."""
    command = ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"]
    # A hook or an alias that started us may point git elsewhere.
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    env = {k: v for k, v in os.environ.items() if k not in elsewhere}
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, check=False, env=env
        )
    except OSError:
        return None
    if done.returncode != 0:
        return None
    paths: set[str] = set()
    for raw in done.stdout.split(b"\0"):
        path = os.fsdecode(raw).rstrip("/")
        # Submodules and nested repositories appear as one bare entry; git cannot list untracked
        # files in them (-o with --recurse-submodules is fatal).
        if path and os.path.isdir(folder := f"{root}/{path}") and not os.path.islink(folder):
            inner = Path(folder)
            below = _git_files(inner) if (inner / ".git").exists() else None
            paths.update(f"{path}/{p}" for p in (_walk_files(inner) if below is None else below))
        elif path:
            paths.add(path)
    return paths


def _walk_files(root: Path) -> Iterator[str]:
    """Every file below ``root`` that no ``.gitignore`` hides. Ignored folders are not entered."""
    stack: list[tuple[str, tuple[tuple[str, GitIgnoreSpec], ...]]] = [("", ())]
    while stack:
        prefix, rules = stack.pop()
        entries = _scan(f"{root}/{prefix}")
        if prefix and any(e.name == VENV_MARK for e in entries):
            continue
        for entry in entries:
            if entry.name == ".gitignore" and entry.is_file():
                rules = ((prefix, _spec(Path(entry.path))), *rules)
        for entry in entries:
            path = prefix + entry.name
            folder = entry.is_dir(follow_symlinks=False)
            if (folder and entry.name in NEVER) or _ignored(path + "/" * folder, rules):
                continue
            if folder:
                stack.append((path + "/", rules))
            else:
                yield path


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _spec(file: Path) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(file.read_text("utf-8", "replace").splitlines())


def _ignored(path: str, rules: tuple[tuple[str, GitIgnoreSpec], ...]) -> bool:
    """Whether the deepest ``.gitignore`` with an opinion hides the path."""
    for prefix, spec in rules:
        verdict = _verdict(spec, path[len(prefix) :])
        if verdict is not None:
            return verdict
    return False


def _verdict(spec: GitIgnoreSpec, path: str) -> bool | None:
    """
    What the patterns say of the path itself: the last that matches.

    Unlike ``spec.check_file``, for which a pattern that matches a folder speaks of what is in it
    too: here nobody asks about what is in an ignored folder, and ``!a`` brings only ``a`` back.
    """
    for pattern in reversed(list(spec.patterns)):
        found = pattern.match_file(path) if pattern.include is not None else None
        if found is None:
            continue
        # pathspec's mark of a match that ends at a folder.
        at_folder = found.match.groupdict().get("ps_d") is not None
        if not at_folder or found.match.end("ps_d") == len(path):
            return bool(pattern.include)
    return None


def _without_never(paths: set[str]) -> set[str]:
    """Without caches and virtual environments, which git lists where nobody ignores them."""
    venvs = tuple(p[: -len(VENV_MARK)] for p in paths if p.endswith("/" + VENV_MARK))
    return {
        p for p in paths if NEVER.isdisjoint(p.split("/")) and not (venvs and p.startswith(venvs))
    }


def _overlay(root: Path, ignore: Path, paths: set[str]) -> tuple[set[str], set[str]]:
    """``.wherryignore`` over what git or the walk found: (all paths, those asked for by ``!``)."""
    spec = _spec(ignore)
    kept, wanted = set(), set()
    for path in paths:
        verdict = spec.check_file(path).include
        if verdict is False:
            wanted.add(path)
        if not verdict:
            kept.add(path)
    for start in _negated_starts(ignore):
        for path in _everything(root, start):
            if spec.check_file(path).include is False:
                wanted.add(path)
    return kept | wanted, wanted


def _negated_starts(ignore: Path) -> set[str]:
    """Where files that ``!`` patterns bring back can be: a folder or file each, "" for anywhere."""
    starts = set()
    for line in ignore.read_text("utf-8", "replace").splitlines():
        pattern = line.strip()[1:] if line.startswith("!") else ""
        anchored = "/" in pattern.rstrip("/")
        literal = []
        for part in pattern.strip("/").split("/") if anchored else ():
            if any(c in part for c in "*?[\\"):
                break
            literal.append(part)
        if pattern:
            starts.add("/".join(literal))
    return starts


def _everything(root: Path, start: str) -> Iterator[str]:
    """Every file at or below ``start``, hidden ones too, but for what never travels."""
    if start and not os.path.isdir(root / start):
        if os.path.lexists(root / start):
            yield start
        return
    stack = [start + "/" if start else ""]
    while stack:
        prefix = stack.pop()
        entries = _scan(f"{root}/{prefix}")
        if prefix and any(e.name == VENV_MARK for e in entries):
            continue
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield prefix + entry.name
            elif entry.name not in NEVER:
                stack.append(f"{prefix}{entry.name}/")
