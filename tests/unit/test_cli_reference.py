"""The reference pages say what the program does."""

from __future__ import annotations

from pathlib import Path

from wherry.cli import reference

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


def test_the_written_pages_are_current(tmp_path: Path) -> None:
    reference.write(tmp_path)
    for page in tmp_path.iterdir():
        assert (FOLDER / page.name).read_text("utf-8") == page.read_text("utf-8"), (
            "run: python -m wherry.cli.reference docs/reference"
        )
