"""
Files and functions stay small enough to be read in one go.

The budgets are those of AGENTS.md. Who must exceed one says so here, by name, with the reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    p for folder in ("src", "tests", "bench", "examples") for p in ROOT.glob(f"{folder}/**/*.py")
)
LINES, FUNCTION, EXAMPLE = 500, 60, 60

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its decorators and its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def functions(path: Path) -> dict[str, int]:
    """``path:name`` of every function of a file, with its length."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[f"{path.relative_to(ROOT)}:{node.name}"] = length(node)
    return found


def test_every_file_is_at_most_500_lines_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in FILES
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > LINES
    }
    assert {name: count for name, count in long.items() if name not in LONG_FILES} == {}
    assert [name for name in LONG_FILES if name not in long] == [], "no exception any more"


def test_every_function_is_at_most_60_lines_long() -> None:
    long = {
        name: count for path in FILES for name, count in functions(path).items() if count > FUNCTION
    }
    assert {name: count for name, count in long.items() if name not in LONG_FUNCTIONS} == {}
    assert [name for name in LONG_FUNCTIONS if name not in long] == [], "no exception any more"


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*.py")), ids=lambda p: p.name)
def test_every_example_is_at_most_60_lines_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= EXAMPLE
