"""What becomes of pools, elastic groups, roles and retries, from data alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from wherry.core import decide as d
from wherry.core import elastic, retry
from wherry.core.job import JobSpec, Role
from wherry.core.roster import ends_with, label, own_spec, roster
from wherry.core.run import Attempt, AttemptId, Rank, Run
from wherry.core.states import RANK_TERMINAL, RankState, RunState
from wherry.errors import InvalidSpec

ID = AttemptId("r1", 1)
PENDING, ARRIVED, RUNNING, ENDING = (
    RankState.PENDING, RankState.ARRIVED, RankState.RUNNING, RankState.ENDING,
)  # fmt: skip
SUCCEEDED, FAILED, STOPPED, LOST = (
    RankState.SUCCEEDED, RankState.FAILED, RankState.STOPPED, RankState.LOST,
)  # fmt: skip


def run(state: RunState = RunState.RUNNING, **fields: Any) -> Run:
    spec = JobSpec(**{"command": ("python", "x.py"), "restarts": 1, **fields.pop("spec", {})})
    made = Run(
        id="r1", name="x", owner="ada", project="default", spec=spec.check(), state=state, attempt=1
    )
    return structs.replace(made, **fields)


def attempt(*ranks: Rank | RankState, **fields: Any) -> Attempt:
    made = [
        structs.replace(r, rank=n) if isinstance(r, Rank) else rank(r, number=n)
        for n, r in enumerate(ranks)
    ]
    return Attempt(id=ID, created=0.0, ranks=tuple(made), **fields)


def rank(state: RankState, number: int = 0, **fields: Any) -> Rank:
    return Rank(attempt=ID, rank=number, state=state, **fields)


def decided(run: Run, attempt: Attempt, **facts: Any) -> list[d.Action]:
    return d.decide(d.Facts(run=run, attempt=attempt, **{"now": 1000.0, **facts}))


def lost(**fields: Any) -> Rank:
    return rank(LOST, cause="agent-lost", message="the agent died", **{"ended": 10.0, **fields})


# --- roles


def roles(**fields: Any) -> dict[str, Any]:
    named = {"chief": Role(), "worker": Role(count=2), "ps": Role()}
    return {"spec": {"roles": named, **fields}}


def test_the_chiefs_end_ends_the_run() -> None:
    chief_done = attempt(SUCCEEDED, RUNNING, RUNNING, RUNNING)
    assert decided(run(**roles()), chief_done) == [d.StopAttempt("done")]
    over = attempt(SUCCEEDED, STOPPED, STOPPED, STOPPED, stopping="done")
    _, finish = decided(run(**roles()), over)
    assert isinstance(finish, d.Finish) and finish.state is RunState.SUCCEEDED


def test_the_chief_need_not_have_sent_its_files_for_the_others_to_be_stopped() -> None:
    sending = attempt(ENDING, RUNNING, RUNNING, RUNNING)
    assert decided(run(**roles()), sending) == [d.StopAttempt("done")]


def test_a_chief_that_is_lost_while_it_sends_its_files_has_not_succeeded() -> None:
    over = attempt(lost(), STOPPED, STOPPED, STOPPED, stopping="done")
    _, again = decided(run(**roles()), over)
    assert isinstance(again, d.TryAgain)


def test_a_parameter_server_that_fails_ends_the_run_badly() -> None:
    broken = attempt(RUNNING, RUNNING, RUNNING, rank(FAILED, cause="exit", exit_code=3))
    assert decided(run(**roles()), broken) == [d.StopAttempt("rank 3 failed")]
    over = structs.replace(
        attempt(STOPPED, STOPPED, STOPPED, rank(FAILED, cause="exit", exit_code=3)), stopping="x"
    )
    _, finish = decided(run(**roles()), over)
    assert isinstance(finish, d.Finish) and finish.verdict is not None
    assert finish.verdict.message == "rank 3 (ps): exited with status 3"


@pytest.mark.parametrize(
    ("names", "said", "expected"),
    [
        (("chief", "worker", "ps", "evaluator"), (), {"chief"}),
        (("master", "worker"), (), {"master"}),
        (("worker", "ps"), (), {"worker"}),
        (("scheduler", "server", "worker"), (), {"worker"}),
        (("actor", "learner"), (), {"actor", "learner"}),
        (("ps",), (), {"ps"}),
        (("chief", "evaluator"), ("chief", "evaluator"), {"chief", "evaluator"}),
    ],
)
def test_whose_success_ends_the_run(
    names: Iterable[str], said: tuple[str, ...], expected: set[str]
) -> None:
    spec = JobSpec(command=("x",), roles={name: Role() for name in names}, ends_with=said)
    assert ends_with(spec) == expected


def test_a_role_has_its_own_command_resources_and_variables_over_the_jobs() -> None:
    spec = JobSpec(
        command=("python", "train.py"),
        env={"A": "job", "B": "job"},
        roles={"chief": Role(), "ps": Role(count=2, command=("python", "ps.py"), env={"A": "ps"})},
    )
    places = roster(spec)
    assert [(p.rank, p.role, p.index) for p in places] == [
        (0, "chief", 0), (1, "ps", 0), (2, "ps", 1),
    ]  # fmt: skip
    assert own_spec(spec, places[0]).command == ("python", "train.py")
    assert own_spec(spec, places[2]).command == ("python", "ps.py")
    assert own_spec(spec, places[2]).env == {"A": "ps", "B": "job"}
    assert [label(spec, n) for n in range(3)] == [
        "rank 0 (chief)",
        "rank 1 (ps 0)",
        "rank 2 (ps 1)",
    ]


# --- retries


def ended_with(**fields: Any) -> Attempt:
    return attempt(rank(FAILED, **{"ended": 5.0, **fields}), stopping="x")


@pytest.mark.parametrize(
    ("rules", "end", "again"),
    [
        ({}, {"cause": "exit", "exit_code": 75}, False),
        ({"retry_on": ("75",)}, {"cause": "exit", "exit_code": 75}, True),
        ({"retry_on": ("64-78",)}, {"cause": "exit", "exit_code": 75}, True),
        ({"retry_on": ("64-78",)}, {"cause": "exit", "exit_code": 1}, False),
        ({"retry_on": ("SIGSEGV",)}, {"cause": "signal", "signal": 11}, True),
        ({"retry_on": ("SIGSEGV",)}, {"cause": "exit", "exit_code": 139}, True),
        ({"retry_on": ("oom",)}, {"cause": "oom", "signal": 9}, True),
        ({"retry_on": ("any",)}, {"cause": "exception", "exit_code": 1}, True),
        ({"retry_on": ("exit",)}, {"cause": "exception", "exit_code": 1}, True),
        ({"retry_on": ("exit",)}, {"cause": "signal", "signal": 9}, False),
        ({"retry_on": ("any",), "fail_on": ("3",)}, {"cause": "exit", "exit_code": 3}, False),
        ({"fail_on": ("preempted",)}, {"cause": "preempted"}, False),
        ({}, {"cause": "preempted"}, True),
    ],
)
def test_what_is_tried_again(rules: dict[str, Any], end: dict[str, Any], again: bool) -> None:
    _, outcome = decided(run(spec=rules), ended_with(**end))
    assert isinstance(outcome, d.TryAgain) is again


def test_back_off_doubles_and_stays_in_bounds() -> None:
    delays = [retry.delay(2.0, tried) for tried in range(12)]
    assert delays[:4] == [2.0, 4.0, 8.0, 16.0]
    assert max(delays) == retry.LONGEST
    assert retry.delay(1000.0, 5) == 1000.0


def test_a_retry_waits_as_long_as_the_job_or_the_setting_says() -> None:
    end = ended_with(cause="agent-lost")
    _, outcome = decided(run(spec={"restarts": 9}, restarts_used=2), end, backoff=1.0)
    assert isinstance(outcome, d.TryAgain) and outcome.delay == 4.0
    _, outcome = decided(run(spec={"restarts": 9, "backoff": 0.0}), end, backoff=1.0)
    assert isinstance(outcome, d.TryAgain) and outcome.delay == 0.0


def test_a_port_that_was_taken_costs_no_restart_but_not_for_ever() -> None:
    end = ended_with(cause="port")
    none_left = run(spec={"restarts": 0})
    _, outcome = decided(none_left, end)
    assert isinstance(outcome, d.TryAgain) and outcome.cost == 0
    sixth = structs.replace(end, id=AttemptId("r1", 6))
    _, outcome = decided(structs.replace(none_left, attempt=6), sixth)
    assert isinstance(outcome, d.Finish)


@pytest.mark.parametrize("rule", ["0", "256", "78-64", "SIGNOPE", "stopped", "", "OOM", "1,2"])
def test_what_is_no_rule_is_refused(rule: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        retry.check(rule)
    assert refused.value.hint


# --- the reason, not its consequence


def test_a_symptom_never_wins_over_a_reason_whatever_the_clocks_say() -> None:
    ranks = attempt(
        rank(FAILED, cause="peer", exit_code=1, ended=4.0),
        rank(FAILED, cause="oom", signal=9, ended=5.0),
        stopping="rank 0 failed",
    )
    _, finish = decided(run(spec={"workers": 2, "restarts": 0}), ranks)
    assert isinstance(finish, d.Finish) and finish.verdict is not None
    assert (finish.verdict.rank, finish.verdict.cause) == (1, "oom")


def test_one_who_ended_well_and_left_the_others_alone_is_named() -> None:
    ranks = attempt(
        rank(FAILED, cause="peer", exit_code=1, ended=9.0, message="Connection closed by peer"),
        rank(SUCCEEDED, ended=5.0),
        rank(SUCCEEDED, ended=9.5),
        stopping="rank 0 failed",
    )
    _, finish = decided(run(spec={"workers": 3, "restarts": 0}), ranks)
    assert isinstance(finish, d.Finish) and finish.verdict is not None
    assert finish.verdict.message == (
        "rank 0: Connection closed by peer; rank 1 had left, with status 0"
    )
    assert "same number of steps" in finish.verdict.hint


def test_the_end_of_a_program_stops_the_gang_before_its_files_are_sent() -> None:
    held = attempt(rank(ENDING, cause="exit", exit_code=1, ended=5.0), RUNNING)
    assert decided(run(spec={"workers": 2}), held) == [d.StopAttempt("rank 0 failed")]


# --- pools


def pool(**fields: Any) -> Run:
    return run(spec={"group": "pool", "workers": 2, **fields})


def test_one_that_is_lost_is_replaced_alone() -> None:
    assert decided(pool(), attempt(lost(), RUNNING)) == [d.Replace(0, 1, 1)]


def test_one_is_replaced_as_often_as_there_are_restarts() -> None:
    ended = attempt(lost(incarnation=2), RUNNING)
    assert decided(pool(restarts=1), ended) == []
    over = attempt(lost(incarnation=2), SUCCEEDED)
    end, finish = decided(pool(restarts=1), over)
    assert end == d.EndAttempt()
    assert isinstance(finish, d.Finish) and finish.state is RunState.LOST


def test_a_pool_is_not_over_while_one_waits_to_be_replaced() -> None:
    resting = attempt(lost(ended=999.5), SUCCEEDED)
    assert decided(pool(), resting, backoff=2.0) == []
    assert decided(pool(), resting, backoff=2.0, now=1001.5) == [d.Replace(0, 1, 1)]


def test_a_clock_that_is_ahead_does_not_hold_a_replacement_up() -> None:
    assert decided(pool(), attempt(lost(ended=5000.0), RUNNING), backoff=2.0) == [
        d.Replace(0, 1, 1)
    ]


def test_what_a_person_got_wrong_is_not_replaced() -> None:
    failed = attempt(rank(FAILED, cause="exit", exit_code=2, ended=5.0), RUNNING)
    assert decided(pool(restarts=5), failed) == []


def test_nobody_is_replaced_once_the_run_is_to_stop() -> None:
    stopping = attempt(lost(), RUNNING, stopping="user")
    assert decided(structs.replace(pool(), stop_requested=True), stopping) == []


# --- elastic groups


def group(**fields: Any) -> Run:
    return run(spec={"group": "elastic", "workers": 3, "min_workers": 2, "restarts": 2, **fields})


def met(*ranks: Rank | RankState, members: tuple[int, ...] = (0, 1, 2), **fields: Any) -> Attempt:
    return attempt(*ranks, round=1, members=members, **fields)


ALL = frozenset({0, 1, 2})


def test_the_first_round_begins_when_all_are_ready() -> None:
    here = attempt(ARRIVED, ARRIVED, ARRIVED)
    assert decided(group(), here, ready=frozenset({0, 1})) == []
    assert decided(group(), here, ready=ALL) == [d.FormRound(1, (0, 1, 2))]


def test_it_begins_with_fewer_when_nobody_comes_any_more() -> None:
    here = attempt(ARRIVED, PENDING, ARRIVED)
    ready = frozenset({0, 2})
    assert decided(group(), here, ready=ready) == []
    assert decided(group(), here, ready=ready, settled=True) == [d.FormRound(1, (0, 2))]
    assert decided(group(min_workers=3), here, ready=ready, settled=True) == []


def test_a_loss_calls_the_others_together_and_is_replaced() -> None:
    broken = met(RUNNING, lost(), RUNNING)
    assert decided(group(), broken) == [d.Replace(1, 1, 1), d.Recall(2)]
    without = met(RUNNING, lost(), RUNNING, charged=2)
    assert decided(group(), without) == [d.Recall(2)]


def test_the_next_round_has_old_hands_first_and_may_be_smaller() -> None:
    left = met(rank(ARRIVED, round=1), lost(), rank(ARRIVED, round=1), members=(2, 1, 0), charged=2)
    assert decided(group(), left, ready=ALL) == [d.FormRound(2, (2, 0))]


def test_one_who_comes_back_lets_the_group_grow() -> None:
    waiting = met(RUNNING, rank(ARRIVED, incarnation=2, round=1), RUNNING, members=(0, 2))
    assert decided(group(), waiting, ready=ALL) == []
    assert decided(group(), waiting, ready=ALL, settled=True) == [d.Recall(2)]


def test_nobody_is_left_behind_in_the_present_round() -> None:
    half = met(RUNNING, rank(ARRIVED, round=1), rank(ARRIVED, round=1))
    assert decided(group(), half, ready=ALL, settled=True) == [d.Recall(2)]


def test_the_victim_of_a_loss_takes_part_again_for_nothing() -> None:
    victim = rank(ENDING, cause="peer", exit_code=1, ended=5.0)
    assert d.Excuse(0, 0) in decided(group(), met(victim, RUNNING, RUNNING))


def test_a_program_that_fails_costs_a_restart_if_it_may_be_tried_again() -> None:
    failed = rank(ENDING, cause="exit", exit_code=75, ended=5.0)
    broken = met(failed, RUNNING, RUNNING)
    assert decided(group(), broken) == [d.StopAttempt("rank 0 failed")]
    assert d.Excuse(0, 1) in decided(group(retry_on=("75",)), broken)
    spent = structs.replace(broken, charged=2)
    assert decided(group(retry_on=("75",)), spent) == [d.StopAttempt("rank 0 failed")]


def test_too_few_end_the_run() -> None:
    left = met(lost(), lost(), RUNNING, charged=2)
    assert decided(group(), left) == [d.StopAttempt("1 workers are left, 2 are needed")]


def test_it_has_succeeded_when_its_last_round_has() -> None:
    done = met(SUCCEEDED, lost(), SUCCEEDED, members=(0, 2), charged=2)
    end, finish = decided(group(), done)
    assert end == d.EndAttempt()
    assert isinstance(finish, d.Finish) and finish.state is RunState.SUCCEEDED


def test_who_comes_when_the_work_is_done_is_sent_away() -> None:
    late = met(SUCCEEDED, rank(ARRIVED, incarnation=2, round=1), SUCCEEDED, members=(0, 2))
    assert decided(group(), late, ready=ALL, settled=True) == [d.StopAttempt("done")]


RANKS = st.builds(
    rank,
    st.sampled_from(RankState),
    cause=st.sampled_from(["", "peer", "exit", "agent-lost"]),
    round=st.integers(0, 1),
    ended=st.floats(0, 10),
)


@given(
    st.lists(RANKS, min_size=3, max_size=3),
    st.lists(st.integers(0, 2), unique=True),
    st.frozensets(st.integers(0, 2)),
    st.booleans(),
    st.integers(0, 3),
)
def test_a_round_has_only_ranks_that_are_there_and_never_one_that_works(
    ranks: list[Rank], members: list[int], ready: frozenset[int], settled: bool, charged: int
) -> None:
    now = met(*ranks, members=tuple(members), charged=charged)
    for action in decided(group(), now, ready=ready, settled=settled):
        if isinstance(action, d.FormRound):
            assert len(action.members) >= 2
            assert all(now.ranks[n].state is ARRIVED and n in ready for n in action.members)
            assert not any(now.ranks[n].state is RUNNING for n in elastic.inside(now))
        if isinstance(action, d.Replace):
            assert now.ranks[action.rank].state in RANK_TERMINAL


# --- sizes


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"min_workers": 2, "workers": 4}, "shrink"),
        ({"min_workers": 5, "workers": 4, "group": "elastic"}, "max 4"),
        ({"group": "elastic", "processes": 2}, "processes"),
        ({"roles": {"ps": Role()}, "workers": 2}, "not both"),
        ({"roles": {"Parameter Server": Role()}}, "not a name"),
        ({"roles": {"ps": Role()}, "ends_with": ("chief",)}, "no role 'chief'"),
        ({"roles": {"ps": Role(command=())}, "command": ()}, "no command"),
        ({"roles": {"ps": Role(env={"A=B": "1"})}}, "environment variable"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidSpec, match=word) as refused:
        JobSpec(**{"command": ("x",), **fields}).check()
    assert refused.value.hint or word in ("max 4", "environment variable")
