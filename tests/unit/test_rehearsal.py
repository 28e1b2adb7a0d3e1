"""What is asked of a rehearsal, and what is concluded from what a run left."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wherry.cli.rehearse import faults_first, rehearse
from wherry.core.api import MetricSeries, RunDetail
from wherry.core.faults import Fault
from wherry.core.job import JobSpec, MetricRule
from wherry.core.rehearsal import arrange, judge, parse, points
from wherry.core.run import Attempt, AttemptId, Event, Rank, Run, Verdict
from wherry.core.states import RankState, RunState
from wherry.errors import InvalidSpec

RULE = MetricRule(pattern="(.)")
KILL = Fault(kind="kill", rank=1, step=10)


def job(**fields: object) -> JobSpec:
    return JobSpec(command=("python", "train.py"), **fields)  # type: ignore[arg-type]


# --- what is asked


@pytest.mark.parametrize(
    ("kind", "text", "fault"),
    [
        ("kill", "2@step:10", Fault(kind="kill", rank=2, step=10)),
        ("kill", "2", Fault(kind="kill", rank=2)),
        ("term", "0@1m30s", Fault(kind="term", rank=0, after=90.0)),
        ("stop", "0@5", Fault(kind="stop", rank=0, after=5.0)),
        ("partition", "3@step:5+20s", Fault(kind="partition", rank=3, step=5, seconds=20.0)),
        ("partition", "3+1m", Fault(kind="partition", rank=3, seconds=60.0)),
        ("slow", "1x8@step:2+10s", Fault(kind="slow", rank=1, step=2, seconds=10.0, factor=8.0)),
        ("slow", "1x1.5", Fault(kind="slow", rank=1, factor=1.5)),
    ],
)
def test_a_fault_is_read_as_it_is_written_and_written_as_it_was_read(
    kind: str, text: str, fault: Fault
) -> None:
    assert parse(kind, text) == fault  # type: ignore[arg-type]
    assert parse(kind, str(fault)) == fault  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("kill", "two", "it begins with a rank"),
        ("kill", "", "it begins with a rank"),
        ("kill", "-1", "it begins with a rank"),
        ("kill", "2@step:ten", "'ten' is not a step"),
        ("kill", "2@step:", "'' is not a step"),
        ("kill", "2@epoch:3", "'epoch' is no moment"),
        ("kill", "2@soon", "'soon' is not a duration"),
        ("kill", "2x4", "only a slow rank has a factor"),
        ("slow", "2x1", "'1' is not a factor above 1"),
        ("slow", "2x1.2.3", "'1.2.3' is not a factor above 1"),
        ("partition", "2+long", "'long' is not a duration"),
    ],
)
def test_a_fault_that_is_none_is_an_error_that_shows_the_form(
    kind: str, text: str, said: str
) -> None:
    with pytest.raises(InvalidSpec, match=f"--{kind}") as caught:
        parse(kind, text)  # type: ignore[arg-type]
    assert said in caught.value.message
    assert f"--{kind} 2@step:10" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind="kill", rank=2), "there is no rank 2"),
        (Fault(kind="kill", rank=0, seconds=3.0), "it has no end"),
        (Fault(kind="kill", rank=0, step=1, after=1.0), "a step and a time"),
    ],
)
def test_a_fault_that_cannot_be_is_an_error_of_the_job(fault: Fault, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        arrange(job(workers=2), (fault,), restarts=None)


def test_a_rehearsal_needs_a_fault_and_restarts_to_survive_it() -> None:
    with pytest.raises(InvalidSpec, match="nothing is to go wrong"):
        arrange(job(), (), restarts=None)
    with pytest.raises(InvalidSpec, match="0 restarts") as caught:
        arrange(job(workers=2), (KILL,), restarts=0)
    assert "--restarts 1" in caught.value.hint


def test_every_fault_that_ends_a_gang_has_an_attempt_and_a_restart_of_its_own() -> None:
    slow, cut = Fault(kind="slow", rank=0), Fault(kind="partition", rank=0)
    spec = arrange(job(workers=2), (KILL, slow, cut), restarts=None)
    assert [fault.attempt for fault in spec.faults] == [1, 1, 2]
    assert (spec.restarts, spec.lease) == (2, 5.0)
    assert arrange(job(workers=2, restarts=7), (KILL,), restarts=7).restarts == 7
    assert arrange(job(workers=2), (KILL,), restarts=None).lease is None
    assert arrange(job(workers=2, lease=9.0), (cut,), restarts=None).lease == 9.0
    pool = arrange(job(workers=2, group="pool"), (KILL, cut), restarts=None)
    assert [fault.attempt for fault in pool.faults] == [1, 1]


def test_a_crash_is_tried_again_though_it_is_the_programs_own_fault() -> None:
    crash = Fault(kind="crash", rank=0)
    assert arrange(job(), (crash,), restarts=None).retry_on == ("SIGKILL",)
    assert arrange(job(retry_on=("any",)), (crash,), restarts=None).retry_on == ("any",)


# --- what came of it


def series(
    attempt: int, rank: int, steps: Sequence[int], at: float, *, name: str = "loss"
) -> MetricSeries:
    """One point a second from ``at`` on."""
    return MetricSeries(
        name=name,
        attempt=attempt,
        rank=rank,
        steps=list(steps),
        times=[at + n for n in range(len(steps))],
        values=[0.5] * len(steps),
    )


def event(time: float, kind: str, message: str = "") -> Event:
    return Event(run="r1", time=time, kind=kind, message=message, attempt=1, rank=1)


def detail(
    *events: Event,
    spec: JobSpec | None = None,
    attempts: int = 2,
    state: RunState = RunState.SUCCEEDED,
    verdict: Verdict | None = None,
    started: float = 120.0,
) -> RunDetail:
    """A run whose rank 1 is to be killed at step 10."""
    spec = spec or arrange(job(workers=2), (KILL,), restarts=None)
    run = Run(
        id="r1", name="train", owner="me", project="p", spec=spec, state=state, verdict=verdict
    )
    made = [
        Attempt(
            id=(aid := AttemptId("r1", number)),
            created=0.0,
            ranks=tuple(
                Rank(attempt=aid, rank=rank, state=RankState.SUCCEEDED, started=started)
                for rank in range(2)
            ),
        )
        for number in range(1, attempts + 1)
    ]
    return RunDetail(run=run, attempts=tuple(made), params={}, metrics=(), events=events)


FAULT = event(110.0, "fault", "kill: rank 1 at step 10: its program and its agent are killed")
LOST = event(110.5, "rank", "rank 1 lost")


def both(attempt: int, steps: Sequence[int], at: float) -> list[MetricSeries]:
    return [series(attempt, rank, steps, at) for rank in range(2)]


def test_a_run_that_goes_on_from_its_checkpoint_passes_with_figures() -> None:
    found = judge(detail(FAULT, LOST), [*both(1, range(11), 100.0), *both(2, range(8, 20), 115.0)])
    (one,) = found.faults
    assert found.ok and one.resumed and not one.problem
    assert (one.injected, one.noticed_after, one.resumed_after) == (110.0, 0.5, 5.0)
    assert (one.last_step, one.first_step, one.steps_again) == (10, 8, 3)
    assert one.seconds_again == 3.0  # step 7, the last that was kept, was done at 107


def test_a_run_that_begins_again_fails_and_learns_of_checkpoints() -> None:
    found = judge(detail(FAULT, LOST), [*both(1, range(11), 100.0), *both(2, range(20), 115.0)])
    (one,) = found.faults
    assert not found.ok and one.resumed is False
    assert one.problem == "it began again at step 0: nothing was resumed"
    assert "wherry.checkpoint_dir" in one.hint
    assert one.steps_again == 11


def test_an_attempt_that_came_to_no_checkpoint_of_its_own_goes_on_from_an_earlier_one() -> None:
    spec = arrange(job(workers=2), (KILL, Fault(kind="term", rank=1)), restarts=None)
    again = Event(
        run="r1", time=119.0, kind="fault", message="term: rank 1: gone", attempt=2, rank=1
    )
    left = Event(run="r1", time=119.1, kind="stopping", attempt=2)
    steps = [*both(1, range(11), 100.0), *both(2, [8, 9], 117.0), *both(3, [8, 9, 10], 125.0)]
    found = judge(detail(FAULT, LOST, again, left, spec=spec, attempts=3), steps)
    assert found.ok and [one.steps_again for one in found.faults] == [3, 2]
    anew = judge(
        detail(FAULT, LOST, again, left, spec=spec, attempts=3),
        [*steps[:4], *both(3, range(5), 125.0)],
    )
    assert [one.resumed for one in anew.faults] == [True, False]


def test_one_rank_that_begins_again_is_named() -> None:
    mixed = [*both(1, range(11), 100.0), series(2, 0, range(8, 20), 115.0)]
    (one,) = judge(detail(FAULT, LOST), [*mixed, series(2, 1, range(20), 115.0)]).faults
    assert one.problem == "rank 1 began again at step 0: nothing was resumed"


def test_a_metric_that_is_rare_does_not_hide_the_one_that_tells_most() -> None:
    rare = [series(1, 1, [5], 105.0, name="a"), series(2, 1, [5], 119.0, name="a")]
    found = judge(
        detail(FAULT, LOST), [*rare, *both(1, range(11), 100.0), *both(2, range(8, 20), 115.0)]
    )
    assert found.ok


def test_a_fault_that_never_comes_fails_and_the_moment_is_named() -> None:
    (one,) = judge(detail(attempts=1), both(1, range(6), 100.0)).faults
    assert one.problem == (
        "the fault never came: rank 1 never reached step 10: its last step was 5"
    )
    assert one.hint == "choose an earlier moment: --kill 1@step:3"
    (one,) = judge(detail(attempts=1), []).faults
    assert one.problem.endswith("it reported no step") and "wherry.report" in one.hint


def test_a_fault_of_an_attempt_that_never_began_is_said() -> None:
    second = Fault(kind="term", rank=0)
    spec = arrange(job(workers=2), (KILL, second), restarts=None)
    found = judge(detail(spec=spec, attempts=1), both(1, range(6), 100.0))
    assert "attempt 2, in which it was to come, never began" in found.faults[1].problem


def test_an_end_before_anybody_noticed_fails() -> None:
    (one,) = judge(detail(FAULT, attempts=1), both(1, range(11), 100.0)).faults
    assert one.problem == "the run was over before anybody noticed" and one.resumed is None


def test_a_run_whose_ranks_have_all_gone_by_themselves_is_noticed_when_it_queues_again() -> None:
    queued = event(110.7, "queued", "attempt 1 ended; again now")
    found = judge(detail(FAULT, queued), [*both(1, range(11), 100.0), *both(2, [8, 9], 115.0)])
    assert found.ok and found.faults[0].noticed_after == pytest.approx(0.7)


def test_a_partition_that_was_shorter_than_the_lease_needs_nobody_to_notice() -> None:
    cut = Fault(kind="partition", rank=1, step=10, seconds=2.0)
    spec = arrange(job(workers=2), (cut,), restarts=None)
    told = event(110.0, "fault", "partition: rank 1 at step 10: cut off for 2 s")
    found = judge(detail(told, spec=spec, attempts=1), both(1, range(30), 100.0))
    assert found.ok and found.faults[0].resumed is None


def test_a_slow_rank_asks_for_nothing_but_a_good_end() -> None:
    spec = arrange(job(workers=2), (Fault(kind="slow", rank=1),), restarts=None)
    told = event(100.0, "fault", "slow: rank 1 at step 0: 4 times slower for 30 s")
    assert judge(detail(told, spec=spec, attempts=1), []).ok
    verdict = Verdict(message="rank 0: exited with status 1", hint="see the log")
    failed = judge(detail(told, spec=spec, attempts=1, state=RunState.FAILED, verdict=verdict), [])
    assert not failed.ok and failed.hint == "see the log"
    assert failed.problem == "the run failed: rank 0: exited with status 1"


def test_a_run_without_steps_shows_nothing_and_says_how_it_would() -> None:
    (one,) = judge(detail(FAULT, LOST), []).faults
    assert one.resumed is False and "no rank reported a step" in one.problem
    spec = arrange(job(workers=2, metrics={"loss": RULE}), (KILL,), restarts=None)
    (one,) = judge(detail(FAULT, LOST, spec=spec), both(1, range(11), 100.0)).faults
    assert "a rule named step" in one.hint


def test_an_attempt_without_a_step_after_the_fault_fails() -> None:
    (one,) = judge(detail(FAULT, LOST), both(1, range(11), 100.0)).faults
    assert one.problem == "no step was reported after the fault" and one.last_step == 10


def test_a_rule_that_reads_the_step_counts_by_its_value() -> None:
    spec = job(metrics={"step": RULE, "loss": RULE})
    read = series(2, 0, range(3), 100.0, name="step")
    read.values[:] = [8.0, 9.0, 10.0]
    assert points(read, spec) == [(8, 100.0), (9, 101.0), (10, 102.0)]
    assert points(series(2, 0, range(3), 100.0), spec) == []


def test_in_a_group_that_goes_on_the_ranks_next_start_divides_before_from_after() -> None:
    spec = arrange(job(workers=2, group="pool"), (KILL,), restarts=None)
    one = series(1, 1, [*range(11), *range(8, 20)], 100.0)
    one.times[11:] = [121.0 + n for n in range(12)]
    (found,) = judge(detail(FAULT, LOST, spec=spec, attempts=1), [one]).faults
    assert (found.last_step, found.first_step, found.resumed) == (10, 8, True)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--kill 1 train.py --workers 2", "--kill 1 train.py --workers 2"),
        (
            "train.py --epochs 3 --workers 4 --kill 2@step:10 --slow 1",
            "--workers 4 --kill 2@step:10 --slow 1 train.py --epochs 3",
        ),
        ("--lease 3 train.py --kill=1", "--lease 3 --kill=1 train.py"),
        ("train.py --workers 4", "train.py --workers 4"),
        ("--workers 2 -- train.py --kill 1", "--workers 2 -- train.py --kill 1"),
    ],
)
def test_options_may_end_the_line_where_no_fault_stands_before_the_script(
    line: str, wanted: str
) -> None:
    assert faults_first(line.split(), rehearse.params) == wanted.split()
