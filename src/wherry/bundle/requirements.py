"""
Requirements as text: read them, and see that what comes out of a resolver can travel.

Called by ``bundle.locks``. Pure but for reading the files that a requirements file includes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry.errors import EnvironmentFailed

_HEADER = re.compile(
    r"(?m)^# /// script[ \t]*\r?$\n(?P<body>(?:^#(?:| .*)\r?$\n)+?)^# ///[ \t]*\r?$"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INCLUDE = re.compile(r"(-r|--requirement|-c|--constraint)(?:\s+|=|(?<=-[rc]))(\S+)")
_LOCATION = re.compile(r"(-f|--find-links|-i|--index-url|--extra-index-url)(?:\s+|=)(\S+)")
_LOCAL = re.compile(
    r"-e\b|--editable\b|[./~]|file:|.* @ (?:file:|\.|/)|[^ ]*\.(?:whl|tar\.gz|zip)$"
)
_PINNED_GIT = re.compile(r"[^ ]+ @ git\+.*@[0-9a-f]{40}\b")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
#: What every uv has anyway; left out so that a node's own mirror holds there.
_DEFAULT_INDEX = re.compile(r"(?m)^--index-url https://pypi\.org/simple/?\n")


@dataclass(frozen=True)
class Flat:
    """A requirements file with all that it includes."""

    lines: tuple[str, ...]
    constraints: tuple[str, ...]


def normalise(name: str) -> str:
    """The name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_wherry(requirement: str) -> bool:
    """Whether a requirement asks for Wherry, which the agent brings."""
    match = _NAME.match(requirement)
    return bool(match) and normalise(match[0]) == "wherry"  # type: ignore[index]


def refuse_local(requirement: str, where: str) -> None:
    """:raises EnvironmentFailed: where only this machine has the package."""
    if _LOCAL.match(requirement):
        raise EnvironmentFailed(
            f"{where}: {requirement!r} is a local package, which does not travel",
            hint="list what it depends on instead and keep its code in the project, "
            "or activate an environment that has it",
        )


def flatten(file: Path) -> Flat:
    """
    A requirements file, with ``-r`` and ``-c`` followed and ``wherry`` left out.

    :raises EnvironmentFailed: for a file that is missing, or a local package.
    """
    lines: list[str] = []
    constraints: list[str] = []
    seen: set[tuple[Path, bool]] = set()

    def read(file: Path, into: list[str], by: str) -> None:
        file = Path(os.path.normpath(file))
        if (file, into is lines) in seen:
            return
        seen.add((file, into is lines))
        try:
            text = file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise EnvironmentFailed(f"{by}{file} cannot be read: {error}") from None
        for raw in re.sub(r"\\\r?\n", " ", text).splitlines():
            line = re.sub(r"(^|\s)#.*", "", raw).strip()
            if include := _INCLUDE.fullmatch(line):
                inner = constraints if include[1].startswith(("-c", "--c")) else into
                read(file.parent / include[2], inner, f"{file.name}: ")
            elif place := _LOCATION.fullmatch(line):
                there = file.parent / place[2]
                into.append(f"{place[1]} {there if there.exists() else place[2]}")
            elif line and not is_wherry(line):
                refuse_local(line, file.name)
                into.append(line)

    read(file, lines, "")
    return Flat(tuple(lines), tuple(constraints))


def script_header(script: Path) -> dict[str, Any] | None:
    """
    The script's inline metadata (PEP 723); None where it has none.

    :raises EnvironmentFailed: where it has some that is no TOML.
    """
    try:
        text = script.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    match = _HEADER.search(text) if "# ///" in text else None
    if match is None:
        return None
    import tomllib

    body = "\n".join(line[2:] for line in match["body"].splitlines())
    try:
        return tomllib.loads(body)
    except tomllib.TOMLDecodeError as error:
        raise EnvironmentFailed(f"{script.name}: the script header is no TOML: {error}") from None


def portable(text: str, where: str) -> tuple[str, bool]:
    """
    A resolver's output as it may travel: (text, whether credentials were taken out of it).

    :raises EnvironmentFailed: for a package that neither a hash nor a commit pins.
    """
    text = _DEFAULT_INDEX.sub("", text).lstrip("\n")
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = line.strip()
        if not line or line.startswith(("#", "--")):
            continue
        refuse_local(line, where)
        if "--hash=" not in line and not _PINNED_GIT.match(line):
            raise EnvironmentFailed(
                f"{where}: nothing says what {line.split(';')[0].strip()!r} must contain",
                hint="take it from an index that has hashes, or from Git by its full commit",
            )
    lines = text.splitlines(keepends=True)
    clean = [_CREDENTIALS.sub("", x) if x.startswith("--") else x for x in lines]
    return "".join(clean), clean != lines


def count(text: str) -> int:
    """How many packages a resolver's output has."""
    return sum(1 for line in text.splitlines() if _NAME.match(line))
