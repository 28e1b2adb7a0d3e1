"""What the documentation says can be done, and where it points, is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import GUIDES, PAGES, ROOT, anchors, blocks, links, name

LIMIT = 120.0  # seconds for one command


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a reader with a home of their own; nothing is left running."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("WHERRY_", "PYTEST_"))}
    environ |= {
        "WHERRY_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "NO_COLOR": "1",
    }
    yield environ
    wherry = [sys.executable, "-m", "wherry.cli.main"]
    if (tmp_path / "home").exists():
        listed = subprocess.run(
            [*wherry, "ps", "-s", "queued", "-s", "starting", "-s", "running", "--json"],
            env=environ, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert listed.stdout.strip() == "[]", "the page leaves runs behind"
        subprocess.run([*wherry, "down"], env=environ, capture_output=True, check=True)


def run(command: list[str], folder: Path, environ: dict[str, str]) -> tuple[int, str]:
    """The exit status of a command and what it wrote."""
    with subprocess.Popen(
        command,
        cwd=folder, env=environ, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_what_a_page_shows_works(page: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for block in blocks(page):
        if block.skip:
            continue
        if block.file:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.body, "utf-8")
            continue
        if block.kind == "python":
            commands = [[sys.executable, "-c", block.body]]
        elif block.kind == "console":
            commands = [["bash", "-c", command] for command in block.commands]
        else:
            continue
        printed = ""
        for number, command in enumerate(commands, start=1):
            status, output = run(command, folder, environ)
            expected = block.status if number == len(commands) else 0
            said = f"{name(page)}:{block.line}: {command[-1]}\nexited with {status}\n{output}"
            assert status == expected, said
            printed += output
        if block.kind == "console":
            assert block.missing(printed) == [], f"{name(page)}:{block.line}: printed\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_inside_the_project_has_a_target(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        if "://" in path or path.startswith("mailto:"):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in seen and page.suffix == ".md" and page.is_file():
            seen.add(page)
            todo += [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    assert {name(page) for page in PAGES} - {name(page) for page in seen} == set()
