"""What pages, help and hints name is there, and is used as they say."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.docs.pages import GUIDES, ROOT, name
from wherry.cli import run
from wherry.cli.foreground import TWICE

TEXTS = [*GUIDES, *sorted(ROOT.glob("src/**/*.py"))]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_the_folders_of_a_run_are_attributes_wherever_they_are_named(path: Path) -> None:
    assert not re.search(r"wherry\.(output|checkpoint)_dir\(", path.read_text("utf-8"))


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_every_rung_that_a_page_names_is_a_choice(page: Path) -> None:
    option = next(param for param in run.run.params if param.name == "environment")
    assert isinstance(option.type, click.Choice)
    named = set(re.findall(r"--environment[ =]([a-z]+)", page.read_text("utf-8")))
    assert named <= set(option.type.choices)


def test_the_guide_names_every_rung() -> None:
    option = next(param for param in run.run.params if param.name == "environment")
    assert isinstance(option.type, click.Choice)
    guide = (ROOT / "docs/guides/environments.md").read_text("utf-8")
    assert all(f"`{choice}`" in guide for choice in option.type.choices)


def test_how_soon_a_second_ctrl_c_has_to_come_is_written_wherever_it_is_promised() -> None:
    guide = (ROOT / "docs/guides/first-run.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for text in (guide, readme, run.run.help or ""):
        assert f"within {TWICE:g} s" in " ".join(text.split())
