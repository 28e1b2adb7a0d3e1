"""What commands make of a run: names of files, exit statuses, times."""

from __future__ import annotations

import time

import pytest

from wherry.cli import output, words
from wherry.core.job import JobSpec
from wherry.core.run import File, Run, Verdict
from wherry.core.states import RunState


def test_files_of_several_ranks_do_not_collide() -> None:
    from wherry.cli.files import placed

    known = [
        File(path=path, rank=rank, digest="", size=0, attempt=1)
        for path, rank in (("m", 0), ("m", 1), ("only-1", 1))
    ]
    assert [to for _, to in placed(known)] == ["m", "rank-1/m", "only-1"]


@pytest.mark.parametrize(
    ("state", "code", "verdict", "status"),
    [
        (RunState.SUCCEEDED, 0, None, 0),
        (RunState.FAILED, 3, None, 3),
        (RunState.FAILED, None, Verdict(signal=9), 137),
        (RunState.FAILED, -15, None, 143),
        (RunState.LOST, None, Verdict(cause="lease"), 1),
        (RunState.FAILED, None, Verdict(cause="start", message="No such file"), 127),
        (RunState.FAILED, None, Verdict(cause="start", message="Permission denied"), 126),
        (RunState.STOPPED, 0, None, 1),
    ],
)
def test_the_exit_status_is_the_scripts(
    state: RunState, code: int | None, verdict: Verdict | None, status: int
) -> None:
    run = Run(
        id="r", name="", owner="", project="", spec=JobSpec(), state=state, exit_code=code,
        verdict=verdict,
    )  # fmt: skip
    assert words.exit_status(run) == status


def test_times_are_relative() -> None:
    now = time.time()
    said = [output.ago(now - gone, now) for gone in (0, 30, 120, 7200, 200_000)]
    assert said == ["now", "30 s ago", "2 min ago", "2 h ago", "2 d ago"]
    assert [output.duration(s) for s in (0.04, 1.26, 65, 3700)] == [
        "40 ms",
        "1.3 s",
        "1m 05s",
        "1h 01m",
    ]
