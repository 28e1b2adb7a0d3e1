"""
Make the Python and the packages of a run, once for all runs that ask for the same.

Called by the agent before the ranks meet, and by ``control.cleanup`` (:func:`prune`). Standard
library only.

An environment lives at ``CACHE/envs/DIGEST`` for good: a virtual environment holds absolute paths,
so it is built in place under a lock, and ``.complete``, written last, says that it is whole. Its
files are hard links into uv's cache, hence read-only: a script that writes to one would write to
every environment.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from wherry.agent.uv import EnvironmentFailed, Uv, find_python, matches

COMPLETE = ".complete"
USED = ".used"


class Built(NamedTuple):
    """An environment that is ready."""

    python: str  #: the interpreter, absolute
    bin: str  #: the folder of its programs, for the front of PATH
    root: str  #: the virtual environment, for VIRTUAL_ENV; "" where it is none
    reused: bool  #: it was there already


def build(
    environment: Mapping[str, Any],
    *,
    cache: str,
    uv: str,
    fetch: Callable[[str], bytes],
    note: Callable[[str], None],
) -> Built:
    """
    The environment that ``core.job.Environment`` (as JSON data) asks for; again: the same one.

    ``cache``: the folder shared by all runs of this machine. ``uv``: its path, or "" for the one on
    PATH. ``fetch``: the bytes of a blob. ``note``: is told what takes long, for people.

    :raises EnvironmentFailed: where it cannot be made; nothing of it is left.
    """
    if environment.get("kind", "active") == "active":
        return _active(environment.get("python", ""))
    version, requirements = (environment.get("python", ""), environment.get("requirements", ""))
    root = os.path.join(cache, "envs", _key(version, requirements))
    os.makedirs(os.path.dirname(root), exist_ok=True)
    reused = True
    if not _whole(root):
        with _locked(root + ".lock", note):
            if not _whole(root):
                reused = False
                text = fetch(requirements).decode("utf-8") if requirements else ""
                _build(root, version, text, Uv(uv, cache), note)
    with open(os.path.join(root, USED), "w"):
        pass
    folder = os.path.join(root, "bin")
    return Built(os.path.join(folder, "python"), folder, root, reused)


def _active(python: str) -> Built:
    python = python or sys.executable
    if not os.access(python, os.X_OK):
        raise EnvironmentFailed(
            f"the interpreter {python} is not there",
            "it was the active one when the run was submitted; submit again, or use --python",
        )
    folder = os.path.dirname(os.path.abspath(python))
    root = os.path.dirname(folder)
    marks = ("pyvenv.cfg", "conda-meta")
    venv = any(os.path.exists(os.path.join(root, mark)) for mark in marks)
    return Built(python, folder, root if venv else "", True)


def _key(version: str, requirements: str) -> str:
    """What tells environments apart: Python, packages, and what wheels depend on."""
    facts = [version, requirements, sysconfig.get_platform(), *platform.libc_ver()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _whole(root: str) -> bool:
    """Whether it was finished and its base interpreter, which it only links to, still exists."""
    marks = (os.path.join(root, COMPLETE), os.path.join(root, "bin", "python"))
    return all(os.path.exists(mark) for mark in marks)


@contextmanager
def _locked(path: str, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of one environment. The file stays: removing it would let two in."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note("another run is building this environment: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(root: str, version: str, text: str, uv: Uv, note: Callable[[str], None]) -> None:
    began = time.monotonic()
    packages = len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE))
    note(f"building an environment: Python {version}, {packages} package{'s' * (packages != 1)}")
    shutil.rmtree(root, ignore_errors=True)
    try:
        actual = _make_venv(root, version, uv, note)
        if packages:
            _install(root, text, uv)
        _make_read_only(os.path.join(root, "lib"))
        seconds = time.monotonic() - began
        with open(os.path.join(root, COMPLETE), "w") as file:
            json.dump({"python": actual, "packages": packages, "seconds": seconds}, file)
    except BaseException as error:
        shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, OSError):
            raise EnvironmentFailed(f"the environment cannot be written: {error}") from error
        raise
    note(f"environment ready in {seconds:.1f} s")


def _make_venv(root: str, version: str, uv: Uv, note: Callable[[str], None]) -> str:
    """A virtual environment without packages; the exact version of its Python."""
    minor = ".".join(version.split(".")[:2])
    failed = None
    for wanted in dict.fromkeys((version, minor)):
        python = find_python(wanted, uv.path)
        if not python:
            note(f"Python {wanted} is not on this machine: fetching it")
        try:
            uv.run("venv", "--no-project", "--prompt", "wherry", "--python", python or wanted, root)
            break
        except EnvironmentFailed as error:
            if python:
                raise
            failed = failed or error
    else:
        raise EnvironmentFailed(
            f"there is no Python {version} on this machine, and none could be fetched",
            f"install it (uv python install {minor}), or name another with --python",
            failed.tail if failed else "",
        )
    with open(os.path.join(root, "pyvenv.cfg")) as file:
        match = re.search(r"^version(?:_info)? *= *([0-9.]+)", file.read(), re.MULTILINE)
    actual = match.group(1) if match else wanted
    if not matches(actual, version):
        note(f"Python {version} is not on this machine: using {actual}")
    return actual


def _install(root: str, text: str, uv: Uv) -> None:
    """Install from uv's cache alone where it has everything, else with the index."""
    file = os.path.join(root, "requirements.txt")
    with open(file, "w", encoding="utf-8") as stream:
        stream.writelines(line for line in text.splitlines(True) if not _absent(line))
    # A commit names its content; uv refuses Git under --require-hashes all the same.
    check = "--verify-hashes" if " @ git+" in text else "--require-hashes"
    # Every package is pinned by hash, so it does not matter which index has it.
    words = ["pip", "sync", check, "--index-strategy", "unsafe-best-match", "--python", root, file]
    try:
        uv.run(*words, "--offline")
    except EnvironmentFailed:
        uv.run(*words)


def _absent(line: str) -> bool:
    """Whether the line names a folder of packages that only the submitting machine has."""
    match = re.match(r"--(?:find-links|extra-index-url|index-url) +(?:file://)?(/\S+)", line)
    return bool(match) and not os.path.exists(match.group(1))  # type: ignore[union-attr]


def _make_read_only(folder: str) -> None:
    stack = [folder]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                elif not entry.is_symlink():
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if mode & 0o222:
                        os.chmod(entry.path, stat.S_IMODE(mode) & ~0o222)


def prune(cache: str, older_than_days: float) -> tuple[int, int]:
    """
    Remove environments that no run has started with for so long: how many, and the bytes freed.

    One that is being built is left alone. Hard links into uv's cache free nothing.
    """
    folder = os.path.join(cache, "envs")
    count = freed = 0
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        root = os.path.join(folder, name)
        if not os.path.isdir(root) or time.time() - _last_used(root) < older_than_days * 86400:
            continue
        with open(root + ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if os.path.exists(os.path.join(root, COMPLETE)):
                os.remove(os.path.join(root, COMPLETE))
            freed += _own_bytes(root)
            shutil.rmtree(root, ignore_errors=True)
            count += 1
    return count, freed


def _last_used(root: str) -> float:
    for path in (os.path.join(root, USED), root):
        try:
            return os.stat(path).st_mtime
        except OSError:
            continue
    return time.time()


def _own_bytes(root: str) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            st = os.lstat(os.path.join(folder, name))
            total += st.st_size if st.st_nlink == 1 else 0
    return total
