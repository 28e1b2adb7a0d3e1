"""
What a store promises of ranks that are replaced, and of the rounds of elastic groups.
"""

from __future__ import annotations

import pytest

from wherry.core.run import AttemptId, Event, Rank
from wherry.core.states import RankState, RunState
from wherry.errors import StaleToken
from wherry.store.base import Exit, Store
from wherry.testing.stores.data import report, started, together

LOST = Exit(state=RankState.LOST, time=5.0, cause="agent-lost", message="the agent died")
FAILED = Exit(state=RankState.FAILED, time=7.0, exit_code=1, cause="peer", message="gone")


def arrive(store: Store, attempt: AttemptId, rank: int, incarnation: int = 1) -> Rank:
    """The rank's agent has called."""
    return store.arrive(attempt, rank, incarnation, address="10.0.0.1", ports=(1, 2))


class GroupContract:
    """Part of ``StoreContract``."""

    # --- the end of a program, before that of its rank
    def test_the_end_of_a_program_is_known_before_its_rank_is_over(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, seq=1, state=RankState.RUNNING)])
        store.ingest([report(attempt, seq=2, ended=FAILED)])
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.exit_code, rank.cause) == (RankState.ENDING, 1, "peer")
        late = Exit(state=RankState.FAILED, time=60.0, exit_code=1, cause="peer", message="gone")
        store.ingest([report(attempt, seq=3, exit=late)])
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.ended) == (RankState.FAILED, 7.0)

    def test_an_end_that_its_agent_did_not_live_to_tell_keeps_what_is_known(
        self, store: Store
    ) -> None:
        attempt = started(store)
        store.ingest([report(attempt, seq=1, state=RankState.RUNNING, ended=FAILED)])
        assert store.move_rank(attempt, 0, RankState.FAILED)
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.ended, rank.exit_code) == (RankState.FAILED, 7.0, 1)

    def test_what_a_rank_tells_is_in_the_runs_history(self, store: Store) -> None:
        attempt = started(store)
        told = Event(run=attempt.run, time=3.0, kind="stalled", message="é", attempt=1, rank=1)
        store.ingest([report(attempt, rank=1, seq=1, events=(told,))])
        store.ingest([report(attempt, rank=1, seq=1, events=(told,))])
        assert [e for e in store.events(attempt.run) if e.kind == "stalled"] == [told]

    # --- replacing
    def test_a_replaced_rank_begins_anew(self, store: Store) -> None:
        attempt = started(store)
        arrive(store, attempt, 0)
        store.ingest([report(attempt, seq=1, state=RankState.RUNNING)])
        store.move_rank(attempt, 0, RankState.LOST, exit=LOST)
        assert store.replace_rank(attempt, 0, 1, cost=1)
        now = store.attempt(attempt)
        assert now.ranks == (
            Rank(attempt=attempt, rank=0, incarnation=2),
            Rank(attempt=attempt, rank=1),
        )
        assert now.charged == 1
        event = store.events(attempt.run)[-1]
        assert (event.kind, event.rank) == ("replaced", 0) and "the agent died" in event.message

    def test_why_a_rank_was_replaced_is_said_without_the_hint(self, store: Store) -> None:
        attempt = started(store)
        end = Exit(state=RankState.LOST, time=5.0, cause="oom", message="too much\nhint: use less")
        store.move_rank(attempt, 0, RankState.LOST, exit=end)
        assert store.replace_rank(attempt, 0, 1, cost=1)
        assert store.events(attempt.run)[-1].message == "rank 0 is replaced (too much)"

    def test_only_the_newer_incarnation_may_write(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, seq=(1, 3))])
        assert store.replace_rank(attempt, 0, 1)
        with pytest.raises(StaleToken):
            arrive(store, attempt, 0)
        (refused,) = store.ingest([report(attempt, seq=4)])
        assert isinstance(refused, StaleToken)
        assert arrive(store, attempt, 0, 2).state is RankState.ARRIVED
        assert store.ingest([report(attempt, seq=1, incarnation=2)]) == [1]

    def test_a_rank_is_replaced_once_by_whoever_is_first(self, store: Store) -> None:
        attempt = started(store)
        assert sum(together(lambda _: store.replace_rank(attempt, 0, 1, cost=1))) == 1
        assert store.attempt(attempt).ranks[0].incarnation == 2
        assert store.attempt(attempt).charged == 1

    def test_who_succeeded_or_is_stopped_is_not_replaced(self, store: Store) -> None:
        attempt = started(store)
        store.move_rank(attempt, 0, RankState.SUCCEEDED)
        assert not store.replace_rank(attempt, 0, 1)
        store.mark_stopping(attempt, "user")
        assert not store.replace_rank(attempt, 1, 1)
        assert [r.incarnation for r in store.attempt(attempt).ranks] == [1, 1]

    # --- rounds
    def test_rounds_begin_one_after_the_other(self, store: Store) -> None:
        attempt = started(store, world_size=3)
        assert not store.form_round(attempt, 2, (0, 1))
        assert store.form_round(attempt, 1, (2, 0))
        assert not store.form_round(attempt, 1, (0, 1, 2))
        now = store.attempt(attempt)
        assert (now.round, now.members) == (1, (2, 0))
        assert store.events(attempt.run)[-1].kind == "round"

    def test_a_rank_leaves_its_round_once(self, store: Store) -> None:
        attempt = started(store)
        arrive(store, attempt, 0)
        store.form_round(attempt, 1, (0,))
        store.ingest([report(attempt, seq=1, state=RankState.RUNNING, started=2.0)])
        assert not store.leave_round(attempt, 0, 2)
        assert store.leave_round(attempt, 0, 1)
        assert not store.leave_round(attempt, 0, 1)
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.round, rank.started) == (RankState.ARRIVED, 1, None)
        store.form_round(attempt, 2, (0,))
        store.ingest([report(attempt, seq=2, state=RankState.RUNNING)])
        assert store.attempt(attempt).ranks[0].state is RankState.RUNNING

    def test_who_failed_leaves_only_when_that_is_paid(self, store: Store) -> None:
        attempt = started(store)
        arrive(store, attempt, 0)
        store.form_round(attempt, 1, (0,))
        store.ingest([report(attempt, seq=1, state=RankState.RUNNING, ended=FAILED)])
        assert not store.leave_round(attempt, 0, 1)
        assert store.leave_round(attempt, 0, 1, cost=1)
        now = store.attempt(attempt)
        assert (now.charged, now.ranks[0].cause, now.ranks[0].ended) == (1, "", None)

    def test_a_newcomer_has_left_the_round_that_it_was_never_in(self, store: Store) -> None:
        attempt = started(store)
        store.form_round(attempt, 1, (0, 1))
        store.replace_rank(attempt, 1, 1)
        assert [r.round for r in store.attempt(attempt).ranks] == [0, 1]

    # --- the run
    def test_what_restarts_cost_is_kept_with_the_run(self, store: Store) -> None:
        attempt = started(store)
        assert store.move_run(attempt.run, RunState.QUEUED, restarts_used=2, not_before=99.5)
        run = store.run(attempt.run)
        assert (run.restarts_used, run.not_before) == (2, 99.5)
        store.create_attempt(run.id, 2, world_size=1, time=1.0)
        assert store.run(attempt.run).restarts_used == 2
