"""
What a store promises of reports: each stored once, whole or not at all, and read back as it came.
"""

from __future__ import annotations

import math
import os

import pytest

from wherry.core.job import JobSpec
from wherry.core.run import AttemptId
from wherry.core.states import RankState, RunState
from wherry.errors import Conflict, InvalidInput, StaleToken
from wherry.store.base import Exit, Report, Store
from wherry.testing.stores.data import (
    all_of,
    blob,
    chunk,
    glance,
    report,
    started,
    submit,
    together,
)

NAN, INF = math.nan, math.inf


class ReportContract:
    """Part of ``StoreContract``."""

    # --- numbering
    def test_a_report_is_acknowledged_by_its_last_frame(self, store: Store) -> None:
        attempt = started(store)
        assert store.ingest([report(attempt, seq=(1, 5)), report(attempt, rank=1)]) == [5, 1]
        assert [rank.acked for rank in store.attempt(attempt).ranks] == [5, 1]

    def test_no_reports_are_no_trouble(self, store: Store) -> None:
        assert store.ingest([]) == []

    def test_reports_of_one_rank_may_follow_one_another_in_a_group(self, store: Store) -> None:
        attempt = started(store)
        group = [report(attempt, seq=n, chunks=[chunk(b"%d" % n)]) for n in (1, 2, 3)]
        assert store.ingest(group) == [1, 2, 3]
        assert _payloads(store, attempt) == [b"1", b"2", b"3"]

    def test_what_was_stored_before_is_only_acknowledged(self, store: Store) -> None:
        attempt = started(store)
        one = report(attempt, seq=(1, 3), chunks=[chunk()], series=(glance(),))
        assert store.ingest([one, one]) == [3, 3]
        assert store.ingest([one]) == [3]
        assert store.ingest([report(attempt, seq=(1, 2), chunks=[chunk()])]) == [3]
        assert len(store.chunks(attempt.run, "log")) == 1
        assert store.series(attempt.run)[0].count == 1

    @pytest.mark.parametrize("seq", [(3, 5), (1, 4), (5, 6)])
    def test_a_report_that_does_not_follow_is_refused_with_the_frame_to_send_from(
        self, store: Store, seq: tuple[int, int]
    ) -> None:
        attempt = started(store)
        store.ingest([report(attempt, seq=(1, 3))])
        before = all_of(store, attempt.run)
        [refused] = store.ingest([report(attempt, seq=seq, chunks=[chunk()])])
        assert isinstance(refused, Conflict)
        assert not isinstance(refused, StaleToken)
        assert "from frame 4" in refused.hint
        assert all_of(store, attempt.run) == before

    # --- refusal
    def test_a_stale_report_leaves_no_trace_and_does_not_disturb_the_others(
        self, store: Store
    ) -> None:
        attempt = started(store, world_size=4)
        over = started(store)
        store.move_rank(attempt, 1, RankState.LOST)
        store.end_attempt(over, 3.0)
        stale = [
            _full(attempt, rank=0, incarnation=2),
            _full(attempt, rank=1),
            _full(over, rank=0),
            _full(attempt, rank=99),
            _full(AttemptId("r0123", 1), rank=0),
        ]
        before = all_of(store, over.run), store.attempt(attempt)
        outcomes = store.ingest([report(attempt, rank=2), *stale, report(attempt, rank=3)])
        assert [outcomes[0], outcomes[-1]] == [1, 1]
        assert all(isinstance(outcome, StaleToken) for outcome in outcomes[1:-1])
        after = all_of(store, over.run), store.attempt(attempt)
        assert after[0] == before[0]
        assert after[1].ranks[:2] == before[1].ranks[:2]
        assert store.chunks(attempt.run, "log") == []
        assert list(store.referenced_blobs()) == []

    @pytest.mark.parametrize(
        "wrong",
        [
            {"chunks": [chunk(count=2**63)]},
            {"series": (glance(last_step=2**63),)},
            {"series": (glance(last_time=NAN),)},
            {"exit": Exit(state=RankState.FAILED, time=1.0, exit_code=2**63)},
        ],
        ids=["chunk", "step", "time", "exit"],
    )
    def test_a_report_that_fits_no_column_is_refused_alone(
        self, store: Store, wrong: dict[str, object]
    ) -> None:
        attempt = started(store, world_size=3)
        bad = report(attempt, 1, **{"files": {"a": blob(1)}, **wrong})  # type: ignore[arg-type]
        outcomes = store.ingest([report(attempt, 0), bad, report(attempt, 2)])
        assert [outcomes[0], outcomes[2]] == [1, 1]
        assert isinstance(outcomes[1], InvalidInput)
        assert store.attempt(attempt).ranks[1].acked == 0
        assert [*store.files(attempt.run), *store.chunks(attempt.run, "log")] == []

    def test_text_that_is_no_unicode_is_stored_with_a_replacement(self, store: Store) -> None:
        attempt = started(store)
        odd = "a\udc80\0b"
        end = Exit(state=RankState.FAILED, time=1.0, message=odd, last_lines=(odd, "ünï"))
        one = report(
            attempt, files={odd: blob(1)}, params={odd: odd}, series=(glance(odd),), exit=end
        )
        assert store.ingest([one]) == [1]
        rank = store.attempt(attempt).ranks[0]
        assert rank.last_lines[1] == "ünï"
        [(name, value)] = store.params(attempt.run).items()
        for text in (rank.message, name, value, store.files(attempt.run)[0].path):
            assert isinstance(text, str)
            assert text.encode().startswith(b"a")
            assert text != odd

    # --- chunks
    @pytest.mark.parametrize("kind", ["log", "metric", "usage"])
    @pytest.mark.parametrize(
        "payload",
        [b"", b"\x00\xff", b"x" * 1024, b"line\n" * 50_000, os.urandom(50_000)],
        ids=["empty", "binary", "short", "long", "noise"],
    )
    def test_a_chunk_comes_back_as_it_was_sent(
        self, store: Store, kind: str, payload: bytes
    ) -> None:
        attempt = started(store)
        sent = chunk(payload, kind, count=7)  # type: ignore[arg-type]
        store.ingest([report(attempt, rank=1, chunks=[sent])])
        [got] = store.chunks(attempt.run, sent.kind)
        assert (got.payload, got.count, got.first, got.last) == (payload, 7, 1.0, 2.0)
        assert (got.kind, got.attempt, got.rank) == (kind, 1, 1)

    def test_chunk_ids_grow_across_runs_and_after_removal(self, store: Store) -> None:
        one, two = started(store), started(store)
        for number in (1, 2):
            store.ingest([report(a, seq=number, chunks=[chunk()]) for a in (one, two)])
        ids = [c.id for n in range(2) for a in (one, two) for c in [store.chunks(a.run, "log")[n]]]
        assert ids == sorted(set(ids))
        store.end_attempt(two, 1.0)
        store.move_run(two.run, RunState.FAILED)
        store.delete_run(two.run)
        store.ingest([report(one, seq=3, chunks=[chunk()])])
        assert store.chunks(one.run, "log", newest=True, limit=1)[0].id > ids[-1]

    def test_chunks_are_read_from_a_cursor_in_order(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, chunks=[chunk(b"%d" % n) for n in range(6)])])
        ids = [c.id for c in store.chunks(attempt.run, "log")]

        def read(**asked: object) -> list[int]:
            found = store.chunks(attempt.run, "log", **asked)  # type: ignore[arg-type]
            return [ids.index(c.id) for c in found]

        assert read() == [0, 1, 2, 3, 4, 5]
        assert read(limit=2) == [0, 1]
        assert read(after=ids[1], limit=2) == [2, 3]
        assert read(after=ids[1], before=ids[4]) == [2, 3]
        assert read(newest=True, limit=2) == [4, 5]
        assert read(newest=True, limit=2, before=ids[4]) == [2, 3]
        assert read(after=ids[5]) == []

    def test_chunks_are_chosen_by_kind_attempt_and_ranks(self, store: Store) -> None:
        attempt = started(store, world_size=3)
        store.ingest(
            [report(attempt, rank=n, chunks=[chunk(), chunk(b"", "usage")]) for n in range(3)]
        )
        assert len(store.chunks(attempt.run, "log")) == 3
        assert store.chunks(attempt.run, "metric") == []
        assert [c.rank for c in store.chunks(attempt.run, "log", ranks=[2, 0])] == [0, 2]
        assert store.chunks(attempt.run, "log", ranks=[]) == []
        assert store.chunks(attempt.run, "log", attempt=2) == []
        assert len(store.chunks(attempt.run, "log", attempt=1)) == 3
        assert store.chunks("r0123", "log") == []

    # --- series, parameters, files
    def test_series_are_merged_over_reports(self, store: Store) -> None:
        attempt = started(store)
        first = glance(count=2, last=4.0, last_step=2, last_time=2.0, min=1.0, max=4.0)
        second = glance(count=1, last=3.0, last_step=1, last_time=3.0, min=0.5, max=3.0)
        store.ingest([report(attempt, series=(first,))])
        store.ingest([report(attempt, seq=2, series=(second,))])
        merged = glance(count=3, last=3.0, last_step=1, last_time=3.0, min=0.5, max=4.0)
        assert store.series(attempt.run) == [merged]

    def test_series_of_several_reports_in_a_group_are_merged_too(self, store: Store) -> None:
        attempt = started(store)
        group = [report(attempt, seq=n, series=(glance(last=n, min=n, max=n),)) for n in (1, 2, 3)]
        store.ingest(group)
        assert store.series(attempt.run) == [glance(count=3, last=3.0, min=1.0, max=3.0)]

    @pytest.mark.parametrize("strange", [NAN, INF, -INF])
    def test_nan_and_infinities_are_kept_and_never_win(self, store: Store, strange: float) -> None:
        attempt = started(store)
        for number, value in enumerate((strange, 2.0, strange), start=1):
            part = glance(last=value, min=value, max=value)
            store.ingest([report(attempt, seq=number, series=(part,))])
            [now] = store.series(attempt.run)
            assert now.last == value or (math.isnan(float(now.last)) and math.isnan(value))
            best = None if number == 1 else 2.0
            assert (now.min, now.max) == (best, best)

    def test_series_are_listed_by_attempt_rank_and_name(self, store: Store) -> None:
        attempt = started(store)
        both = (glance("b"), glance("a"))
        store.ingest([report(attempt, rank=rank, series=both) for rank in (1, 0)])
        found = [(s.attempt, s.rank, s.name) for s in store.series(attempt.run)]
        assert found == [(1, 0, "a"), (1, 0, "b"), (1, 1, "a"), (1, 1, "b")]

    def test_a_rank_reports_of_itself_only(self, store: Store) -> None:
        attempt = started(store)
        claims = glance(attempt=7, rank=0)
        store.ingest([report(attempt, rank=1, series=(claims,), chunks=[chunk()])])
        [part] = store.series(attempt.run)
        assert (part.attempt, part.rank) == (1, 1)

    def test_reported_parameters_come_over_those_of_the_spec(self, store: Store) -> None:
        spec = JobSpec(command=("x",), params={"lr": 0.1, "seed": 1})
        attempt = started(store, spec=spec)
        assert store.params(attempt.run) == {"lr": 0.1, "seed": 1}
        store.ingest([report(attempt, params={"lr": 0.2, "on": True, "none": None, "big": 2**70})])
        store.ingest([report(attempt, seq=2, params={"lr": 0.3, "name": "ünï", "inf": INF})])
        assert store.params(attempt.run) == {
            "seed": 1,
            "on": True,
            "none": None,
            "big": 2**70,
            "lr": 0.3,
            "name": "ünï",
            "inf": INF,
        }

    def test_of_a_file_the_latest_version_is_listed(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, files={"b": blob(1), "a": blob(2)})])
        store.ingest([report(attempt, rank=1, files={"a": blob(3)})])
        store.ingest([report(attempt, seq=2, files={"a": blob(4)})])
        found = [(f.rank, f.path, f.digest, f.attempt) for f in store.files(attempt.run)]
        assert found == [(0, "a", blob(4), 1), (0, "b", blob(1), 1), (1, "a", blob(3), 1)]

    # --- what a report says of its rank
    def test_a_report_says_that_the_program_started_and_ended(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, state=RankState.RUNNING, started=4.0)])
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.started, rank.ended) == (RankState.RUNNING, 4.0, None)
        end = Exit(state=RankState.FAILED, time=6.0, exit_code=3, cause="exit", last_lines=("no",))
        store.ingest([report(attempt, seq=2, exit=end)])
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.ended, rank.exit_code) == (RankState.FAILED, 6.0, 3)
        assert (rank.cause, rank.last_lines) == ("exit", ("no",))

    def test_an_exit_of_a_rank_that_ended_changes_nothing_but_its_log_is_kept(
        self, store: Store
    ) -> None:
        attempt = started(store)
        store.move_rank(attempt, 0, RankState.STOPPED)
        ended = store.attempt(attempt).ranks[0].ended
        late = Exit(state=RankState.SUCCEEDED, time=9.0, exit_code=0)
        one = report(attempt, chunks=[chunk()], state=RankState.RUNNING, started=1.0, exit=late)
        assert store.ingest([one]) == [1]
        rank = store.attempt(attempt).ranks[0]
        assert (rank.state, rank.ended, rank.exit_code) == (RankState.STOPPED, ended, None)
        assert rank.started is None
        assert len(store.chunks(attempt.run, "log")) == 1

    def test_phases_add_up_over_reports(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, phases={"bundle": 1.0, "barrier": 2.0})])
        store.ingest([report(attempt, seq=2, phases={"run": 3.0, "odd": NAN})])
        phases = store.attempt(attempt).ranks[0].phases
        assert phases == {"bundle": 1.0, "barrier": 2.0, "run": 3.0}

    def test_a_result_that_came_before_the_exit_is_kept(self, store: Store) -> None:
        attempt = started(store)
        store.ingest([report(attempt, result=blob(1))])
        end = Exit(state=RankState.SUCCEEDED, time=2.0, exit_code=0)
        store.ingest([report(attempt, seq=2, exit=end)])
        assert store.attempt(attempt).ranks[0].result == blob(1)
        assert list(store.referenced_blobs()) == [blob(1)]

    def test_many_writers_lose_nothing(self, store: Store) -> None:
        attempt = started(store, world_size=8)

        def write(rank: int) -> None:
            for seq in range(1, 11):
                part = (glance(),)
                [one] = store.ingest([report(attempt, rank, seq, chunks=[chunk()], series=part)])
                assert one == seq

        together(write)
        assert len(store.chunks(attempt.run, "log")) == 80
        assert [part.count for part in store.series(attempt.run)] == [10] * 8

    def test_an_unknown_run_reported_nothing(self, store: Store) -> None:
        submit(store)
        assert [*store.series("r0123"), *store.files("r0123"), *store.events("r0123")] == []


def _full(attempt: AttemptId, **fields: object) -> Report:
    """A report with something for every table."""
    return report(
        attempt,
        chunks=[chunk()],
        files={"a": blob(1)},
        params={"lr": 1.0},
        series=(glance(),),
        phases={"run": 1.0},
        state=RankState.RUNNING,
        result=blob(2),
        exit=Exit(state=RankState.FAILED, time=1.0),
        **fields,  # type: ignore[arg-type]
    )


def _payloads(store: Store, attempt: AttemptId) -> list[bytes]:
    return [c.payload for c in store.chunks(attempt.run, "log")]
