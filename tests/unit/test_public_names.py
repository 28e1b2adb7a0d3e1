"""The names that people import: pinned, lazy, and cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import wherry

NAMES = [
    "Client", "Executor", "JobSpec", "Run", "WherryError", "__version__", "checkpoint_dir",
    "connect", "errors", "map", "output_dir", "params", "rank", "rehearse", "report", "run",
    "world_size",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert wherry.__all__ == NAMES
    assert dir(wherry) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the folders are made where they are asked for
    assert getattr(wherry, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"wherry.*'nonsense'"):
        _ = wherry.nonsense  # type: ignore[attr-defined]


def test_importing_wherry_imports_nothing_heavy() -> None:
    code = (
        "import sys, wherry; wherry.rank();"
        "heavy = {'msgspec', 'typing_extensions', 'subprocess', 'socket', 'wherry.sdk', 'inspect'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


def test_submitting_needs_neither_http_client_nor_the_server() -> None:
    """33 ms of imports, on a budget of 220 for a whole submission."""
    code = (
        "import sys, wherry.sdk.submit, wherry.sdk.connect;"
        "heavy = {'http.client', 'ssl', 'email', 'asyncio', 'yaml', 'tomlkit', 'rich', 'litestar',"
        " 'sqlalchemy', 'cloudpickle'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
