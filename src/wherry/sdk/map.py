"""
``wherry.map`` and ``wherry.Executor``: plain Python functions over many workers.

Called by people. Both stand on ``sdk.pool``.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from concurrent import futures
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast, overload

from wherry.agent.parcels import Memo
from wherry.errors import InvalidInput
from wherry.sdk.connect import connect
from wherry.sdk.contexts import context
from wherry.sdk.functions import RemoteTraceback, Served, nothing
from wherry.sdk.pool import Job, Pool, Task
from wherry.sdk.progress import Bar, wanted
from wherry.sdk.runs import refuse_nested
from wherry.sdk.submit import Draft, prepare, send

if TYPE_CHECKING:
    from wherry.bundle.environment import Choice

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
        try:
            index = self._next if job.ordered else None
            index, value, error = job.get(index)
        except StopIteration:
            job.leave()
            raise
        except BaseException:  # Ctrl-C too
            self.cancel()
            raise
        self._next += 1
        if error is not None:
            if not job.returned:
                self.cancel()
                raise error
            value = error
        return cast(T, value if job.ordered else (index, value))

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
        self._taken = self._read = self._done = 0
        self._exhausted = False
        self._ready: dict[int, tuple[Any, BaseException | None]] = {}
        self._order: deque[int] = deque()  # as they came
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._pool: Pool | None = None
        self._owns = False
        self._left = False

    def start(self, pool: Pool, *, owns: bool) -> None:
        self._pool, self._owns = pool, owns
        pool.add(self)

    # --- the engine asks

    def take(self, count: int) -> list[Task]:
        if self._exhausted:
            return []
        if self.total is None and self._taken - self._read > _AHEAD + count:
            return []  # who reads is slower than the workers
        tasks = []
        try:
            for item in self._items:
                tasks.append(Task(self._taken, item))
                self._taken += 1
                if len(tasks) == count:
                    return tasks
            self._exhausted = True
        except Exception as error:
            self._exhausted = True
            with self._changed:
                self._error = error
        if self._done == self._taken:  # the last ones were none
            self.settled()
        return tasks

    def left(self) -> int | None:
        return None if self.total is None else self.total - self._taken

    def finish(self, task: Task, value: Any, error: BaseException | None) -> None:
        if error is not None:
            cause = error.__cause__
            trace = str(cause.args[0]) if isinstance(cause, RemoteTraceback) else ""
            place = Place(task.index, task.item, task.tries + 1, trace)
            error.add_note(f"in item {task.index} of wherry.map: {_shown(task.item)}")
            with suppress(AttributeError):  # a class with slots
                error.task = place  # type: ignore[attr-defined]
        task.item = None
        with self._changed:
            self._ready[task.index] = value, error
            if not self.ordered:
                self._order.append(task.index)
            self._done += 1

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
            self.leave()

    # --- the reader asks

    def get(self, index: int | None) -> tuple[int, Any, BaseException | None]:
        """The result of this index, or the next that came. :raises StopIteration: at the end."""
        with self._changed:
            while True:
                if index is None and self._order:
                    index = self._order.popleft()
                if index is not None and index in self._ready:
                    value, error = self._ready.pop(index)
                    self._read += 1
                    break
                if self._error is not None:
                    raise self._error
                if self._left and self._done < self._taken:
                    raise futures.CancelledError("the map was cancelled")
                if self._exhausted and self._read >= self._taken:
                    raise StopIteration
                self._changed.wait()
        if self.total is None and self._pool is not None and self._read % 1000 == 0:
            self._pool.wake()
        return index, value, error

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
        if self._owns:
            self._pool.close(kill=kill)


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
        owns = executor is None
        pool = (executor or Executor(workers, on=on, name=title, **options)).lend(owns=owns)
        if wanted(progress):
            job.bar = Bar(title, total)
        job.start(pool, owns=owns)
    else:
        job.leave()
    return Results(job)


def _sized(every: tuple[Iterable[Any], ...]) -> bool:
    return all(isinstance(i, Sized) for i in every)


class Executor(futures.Executor):
    """
    A ``concurrent.futures.Executor`` whose workers are the ranks of one run, here or on a cluster.

    They start at once and stay warm until ``shutdown``, the end of a ``with`` block or of this
    program. A future can be cancelled until its call is on its way to a worker.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        on: str = "",
        name: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        cpu: float | None = None,
        memory: str | int | None = None,
        gpu: int | None = None,
        env: Mapping[str, str] | None = None,
        environment: Choice = "auto",
        python: str = "",
        packages: Iterable[str] = (),
        folder: str | os.PathLike[str] | None = None,
        tags: Iterable[str] | None = None,
        note: str | None = None,
    ) -> None:
        """
        The options are those of ``wherry.run``.

        :param workers: how many processes; None: as many as this machine lets us have cores.
        :param initializer: called with ``initargs`` in every worker before its first task.
        :raises NestedSubmit: in a rank of a run. :raises WherryError: what is wrong, and a hint.
        """
        refuse_nested()
        here = context(on).endpoint is None
        workers = _workers(workers, here)
        resources = {"cpu": cpu, "memory": memory, "gpu": gpu}
        said = {
            "workers": workers, "name": name or None, "env": env,
            "resources": {k: v for k, v in resources.items() if v is not None} or None,
            "tags": None if tags is None else tuple(tags), "note": note,
        }  # fmt: skip
        served = Served(
            initializer or nothing,
            initargs,
            path=_import_path() if here else (),
            title=name or "map",
        )
        draft = Draft(
            function=served,
            changes={k: v for k, v in said.items() if v is not None},
            folder=Path(folder) if folder is not None else None,
            foreground=here,
            environment=environment,
            python=python,
            packages=tuple(packages),
        )
        prepared = prepare(draft)
        client = connect(on)
        self.pool = Pool(client, send(client, prepared, foreground=here), workers=workers)
        self._calls: dict[Any, _Calls] = {}
        self._lock = threading.Lock()
        self._shut = False
        _OPEN.add(self)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> futures.Future[T]:
        """Call it in a worker. :raises RuntimeError: after a shutdown."""
        return self._queue(fn, "call").submit((args, kwargs))

    def submit_call(self, call: Callable[[], T]) -> futures.Future[T]:
        """Call what needs no arguments and is another thing each time: it is the item itself."""
        return self._queue(None, "self").submit(call)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """
        Take no more calls. Again: no error.

        :param wait: until the calls are done and the workers have left.
        :param cancel_futures: those that are not on their way.
        """
        with self._lock:
            self._shut = True
            queues = list(self._calls.values())
        for queue in queues:
            queue.shut(cancel=cancel_futures)
        if wait:
            for queue in queues:
                queue.drain()
            self.pool.close(wait=True)
        elif all(queue.idle for queue in queues):
            self.pool.close()
        else:
            threading.Thread(target=self.shutdown, name="shutdown").start()

    def kill(self) -> None:
        """Stop what runs, in the middle; nobody waits for it any more."""
        for queue in list(self._calls.values()):
            queue.shut(cancel=True)
        self.pool.close(kill=True)

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        return self._shut or self.pool.closed

    @property
    def memo(self) -> Memo | None:
        """While it is set, arguments are taken not to change: see ``agent.parcels``."""
        return self.pool.memo

    @memo.setter
    def memo(self, memo: Memo | None) -> None:
        self.pool.memo = memo

    def lend(self, *, owns: bool) -> Pool:
        """The workers; with ``owns`` they are not this executor's any more."""
        pool = self.pool
        if owns:
            _OPEN.discard(self)
            del self.pool
        return pool

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()

    def _queue(self, function: Any, mode: str) -> _Calls:
        with self._lock:
            if self._shut or self.pool.closed:
                raise self.pool.error or RuntimeError("cannot schedule new futures after shutdown")
            try:
                found = self._calls.get(function)
            except TypeError:  # it cannot be hashed
                found = None
            if found is None:
                if len(self._calls) > 1000:
                    self._forget()
                found = _Calls(function, self.pool, mode)
                self.pool.add(found)
                try:
                    self._calls[function] = found
                except TypeError:
                    self._calls[id(found)] = found
            return found

    def _forget(self) -> None:
        """Functions that were made for one call each must not pile up."""
        for key, queue in list(self._calls.items()):
            if queue.idle:
                del self._calls[key]
                self.pool.remove(queue)


class _Calls(Job):
    """The calls of one function that an :class:`Executor` was asked for."""

    def __init__(self, function: Any, pool: Pool, mode: str) -> None:
        super().__init__(function, mode=mode)
        self._pool = pool
        self._waiting: deque[tuple[Any, futures.Future[Any]]] = deque()
        self._futures: dict[int, futures.Future[Any]] = {}
        self._changed = threading.Condition()
        self._count = 0
        self._shut = False

    def submit(self, item: Any) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()
        with self._changed:
            if self._shut or self._pool.closed:
                raise self._pool.error or RuntimeError("cannot schedule new futures after shutdown")
            self._waiting.append((item, future))
        self._pool.wake()
        return future

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._futures)

    def shut(self, *, cancel: bool) -> None:
        with self._changed:
            self._shut = True
            waiting = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
        for _, future in waiting:
            future.cancel()
            future.set_running_or_notify_cancel()

    def drain(self) -> None:
        with self._changed:
            while not self.idle and self._pool.error is None:
                self._changed.wait()

    def take(self, count: int) -> list[Task]:
        tasks: list[Task] = []
        with self._changed:
            while self._waiting and len(tasks) < count:
                item, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    tasks.append(Task(self._count, item))
                    self._futures[self._count] = future
                    self._count += 1
            if not tasks:
                self._changed.notify_all()
        return tasks

    def left(self) -> int | None:
        return len(self._waiting)

    def finish(self, task: Task, value: Any, error: BaseException | None) -> None:
        with self._changed:
            future = self._futures.pop(task.index)
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def broken(self, error: BaseException) -> None:
        with self._changed:
            left = [*self._futures.values(), *(future for _, future in self._waiting)]
            self._futures.clear()
            self._waiting.clear()
        for future in left:
            if not future.cancelled():
                future.set_exception(error)

    def settled(self) -> None:
        with self._changed:
            self._changed.notify_all()


_OPEN: weakref.WeakSet[Executor] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    """As for other executors: what was submitted is done before the program ends."""
    for executor in list(_OPEN):
        executor.shutdown()


def _workers(workers: int | None, here: bool) -> int:
    if workers is not None:
        return workers
    if not here:
        raise InvalidInput("how many workers?", hint="workers=8")
    return len(os.sched_getaffinity(0))


def _import_path() -> tuple[str, ...]:
    """Where this process imports from: on the same machine a worker may, too."""
    import sys

    return tuple(os.path.abspath(entry) for entry in sys.path if entry)
