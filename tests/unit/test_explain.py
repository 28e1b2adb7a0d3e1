"""The story of a run, told from what was recorded and from nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from wherry.core.api import RunDetail
from wherry.core.explain import explain, span
from wherry.core.job import Environment, Group, JobSpec
from wherry.core.run import Attempt, AttemptId, Event, Rank, Run, Verdict
from wherry.core.states import RankState, RunState

T = 1_700_000_000.0


def run(state: RunState = RunState.FAILED, **fields: Any) -> Run:
    spec = JobSpec(
        command=("python", "train.py"), workers=2, restarts=fields.pop("restarts", 0),
        environment=Environment(origin="uv.lock"),
    )  # fmt: skip
    known = {"created": T, "started": T + 50, "ended": T + 60, "attempt": 1, **fields}
    return Run(id="r1", name="n", owner="me", project="p", spec=spec, state=state, **known)


def event(after: float, kind: str, message: str = "", attempt: int = 0, **more: Any) -> Event:
    return Event(run="r1", time=T + after, kind=kind, message=message, attempt=attempt, **more)


def rank(number: int, state: RankState, after: float = 0.0, attempt: int = 1, **more: Any) -> Rank:
    ended = T + after if after else None
    return Rank(attempt=AttemptId("r1", attempt), rank=number, state=state, ended=ended, **more)


def attempt(number: int, *ranks: Rank, after: float = 40.0, **more: Any) -> Attempt:
    return Attempt(id=AttemptId("r1", number), created=T + after, ranks=ranks, **more)


def told(of: Run, *attempts: Attempt, events: tuple[Event, ...] = ()) -> list[str]:
    detail = RunDetail(run=of, attempts=attempts, params={}, metrics=(), events=events)
    return [fact.text for fact in explain(detail)]


F, X, L, S = RankState.FAILED, RankState.STOPPED, RankState.LOST, RankState.SUCCEEDED
STARTED = (event(0, "submitted"), event(40, "starting", attempt=1))


def test_it_says_what_was_asked_for_where_it_went_and_why() -> None:
    where = event(0, "submitted", "on this machine: no --on was given")
    story = told(run(RunState.SUCCEEDED, parent="r0"), events=(where,))
    assert story[:3] == [
        "submitted: python train.py, 2 ranks; it repeats r0",
        "its environment is uv.lock",
        "it runs on this machine: no --on was given",
    ]
    assert story[-1] == "succeeded after 10 s"


def test_waiting_has_a_length_and_its_reasons() -> None:
    events = (
        event(0, "submitted"),
        event(1, "queued", "2 ahead in the queue"),
        event(31, "waiting", "needs 2 cores, 0 of 2 free"),
        event(40, "starting", attempt=1),
    )
    assert (
        "waited 40 s: 2 ahead in the queue (30 s), then needs 2 cores, 0 of 2 free (9.0 s)"
        in told(run(), events=events)
    )


def test_one_that_waits_says_what_for() -> None:
    waiting = run(RunState.QUEUED, started=None, ended=None, attempt=0)
    events = (event(0, "submitted"), event(1, "queued", "1 ahead in the queue"))
    assert told(waiting, events=events)[-1] == "it waits: 1 ahead in the queue"


def test_no_reason_is_made_up() -> None:
    assert "waited 40 s" in told(run(), events=STARTED)
    at_once = (event(0, "submitted"), event(0.1, "starting", attempt=1))
    assert not any(text.startswith("waited") for text in told(run(), events=at_once))


@pytest.mark.parametrize(
    ("phases", "text"),
    [
        ({"environment": 12.0, "build": 12.0}, "its environment was built"),
        ({"environment": 3.0}, "its environment was there after 3.0 s"),
        ({"bundle": 4.0}, "its code came after 4.0 s"),
        ({"bundle": 0.1, "environment": 0.1}, ""),
    ],
)
def test_what_took_long_before_the_start_is_told(phases: dict[str, float], text: str) -> None:
    story = told(run(), attempt(1, rank(0, S, 60, phases=phases)))
    assert [t for t in story if "after" in t and t.startswith("its")][:1] == (
        [next(t for t in story if t.startswith(text))] if text else []
    )


def test_who_was_waited_for_at_the_barrier_is_named() -> None:
    ranks = (
        rank(0, S, 60, phases={"barrier": 9.0}, started=T + 50),
        rank(1, S, 60, phases={"barrier": 0.1}, started=T + 50),
    )
    assert "rank 1 was the last to be ready: others waited for it 9.0 s" in told(
        run(RunState.SUCCEEDED), attempt(1, *ranks)
    )


def test_the_first_failure_its_consequences_and_its_victims_are_told_apart() -> None:
    ranks = (
        rank(0, F, 58.4, cause="peer", message="connection closed by peer"),
        rank(1, X, 59.0, cause="stopped", message="told to stop"),
        rank(2, F, 58.0, cause="exception", message="ValueError: bad\nhint: look"),
    )
    verdict = Verdict(cause="exception", message="rank 2: ValueError: bad", hint="look", rank=2)
    story = told(run(verdict=verdict), attempt(1, *ranks, stopping="rank 2 failed"))
    assert story[-5:] == [
        "rank 2 failed first: ValueError: bad",
        "rank 0 failed 0.4 s later: connection closed by peer; a consequence of rank 2's failure",
        "rank 1 was stopped for it",
        "failed after 10 s; not tried again: only faults of machines are, and this was: exception",
        "what to do: look",
    ]


def test_who_had_left_is_told_with_the_failure_that_follows() -> None:
    ranks = (rank(0, F, 58, cause="peer", message="connection closed"), rank(1, S, 57))
    assert told(run(), attempt(1, *ranks, ended=T + 59))[2:4] == [
        "rank 1 ended, with status 0",
        "rank 0 failed: connection closed; rank 1 had left, with status 0",
    ]


def test_who_was_missing_is_told_and_was_not_stopped_for_it() -> None:
    waited = rank(0, F, 58, cause="rendezvous", message="timed out")
    missing = rank(1, X, 59, cause="stopped", message="told to stop")
    story = told(run(), attempt(1, waited, missing, stopping="rank 0 failed"))
    assert story[2:4] == [
        "rank 0 failed: timed out; missing: rank 1, which had not joined when the run was stopped",
        "rank 1 was stopped",
    ]
    # Others may still say that they waited, too.
    early = told(run(RunState.RUNNING, ended=None), attempt(1, waited, rank(1, RankState.RUNNING)))
    assert early[-1] == "rank 0 failed: timed out"


def test_who_did_not_come_to_the_barrier_was_not_stopped_for_it() -> None:
    said = "rank 1 did not arrive within 4 s\nhint: see why"
    waited = rank(0, F, 58, cause="barrier", message=said)
    missing, waits = (rank(n, X, 59, cause="stopped", message="told to stop") for n in (1, 2))
    story = told(run(), attempt(1, waited, missing, waits, stopping="rank 0 failed"))
    assert story[2:5] == [
        "rank 0 failed: rank 1 did not arrive within 4 s",
        "rank 1 was stopped",
        "rank 2 was stopped for it",
    ]


def test_a_failure_without_words_says_what_the_verdict_does() -> None:
    killed = attempt(1, rank(0, F, 58, cause="signal", signal=9), rank(1, F, 59, exit_code=4))
    story = told(run(), killed)
    assert story[2] == "rank 0 failed first: killed by signal 9"
    assert story[3].endswith(": exited with status 4")


def test_a_retry_says_why_and_how_much_of_the_budget_it_took() -> None:
    first = rank(1, L, 50, cause="agent-lost", message="the agent died")
    lost = attempt(1, rank(0, X, 50), first, after=40, stopping="rank 1 lost")
    again = attempt(2, rank(1, L, 60, attempt=2, cause="lease", message="silent"), after=52)
    events = (
        *STARTED,
        event(50, "rank", "rank 1 lost: the agent died", 1, rank=1),
        event(51, "queued", "attempt 1 ended: the agent died; again now (restart 1 of 1)", 1),
        event(52, "starting", attempt=2),
    )
    verdict = Verdict(cause="lease", message="silent")
    of = run(RunState.LOST, restarts=1, attempt=2, verdict=verdict)
    story = told(of, lost, again, events=events)
    again_now = "tried again: a fault of machines, not of the program; now (restart 1 of 1)"
    assert again_now in story
    assert [text for text in story if "the agent died" in text] == ["rank 1 failed: the agent died"]
    assert "attempt 2 began" in story and "waited 1.0 s" in story
    assert "rank 1 lost: the agent died" not in story
    assert story[-1].endswith("not tried again: the restart budget was 1, and is used up")
    none = run(RunState.LOST, verdict=verdict)
    assert told(none, lost)[-1].endswith("not tried again: no --restarts were given")


@pytest.mark.parametrize("started", [44.0, 56.0])  # as recorded now, and before
def test_how_long_it_took_has_every_attempt_in_it(started: float) -> None:
    first = attempt(1, rank(0, L, 50, started=T + 44), after=42)
    second = attempt(2, rank(0, S, 60, attempt=2, started=T + 56), after=53)
    of = run(RunState.SUCCEEDED, attempt=2, started=T + started)
    assert told(of, first, second)[-1] == "succeeded; attempt 2 took 4.0 s; 16 s in all"
    # One whose programs never started, say for want of its environment.
    second = attempt(2, rank(0, F, 60, attempt=2), after=53)
    of = run(RunState.FAILED, attempt=2, started=T + 44)
    assert told(of, first, second)[-1].startswith("failed; attempt 2 took 7.0 s; 16 s in all")


def test_what_a_rank_says_of_itself_is_told_with_its_number() -> None:
    said = (
        ("stalled", "no output, metric or CPU for 5 s"),
        ("moving", "it moves again, after 7 s"),
        ("held", "failed (exited with status 4); held for 30m"),
        ("fault", "kill: rank 1 at step 3: its machine is lost"),
        ("resized", "by a newer agent"),
    )
    events = tuple(event(50 + i, *what, 1, rank=1) for i, what in enumerate(said))
    assert told(run(), events=events)[2:-1] == [
        "rank 1: no output, metric or CPU for 5 s",
        "rank 1: it moves again, after 7 s",
        "rank 1: failed (exited with status 4); held for 30m",
        "kill: rank 1 at step 3: its machine is lost",
        "rank 1: resized: by a newer agent",
    ]
    alone = run()
    alone = replace(alone, spec=replace(alone.spec, workers=1))
    assert "no output, metric or CPU for 5 s" in told(alone, events=events)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            "rank 1 is replaced (it used 191 MiB\nhint: more)",
            "rank 1 is replaced (it used 191 MiB)",
        ),
        ("rank 1 lost: gone\nhint: look", "rank 1 lost: gone"),
    ],
)
def test_a_fact_has_no_hint_in_it(message: str, text: str) -> None:
    assert text in told(run(), events=(event(5, "replaced", message, 1, rank=1),))


def test_what_a_newer_control_plane_records_is_told_as_it_is() -> None:
    assert "resized: 3 of 4 workers" in told(run(), events=(event(5, "resized", "3 of 4 workers"),))


def test_facts_come_in_the_order_of_time_and_show_it() -> None:
    detail = RunDetail(run=run(), attempts=(), params={}, metrics=(), events=STARTED)
    facts = explain(detail)
    assert [f.time for f in facts] == sorted(f.time for f in facts)
    assert str(facts[0]).endswith("submitted: python train.py, 2 ranks")


def test_programs_have_started_before_one_fails_however_late_that_is_noticed() -> None:
    ranks = (rank(0, F, 51, exit_code=1, started=T + 50), rank(1, X, 53, started=T + 50.5))
    events = (*STARTED, event(52, "running", attempt=1))
    story = told(run(), attempt(1, *ranks, stopping="rank 0 failed"), events=events)
    assert story[3:5] == [
        "every rank's program had started",
        "rank 0 failed: exited with status 1",
    ]


@pytest.mark.parametrize(
    ("group", "after", "text"),
    [
        ("gang", 50.5, "every rank's program had started"),
        ("pool", 50.0, "the first rank's program had started"),
        ("elastic", 50.0, "the first rank's program had started"),
    ],
)
def test_whose_programs_had_started_depends_on_the_group(
    group: Group, after: float, text: str
) -> None:
    ranks = (rank(0, S, 60, started=T + 50), rank(1, S, 60, started=T + 50.5))
    of = run(RunState.SUCCEEDED)
    of = replace(of, spec=replace(of.spec, group=group))
    events = (*STARTED, event(52, "running", attempt=1))
    detail = RunDetail(run=of, attempts=(attempt(1, *ranks),), params={}, metrics=(), events=events)
    (started,) = (fact for fact in explain(detail) if fact.kind == "started")
    assert (started.time, started.text) == (T + after, text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0.4 s"), (40, "40 s"), (725, "12 min 5 s"), (7380, "2 h 3 min"), (-1, "0.0 s")],
)
def test_spans_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text
