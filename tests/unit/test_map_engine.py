"""The engine of wherry.map, with the real broker and the real worker's code in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, ClassVar

import numpy as np
import pytest

import wherry
from tests.unit.fake_pool import DIE, FakePlane, planes
from wherry.errors import InvalidInput, NotPicklable, WorkerLost
from wherry.sdk.executor import Executor
from wherry.sdk.functions import RemoteTraceback
from wherry.sdk.jobs import GROWTH, TARGET, Job
from wherry.testing.waiting import eventually


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    yield from planes()


class Borrowed(Executor):
    """An executor over a pool that is there. Nobody's going ends it."""

    def __init__(self, plane: FakePlane) -> None:
        plane.borrowed = self
        self.pool = plane.pool
        self._calls: dict[Any, Any] = {}
        self._lock = threading.Lock()
        self._shut = False


def run(plane: FakePlane, function: Any, *items: Any, **options: Any) -> Any:
    """wherry.map on these workers."""
    return wherry.map(
        function, *items, executor=plane.borrowed or Borrowed(plane), progress=False, **options
    )


def square(x: int) -> int:
    return x * x


def refuse(x: int) -> int:
    if x % 10 == 7:
        raise ValueError(f"no {x}")
    return x


def test_results_come_in_order_whatever_the_batches(plane: FakePlane) -> None:
    plane.start()
    assert list(run(plane, square, range(5000))) == [x * x for x in range(5000)]
    assert len(plane.chunks) < 100
    assert plane.chunks[0] == 1  # nobody knows yet how long they take


def test_several_iterables_end_with_the_shortest(plane: FakePlane) -> None:
    plane.start()
    assert list(run(plane, pow, [2, 3, 4], [5, 2])) == [32, 9]


def test_as_they_come_each_has_its_index(plane: FakePlane) -> None:
    plane.start()
    found = run(plane, square, range(100), ordered=False)
    assert len(found) == 100
    assert sorted(found) == [(x, x * x) for x in range(100)]


def test_nothing_to_do_needs_no_workers(plane: FakePlane) -> None:
    assert list(wherry.map(square, [])) == []
    assert list(run(plane.start(), square, iter([]))) == []


def test_an_endless_generator_is_read_as_it_is_needed(plane: FakePlane) -> None:
    plane.start()
    taken = []

    def numbers() -> Iterator[int]:
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    results = run(plane, square, numbers())
    assert [next(results) for _ in range(100)] == [x * x for x in range(100)]
    results.close()
    with pytest.raises(futures.CancelledError):
        list(results)


def test_who_reads_slowly_is_not_buried(plane: FakePlane, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys.modules["wherry.sdk.map"], "_AHEAD", 50)
    plane.start()
    results = run(plane, square, iter(range(100_000)), chunksize=10)
    eventually(lambda: results._job._done > 50)
    assert results._job._taken <= 50 + 10 * 3 * 2 + 10
    assert list(results) == [x * x for x in range(100_000)][: results._job._taken]


def test_an_iterator_that_raises_ends_the_map_with_that(plane: FakePlane) -> None:
    plane.start()

    def items() -> Iterator[int]:
        yield 1
        raise KeyError("input")

    with pytest.raises(KeyError, match="input"):
        list(run(plane, square, items()))


def test_an_error_carries_its_item_and_the_traceback_of_there(plane: FakePlane) -> None:
    plane.start()
    with pytest.raises(ValueError, match="no 7") as caught:
        list(run(plane, refuse, range(20)))
    task = caught.value.task  # type: ignore[attr-defined]
    assert (task.index, task.item, task.tries) == (7, 7, 1)
    assert "in refuse" in task.traceback and "agent/pool.py" not in task.traceback
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert caught.value.__notes__ == ["in item 7 of wherry.map: 7"]


def test_errors_may_be_returned_in_the_place_of_results(plane: FakePlane) -> None:
    plane.start()
    found = list(run(plane, refuse, range(20), errors="return"))
    assert [i for i, x in enumerate(found) if isinstance(x, ValueError)] == [7, 17]
    assert [x for x in found if isinstance(x, int)] == [x for x in range(20) if x % 10 != 7]


def test_an_item_is_tried_again_as_often_as_was_said(plane: FakePlane) -> None:
    plane.start()
    tried: dict[int, int] = {}

    def flaky(x: int) -> int:
        tried[x] = tried.get(x, 0) + 1
        if tried[x] < 3:
            raise OSError("not yet")
        return x

    shared = _Shared(flaky)
    assert list(run(plane, shared, range(5), retries=2)) == list(range(5))
    tried.clear()
    with pytest.raises(OSError, match="not yet") as caught:
        list(run(plane, shared, range(5), retries=1))
    assert caught.value.task.tries == 2  # type: ignore[attr-defined]


class _Shared:
    """Pickled by reference to this process's memory: the workers here are its threads."""

    kept: ClassVar[dict[int, Any]] = {}

    def __init__(self, function: Any) -> None:
        self.kept[id(self)] = function
        self.number = id(self)

    def __call__(self, *args: Any) -> Any:
        return self.kept[self.number](*args)


def test_a_result_that_cannot_be_pickled_is_the_error_of_its_item(plane: FakePlane) -> None:
    plane.start()

    def some(x: int) -> Any:
        return threading.Lock() if x == 3 else x

    found = list(run(plane, some, range(6), errors="return", chunksize=6))
    assert [found[i] for i in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]
    assert isinstance(found[3], TypeError)
    assert "returned a lock, which cannot be pickled" in str(found[3])


class Odd(Exception):
    """It pickles, but cannot be made again."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("odd")


def test_an_exception_that_cannot_be_pickled_is_told_in_words(plane: FakePlane) -> None:
    plane.start()

    def raise_odd(x: int) -> None:
        raise Odd(1, 2)

    with pytest.raises(wherry.errors.RunFailed, match="Odd: odd") as caught:
        list(run(plane, raise_odd, [1]))
    assert "raise_odd" in str(caught.value.__cause__)


def test_an_item_that_cannot_be_pickled_is_an_error_of_its_own(plane: FakePlane) -> None:
    plane.start()
    items = [1, threading.Lock(), 3, 4]
    found = list(run(plane, str, items, errors="return", chunksize=4))
    assert [found[i] for i in (0, 2, 3)] == ["1", "3", "4"]
    assert isinstance(found[1], NotPicklable)
    assert "item 1 cannot be pickled" in str(found[1])


def test_a_function_that_cannot_be_pickled_is_said_to_be_it(plane: FakePlane) -> None:
    lock = threading.Lock()
    with pytest.raises(NotPicklable, match="the function '<lambda>' cannot be pickled"):
        list(run(plane.start(), lambda x: lock, [1]))


def test_shared_arrays_travel_once(plane: FakePlane) -> None:
    plane.start()
    array = np.arange(50_000.0)
    found = run(plane, lambda item: float(item[0].sum()) + item[1], [(array, i) for i in range(40)])
    assert list(found) == [array.sum() + i for i in range(40)]
    assert len(plane.pushed) == 1


def test_a_large_function_travels_once(plane: FakePlane) -> None:
    plane.start()
    weights = b"w" * 1_000_000
    assert list(run(plane, lambda i: len(weights) + i, range(500))) == [
        1_000_000 + i for i in range(500)
    ]
    assert len(plane.pushed) == 1


def test_large_items_and_results_are_blobs(plane: FakePlane) -> None:
    plane.start()
    items = [bytes([i]) * 1_000_000 for i in range(4)]
    assert list(run(plane, lambda b: b + b"!", items)) == [b + b"!" for b in items]
    assert len(plane.pushed) == 4


def test_a_worker_that_dies_costs_no_result_and_its_items_are_done_again(plane: FakePlane) -> None:
    plane.start()
    died: list[int] = []
    done: list[int] = []

    def work(x: int) -> int:
        if x == 37 and not died:
            died.append(x)
            raise RuntimeError(DIE)
        done.append(x)
        return x

    results = list(run(plane, _Shared(work), range(300), chunksize=20))
    assert results == list(range(300))
    assert died == [37]
    twice = {x for x in done if done.count(x) > 1}
    assert twice <= set(range(20, 37))  # those of its batch that it had not told of


def test_an_item_that_kills_its_workers_is_named_and_spares_its_neighbours(
    plane: FakePlane,
) -> None:
    plane.start()

    def work(x: int) -> int:
        if x == 5:
            raise RuntimeError(DIE)
        return x

    found = list(run(plane, work, range(20), errors="return", chunksize=10))
    assert [x for i, x in enumerate(found) if i != 5] == [x for x in range(20) if x != 5]
    assert isinstance(found[5], WorkerLost)
    assert "3 workers died over item 5: killed by SIGKILL" in str(found[5])
    assert sum(plane.incarnations.values()) == 2 + 3


def test_a_broker_that_forgets_everything_is_told_again(plane: FakePlane) -> None:
    results = run(plane, square, range(200), chunksize=5)  # nobody works yet
    eventually(lambda: plane.broker._chunks)
    plane.forget()
    plane.start()
    read = [next(results) for _ in range(20)]
    plane.forget()
    assert read + list(results) == [x * x for x in range(200)]


def test_a_broker_with_little_room_is_not_overrun() -> None:
    for plane in planes(limit=2000):
        plane.start()
        assert list(run(plane, len, ["x" * 500] * 200, chunksize=3)) == [500] * 200


def test_a_cancelled_map_leaves_the_executors_workers_to_others(plane: FakePlane) -> None:
    results = run(plane, square, range(1000), chunksize=1)
    results.cancel()
    with pytest.raises(futures.CancelledError):
        next(results)
    plane.start()
    assert list(run(plane, square, range(10))) == [x * x for x in range(10)]
    assert not plane.stopped


def test_leaving_the_block_cancels(plane: FakePlane) -> None:
    with run(plane, square, range(1000)) as results:
        pass
    with pytest.raises(futures.CancelledError):
        next(results)


def test_a_task_whose_time_is_over_raises_a_timeout() -> None:
    """The alarm rings in the main thread, so the worker's code is called here."""
    from wherry.agent import pool

    inside: Any = object.__new__(pool.Worker)
    inside.watching = True
    limited = inside.timed(1, 0.05, lambda function, item: function(item))
    began = time.monotonic()
    with pytest.raises(pool.TimeIsUp, match=r"longer than 0\.05 s"):
        limited(time.sleep, 30)
    assert time.monotonic() - began < 20
    assert limited(abs, -1) == 1


@pytest.mark.parametrize("wrong", [{"chunksize": 0}, {"errors": "ignore"}, {"chunksize": "many"}])
def test_a_wrong_option_is_refused_before_anything_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=str(next(iter(wrong)))):
        wherry.map(square, [1], **wrong)


# --- how batches are cut


class Counted(Job):
    def __init__(self, count: int | None, **options: Any) -> None:
        super().__init__(square, **options)
        self.count = count

    def left(self) -> int | None:
        return self.count


def test_the_first_batch_is_one_and_then_it_is_what_takes_its_time() -> None:
    job = Counted(None)
    assert job.size(2) == 1
    job.learn(1, 0.02)
    assert job.size(2) == int(TARGET / 0.02)
    job.learn(1, 100.0)
    assert job.size(2) == 1


def test_a_batch_grows_no_faster_than_is_wise() -> None:
    job = Counted(None)
    job.learn(1, 1e-7)
    assert job.size(2) == GROWTH


def test_the_last_tasks_are_spread_over_the_workers_but_not_thinner_than_is_worth_it() -> None:
    job = Counted(40)
    job.learn(100, 0.1)  # a millisecond each
    assert job.size(2) == 10
    job.count = 4
    assert job.size(2) == 10  # ten milliseconds are not worth to be cut


def test_batches_of_large_items_are_small() -> None:
    job = Counted(None)
    job.learn(1000, 0.001)
    job.weigh(1, 300_000)
    assert job.size(2) == 3


def test_a_size_that_was_said_is_kept() -> None:
    job = Counted(10_000, chunksize=7)
    job.learn(1, 10.0)
    assert job.size(2) == 7
