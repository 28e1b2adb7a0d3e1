"""
Take the pages of the README and of ``docs`` apart, and do what they tell a reader to do.

What a page shows is run, in order, in one empty folder with a home of its own:

* a fenced block whose info string has a second word, ```` ```python train.py ````, is a file: it is
  written there;
* a ``python`` block without one is run;
* in a ``console`` block the lines that begin with ``$`` are run by bash; the others must be among
  what they print, where ``...`` stands for anything.

Every command must exit with 0. A comment before a block changes that::

    <!-- test: exit 3 -->             the last command of the block exits with this
    <!-- test: skip needs the net --> the block is not run
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<test>.*?) -->\n+)?"
    r"^```(?P<kind>\w+)(?: (?P<file>\S+))?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    kind: str
    body: str
    line: int
    file: str = ""  #: write the body there
    skip: str = ""  #: why it is not run
    status: int = 0  #: what its last command exits with

    @property
    def commands(self) -> list[str]:
        """What a reader would type, each command whole."""
        text = self.body.replace("\\\n", " ")
        return [line[2:] for line in text.splitlines() if line.startswith("$ ")]

    def missing(self, output: str) -> list[str]:
        """The lines that the block shows and that are not in the output."""
        shown = [line for line in self.body.splitlines() if not line.startswith(("$ ", "    "))]
        printed = [line.rstrip() for line in output.splitlines()]
        return [
            line
            for line in shown
            if not any(re.fullmatch(re.escape(line).replace(r"\.\.\.", ".*"), p) for p in printed)
        ]


def name(page: Path) -> str:
    """A page, as a test's id."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page that name a language, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        said, _, rest = (match["test"] or "").partition(" ")
        assert said in ("", "skip", "exit"), f"{page.name}: {match['test']}"
        assert bool(said) == bool(rest), f"{page.name}: {match['test']}: why, or which status?"
        found.append(
            Block(
                kind=match["kind"],
                body=match["body"],
                line=text.count("\n", 0, match.start("kind")) + 1,
                file=match["file"] or "",
                skip=rest if said == "skip" else "",
                status=int(rest) if said == "exit" else 0,
            )
        )
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links, outside of blocks."""
    prose = _BLOCK.sub("", page.read_text("utf-8"))
    prose = re.sub(r"`[^`\n]*`", "", prose)
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    """What ``#...`` may point at in a page, as GitHub names headings."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}
