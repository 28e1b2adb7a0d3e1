"""`make bench` writes a table of what its parts print."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import bench.__main__ as bench
from bench import cli

FOUND = {
    name: {"first_ms": ms, "first_median_ms": ms, "end_ms": ms, "end_median_ms": ms}
    for name, ms in {
        "bare": 10.0, "--help": 50.0, "run --detach": 100.0, "python hello.py": 12.0,
        "wherry run hello.py": 120.0,
    }.items()
}  # fmt: skip


def test_the_table_shows_every_figure_and_where_it_is_from() -> None:
    lines = "\n".join(bench.table({"cli": {"a": 12345.6, "b": 0.1234}, "store": {"c": 1}}))
    assert "| `bench/cli.py` | a | 12,346 |" in lines
    assert "| `bench/cli.py` | b | 0.123 |" in lines
    assert "| `bench/store.py` | c | 1 |" in lines


def test_what_the_command_line_benchmark_prints_fits_into_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "measure", lambda rounds, folder: FOUND)
    monkeypatch.setattr(sys, "argv", ["cli.py", "--json"])
    cli.main()
    lines = "\n".join(bench.table({"cli": json.loads(capsys.readouterr().out)}))
    assert "| help / bare | 5 |" in lines


def test_what_the_figures_are_limited_by_outlives_the_next_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = tmp_path / "results.md"
    results.write_text("| old | table |\n\n## What limits them\n\nThe disk.\n")
    monkeypatch.setattr(bench, "RESULTS", results)
    bench.write(["# Figures", "| new | table |"])
    text = results.read_text()
    assert text == "# Figures\n| new | table |\n\n## What limits them\n\nThe disk.\n"
