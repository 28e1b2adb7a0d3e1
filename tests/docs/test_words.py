"""What pages, help and hints name is there, and is used as they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import GUIDES, ROOT, name

TEXTS = [*GUIDES, *sorted(ROOT.glob("src/**/*.py"))]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_folders_of_a_run_are_attributes_wherever_they_are_named(path: Path) -> None:
    assert not re.search(r"wherry\.(output|checkpoint)_dir\(", path.read_text("utf-8"))
