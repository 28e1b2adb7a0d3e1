"""
A store against a model: hypothesis calls it in any order, and it must answer as plain
dictionaries do. Finds what no single promise names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from wherry.core.run import AttemptId
from wherry.core.states import (
    RANK_NEXT,
    RANK_TERMINAL,
    RUN_NEXT,
    RUN_TERMINAL,
    RankState,
    RunState,
)
from wherry.errors import Conflict, NotFound, StaleToken
from wherry.store.base import Exit, RunFilter, Store
from wherry.testing.stores.data import OpenStore, chunk, glance, make_run, report

ENDS = sorted({RankState.SUCCEEDED, RankState.FAILED, RankState.STOPPED})


@dataclass
class ModelRank:
    """A rank as the model sees it."""

    state: RankState = RankState.PENDING
    acked: int = 0


@dataclass
class ModelAttempt:
    """An attempt as the model sees it."""

    ranks: list[ModelRank]
    ended: bool = False
    stopping: str = ""

    def refuses(self, rank: int, incarnation: int) -> bool:
        if incarnation != 1 or self.ended or rank >= len(self.ranks):
            return True
        return self.ranks[rank].state is RankState.LOST


@dataclass
class ModelRun:
    """A run as the model sees it."""

    state: RunState = RunState.SUBMITTED
    stop_requested: bool = False
    attempts: list[ModelAttempt] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


#: What a run that was deleted looks like: nothing moves it.
GONE = ModelRun(state=RunState.LOST)


class StoreMachine(RuleBasedStateMachine):
    """Every rule does one thing to the store and to the model, and compares what they say."""

    runs = Bundle("runs")
    place: Callable[[], OpenStore]  #: gives an empty place each time

    def __init__(self) -> None:
        super().__init__()
        self.open_store = type(self).place()
        self.store: Store = self.open_store()
        self.model: dict[str, ModelRun] = {}

    def teardown(self) -> None:
        self.store.close()

    @rule(target=runs, key=st.sampled_from(["", "a", "b"]))
    def submit(self, key: str) -> Any:
        known = set(self.model)
        run = self.store.create_run(make_run(), key=key and f"{key}{len(known) // 3}", request="d")
        if run.id in known:
            return multiple()
        self.model[run.id] = ModelRun()
        return run.id

    @rule(run=runs, to=st.sampled_from(RunState), behind=st.integers(0, 1))
    def move_run(self, run: str, to: RunState, behind: int) -> None:
        model = self.model.get(run, GONE)
        allowed = to in RUN_NEXT[model.state] and not behind
        latest = len(model.attempts) - behind
        assert self.store.move_run(run, to, attempt=latest, ended=1.0) is allowed
        if allowed:
            model.state = to

    @rule(run=runs)
    def request_stop(self, run: str) -> None:
        model = self.model.get(run, GONE)
        allowed = model.state not in RUN_TERMINAL and not model.stop_requested
        assert self.store.request_stop(run) is allowed
        if allowed:
            model.stop_requested = True

    @rule(run=runs, size=st.integers(1, 3), ahead=st.sampled_from([1, 1, 1, 2]))
    def create_attempt(self, run: str, size: int, ahead: int) -> None:
        model = self.model.get(run, GONE)
        startable = RunState.STARTING in RUN_NEXT[model.state] and not model.stop_requested
        number = len(model.attempts) + ahead
        made = self.store.create_attempt(run, number, world_size=size, time=1.0)
        assert made is (startable and ahead == 1)
        if made:
            model.state = RunState.STARTING
            model.attempts.append(ModelAttempt([ModelRank() for _ in range(size)]))

    @rule(run=runs, number=st.integers(0, 2), why=st.sampled_from(["user", "timeout"]))
    def mark_stopping(self, run: str, number: int, why: str) -> None:
        if attempt := self._attempt(run, number):
            allowed = not attempt.stopping and not attempt.ended
            assert self.store.mark_stopping(AttemptId(run, number + 1), why) is allowed
            attempt.stopping = why if allowed else attempt.stopping

    @rule(run=runs, number=st.integers(0, 2))
    def end_attempt(self, run: str, number: int) -> None:
        if attempt := self._attempt(run, number):
            assert self.store.end_attempt(AttemptId(run, number + 1), 2.0) is not attempt.ended
            attempt.ended = True

    @rule(
        run=runs,
        number=st.integers(0, 2),
        rank=st.integers(0, 2),
        incarnation=st.sampled_from([1, 1, 2]),
    )
    def arrive(self, run: str, number: int, rank: int, incarnation: int) -> None:
        attempt = self._attempt(run, number)
        try:
            arrived = self.store.arrive(
                AttemptId(run, number + 1), rank, incarnation, address="h", ports=(rank,)
            )
        except StaleToken:
            assert attempt is None or attempt.refuses(rank, incarnation)
            return
        assert attempt is not None
        assert not attempt.refuses(rank, incarnation)
        model = attempt.ranks[rank]
        if model.state is RankState.PENDING:
            model.state = RankState.ARRIVED
        assert arrived.state is model.state

    @rule(run=runs, number=st.integers(0, 2), rank=st.integers(0, 2), to=st.sampled_from(RankState))
    def move_rank(self, run: str, number: int, rank: int, to: RankState) -> None:
        attempt = self._attempt(run, number)
        moved = self.store.move_rank(AttemptId(run, number + 1), rank, to)
        there = attempt is not None and rank < len(attempt.ranks)
        model = attempt.ranks[rank] if attempt is not None and there else None
        assert moved is (model is not None and to in RANK_NEXT[model.state])
        if model and moved:
            model.state = to

    @rule(
        run=runs,
        number=st.integers(0, 2),
        rank=st.integers(0, 2),
        skip=st.sampled_from([0, 0, 0, -1, -2, 1]),
        frames=st.integers(1, 2),
        incarnation=st.sampled_from([1, 1, 1, 2]),
        state=st.sampled_from([None, RankState.RUNNING]),
        end=st.sampled_from([None, None, *ENDS]),
        payload=st.sampled_from([b"", b"line\n", b"x" * 5000]),
    )
    def ingest(
        self,
        run: str,
        number: int,
        rank: int,
        skip: int,
        frames: int,
        incarnation: int,
        state: RankState | None,
        end: RankState | None,
        payload: bytes,
    ) -> None:
        attempt = self._attempt(run, number)
        there = attempt is not None and rank < len(attempt.ranks)
        acked = attempt.ranks[rank].acked if attempt is not None and there else 0
        first = max(1, acked + 1 + skip)
        last = first + frames - 1
        [outcome] = self.store.ingest(
            [
                report(
                    AttemptId(run, number + 1),
                    rank,
                    (first, last),
                    incarnation=incarnation,
                    chunks=[chunk(payload)],
                    series=(glance(),),
                    state=state,
                    exit=Exit(state=end, time=1.0) if end else None,
                )
            ]
        )
        if attempt is None or attempt.refuses(rank, incarnation):
            assert isinstance(outcome, StaleToken)
        elif last <= acked:
            assert outcome == acked
        elif first != acked + 1:
            assert isinstance(outcome, Conflict)
        else:
            assert outcome == last
            model = attempt.ranks[rank]
            model.acked = last
            self.model[run].payloads.append(payload)
            for to in (state, end):
                if to is not None and to in RANK_NEXT[model.state]:
                    model.state = to

    @rule(run=runs, end=st.sampled_from([RunState.FAILED, RunState.STOPPED]))
    def finish(self, run: str, end: RunState) -> None:
        model = self.model.get(run, GONE)
        for number, attempt in enumerate(model.attempts, start=1):
            self.store.end_attempt(AttemptId(run, number), 2.0)
            attempt.ended = True
        if self.store.move_run(run, end, ended=3.0):
            model.state = end

    @rule(run=runs)
    def delete(self, run: str) -> None:
        model = self.model.get(run)
        if model is None:
            with pytest.raises(NotFound):
                self.store.delete_run(run)
        elif model.state not in RUN_TERMINAL:
            with pytest.raises(Conflict):
                self.store.delete_run(run)
        else:
            self.store.delete_run(run)
            del self.model[run]

    @precondition(lambda self: self.model)
    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = self.open_store()

    @invariant()
    def the_runs_are_those_of_the_model(self) -> None:
        found = {run.id: run for run in self.store.runs(RunFilter(limit=1000))}
        assert list(found) == list(self.model)[::-1]
        for run_id, model in self.model.items():
            run = found[run_id]
            assert (run.state, run.stop_requested) == (model.state, model.stop_requested)
            assert run.attempt == len(model.attempts)

    @invariant()
    def the_attempts_are_those_of_the_model(self) -> None:
        live = {str(attempt.id) for attempt in self.store.live_attempts()}
        for run_id, model in self.model.items():
            attempts = self.store.attempts(run_id)
            for attempt, expected in zip(attempts, model.attempts, strict=True):
                assert (attempt.ended is not None) is expected.ended
                assert attempt.stopping == expected.stopping
                assert (str(attempt.id) in live) is not expected.ended
                found = [ModelRank(rank.state, rank.acked) for rank in attempt.ranks]
                assert found == expected.ranks
                for rank in attempt.ranks:
                    assert rank.state not in RANK_TERMINAL or rank.ended is not None

    @invariant()
    def the_chunks_are_those_of_the_model(self) -> None:
        for run_id, model in self.model.items():
            chunks = self.store.chunks(run_id, "log", limit=1000)
            assert [each.payload for each in chunks] == model.payloads
            assert sum(part.count for part in self.store.series(run_id)) == len(chunks)

    def _attempt(self, run: str, number: int) -> ModelAttempt | None:
        attempts = self.model.get(run, GONE).attempts
        return attempts[number] if number < len(attempts) else None


def check_against_model(place: Callable[[], OpenStore], *, examples: int, steps: int) -> None:
    """
    Call the store in ``examples`` orders of ``steps`` calls, the same each time.

    ``place`` gives a new, empty place: what it returns opens the store there, again and again.
    """
    machine = type("Machine", (StoreMachine,), {"place": staticmethod(place)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
