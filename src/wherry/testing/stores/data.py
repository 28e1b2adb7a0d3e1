"""
Rows to test a store with, and ways to bring them where a test begins.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from wherry.core.ids import new_id
from wherry.core.job import Code, JobSpec, Scalar
from wherry.core.run import AttemptId, File, Run, Series
from wherry.core.states import RANK_NEXT, RUN_NEXT, RankState, RunState
from wherry.store.base import Chunk, ChunkKind, Exit, Report, Store

OpenStore = Callable[[], Store]
OWN: dict[str, str] = {"owner": "me", "project": "default"}
T = TypeVar("T")


def blob(number: int) -> str:
    """A digest."""
    return f"{number:064x}"


def make_run(**fields: Any) -> Run:
    """A run of mine, not stored yet."""
    spec = JobSpec(command=("python", "train.py"))
    usual = {"id": new_id("r"), "name": "digits", "created": 1.0, "spec": spec, **OWN}
    return Run(**{**usual, **fields})


def submit(store: Store, **fields: Any) -> Run:
    """A run of mine, stored."""
    return store.create_run(make_run(**fields))


def started(store: Store, world_size: int = 2, **fields: Any) -> AttemptId:
    """A run's first attempt."""
    run = submit(store, **fields)
    assert store.create_attempt(run.id, 1, world_size=world_size, time=1.0)
    return AttemptId(run.id, 1)


def finished(store: Store, state: RunState = RunState.SUCCEEDED, *, ended: float = 5.0) -> str:
    """The id of a run that ended so."""
    run = submit(store)
    *before, last = run_path(state)
    for step in before:
        assert store.move_run(run.id, step)
    assert store.move_run(run.id, last, ended=ended)
    return run.id


def run_path(to: RunState) -> list[RunState]:
    """Moves that bring a fresh run there."""
    return _path(RUN_NEXT, RunState.SUBMITTED, to)


def rank_path(to: RankState) -> list[RankState]:
    """Moves that bring a fresh rank there."""
    return _path(RANK_NEXT, RankState.PENDING, to)


def _path(table: Mapping[T, frozenset[T]], source: T, to: T) -> list[T]:
    paths: list[list[T]] = [[source]]
    while paths[0][-1] != to:
        first = paths.pop(0)
        paths += [[*first, after] for after in sorted(table[first[-1]], key=str)]
    return paths[0][1:]


def chunk(payload: bytes = b"line\n", kind: ChunkKind = "log", count: int = 1) -> Chunk:
    """A chunk as an agent sends it."""
    return Chunk(kind=kind, payload=payload, count=count, first=1.0, last=2.0)


def glance(name: str = "loss", **fields: Any) -> Series:
    """What one report says of a metric."""
    usual: dict[str, Any] = {"count": 1, "last": 0.5, "last_step": 1, "last_time": 1.0}
    return Series(**{"name": name, "attempt": 1, "rank": 0, **usual, **fields})


def report(
    attempt: AttemptId,
    rank: int = 0,
    seq: int | tuple[int, int] = 1,
    *,
    incarnation: int = 1,
    chunks: Sequence[Chunk] = (),
    files: Mapping[str, str] | None = None,
    params: Mapping[str, Scalar] | None = None,
    **fields: Any,
) -> Report:
    """One report; ``seq``: its one frame, or the first and the last."""
    first, last = (seq, seq) if isinstance(seq, int) else seq
    return Report(
        attempt=attempt,
        rank=rank,
        incarnation=incarnation,
        first_seq=first,
        last_seq=last,
        chunks=tuple(chunks),
        files=tuple(
            File(path=path, digest=digest, size=1, attempt=attempt.number, rank=rank)
            for path, digest in (files or {}).items()
        ),
        params=dict(params or {}),
        **fields,
    )


def everything(store: Store, *, key: str = "") -> AttemptId:
    """The first attempt of a run of which every table has a row; rank 0 ended, rank 1 did not."""
    spec = JobSpec(command=("x",), code=Code(bundle=blob(1)), tags=("t",))
    run = store.create_run(make_run(spec=spec), key=key)
    store.create_attempt(run.id, 1, world_size=2, time=1.0)
    attempt = AttemptId(run.id, 1)
    store.arrive(attempt, 0, 1, address="10.0.0.1", ports=(1, 2))
    kinds: tuple[ChunkKind, ...] = ("log", "metric", "usage")
    end = Exit(state=RankState.FAILED, time=3.0, exit_code=1, last_lines=("no",))
    first = report(
        attempt,
        chunks=[chunk(b"x" * 5000, kind) for kind in kinds],
        files={"model.bin": blob(8)},
        params={"lr": 0.1},
        series=(glance(),),
        phases={"environment": 0.5},
        state=RankState.RUNNING,
        started=2.0,
        result=blob(7),
        exit=end,
    )
    assert store.ingest([first]) == [1]
    return attempt


def all_of(store: Store, run_id: str) -> tuple[object, ...]:
    """All that a store knows of a run."""
    kinds: tuple[ChunkKind, ...] = ("log", "metric", "usage")
    return (
        store.run(run_id),
        store.attempts(run_id),
        store.series(run_id),
        store.params(run_id),
        store.files(run_id),
        store.events(run_id),
        *(store.chunks(run_id, kind) for kind in kinds),
    )


def together(act: Callable[[int], T], times: int = 8) -> list[T]:
    """What ``act`` returns in that many threads that start at once."""
    ready = threading.Barrier(times)
    results: list[T] = []

    def one(number: int) -> None:
        ready.wait()
        results.append(act(number))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == times, "a thread raised"
    return results
