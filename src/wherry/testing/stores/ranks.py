"""
What a store promises of attempts and ranks.
"""

from __future__ import annotations

import pytest

from wherry.core.run import AttemptId, Rank
from wherry.core.states import RANK_NEXT, RUN_NEXT, RankState, RunState
from wherry.errors import NotFound, StaleToken
from wherry.store.base import Exit, Store
from wherry.testing.stores.data import (
    finished,
    rank_path,
    run_path,
    started,
    submit,
    together,
)

END = Exit(
    state=RankState.FAILED,
    time=9.0,
    exit_code=3,
    signal=9,
    cause="exit",
    message="no such file",
    last_lines=("Traceback", "héllo"),
)


class RankContract:
    """Part of ``StoreContract``."""

    # --- attempts
    def test_an_attempt_starts_its_run_with_its_ranks_pending(self, store: Store) -> None:
        run = submit(store)
        store.set_reason(run.id, "no free core")
        assert store.create_attempt(run.id, 1, world_size=3, time=4.0)
        attempt = store.attempt(AttemptId(run.id, 1))
        assert (attempt.created, attempt.ended, attempt.stopping) == (4.0, None, "")
        assert attempt.ranks == tuple(Rank(attempt=attempt.id, rank=n) for n in range(3))
        now = store.run(run.id)
        assert (now.state, now.attempt, now.reason) == (RunState.STARTING, 1, "")
        assert store.events(run.id)[-1].kind == "starting"

    @pytest.mark.parametrize("state", RunState)
    def test_an_attempt_is_made_only_where_the_run_can_start(
        self, store: Store, state: RunState
    ) -> None:
        run = submit(store)
        for step in run_path(state):
            store.move_run(run.id, step)
        allowed = RunState.STARTING in RUN_NEXT[state]
        assert store.create_attempt(run.id, 1, world_size=1, time=1.0) is allowed
        assert len(store.attempts(run.id)) == allowed

    @pytest.mark.parametrize("number", [0, 2])
    def test_attempts_are_made_in_order(self, store: Store, number: int) -> None:
        run = submit(store)
        assert not store.create_attempt(run.id, number, world_size=1, time=1.0)
        assert store.run(run.id) == run

    def test_no_attempt_is_made_once_a_stop_is_requested(self, store: Store) -> None:
        run = submit(store)
        store.request_stop(run.id)
        assert not store.create_attempt(run.id, 1, world_size=1, time=1.0)
        assert store.attempts(run.id) == []

    def test_of_many_callers_one_makes_the_attempt(self, store: Store) -> None:
        run = submit(store)
        made = together(lambda _: store.create_attempt(run.id, 1, world_size=2, time=1.0))
        assert sorted(made) == [False] * 7 + [True]
        assert len(store.attempt(AttemptId(run.id, 1)).ranks) == 2

    def test_a_run_that_queues_again_gets_a_second_attempt(self, store: Store) -> None:
        first = started(store)
        store.move_run(first.run, RunState.QUEUED)
        assert store.create_attempt(first.run, 2, world_size=12, time=2.0)
        assert [attempt.id.number for attempt in store.attempts(first.run)] == [1, 2]
        assert [rank.rank for rank in store.attempts(first.run)[1].ranks] == list(range(12))

    def test_an_unknown_attempt_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="r0123-1"):
            store.attempt(AttemptId("r0123", 1))
        assert store.attempts("r0123") == []

    def test_live_attempts_are_those_that_have_not_ended(self, store: Store) -> None:
        over, live = started(store), started(store)
        finished(store)
        assert store.end_attempt(over, 3.0)
        assert store.live_attempts() == [store.attempt(live)]

    def test_an_attempt_ends_once(self, store: Store) -> None:
        attempt = started(store)
        assert store.end_attempt(attempt, 3.0)
        assert not store.end_attempt(attempt, 4.0)
        assert store.attempt(attempt).ended == 3.0

    def test_the_first_reason_to_stop_stays(self, store: Store) -> None:
        attempt = started(store)
        assert store.mark_stopping(attempt, "timeout")
        assert not store.mark_stopping(attempt, "user")
        assert store.attempt(attempt).stopping == "timeout"
        assert [e.message for e in store.events(attempt.run) if e.kind == "stopping"] == ["timeout"]

    def test_an_attempt_that_has_ended_is_not_stopping(self, store: Store) -> None:
        attempt = started(store)
        store.end_attempt(attempt, 3.0)
        assert not store.mark_stopping(attempt, "user")

    # --- arriving
    def test_an_agent_arrives_with_address_and_ports(self, store: Store) -> None:
        attempt = started(store)
        rank = store.arrive(attempt, 1, 1, address="10.0.0.2", ports=[7, 8])
        assert rank == store.attempt(attempt).ranks[1]
        assert (rank.state, rank.address, rank.ports) == (RankState.ARRIVED, "10.0.0.2", (7, 8))
        assert store.attempt(attempt).ranks[0].state is RankState.PENDING

    @pytest.mark.parametrize("state", sorted(set(RankState) - {RankState.PENDING, RankState.LOST}))
    def test_to_arrive_again_updates_the_address_and_keeps_the_state(
        self, store: Store, state: RankState
    ) -> None:
        attempt = started(store)
        for step in rank_path(state):
            store.move_rank(attempt, 0, step)
        rank = store.arrive(attempt, 0, 1, address="10.0.0.3", ports=(9,))
        assert (rank.state, rank.address, rank.ports) == (state, "10.0.0.3", (9,))

    @pytest.mark.parametrize("incarnation", [0, 2])
    def test_another_incarnation_is_stale(self, store: Store, incarnation: int) -> None:
        attempt = started(store)
        with pytest.raises(StaleToken, match=str(incarnation)):
            store.arrive(attempt, 0, incarnation, address="x", ports=())
        assert store.attempt(attempt).ranks[0].address == ""

    def test_a_rank_declared_lost_is_stale(self, store: Store) -> None:
        attempt = started(store)
        store.move_rank(attempt, 0, RankState.LOST)
        with pytest.raises(StaleToken, match="lost"):
            store.arrive(attempt, 0, 1, address="x", ports=())

    def test_an_agent_of_an_attempt_that_ended_is_stale(self, store: Store) -> None:
        attempt = started(store)
        store.end_attempt(attempt, 3.0)
        with pytest.raises(StaleToken, match="ended"):
            store.arrive(attempt, 0, 1, address="x", ports=())

    def test_an_agent_of_a_rank_that_is_no_more_is_stale(self, store: Store) -> None:
        attempt = started(store)
        for who, rank in ((attempt, 2), (AttemptId("r0123", 1), 0)):
            with pytest.raises(StaleToken, match="no more"):
                store.arrive(who, rank, 1, address="x", ports=())

    # --- moving ranks
    @pytest.mark.parametrize("source", RankState)
    def test_a_rank_moves_along_the_table_and_no_other_way(
        self, store: Store, source: RankState
    ) -> None:
        attempt = started(store, world_size=len(RankState))
        for rank, to in enumerate(RankState):
            for step in rank_path(source):
                assert store.move_rank(attempt, rank, step)
            allowed = to in RANK_NEXT[source]
            assert store.move_rank(attempt, rank, to) is allowed
            assert store.attempt(attempt).ranks[rank].state is (to if allowed else source)

    def test_an_exit_gives_the_fields_of_the_end(self, store: Store) -> None:
        attempt = started(store)
        assert store.move_rank(attempt, 0, RankState.FAILED, exit=END)
        rank = store.attempt(attempt).ranks[0]
        for name in ("exit_code", "signal", "cause", "message", "last_lines"):
            assert getattr(rank, name) == getattr(END, name)
        assert rank.ended == END.time

    def test_an_end_does_not_change(self, store: Store) -> None:
        attempt = started(store)
        store.move_rank(attempt, 0, RankState.SUCCEEDED)
        before = store.attempt(attempt)
        assert not store.move_rank(attempt, 0, RankState.FAILED, exit=END)
        assert store.attempt(attempt) == before

    def test_a_rank_knows_when_it_started_and_ended_though_nobody_said(self, store: Store) -> None:
        attempt = started(store)
        store.move_rank(attempt, 0, RankState.RUNNING)
        store.move_rank(attempt, 0, RankState.LOST)
        rank = store.attempt(attempt).ranks[0]
        assert rank.started is not None
        assert rank.ended is not None
        assert rank.started <= rank.ended
