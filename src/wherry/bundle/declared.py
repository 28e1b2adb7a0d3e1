"""
What a project declares that it needs, held against what an interpreter has.

Called by ``bundle.environment`` to tell whether an activated environment can stand in for the
project's own declaration. Loads ``packaging`` only where there is a declaration.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from wherry.bundle.interpreter import Package


def lacking(declaration: Path, packages: tuple[Package, ...]) -> list[str]:
    """
    The requirements of ``pyproject.toml`` or of a requirements file that ``packages`` do not meet.

    Lines that are no requirement (options, paths) ask for nothing here, and neither does Wherry.
    """
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    installed = {package.name: package.version for package in packages}
    found = []
    for line in _lines(declaration):
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        name = canonicalize_name(wanted.name)
        if name == "wherry" or (wanted.marker and not wanted.marker.evaluate()):
            continue
        version = installed.get(name)
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            found.append(str(wanted))
    return found


def _lines(declaration: Path) -> Iterator[str]:
    text = declaration.read_text("utf-8", "replace")
    if declaration.suffix == ".toml":
        try:
            project = tomllib.loads(text).get("project", {})
        except tomllib.TOMLDecodeError:
            return  # uv will say it better
        yield from (line for line in project.get("dependencies", ()) if isinstance(line, str))
        return
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if included := re.fullmatch(r"(?:-r|--requirement)[ =]?\s*(\S+)", line):
            path = declaration.parent / included[1]
            if path.is_file() and path != declaration:
                yield from _lines(path)
        elif line and not line.startswith("-"):
            yield re.split(r"\s--hash", line)[0].strip()
