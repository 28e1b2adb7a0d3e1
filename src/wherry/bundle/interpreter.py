"""
The interpreter that a person works with, and the packages in it.

Called by ``bundle.environment``. Nothing of it is imported: an interpreter is asked once what it
is, its packages are read from their ``.dist-info`` folders, and both are remembered until the
folders change.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from wherry.bundle.keep import keep
from wherry.errors import EnvironmentFailed

_ASK = "import json,platform,sys;print(json.dumps([platform.python_version(),sys.path[1:]]))"
#: What `uv tool` and pipx leave in the environments that they make for a program's own use.
_TOOL_MARKS = ("uv-receipt.toml", "pipx_metadata.json")


class _Vcs(msgspec.Struct):
    vcs: str
    commit_id: str


class _Dir(msgspec.Struct):
    editable: bool = False


class _DirectUrl(msgspec.Struct):
    """What an installer notes about a distribution that came from no index (PEP 610)."""

    url: str
    vcs_info: _Vcs | None = None
    dir_info: _Dir = msgspec.field(default_factory=_Dir)


class Package(msgspec.Struct, frozen=True, array_like=True):
    """An installed distribution."""

    name: str  #: normalised
    version: str
    #: "" for one from an index, else where it came from: "git+URL@COMMIT" or a local path
    source: str = ""
    editable: bool = False

    def requirement(self) -> str:
        """As one line of a requirements file; a comment where only this machine has it."""
        if self.source.startswith("git+"):
            return f"{self.name} @ {self.source}"
        pin = f"{self.name}=={self.version}"
        return f"# {pin} from {self.source}" if self.source else pin


class Interpreter(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an interpreter, and what must be unchanged for that to hold."""

    marks: dict[str, int]  #: path → mtime in ns
    version: str
    packages: tuple[Package, ...]

    def frozen(self) -> str:
        """The packages as text, as a record."""
        lines = [f"# Python {self.version}", *(p.requirement() for p in self.packages)]
        return "\n".join(lines) + "\n"


def active_python(environ: Mapping[str, str]) -> Path:
    """
    The interpreter that ``python`` means to this person.

    Of the activated virtual or conda environment, else the one that Wherry is installed in unless
    that is a tool's own (`uv tool`, pipx), else the first on PATH.
    """
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        python = Path(environ.get(variable) or "/nonexistent", "bin", "python")
        if python.exists():
            return python
    if not _in_tool():
        return Path(sys.executable)
    import shutil

    own = os.path.dirname(sys.executable)
    path = os.pathsep.join(p for p in environ.get("PATH", "").split(os.pathsep) if p != own)
    found = shutil.which("python", path=path) or shutil.which("python3", path=path)
    return Path(found or sys.executable)


def is_activated(environ: Mapping[str, str]) -> bool:
    """Whether the active interpreter is of an environment that somebody chose for this work."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        # conda activates its base environment in every shell: nobody chose that.
        chosen = variable != "CONDA_PREFIX" or environ.get("CONDA_DEFAULT_ENV") != "base"
        if chosen and Path(environ.get(variable) or "/nonexistent", "bin", "python").exists():
            return True
    return sys.prefix != sys.base_prefix and not _in_tool()


def _in_tool() -> bool:
    return any(os.path.exists(os.path.join(sys.prefix, mark)) for mark in _TOOL_MARKS)


def inspect(python: Path, *, cache: Path) -> Interpreter:
    """
    Version and packages of an interpreter; a few ``stat`` calls where nothing has changed.

    ``wherry`` itself is left out. :raises EnvironmentFailed: where it does not run.
    """
    python = Path(os.path.abspath(python))
    name = hashlib.sha256(os.fsencode(python)).hexdigest()[:24]
    file = cache / "python" / f"{name}.msgpack"
    try:
        known = msgspec.msgpack.decode(file.read_bytes(), type=Interpreter)
        if all(_mtime(path) == mtime for path, mtime in known.marks.items()):
            return known
    except (OSError, msgspec.DecodeError):
        pass
    version, folders = _ask(python)
    # Before the folders are read: what is installed meanwhile must look like a change.
    marks = {p: _mtime(p) for p in (str(python), *folders)}
    packages = {p.name: p for folder in reversed(folders) for p in _packages(folder)}
    packages.pop("wherry", None)
    found = Interpreter(marks, version, tuple(sorted(packages.values(), key=lambda p: p.name)))
    keep(file, msgspec.msgpack.encode(found))
    return found


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _ask(python: Path) -> tuple[str, list[str]]:
    """Version and import path of an interpreter, by running it."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, env=env, cwd="/", check=True
        )
        version, paths = msgspec.json.decode(done.stdout, type=tuple[str, list[str]])
    except (OSError, subprocess.CalledProcessError, msgspec.DecodeError) as error:
        raise EnvironmentFailed(
            f"the interpreter {python} does not run: {error}", hint="name another with --python"
        ) from None
    return version, [p for p in paths if os.path.isdir(p)]


def _packages(folder: str) -> list[Package]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            match = re.fullmatch(r"([^-]+)-([^-]+)(?:-.*)?\.(dist|egg)-info", entry.name)
            if match:
                name = re.sub(r"[-_.]+", "-", match[1]).lower()
                source, editable = _origin(entry.path) if match[3] == "dist" else ("", False)
                found.append(Package(name, match[2], source, editable))
    return found


def _origin(info: str) -> tuple[str, bool]:
    """Where a distribution came from by its ``direct_url.json``: (source, editable)."""
    try:
        with open(f"{info}/direct_url.json", "rb") as file:
            direct = msgspec.json.decode(file.read(), type=_DirectUrl)
    except (OSError, msgspec.DecodeError):
        return "", False
    if vcs := direct.vcs_info:
        return f"{vcs.vcs}+{direct.url}@{vcs.commit_id}", False
    return direct.url.removeprefix("file://"), direct.dir_info.editable
