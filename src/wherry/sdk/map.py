"""
``wherry.map``: a plain Python function over many items in many processes.

Called by people. ``sdk.executor`` has the workers, ``sdk.pool`` the engine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar, cast, overload

from wherry.errors import InvalidInput
from wherry.sdk.executor import Executor
from wherry.sdk.functions import RemoteTraceback
from wherry.sdk.jobs import Job
from wherry.sdk.pool import Pool
from wherry.sdk.progress import Bar, wanted

T = TypeVar("T")
_AHEAD = 10_000  # results of an iterator without a length that may wait to be read


@dataclass(frozen=True)
class Place:
    """Where an exception of :func:`map` came from: its attribute ``task``."""

    index: int
    item: Any  #: a tuple where there are several iterables
    tries: int
    traceback: str  #: of the worker; "" where it was not raised there


class Results(Generic[T]):
    """
    The results of :func:`map`: an iterator. Also a context manager; leaving it cancels the rest.

    Nothing is left running when it was read to its end, an error was raised, it was closed or
    cancelled, or nobody refers to it any more.
    """

    def __init__(self, job: _Mapped) -> None:
        self._job = job
        self._next = 0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """:raises Exception: what the function raised, with :class:`Place` as its ``task``."""
        job = self._job
        index = self._next if job.ordered else None
        value = job.ready.pop(index, job) if index is not None else job
        if value is job:  # nothing is ready; itself, for it is no result
            index, value = self._wait(index)
        self._next += 1
        job.read = self._next
        if value.__class__ is _Failed:
            if not job.returned:
                self.cancel()
                raise value.error
            value = value.error
        return cast(T, value if job.ordered else (index, value))

    def _wait(self, index: int | None) -> tuple[int, Any]:
        try:
            return self._job.get(index)
        except StopIteration:
            self._job.leave()
            raise
        except BaseException:  # Ctrl-C too
            self.cancel()
            raise

    def __len__(self) -> int:
        """How many there are in all. :raises TypeError: where the items have no length."""
        if self._job.total is None:
            raise TypeError("the items have no length")
        return self._job.total

    def cancel(self) -> None:
        """Stop what runs and forget what has not begun. Again, or after the end: nothing."""
        self._job.leave(kill=True)

    close = cancel

    def __enter__(self) -> Results[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self._job.leave(kill=True)


class _Failed:
    """In the place of a result."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Mapped(Job):
    """The job of one map."""

    def __init__(
        self,
        function: Callable[..., Any],
        items: Iterator[Any],
        total: int | None,
        *,
        mode: str,
        ordered: bool,
        returned: bool,
        **options: Any,
    ) -> None:
        super().__init__(function, mode=mode, **options)
        self.total, self.ordered, self.returned = total, ordered, returned
        self.bar: Bar | None = None
        self._items = items
        self._taken = self._done = 0
        self.read = 0  # results that were handed out
        self._exhausted = False
        self.ready: dict[int, Any] = {}
        self._order: deque[int] = deque()  # as they came
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._pool: Pool | None = None
        self._lender: Executor | None = None  # it ends with its last reference
        self._left = False
        self.why = ""  #: what raised first, where that ends the map

    def start(self, pool: Pool, lender: Executor | None) -> None:
        self._pool, self._lender = pool, lender
        pool.add(self)

    @property
    def busy(self) -> bool:
        return self.total is not None and self._done < self.total and self._error is None

    # --- the engine asks

    def take(self, count: int) -> tuple[Sequence[int], list[Any]]:
        if self._exhausted:
            return (), []
        if self.total is None and self._done - self.read > _AHEAD:
            return (), []  # who reads is slower than the workers
        first = self._taken
        try:
            items = list(islice(self._items, count))
        except Exception as error:
            items = []
            self.why = f"the items of the map raised {_in_words(error)}"
            with self._changed:
                self._error = error
        self._taken += len(items)
        if len(items) < count:
            self._exhausted = True
            if self._done == self._taken:  # the last ones were none
                self.settled()
        return range(first, self._taken), items

    def left(self) -> int | None:
        return None if self.total is None else self.total - self._taken

    def finish(self, indexes: Sequence[int], values: list[Any]) -> None:
        with self._changed:
            self.ready.update(zip(indexes, values, strict=True))
            if not self.ordered:
                self._order.extend(indexes)
            self._done += len(values)

    def fail(self, index: int, item: Any, error: BaseException) -> None:
        cause = error.__cause__
        trace = str(cause.args[0]) if isinstance(cause, RemoteTraceback) else ""
        place = Place(index, item, max(1, self.tries.get(index, 0)), trace)
        error.add_note(f"in item {index} of wherry.map: {_shown(item)}")
        if not self.returned:
            self.why = self.why or f"item {index} of the map raised {_in_words(error)}"
        with suppress(AttributeError):  # a class with slots
            error.task = place  # type: ignore[attr-defined]
        self.finish((index,), [_Failed(error)])

    def broken(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._exhausted = True

    def settled(self) -> None:
        with self._changed:
            self._changed.notify_all()
            done, over = self._done, self._exhausted and self._done >= self._taken
        if self.bar is not None:
            self.bar.move(done)
        if over:
            self.leave(kill=bool(self.why))

    # --- the reader asks

    def get(self, index: int | None) -> tuple[int, Any]:
        """The result of this index, or the next that came. :raises StopIteration: at the end."""
        if self.total is None and self._pool is not None:
            self._pool.wake()  # there may be room for more
        with self._changed:
            while True:
                if index is None and self._order:
                    index = self._order.popleft()
                if index is not None and index in self.ready:
                    return index, self.ready.pop(index)
                if self._error is not None:
                    raise self._error
                if self._exhausted and self.read >= self._taken:
                    raise StopIteration
                if self._left:
                    raise futures.CancelledError("the map was cancelled")
                self._changed.wait()

    def leave(self, *, kill: bool = False) -> None:
        """The workers are not needed any more. Again: nothing."""
        with self._changed:
            first, self._left = not self._left, True
            self._changed.notify_all()
        if not first or self._pool is None:
            return
        if self.bar is not None:
            self.bar.close()
        self._pool.remove(self)
        if self._lender is None:
            self._pool.close(kill=kill, why=self.why)
        self._lender = None


def _in_words(error: BaseException) -> str:
    try:
        text = str(error).partition("\n")[0]
    except Exception:  # an exception of theirs may not even do that
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _shown(item: Any) -> str:
    try:
        text = repr(item)
    except Exception:
        text = f"a {type(item).__name__}"
    return text if len(text) <= 200 else text[:197] + "..."


@overload
def map(  # noqa: A001
    function: Callable[..., T],
    items: Iterable[Any],
    /,
    *more: Iterable[Any],
    ordered: Literal[True] = True,
    **options: Any,
) -> Results[T]: ...
@overload
def map(  # noqa: A001
    function: Callable[..., T],
    items: Iterable[Any],
    /,
    *more: Iterable[Any],
    ordered: Literal[False],
    **options: Any,
) -> Results[tuple[int, T]]: ...
def map(  # noqa: A001
    function: Callable[..., Any],
    items: Iterable[Any],
    /,
    *more: Iterable[Any],
    workers: int | None = None,
    on: str = "",
    executor: Executor | None = None,
    ordered: bool = True,
    chunksize: int | Literal["auto"] = "auto",
    retries: int = 0,
    timeout: float | None = None,
    progress: bool | None = None,
    errors: Literal["raise", "return"] = "raise",
    name: str = "",
    **options: Any,
) -> Results[Any]:
    """
    Call ``function`` for each of ``items`` in many processes, here or on a cluster.

    ::

        total = sum(wherry.map(score, range(100)))
        for index, result in wherry.map(score, range(100), workers=8, ordered=False): ...

    It begins at once and returns an iterator. With several iterables the function gets one item of
    each, up to the end of the shortest. The items are taken as workers need them, in a thread of
    its own, so they may come from a generator without an end.

    :param workers: how many processes; None: as many as this machine lets us have cores.
    :param on: a context's name; "" is the one in use.
    :param executor: use its warm workers instead of starting some; they stay.
    :param ordered: results in the order of the items; False: ``(index, result)`` as they come.
    :param chunksize: items that travel together; "auto": as many as take a twelfth of a second.
    :param retries: how often an item whose call raised is tried again.
    :param timeout: seconds of one call; then it raises ``TimeoutError``.
    :param progress: show a bar on stderr; None: where that is a terminal.
    :param errors: "raise" the first that comes up and cancel the rest, or "return" exceptions in
        the place of results. Either has an attribute ``task``: see :class:`Place`.
    :param options: of the workers: those of :class:`Executor`.
    :raises NestedSubmit: in a rank of a run. :raises WherryError: what is wrong, and a hint.
    """
    if errors not in ("raise", "return"):
        raise InvalidInput(f"errors={errors!r} is neither 'raise' nor 'return'")
    if chunksize != "auto" and (not isinstance(chunksize, int) or chunksize < 1):
        raise InvalidInput(f"chunksize={chunksize!r} is neither 'auto' nor a number from 1")
    every = (items, *more)
    total = min(len(i) for i in every if isinstance(i, Sized)) if _sized(every) else None
    job = _Mapped(
        function,
        zip(*every, strict=False) if more else iter(items),
        total,
        mode="args" if more else "item",
        ordered=ordered,
        returned=errors == "return",
        retries=retries,
        timeout=timeout,
        chunksize=0 if chunksize == "auto" else chunksize,
    )
    if total != 0:
        title = name or str(getattr(function, "__name__", "map"))
        lender = executor or Executor(workers, on=on, name=title, **options)
        pool = lender.lend(give=executor is None)
        if wanted(progress):
            job.bar = Bar(title, total)
        job.start(pool, executor)
    else:
        job.take(1)  # it sees that there is nothing, and takes no workers
    return Results(job)


def _sized(every: tuple[Iterable[Any], ...]) -> bool:
    return all(isinstance(i, Sized) for i in every)
