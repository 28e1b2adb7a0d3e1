"""
The agent runs in any image that has a Python: it needs nothing else, and no newer syntax.

import-linter holds that it imports nothing of Wherry; here it is held to the standard library.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "src" / "wherry" / "agent"
FILES = sorted(AGENT.rglob("*.py"))

#: Gone, or not yet there, in some Python from 3.9 to 3.13.
MOVED = {"asynchat", "asyncore", "cgi", "crypt", "distutils", "imp", "pipes", "smtpd", "tomllib"}
#: What a program may have installed: used where it is there, never needed.
OFFERED = {"cloudpickle", "wherry"}


def imports(path: Path) -> set[str]:
    """The first word of every module that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(AGENT)))
def test_the_agent_imports_the_standard_library_only(path: Path) -> None:
    assert imports(path) - sys.stdlib_module_names - OFFERED == set()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(AGENT)))
def test_the_agent_uses_no_module_that_some_python_lacks(path: Path) -> None:
    assert imports(path) & MOVED == set()


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(AGENT)))
def test_the_agent_is_written_in_the_syntax_of_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    newer = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Match | ast.TryStar)]
    assert newer == []
