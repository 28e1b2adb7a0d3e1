"""The pages that are generated are those that are committed."""

from __future__ import annotations

from pathlib import Path

from docs import generate


def test_the_generated_pages_are_current(tmp_path: Path) -> None:
    generate.write(tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        committed = generate.DOCS / path.relative_to(tmp_path)
        assert committed.read_text("utf-8") == path.read_text("utf-8"), "run: make docs"


def test_every_state_but_an_end_that_speaks_for_itself_has_a_meaning() -> None:
    unsaid = [line for line in generate.states_page().splitlines() if line.endswith("|  |")]
    assert {line.split("`")[1] for line in unsaid} <= {"succeeded", "failed", "stopped"}
