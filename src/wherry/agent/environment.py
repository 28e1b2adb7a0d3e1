"""
Make the Python and the packages of a run, once for all runs that ask for the same.

Called by the agent before the ranks meet, and by ``control.cleanup`` (:func:`prune`).
``bundle.environment`` shares :func:`find_python`, :func:`uv_environ` and :func:`explain`. Standard
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
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

COMPLETE = ".complete"
USED = ".used"

#: What a shell may have set for another purpose and would change what is built here.
_FOREIGN = frozenset(
    {
        *("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH", "UV_PYTHON"),
        *("UV_SYSTEM_PYTHON", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_COMPILE_BYTECODE"),
        *("UV_PROJECT", "UV_PROJECT_ENVIRONMENT", "UV_WORKING_DIRECTORY"),
    }
)


class EnvironmentFailed(Exception):
    """The environment cannot be made. ``tail``: the end of what uv said."""

    def __init__(self, message: str, hint: str = "", tail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.tail = tail


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
    version, requirements = (
        environment.get("python", ""),
        environment.get("requirements", ""),
    )
    root = os.path.join(cache, "envs", _key(version, requirements))
    os.makedirs(os.path.dirname(root), exist_ok=True)
    reused = True
    if not _whole(root):
        with _locked(root + ".lock", note):
            if not _whole(root):
                reused = False
                text = fetch(requirements).decode("utf-8") if requirements else ""
                _build(root, version, text, _Uv(uv, cache), note)
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


def _build(
    root: str, version: str, text: str, uv: _Uv, note: Callable[[str], None]
) -> None:
    began = time.monotonic()
    packages = len(re.findall(r"^[A-Za-z0-9]", text, re.MULTILINE))
    note(f"building an environment: Python {version}, {packages} packages")
    shutil.rmtree(root, ignore_errors=True)
    try:
        actual = _make_venv(root, version, uv, note)
        if packages:
            _install(root, text, uv)
        _make_read_only(os.path.join(root, "lib"))
        seconds = time.monotonic() - began
        with open(os.path.join(root, COMPLETE), "w") as file:
            json.dump(
                {"python": actual, "packages": packages, "seconds": seconds}, file
            )
    except BaseException as error:
        shutil.rmtree(root, ignore_errors=True)
        if isinstance(error, OSError):
            raise EnvironmentFailed(
                f"the environment cannot be written: {error}"
            ) from error
        raise
    note(f"environment ready in {seconds:.1f} s")


def _make_venv(root: str, version: str, uv: _Uv, note: Callable[[str], None]) -> str:
    """A virtual environment without packages; the exact version of its Python."""
    minor = ".".join(version.split(".")[:2])
    failed = None
    for wanted in dict.fromkeys((version, minor)):
        python = find_python(wanted, uv.path)
        if not python:
            note(f"Python {wanted} is not on this machine: fetching it")
        try:
            uv.run(
                "venv",
                "--no-project",
                "--prompt",
                "wherry",
                "--python",
                python or wanted,
                root,
            )
            break
        except EnvironmentFailed as error:
            failed = failed or error
    else:
        raise EnvironmentFailed(
            f"there is no Python {version} on this machine, and none could be fetched",
            f"install it (uv python install {minor}), or name another with --python",
            failed.tail if failed else "",
        )
    with open(os.path.join(root, "pyvenv.cfg")) as file:
        match = re.search(
            r"^version(?:_info)? *= *([0-9.]+)", file.read(), re.MULTILINE
        )
    actual = match.group(1) if match else wanted
    if not matches(actual, version):
        note(f"Python {version} is not on this machine: using {actual}")
    return actual


def _install(root: str, text: str, uv: _Uv) -> None:
    """Install from uv's cache alone where it has everything, else with the index."""
    file = os.path.join(root, "requirements.txt")
    with open(file, "w", encoding="utf-8") as stream:
        stream.writelines(line for line in text.splitlines(True) if not _absent(line))
    # A commit names its content; uv refuses Git under --require-hashes all the same.
    check = "--verify-hashes" if " @ git+" in text else "--require-hashes"
    # Every package is pinned by hash, so it does not matter which index has it.
    words = [
        "pip",
        "sync",
        check,
        "--index-strategy",
        "unsafe-best-match",
        "--python",
        root,
        file,
    ]
    try:
        uv.run(*words, "--offline")
    except EnvironmentFailed:
        uv.run(*words)


def _absent(line: str) -> bool:
    """Whether the line names a folder of packages that only the submitting machine has."""
    match = re.match(
        r"--(?:find-links|extra-index-url|index-url) +(?:file://)?(/\S+)", line
    )
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


class _Uv:
    """uv, with the cache that has most of what is needed."""

    def __init__(self, path: str, cache: str) -> None:
        self.path = path or shutil.which("uv") or ""
        self.env = uv_environ(os.environ)
        if not _writable(uv_cache(self.env)):
            self.env["UV_CACHE_DIR"] = os.path.join(cache, "uv")

    def run(self, *words: str) -> str:
        """What it prints. :raises EnvironmentFailed: with the reason in words."""
        if not self.path:
            raise EnvironmentFailed(
                "uv is not on this machine",
                "pip install uv, or set WHERRY_UV to its path",
            )
        try:
            done = subprocess.run(
                [self.path, *words],
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as error:
            raise EnvironmentFailed(f"uv cannot be started: {error}") from error
        if done.returncode == 0:
            return done.stdout.decode("utf-8", "replace")
        said = done.stderr.decode("utf-8", "replace")
        message, hint = explain(said)
        raise EnvironmentFailed(message, hint, said[-4000:])


def uv_cache(environ: Mapping[str, str]) -> str:
    """Where uv keeps what it has downloaded, unless it is told otherwise."""
    base = environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return environ.get("UV_CACHE_DIR") or os.path.join(base, "uv")


def _writable(folder: str) -> bool:
    """Whether files can be made in the folder, which need not exist yet."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def matches(version: str, wanted: str) -> bool:
    """Whether ``3.12.1`` is a ``3.12``."""
    parts = wanted.split(".")
    return version.split(".")[: len(parts)] == parts


def find_python(wanted: str, uv: str) -> str:
    """
    An interpreter of the version (``3.12`` or ``3.12.1``) on this machine; "" where there is none.

    This one, then pyenv's (whose shims uv cannot use), then whatever uv finds.
    """
    if sys.executable and matches(platform.python_version(), wanted):
        return sys.executable
    folder = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found = []
    if os.path.isdir(os.path.join(folder, "versions")):
        for name in os.listdir(os.path.join(folder, "versions")):
            python = os.path.join(folder, "versions", name, "bin", "python")
            if (
                re.fullmatch(r"3(\.\d+)+", name)
                and matches(name, wanted)
                and os.path.exists(python)
            ):
                found.append(([int(n) for n in name.split(".")], python))
    if found:
        return max(found)[1]
    if not uv:
        return ""
    done = subprocess.run(
        [uv, "python", "find", "--no-project", "--system", wanted],
        env=uv_environ(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.stdout.decode().strip() if done.returncode == 0 else ""


def uv_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """
    The environment to run uv in: without what belongs to other projects, and with pip's settings
    (variables and ``pip.conf``) where uv has none of its own.
    """
    env = {k: v for k, v in environ.items() if k not in _FOREIGN}
    pip = _pip_settings(environ)
    if "no-index" in pip and pip["no-index"].lower() not in (
        "0",
        "no",
        "false",
        "off",
        "",
    ):
        env.setdefault("UV_NO_INDEX", "1")
    if "find-links" in pip:
        env.setdefault("UV_FIND_LINKS", ",".join(pip["find-links"].split()))
    if "cert" in pip:
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    if "index-url" in pip and "UV_INDEX_URL" not in env:
        env.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if "extra-index-url" in pip and not {"UV_INDEX", "UV_EXTRA_INDEX_URL"} & env.keys():
        env["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        # pip takes the best version of any index; uv alone would stop at the first that has one.
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return env


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's options about indexes, from its files and then its variables, as pip reads them."""
    home = environ.get("HOME") or os.path.expanduser("~")
    config = environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    own = environ.get("PIP_CONFIG_FILE", "")
    files = [
        "/etc/pip.conf",
        os.path.join(home, ".pip", "pip.conf"),
        os.path.join(home, "Library", "Application Support", "pip", "pip.conf"),
        os.path.join(config, "pip", "pip.conf"),
        os.path.join(environ.get("VIRTUAL_ENV") or "/nonexistent", "pip.conf"),
        own,
    ]
    names = ("index-url", "extra-index-url", "find-links", "cert", "no-index")
    found = {}
    present = [f for f in files if f and os.path.isfile(f)] if own != os.devnull else []
    if present:
        import configparser

        parser = configparser.RawConfigParser()
        try:
            parser.read(present, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            return {}
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({k: v for k, v in parser.items(section) if k in names})
    for name in names:
        value = environ.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    return found


_REASONS = (
    (
        r"(?:Because |error: )?(\S+) was not found in the (?:package registry|provided)",
        "there is no package named {0} on the index",
        "check its spelling; a private index is set with UV_INDEX or pip's extra-index-url",
    ),
    (
        r"(?:Because |and )there (?:is|are) (?:no|only the following) versions? of (\S+?)[:,]? ",
        "no version of {0} fits",
        "loosen the version, or see which ones the index has",
    ),
    (
        r"Hash mismatch for `([^`]+)`",
        "{0} is not the file that was locked",
        "lock again: uv lock",
    ),
    (
        r"No space left on device",
        "no space is left on this machine",
        "wherry prune removes environments that are not used",
    ),
    (
        r"Git operation failed|failed to clone",
        "a package's Git repository cannot be fetched",
        "",
    ),
    (
        r"error sending request|dns error|network was disabled|Network connectivity is disabled",
        "the package index cannot be reached",
        "check the network; a mirror is set with UV_DEFAULT_INDEX or pip's index-url",
    ),
    (
        r"Failed to build `([^`]+)`",
        "{0} has no wheel for this Python and platform, and does not build here",
        "take a version with a wheel, or another --python",
    ),
    (
        r"No interpreter found for (Python [^ \n]+)",
        "there is no {0} on this machine",
        "",
    ),
)


def explain(said: str) -> tuple[str, str]:
    """Message and hint for what uv wrote to stderr."""
    flat = re.sub(r"[\s│╰─▶×]+", " ", said)
    for pattern, message, hint in _REASONS:
        match = re.search(pattern, flat)
        if match:
            return message.format(*match.groups()), hint
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("error:", "cause:"))]
    return (causes or lines or ["uv failed without a word"])[-1], ""


def prune(cache: str, older_than_days: float) -> tuple[int, int]:
    """
    Remove environments that no run has started with for so long: how many, and the bytes freed.

    One that is being built is left alone. Hard links into uv's cache free nothing.
    """
    folder = os.path.join(cache, "envs")
    count = freed = 0
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        root = os.path.join(folder, name)
        if (
            not os.path.isdir(root)
            or time.time() - _last_used(root) < older_than_days * 86400
        ):
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
