"""
What a store promises of runs, events and cleaning, and of itself.
"""

from __future__ import annotations

import pytest

from wherry.core.job import Call, Code, Environment, JobSpec
from wherry.core.run import AttemptId, Event, Verdict
from wherry.core.states import RUN_NEXT, RUN_TERMINAL, RankState, RunState
from wherry.errors import AmbiguousName, Conflict, IdempotencyMismatch, NotFound, Unavailable
from wherry.store.base import RunFilter, Store
from wherry.testing.stores.data import (
    OWN,
    OpenStore,
    all_of,
    blob,
    everything,
    finished,
    make_run,
    report,
    run_path,
    started,
    submit,
    together,
)


class RunContract:
    """Part of ``StoreContract``."""

    # --- the store itself
    def test_close_again_is_harmless(self, store: Store) -> None:
        store.close()
        store.close()

    def test_a_closed_store_says_so(self, store: Store) -> None:
        store.close()
        with pytest.raises(Unavailable, match="closed"):
            store.check()

    def test_check_passes_while_it_can_be_used(self, store: Store) -> None:
        store.check()

    def test_what_was_written_is_there_after_opening_again(
        self, store: Store, open_store: OpenStore
    ) -> None:
        attempt = everything(store)
        kept = all_of(store, attempt.run)
        store.close()
        again = open_store()
        try:
            assert all_of(again, attempt.run) == kept
        finally:
            again.close()

    # --- making runs
    def test_a_run_comes_back_as_it_was_made(self, store: Store) -> None:
        run = make_run(
            spec=JobSpec(command=("python", "train.py"), params={"lr": 0.1}, tags=("a", "b")),
            backend="memory",
            parent="r000",
            foreground=True,
            attach="/run/socket",
        )
        assert store.create_run(run) == run
        assert store.run(run.id) == run

    def test_an_unknown_run_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="r0123"):
            store.run("r0123")

    def test_an_id_is_given_once(self, store: Store) -> None:
        run = submit(store)
        with pytest.raises(Conflict):
            store.create_run(run)
        assert len(store.runs(RunFilter())) == 1

    def test_a_key_seen_before_returns_the_run_it_made(self, store: Store) -> None:
        first = store.create_run(make_run(), key="k", request="digest")
        again = store.create_run(make_run(), key="k", request="digest")
        assert again == first
        assert store.runs(RunFilter()) == [first]

    def test_a_key_seen_before_returns_the_run_as_it_is_now(self, store: Store) -> None:
        first = store.create_run(make_run(), key="k", request="digest")
        store.move_run(first.id, RunState.QUEUED)
        assert store.create_run(make_run(), key="k", request="digest").state is RunState.QUEUED

    def test_a_key_used_for_another_request_is_refused(self, store: Store) -> None:
        first = store.create_run(make_run(), key="k", request="digest")
        with pytest.raises(IdempotencyMismatch, match=first.id):
            store.create_run(make_run(), key="k", request="another")
        assert store.runs(RunFilter()) == [first]

    def test_of_many_callers_with_one_key_one_makes_the_run(self, store: Store) -> None:
        made = together(lambda _: store.create_run(make_run(), key="k", request="d").id)
        assert len(set(made)) == 1
        assert len(store.runs(RunFilter())) == 1

    def test_old_keys_are_forgotten_and_new_ones_kept(self, store: Store) -> None:
        store.create_run(make_run(created=10.0), key="old", request="d")
        new = store.create_run(make_run(created=20.0), key="new", request="d")
        assert store.prune_idempotency(20.0) == 1
        assert store.prune_idempotency(20.0) == 0
        store.create_run(make_run(), key="old", request="another")
        assert store.create_run(make_run(), key="new", request="d") == new

    def test_a_snapshot_never_changes(self, store: Store) -> None:
        run = submit(store)
        before = store.run(run.id)
        store.move_run(run.id, RunState.QUEUED, reason="full")
        assert before == run

    # --- finding runs
    def test_resolve_knows_id_name_prefix_and_last(self, store: Store) -> None:
        digits = submit(store, id="r0a000000000", name="digits")
        newer = submit(store, id="r0b000000000", name="digits")
        last = submit(store, id="r1b000000000", name="other")
        assert store.resolve(digits.id, **OWN) == digits
        assert store.resolve("digits", **OWN) == newer
        assert store.resolve("r0a", **OWN) == digits
        assert store.resolve("last", **OWN) == last

    def test_resolve_takes_an_id_before_a_name(self, store: Store) -> None:
        run = submit(store)
        submit(store, name=run.id)
        assert store.resolve(run.id, **OWN) == run

    def test_resolve_names_the_runs_that_a_prefix_fits(self, store: Store) -> None:
        submit(store, id="r0a000000000")
        submit(store, id="r0b000000000")
        with pytest.raises(AmbiguousName, match="r0a000000000"):
            store.resolve("r0", **OWN)

    @pytest.mark.parametrize("ref", ["", "%", "r_", "r*", "R0A", "0a", "nobody"])
    def test_resolve_finds_nothing_else(self, store: Store, ref: str) -> None:
        submit(store, id="r0a000000000")
        with pytest.raises(NotFound):
            store.resolve(ref, **OWN)

    def test_without_runs_there_is_no_last_one(self, store: Store) -> None:
        with pytest.raises(NotFound):
            store.resolve("last", **OWN)

    @pytest.mark.parametrize("theirs", [{"owner": "eve"}, {"project": "secret"}])
    def test_resolve_sees_no_other_owner_or_project(
        self, store: Store, theirs: dict[str, str]
    ) -> None:
        run = submit(store, name="digits", **theirs)
        for ref in (run.id, run.id[:8], "digits", "last"):
            with pytest.raises(NotFound):
                store.resolve(ref, **OWN)

    def test_runs_are_listed_newest_first_also_within_a_second(self, store: Store) -> None:
        made = [submit(store, created=5.0).id for _ in range(5)]
        assert [run.id for run in store.runs(RunFilter())] == made[::-1]

    def test_runs_are_counted_by_state(self, store: Store) -> None:
        assert store.count_runs() == {}
        ids = [submit(store).id for _ in range(3)]
        store.move_run(ids[0], RunState.QUEUED)
        assert store.count_runs() == {RunState.SUBMITTED: 2, RunState.QUEUED: 1}

    def test_pages_follow_one_another_without_gap(self, store: Store) -> None:
        made = [submit(store, created=5.0).id for _ in range(5)]
        first = [run.id for run in store.runs(RunFilter(limit=2))]
        second = [run.id for run in store.runs(RunFilter(limit=2, before=first[-1]))]
        third = [run.id for run in store.runs(RunFilter(limit=2, before=second[-1]))]
        assert [*first, *second, *third] == made[::-1]

    def test_a_page_after_a_run_that_is_gone_is_refused(self, store: Store) -> None:
        with pytest.raises(NotFound):
            store.runs(RunFilter(before="r0123"))

    def test_a_filter_holds_in_all_its_parts(self, store: Store) -> None:
        one = submit(store, name="a", spec=JobSpec(command=("x",), tags=("t", "u")))
        two = submit(store, name="b", spec=JobSpec(command=("x",), tags=("t",)))
        eve = submit(store, name="a", owner="eve", project="p")
        store.move_run(two.id, RunState.QUEUED)

        def found(where: RunFilter) -> set[str]:
            return {run.id for run in store.runs(where)}

        assert found(RunFilter(owner="eve")) == {eve.id}
        assert found(RunFilter(project="p")) == {eve.id}
        assert found(RunFilter(name="a")) == {one.id, eve.id}
        assert found(RunFilter(name="a", owner="me")) == {one.id}
        assert found(RunFilter(tags=frozenset({"t"}))) == {one.id, two.id}
        assert found(RunFilter(tags=frozenset({"t", "u"}))) == {one.id}
        assert found(RunFilter(states=frozenset({RunState.QUEUED}))) == {two.id}
        both = frozenset({RunState.QUEUED, RunState.SUBMITTED})
        assert found(RunFilter(states=both)) == {one.id, two.id, eve.id}

    # --- moving runs
    @pytest.mark.parametrize("source", RunState)
    def test_a_run_moves_along_the_table_and_no_other_way(
        self, store: Store, source: RunState
    ) -> None:
        for to in RunState:
            run = submit(store)
            for step in run_path(source):
                assert store.move_run(run.id, step)
            before = store.events(run.id)
            allowed = to in RUN_NEXT[source]
            assert store.move_run(run.id, to, reason="why") is allowed
            assert store.run(run.id).state is (to if allowed else source)
            assert len(store.events(run.id)) - len(before) == allowed

    def test_an_unknown_run_does_not_move(self, store: Store) -> None:
        assert not store.move_run("r0123", RunState.QUEUED)

    def test_a_move_writes_its_event(self, store: Store) -> None:
        run = submit(store)
        store.move_run(run.id, RunState.QUEUED, reason="no free core")
        verdict = Verdict(cause="launch", message="it would not start")
        store.move_run(run.id, RunState.FAILED, ended=7.0, verdict=verdict)
        _, queued, failed = store.events(run.id)
        assert (queued.kind, queued.message) == ("queued", "no free core")
        assert failed == Event(run=run.id, time=7.0, kind="failed", message="it would not start")

    def test_a_move_for_an_older_attempt_is_refused(self, store: Store) -> None:
        attempt = started(store)
        assert not store.move_run(attempt.run, RunState.RUNNING, attempt=2)
        assert not store.move_run(attempt.run, RunState.RUNNING, attempt=0)
        assert store.move_run(attempt.run, RunState.RUNNING, attempt=1)

    def test_what_a_move_does_not_name_stays_but_for_the_reason(self, store: Store) -> None:
        attempt = started(store)
        verdict = Verdict(cause="exit", rank=1, exit_code=3, last_lines=("no",))
        store.move_run(attempt.run, RunState.RUNNING, started=2.0, reason="why", exit_code=0)
        store.move_run(attempt.run, RunState.FAILED, ended=3.0, verdict=verdict, exit_code=3)
        run = store.run(attempt.run)
        assert (run.started, run.ended, run.verdict, run.exit_code) == (2.0, 3.0, verdict, 3)
        assert run.reason == ""

    def test_of_many_movers_one_acts(self, store: Store) -> None:
        run = submit(store)
        moved = together(lambda _: store.move_run(run.id, RunState.QUEUED))
        assert sorted(moved) == [False] * 7 + [True]

    def test_the_same_reason_again_is_no_event(self, store: Store) -> None:
        run = submit(store)
        for reason in ("no free core", "no free core", "no free GPU", ""):
            store.set_reason(run.id, reason)
        told = [e.message for e in store.events(run.id) if e.kind == "waiting"]
        assert told == ["no free core", "no free GPU"]
        assert store.run(run.id).reason == ""

    def test_a_finished_run_waits_for_nothing(self, store: Store) -> None:
        run = finished(store)
        store.set_reason(run, "no free core")
        assert store.run(run).reason == ""

    def test_a_stop_is_noted_once(self, store: Store) -> None:
        run = submit(store)
        assert store.request_stop(run.id)
        assert not store.request_stop(run.id)
        assert store.run(run.id).stop_requested
        assert [e.kind for e in store.events(run.id)].count("stop-requested") == 1

    @pytest.mark.parametrize("state", sorted(RUN_TERMINAL))
    def test_a_finished_run_is_not_stopped(self, store: Store, state: RunState) -> None:
        run = finished(store, state)
        assert not store.request_stop(run)
        assert not store.run(run).stop_requested

    # --- removing runs
    def test_a_run_is_removed_with_all_it_owns(self, store: Store) -> None:
        attempt = everything(store, key="k")
        store.move_rank(attempt, 1, RankState.STOPPED)
        store.end_attempt(attempt, 9.0)
        store.move_run(attempt.run, RunState.FAILED)
        store.delete_run(attempt.run)
        with pytest.raises(NotFound):
            store.run(attempt.run)
        with pytest.raises(NotFound):
            store.attempt(attempt)
        for kind in ("log", "metric", "usage"):
            assert store.chunks(attempt.run, kind) == []
        assert [*store.series(attempt.run), *store.files(attempt.run)] == []
        assert [*store.events(attempt.run), *store.attempts(attempt.run)] == []
        assert list(store.referenced_blobs()) == []
        assert store.prune_idempotency(float("inf")) == 0

    def test_removing_a_run_leaves_the_others_alone(self, store: Store) -> None:
        gone, kept = finished(store), everything(store)
        before = all_of(store, kept.run)
        store.delete_run(gone)
        assert all_of(store, kept.run) == before

    @pytest.mark.parametrize("state", sorted(set(RunState) - RUN_TERMINAL))
    def test_an_unfinished_run_is_not_removed(self, store: Store, state: RunState) -> None:
        run = submit(store)
        for step in run_path(state):
            store.move_run(run.id, step)
        with pytest.raises(Conflict, match=run.id):
            store.delete_run(run.id)
        assert store.run(run.id).state is state

    def test_removing_an_unknown_run_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound):
            store.delete_run("r0123")

    # --- events and cleaning
    def test_events_are_listed_oldest_first_whatever_their_time(self, store: Store) -> None:
        run = submit(store)
        for time in (9.0, 3.0, 5.0):  # a clock may jump
            store.add_event(Event(run=run.id, time=time, kind="note", attempt=1, rank=2))
        assert [e.time for e in store.events(run.id)[1:]] == [9.0, 3.0, 5.0]
        assert store.events(run.id)[1].rank == 2

    def test_finished_runs_are_found_by_their_end_oldest_first(self, store: Store) -> None:
        late, early = finished(store, ended=8.0), finished(store, ended=4.0)
        finished(store, ended=10.0)
        submit(store)
        assert store.finished_before(10.0) == [early, late]
        assert store.finished_before(10.0, limit=1) == [early]

    def test_every_digest_that_a_row_names_is_referenced(self, store: Store) -> None:
        environment = Environment(requirements=blob(2), frozen=blob(3))
        spec = JobSpec(call=Call(payload=blob(4)), code=Code(bundle=blob(1)))
        run = submit(store, spec=JobSpec(call=spec.call, code=spec.code, environment=environment))
        store.create_attempt(run.id, 1, world_size=1, time=1.0)
        attempt = AttemptId(run.id, 1)
        store.ingest([report(attempt, files={"model": blob(5)}, result=blob(6))])
        submit(store, spec=spec)  # names two of them again
        assert sorted(store.referenced_blobs()) == [blob(n) for n in range(1, 7)]
