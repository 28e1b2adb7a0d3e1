"""What a run does next, from data alone."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from wherry.core import decide as d
from wherry.core.job import JobSpec
from wherry.core.run import (
    Attempt,
    AttemptId,
    Observation,
    Rank,
    RankObservation,
    Run,
    Verdict,
)
from wherry.core.states import RankState, RunState

ID = AttemptId("r1", 1)


def run(state: RunState = RunState.RUNNING, **changes: Any) -> Run:
    made = Run(
        id="r1",
        name="digits",
        owner="ada",
        project="default",
        spec=JobSpec(command=("python", "x.py"), workers=2, restarts=1),
        state=state,
        attempt=0 if state in (RunState.SUBMITTED, RunState.QUEUED) else 1,
    )
    return structs.replace(made, **changes)


def rank(number: int, state: RankState, **fields: Any) -> Rank:
    return Rank(attempt=ID, rank=number, state=state, **fields)


def attempt(*ranks: Rank, **fields: Any) -> Attempt:
    return Attempt(id=ID, created=0.0, ranks=ranks, **fields)


def saw(*phases: str, **fields: Any) -> Observation:
    return Observation(
        attempt=ID,
        ranks=tuple(
            RankObservation(rank=i, phase=phase, **fields)  # type: ignore[arg-type]
            for i, phase in enumerate(phases)
        ),
    )


S, F, L, R, P, X = (
    RankState.SUCCEEDED,
    RankState.FAILED,
    RankState.LOST,
    RankState.RUNNING,
    RankState.PENDING,
    RankState.STOPPED,
)


def test_a_run_waits_until_it_is_admitted() -> None:
    assert d.decide(d.Facts(run=run(RunState.SUBMITTED))) == [d.Wait()]
    assert d.decide(d.Facts(run=run(RunState.QUEUED), admitted=True)) == [d.Start(1)]


def test_a_run_that_is_stopped_in_the_queue_never_starts() -> None:
    facts = d.Facts(run=run(RunState.QUEUED, stop_requested=True), admitted=True)
    (finish,) = d.decide(facts)
    assert isinstance(finish, d.Finish) and finish.state is RunState.STOPPED


def test_a_launch_that_was_cut_short_is_made_again() -> None:
    facts = d.Facts(
        run=run(RunState.STARTING),
        attempt=attempt(rank(0, P), rank(1, P)),
        observation=saw("absent", "absent"),
    )
    assert d.decide(facts) == [d.Launch()]


def test_a_run_is_running_when_every_rank_has_started() -> None:
    some = d.Facts(
        run=run(RunState.STARTING),
        attempt=attempt(rank(0, R), rank(1, P)),
        observation=saw("running", "running"),
    )
    assert d.decide(some) == []
    every = structs.replace(some, attempt=attempt(rank(0, R), rank(1, S)))
    assert d.decide(every) == [d.MarkRunning()]


def test_one_failure_stops_the_gang_once() -> None:
    broken = attempt(rank(0, R), rank(1, F, ended=5.0))
    facts = d.Facts(run=run(), attempt=broken, observation=saw("running", "ended"))
    assert d.decide(facts) == [d.StopAttempt("rank 1 failed")]
    stopping = structs.replace(broken, stopping="rank 1 failed")
    assert d.decide(structs.replace(facts, attempt=stopping)) == []


def test_a_dead_agents_journal_is_read_before_it_is_declared_lost() -> None:
    facts = d.Facts(
        run=run(), attempt=attempt(rank(0, R), rank(1, R)), observation=saw("ended", "running")
    )
    assert d.decide(facts) == [d.Drain(0)]
    (end,) = d.decide(structs.replace(facts, drained=frozenset({0})))
    assert isinstance(end, d.EndRank)
    assert (end.rank, end.state, end.cause) == (0, L, "agent-lost")


def test_an_agent_that_vanishes_while_it_is_stopped_was_stopped() -> None:
    facts = d.Facts(
        run=run(),
        attempt=attempt(rank(0, R), rank(1, S), stopping="user"),
        observation=saw("ended", "ended"),
        drained=frozenset({0}),
    )
    (end,) = d.decide(facts)
    assert isinstance(end, d.EndRank) and end.state is X


def test_silence_past_the_lease_loses_the_rank() -> None:
    facts = d.Facts(
        run=run(),
        attempt=attempt(rank(0, R), rank(1, R)),
        observation=saw("running", "running"),
        silent=frozenset({1}),
    )
    (end,) = d.decide(facts)
    assert isinstance(end, d.EndRank) and (end.rank, end.cause) == (1, "lease")


@pytest.mark.parametrize(
    ("ranks", "state"),
    [
        ((rank(0, S), rank(1, S)), RunState.SUCCEEDED),
        ((rank(0, X, ended=9.0), rank(1, F, ended=5.0, cause="exit")), RunState.FAILED),
        ((rank(0, L, ended=5.0, cause="agent-lost"), rank(1, X)), None),
    ],
)
def test_the_outcome_follows_from_the_ranks(
    ranks: tuple[Rank, ...], state: RunState | None
) -> None:
    ended, outcome = d.decide(d.Facts(run=run(), attempt=attempt(*ranks, stopping="x")))
    assert ended == d.EndAttempt()
    if state is None:
        assert isinstance(outcome, d.TryAgain)
    else:
        assert isinstance(outcome, d.Finish) and outcome.state is state


def test_infrastructure_faults_are_tried_again_only_within_restarts() -> None:
    lost = attempt(rank(0, L, ended=5.0, cause="agent-lost"), rank(1, X), stopping="x")
    last = structs.replace(lost, id=AttemptId("r1", 2))
    _, outcome = d.decide(d.Facts(run=run(attempt=2, restarts_used=1), attempt=last))
    assert isinstance(outcome, d.Finish) and outcome.state is RunState.LOST


def test_a_users_error_is_not_tried_again() -> None:
    failed = attempt(rank(0, F, ended=5.0, cause="exit", exit_code=3), rank(1, X), stopping="x")
    _, outcome = d.decide(d.Facts(run=run(), attempt=failed))
    assert isinstance(outcome, d.Finish)
    assert (outcome.state, outcome.exit_code) == (RunState.FAILED, 3)


def test_the_verdict_names_the_rank_that_failed_first_not_its_victims() -> None:
    ranks = attempt(
        rank(0, F, ended=7.0, cause="signal", signal=6),
        rank(1, F, ended=5.0, cause="exit", exit_code=1, message="ValueError: nan"),
        stopping="rank 1 failed",
    )
    _, outcome = d.decide(d.Facts(run=run(), attempt=ranks))
    assert isinstance(outcome, d.Finish)
    verdict = outcome.verdict
    assert isinstance(verdict, Verdict)
    assert (verdict.rank, verdict.message) == (1, "rank 1: ValueError: nan")


def test_a_crash_between_the_attempts_end_and_the_runs_end_heals() -> None:
    ended = attempt(rank(0, S), rank(1, S), ended=9.0)
    (finish,) = d.decide(d.Facts(run=run(), attempt=ended))
    assert isinstance(finish, d.Finish) and finish.state is RunState.SUCCEEDED


def test_nothing_is_done_for_a_finished_run() -> None:
    ended = attempt(rank(0, S), rank(1, S), ended=9.0)
    assert d.decide(d.Facts(run=run(RunState.SUCCEEDED), attempt=ended)) == []


def test_a_stopped_run_that_had_succeeded_on_every_rank_has_succeeded() -> None:
    facts = d.Facts(
        run=run(stop_requested=True), attempt=attempt(rank(0, S), rank(1, S), stopping="user")
    )
    _, outcome = d.decide(facts)
    assert isinstance(outcome, d.Finish) and outcome.state is RunState.SUCCEEDED


def test_a_run_that_a_program_stopped_says_why() -> None:
    facts = d.Facts(
        run=run(stop_requested=True), attempt=attempt(rank(0, X), rank(1, X), stopping="user")
    )
    for reason, said in (("", "stopped"), ("item 2 of the map raised", "item 2 of the map raised")):
        _, finish = d.decide(structs.replace(facts, stop_reason=reason))
        assert isinstance(finish, d.Finish) and finish.verdict is not None
        assert (finish.state, finish.verdict.message) == (RunState.STOPPED, said)


# --- symptoms and what they are symptoms of


def verdict_on(*ranks: Rank, **fields: Any) -> Verdict:
    facts = d.Facts(run=run(), attempt=attempt(*ranks, **{"stopping": "x", **fields}))
    outcome = d.decide(facts)[-1]
    found = outcome.verdict if isinstance(outcome, d.Finish | d.TryAgain) else None
    assert found is not None
    return found


@pytest.mark.parametrize("cause", ["peer", "collective", "rendezvous"])
def test_a_symptom_never_stands_for_the_run_where_a_rank_failed_by_itself(cause: str) -> None:
    noticed = rank(0, F, ended=5.0, cause=cause, message="Connection closed by peer")
    failed = rank(1, F, ended=7.0, cause="exception", message="ValueError: bad")
    assert verdict_on(noticed, failed).message == "rank 1: ValueError: bad"


def test_of_symptoms_the_nearest_to_the_reason_counts() -> None:
    timed_out = rank(1, F, ended=7.0, cause="collective", message="recv timed out")
    dropped = rank(0, F, ended=5.0, cause="peer", message="closed by peer")
    assert verdict_on(dropped, timed_out).rank == 1


def test_a_rank_that_left_early_is_named_by_the_symptom_of_its_leaving() -> None:
    left = rank(1, S, ended=4.0)
    noticed = rank(0, F, ended=5.0, cause="peer", message="closed by peer")
    assert verdict_on(noticed, left).message.endswith("; rank 1 had left, with status 0")


def test_ranks_that_never_came_to_the_rendezvous_are_named() -> None:
    waited = [rank(n, F, ended=5.0, cause="rendezvous", message="timed out") for n in (0, 2)]
    there = rank(1, X, ended=6.0, cause="stopped")
    assert (
        "; missing: rank 1, which had not joined" in verdict_on(waited[0], there, waited[1]).message
    )
    names = rank(0, F, ended=5.0, cause="rendezvous", message="1 of 2 arrived; missing: rank 1")
    assert verdict_on(names, there).message == "rank 0: 1 of 2 arrived; missing: rank 1"


@pytest.mark.parametrize(
    ("who", "words", "rank_of_it"),
    [
        ("rank 1", "rank 1 did not arrive within 4 s (ranks 0,2-3 waited)", 1),
        ("ranks 1-3", "ranks 1-3 did not arrive within 4 s (rank 0 waited)", 1),
        ("ranks 2-3", "ranks 2-3 did not arrive within 4 s (ranks 0-1 waited)", 2),
    ],
)
def test_the_verdict_on_a_barrier_is_about_who_never_came(
    who: str, words: str, rank_of_it: int
) -> None:
    message = f"{who} did not arrive within 4 s\nhint: why: see there"
    waited = rank(0, F, ended=5.0, cause="barrier", message=message)
    others = [rank(n, X, ended=6.0, cause="stopped", message="told to stop") for n in (1, 2, 3)]
    verdict = verdict_on(waited, *others)
    assert verdict == Verdict(
        cause="barrier", message=words, hint="why: see there", rank=rank_of_it
    )


def test_a_barrier_of_which_nobody_is_known_to_be_missing_is_told_as_it_was_said() -> None:
    message = "the ranks did not meet within 4 s"
    verdict = verdict_on(rank(0, F, ended=5.0, cause="barrier", message=message), rank(1, X))
    assert (verdict.rank, verdict.message) == (0, f"rank 0: {message}")


def test_others_may_tell_of_the_same_time_out_before_they_are_stopped() -> None:
    waited = rank(0, F, ended=50.0, cause="rendezvous")
    facts = d.Facts(run=run(), attempt=attempt(waited, rank(1, R)), now=50.5)
    assert d.decide(facts) == []
    assert d.decide(structs.replace(facts, now=53.0)) == [d.StopAttempt("rank 0 failed")]
    ahead = structs.replace(facts, now=10.0)  # its clock is not ours
    assert d.decide(ahead) == [d.StopAttempt("rank 0 failed")]


def test_a_machine_whose_loss_a_peer_noticed_first_is_lost_and_tried_again() -> None:
    noticed = rank(0, F, ended=5.0, cause="peer", message="closed by peer")
    facts = d.Facts(
        run=run(),
        attempt=attempt(noticed, rank(1, R), stopping="rank 0 failed"),
        observation=saw("ended", "absent"),
        drained=frozenset({1}),
    )
    (end,) = d.decide(facts)
    assert isinstance(end, d.EndRank) and (end.rank, end.state, end.cause) == (1, L, "agent-lost")
    lost = attempt(noticed, rank(1, L, ended=6.0, cause="agent-lost"), stopping="rank 0 failed")
    assert isinstance(d.decide(d.Facts(run=run(), attempt=lost))[-1], d.TryAgain)


# --- ranks that are held to be looked into

E = RankState.ENDING
HOLDS = JobSpec(command=("python", "x.py"), workers=2, hold=1800.0)
FAILED = {"cause": "exit", "exit_code": 1, "ended": 5.0}


def held(*ranks: Rank, stopping: str = "", kept: tuple[int, ...] = (), **fields: Any) -> d.Facts:
    fields = {"spec": HOLDS, **fields}
    return d.Facts(
        run=run(**fields),
        attempt=attempt(*ranks, stopping=stopping),
        observation=saw("running", "running"),
        kept=frozenset(kept),
    )


def test_a_rank_that_is_held_is_the_only_one_that_is_not_told_to_stop() -> None:
    facts = held(rank(0, R), rank(1, E, **FAILED))
    assert d.decide(facts) == [d.StopAttempt("rank 1 failed", keep=frozenset({1}))]
    later = held(rank(0, X), rank(1, E, **FAILED), stopping="rank 1 failed", kept=(1,))
    assert d.decide(later) == []


def test_of_two_that_failed_the_first_is_held() -> None:
    second = {**FAILED, "ended": 6.0}
    facts = held(rank(0, E, **second), rank(1, E, **FAILED))
    assert d.held(facts.run, facts.attempt or attempt()) == {1}


def test_what_is_tried_again_ends_well_or_asks_for_no_hold_is_not_held() -> None:
    failed = attempt(rank(0, R), rank(1, E, **FAILED))
    retried = structs.replace(HOLDS, restarts=1, retry_on=("exit",))
    assert d.held(run(spec=retried), failed) == frozenset()
    assert d.held(run(spec=structs.replace(HOLDS, hold=None)), failed) == frozenset()
    assert d.held(run(spec=HOLDS, stop_requested=True), failed) == frozenset()
    assert d.held(run(spec=HOLDS), attempt(rank(0, R), rank(1, E, cause=""))) == frozenset()
    assert d.held(run(spec=HOLDS), attempt(rank(0, R), rank(1, F, **FAILED))) == frozenset()


def test_when_the_hold_is_over_or_the_run_is_stopped_all_are_told() -> None:
    over = held(rank(0, R), rank(1, F, **FAILED), stopping="rank 1 failed", kept=(1,))
    assert d.decide(over) == [d.StopAttempt("rank 1 failed")]
    ranks = rank(0, X), rank(1, E, **FAILED)
    stopped = held(*ranks, stopping="rank 1 failed", kept=(1,), stop_requested=True)
    assert d.decide(stopped) == [d.StopAttempt("user")]
    assert d.decide(structs.replace(stopped, kept=frozenset())) == []


def test_a_hold_that_a_person_ended_is_still_the_failure_that_it_was() -> None:
    facts = held(rank(0, X), rank(1, F, **FAILED), stopping="rank 1 failed", stop_requested=True)
    end, finish = d.decide(facts)
    assert isinstance(end, d.EndAttempt) and isinstance(finish, d.Finish)
    assert finish.state is RunState.FAILED and finish.exit_code == 1
    assert finish.verdict is not None and finish.verdict.rank == 1
