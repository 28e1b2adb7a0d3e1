"""Promises of `wherry ps` and `wherry show` where there are many runs, ranks, attempts, or none."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.test_cli_commands import RUN, SERIES, Call, FakeClient, call, client
from wherry.core.run import Attempt, AttemptId, Rank, Run

__all__ = ["call", "client"]  # the fixtures


def test_show_tells_ranks_and_attempts_apart(
    call: Call, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = {1: 1_700_000_001.0, 2: 1_700_000_031.0}
    ranks = {
        number: Rank(attempt=AttemptId("r1", number), rank=0, started=time)
        for number, time in began.items()
    }
    detail = replace(
        client.run("r1"),
        run=replace(RUN, attempt=2),
        attempts=tuple(
            Attempt(id=AttemptId("r1", number), created=time - 1, ranks=(ranks[number],))
            for number, time in began.items()
        ),
        metrics=tuple(replace(SERIES, attempt=a, rank=r) for a in (1, 2) for r in (0, 1)),
    )
    monkeypatch.setattr(client, "run", lambda ref: detail)
    shown = call("show", "r1")[1]
    assert "loss=nan (step 2; rank 0; attempt 1)" in shown
    assert "loss=nan (step 2; rank 1; attempt 2)" in shown
    assert "attempt 2 took 30 s; 1m 00s in all" in shown


def test_ps_says_whether_there_are_no_runs_or_none_that_fits(
    call: Call, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Run] = []

    def fitting(**query: Any) -> list[Run]:
        wanted = any(query.get(key) for key in ("states", "tags", "name", "before"))
        return [] if wanted else known[: query["limit"]]

    monkeypatch.setattr(client, "runs", fitting)
    assert call("ps", "-n", "5") == (0, "", "no runs\nhint: wherry run script.py makes one\n")
    for count, there in ((1, "there is 1"), (3, "there are 3"), (900, "there are 500 or more")):
        known = [RUN] * count
        for args in (("-n", "5"), ("-s", "running"), ("-t", "x")):
            assert call("ps", *args) == (0, "", f"no run fits; {there}: wherry ps --all\n")
    assert call("ps", "-n", "5", "--json") == (0, "[]\n", "")
