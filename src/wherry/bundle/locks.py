"""
Turn what a project says about its packages into one hashed requirements text, with uv.

Called by ``bundle.environment``. Results are kept by the digest of everything that they follow
from, so that a repeat does not even start uv.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from wherry.agent import uv as agent_uv
from wherry.bundle.keep import keep
from wherry.bundle.requirements import flatten, is_wherry, portable, refuse_local
from wherry.errors import EnvironmentFailed, StaleLock

_OUTPUT = (
    *("--quiet", "--no-header", "--no-annotate", "--emit-index-url", "--emit-find-links"),
    *("--no-emit-package", "wherry"),
)


@dataclass(frozen=True)
class Uv:
    """uv on the client: where it is, for which interpreter it resolves, what it remembers."""

    path: str
    python: str  #: an interpreter's path, or a version where none is here yet
    version: str
    environ: Mapping[str, str]
    cache: Path

    def run(self, *words: str, pip_settings: bool, cwd: Path) -> str:
        """What uv prints. :raises EnvironmentFailed: with the reason in words."""
        env = agent_uv.uv_environ(self.environ, pip_settings=pip_settings)
        try:
            done = subprocess.run(
                [self.path, *words],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise EnvironmentFailed(f"uv cannot be started: {error}") from None
        if done.returncode == 0:
            return done.stdout
        if "needs to be updated" in done.stderr:
            raise StaleLock
        message, hint = agent_uv.explain(done.stderr)
        raise EnvironmentFailed(message, hint=hint)

    def remembered(self, *facts: object) -> Path:
        """The file that has, or will have, the result that follows from these facts."""
        env = agent_uv.uv_environ(self.environ)
        ours = {k: v for k, v in env.items() if k.startswith("UV_") and "CACHE" not in k}
        key = msgspec.json.encode([1, facts, self.version, ours], order="sorted")
        return self.cache / "locks" / f"{hashlib.sha256(key).hexdigest()}.txt"


def compile_requirements(
    uv: Uv, lines: Sequence[str], *, constraints: Sequence[str] = (), deps: bool = True
) -> str:
    """
    Requirements resolved for every platform, with hashes.

    ``deps=False``: only what is named, pinned already. :raises EnvironmentFailed:
    """
    lines = [line for line in lines if not is_wherry(line)]
    file = uv.remembered("compile", list(lines), list(constraints), deps)
    if (text := _read(file)) is not None:
        return text
    import tempfile

    with tempfile.TemporaryDirectory(prefix="wherry-") as name:
        folder = Path(name)
        (folder / "requirements.in").write_text("\n".join(lines) + "\n")
        (folder / "constraints.in").write_text("\n".join(constraints) + "\n")
        words = ["requirements.in", "--generate-hashes", "--universal", "--python", uv.python]
        words += ["--constraint", "constraints.in"] if constraints else []
        words += [] if deps else ["--no-deps"]
        text = uv.run("pip", "compile", *words, *_OUTPUT, pip_settings=True, cwd=folder)
    keep(file, text.encode())
    return text


def compile_file(uv: Uv, file: Path, extra: Sequence[str] = ()) -> str:
    """A requirements file and ``extra``, resolved. :raises EnvironmentFailed:"""
    flat = flatten(file)
    return compile_requirements(uv, [*flat.lines, *extra], constraints=flat.constraints)


def export_project(uv: Uv, folder: Path) -> str:
    """
    What ``uv.lock`` in the folder says, for every platform.

    :raises StaleLock: where it does not fit ``pyproject.toml``.
    """
    # uv's own settings alone: pip's would make a good lock look stale.
    where = ("--project", str(folder), "--python", uv.python)
    try:
        uv.run("lock", "--check", *where, "--quiet", pip_settings=False, cwd=folder)
    except StaleLock:
        raise StaleLock(
            f"{folder / 'uv.lock'} does not fit pyproject.toml any more", hint="uv lock"
        ) from None
    words = (*where, "--frozen", "--no-emit-project", "--prune", "wherry")
    return uv.run("export", *words, *_OUTPUT, pip_settings=False, cwd=folder)


def export_script(uv: Uv, script: Path, header: Mapping[str, object]) -> str:
    """
    What a script's inline metadata asks for: by its ``.lock`` if there is one, else resolved.

    :raises StaleLock: where the lock does not fit the header.
    """
    lock = script.with_name(script.name + ".lock")
    if lock.exists():
        return _export_script_lock(uv, script, lock, header)
    wanted = [str(d) for d in _strings(header.get("dependencies", []), script)]
    tool = header.get("tool")
    if not (isinstance(tool, dict) and tool.get("uv")):
        for line in wanted:
            refuse_local(line, script.name)
        return compile_requirements(uv, wanted)
    # Indexes and sources of [tool.uv]: uv reads them from the script itself.
    file = uv.remembered("script", header)
    if (text := _read(file)) is None:
        words = ("--script", str(script), "--python", uv.python)
        text = uv.run("export", *words, *_OUTPUT, pip_settings=True, cwd=script.parent)
        keep(file, text.encode())
    return text


def _export_script_lock(uv: Uv, script: Path, lock: Path, header: Mapping[str, object]) -> str:
    python = uv.python
    if "requires-python" not in header:
        # uv wrote the Python that it locked with into the lock, and compares with that.
        least = re.search(r"\d+\.\d+", requires_python(lock))
        python = (least and agent_uv.find_python(least[0], uv.path)) or python
    words = ("--script", str(script), "--python", python)
    try:
        uv.run("lock", "--check", *words, "--quiet", pip_settings=False, cwd=script.parent)
    except StaleLock:
        raise StaleLock(
            f"{lock} does not fit the script's header any more",
            hint=f"uv lock --script {script.name}",
        ) from None
    return uv.run("export", "--frozen", *words, *_OUTPUT, pip_settings=False, cwd=script.parent)


def requires_python(lock: Path) -> str:
    """The ``requires-python`` of a lock of uv's, which stands before its first package."""
    with lock.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("requires-python"):
                return line.partition("=")[2].strip().strip('"')
            if line.startswith("[["):
                break
    return ""


def _strings(value: object, script: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise EnvironmentFailed(
            f"{script.name}: 'dependencies' in the script header is not a list of strings",
            hint='# dependencies = ["numpy>=2", "scikit-learn"]',
        )
    return value


def add(uv: Uv, text: str, extra: Sequence[str]) -> str:
    """A resolved text with more packages on top, resolved again with all its pins kept."""
    pins = [line.split(" \\")[0] for line in text.splitlines() if line and line[0] not in " #"]
    return compile_requirements(uv, [*pins, *extra])


def settle(text: str, where: str) -> tuple[str, tuple[str, ...]]:
    """A resolved text as it travels, with notes for the person. :raises EnvironmentFailed:"""
    text, had_credentials = portable(text, where)
    note = "the package index's password does not travel: set UV_INDEX where the run runs"
    return text, (note,) * had_credentials


def _read(file: Path) -> str | None:
    try:
        return file.read_text("utf-8")
    except OSError:
        return None
