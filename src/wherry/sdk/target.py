"""
What a person's words mean: a script, a module, a command or a job file.

Called by ``sdk.submit``. Reads the file system, writes nothing.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wherry.core import files
from wherry.errors import InvalidSpec, ScriptNotFound

_NEARBY = 5000  # names looked at for a suggestion
_SKIPPED = {"node_modules", "__pycache__", "venv", "site-packages"}
_PYTHONS = ("python", "python3")
_FORMS = "wherry run takes a Python file, -m MODULE, a job file, or -- and a program"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to run, and where."""

    command: tuple[str, ...] = ()
    folder: Path  #: the working folder
    script: Path | None = None  #: the file that must travel; its header may ask for packages
    name: str = ""  #: for people
    job: Mapping[str, Any] = field(default_factory=dict)  #: what the job file says


def find_target(words: tuple[str, ...], folder: Path) -> Target:
    """
    What ``words`` mean to a person who stands in ``folder``.

    ``x.py`` and files that are not executable are run by the environment's Python, other files as
    they are; a word without a slash may be a program on PATH.

    :raises ScriptNotFound: with the nearest file. :raises InvalidSpec: for a job file.
    """
    if not words:
        return Target(folder=folder)
    if _is_job_file(folder / words[0]):
        return _job_file(words[0], words[1:], folder)
    return _command(words, folder)


def _command(words: tuple[str, ...], folder: Path) -> Target:
    first, rest = words[0], words[1:]
    path = folder / first
    if first == "-m":
        if not rest:
            raise InvalidSpec("-m needs the name of a module", hint="wherry run -m package.train")
        command = ("python", *words)
        return Target(command=command, folder=folder, name=rest[0].rpartition(".")[2])
    if first in _PYTHONS:
        return _python(words, folder)
    if path.suffix == ".py" or (path.is_dir() and (path / "__main__.py").exists()):
        return _script(first, rest, folder)
    if path.is_dir():
        raise _is_folder(first, path)
    if path.is_file():
        if not os.access(path, os.X_OK):
            return _script(first, rest, folder)
        command = (first if "/" in first else f"./{first}", *rest)
        return Target(command=command, folder=folder, script=path, name=path.stem)
    if "/" in first or (not _program(first) and _near(first, folder, cutoff=0.75)):
        raise _not_found(first, folder)
    return Target(command=words, folder=folder, name=Path(first).stem)


def _script(word: str, rest: tuple[str, ...], folder: Path) -> Target:
    path = folder / word
    if not path.exists():
        raise _not_found(word, folder)
    return Target(command=("python", word, *rest), folder=folder, script=path, name=path.stem)


def _python(words: tuple[str, ...], folder: Path) -> Target:
    """``python x.py`` in a job file, or out of habit."""
    target = Target(command=("python", *words[1:]), folder=folder, name="python")
    if len(words) > 1 and (words[1] == "-m" or words[1].endswith(".py")):
        return replace(_command(words[1:], folder), command=target.command)
    return target


def _is_job_file(path: Path) -> bool:
    return path.suffix in files.FORMATS and not os.access(path, os.X_OK)


def _job_file(word: str, rest: tuple[str, ...], folder: Path) -> Target:
    path = folder / word
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise _not_found(word, folder) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{word}: {error}") from None
    job = files.load(text, format=files.FORMATS[path.suffix], source=word)
    command = tuple(job.get("command", ()))
    if not command:
        raise InvalidSpec(f"{word}: the job has no command", hint="command: python train.py")
    if _is_job_file(folder / command[0]):
        raise InvalidSpec(f"{word}: its command is a job file again: {command[0]}")
    target = _command((*command, *rest), folder)
    return replace(target, job=job, name=str(job.get("name") or path.stem))


def _is_folder(word: str, path: Path) -> ScriptNotFound:
    package = path.name if (path / "__init__.py").exists() else ""
    inside = sorted(found.name for found in path.glob("*.py") if found.name[0] != "_")
    hint = f"name a script in it: wherry run {os.path.join(word, inside[0])}" if inside else _FORMS
    if package and path.parent == Path.cwd():
        hint = f"a package without __main__.py: wherry run -m {package}.MODULE"
    return ScriptNotFound(f"{word!r} is a folder and has no __main__.py", hint=hint)


def missing_program(target: Target, python: str, path: str) -> ScriptNotFound | None:
    """The error where the command's program is neither on PATH nor beside its interpreter."""
    word = target.command[0] if target.command else ""
    if not word or "/" in word or word in _PYTHONS or (Path(python).parent / word).exists():
        return None
    if shutil.which(word, path=path):
        return None
    scripts = _project_scripts(target.folder)
    hint = _FORMS
    if word in scripts:
        module, _, function = scripts[word].partition(":")
        hint = (
            f"pyproject.toml has it in [project.scripts], and the project itself is not installed: "
            f"wherry run -- python -c 'from {module} import {function}; {function}()'"
        )
    elif near := difflib.get_close_matches(word, scripts, n=1):
        hint = f"did you mean {near[0]!r}?"
    return ScriptNotFound(f"there is no program {word!r} on PATH", hint=hint)


def _project_scripts(folder: Path) -> dict[str, str]:
    """The console scripts that the nearest pyproject.toml declares."""
    for place in (folder, *folder.parents):
        if (file := place / "pyproject.toml").is_file():
            import tomllib

            try:
                found = tomllib.loads(file.read_text("utf-8")).get("project", {}).get("scripts", {})
            except (OSError, ValueError):
                return {}
            return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    return {}


def _not_found(word: str, folder: Path) -> ScriptNotFound:
    near = _near(word, folder, cutoff=0.6)
    where = "" if os.path.isabs(word) else f" in {folder}"
    return ScriptNotFound(
        f"there is no file {word!r}{where}", hint=f"did you mean {near!r}?" if near else _FORMS
    )


def _near(word: str, folder: Path, *, cutoff: float) -> str:
    """The file that may be meant; "" where none is near."""
    names: dict[str, str] = {}  # what a person may have tried to write → the file
    for start, folders, files_here in os.walk(folder):
        inside = os.path.relpath(start, folder)
        deep = inside.count(os.sep) >= 2
        folders[:] = [] if deep else [f for f in folders if f[0] != "." and f not in _SKIPPED]
        for name in files_here:
            if name.endswith((".py", *files.FORMATS)):
                path = os.path.normpath(os.path.join(inside, name))
                for written in (path, name, name.removesuffix(".py")):
                    names.setdefault(written, path)
        if len(names) > _NEARBY:
            break
    near = difflib.get_close_matches(os.path.normpath(word), names, n=1, cutoff=cutoff)
    return names[near[0]] if near else ""


def _program(word: str) -> bool:
    """Whether a command of this name is on PATH or beside the running interpreter."""
    return bool(shutil.which(word)) or (Path(sys.executable).parent / word).exists()
