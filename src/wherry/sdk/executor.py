"""
``wherry.Executor``: calls in the workers of a run, as ``concurrent.futures`` has them.

Called by people, by ``sdk.map`` and by ``wherry.joblib``. ``sdk.pool`` is the engine.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wherry.agent.parcels import Memo
from wherry.errors import InvalidInput
from wherry.sdk.connect import connect
from wherry.sdk.contexts import context
from wherry.sdk.functions import Served, nothing
from wherry.sdk.jobs import Job
from wherry.sdk.pool import Pool
from wherry.sdk.runs import refuse_nested
from wherry.sdk.submit import Draft, prepare, send

if TYPE_CHECKING:
    from wherry.bundle.environment import Choice

T = TypeVar("T")

#: A worker that dies is replaced at once; the pool gives up where that leads to nothing.
_REPLACE = {"restarts": 1000, "retry_on": ("signal", "oom", "exit"), "backoff": 0.0}


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
            "tags": None if tags is None else tuple(tags), "note": note, **_REPLACE,
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
            self.pool.drain()
            self.pool.close(wait=True)
        elif any(queue.busy for queue in queues):
            threading.Thread(target=self.shutdown, name="shutdown").start()
        else:
            self.pool.close()

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

    def lend(self, *, give: bool) -> Pool:
        """The workers; with ``give`` they are not this executor's any more."""
        pool = self.pool
        if give:
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
            if not queue.busy:
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
    def busy(self) -> bool:
        return bool(self._waiting or self._futures)

    def shut(self, *, cancel: bool) -> None:
        with self._changed:
            self._shut = True
            waiting = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
        for _, future in waiting:
            future.cancel()
            future.set_running_or_notify_cancel()

    def take(self, count: int) -> tuple[Sequence[int], list[Any]]:
        indexes: list[int] = []
        items: list[Any] = []
        with self._changed:
            while self._waiting and len(items) < count:
                item, future = self._waiting.popleft()
                if future.set_running_or_notify_cancel():
                    self._count += 1
                    self._futures[self._count] = future
                    indexes.append(self._count)
                    items.append(item)
        return indexes, items

    def left(self) -> int | None:
        return len(self._waiting)

    def finish(self, indexes: Sequence[int], values: list[Any]) -> None:
        with self._changed:
            found = [self._futures.pop(index) for index in indexes]
        for future, value in zip(found, values, strict=True):
            future.set_result(value)

    def fail(self, index: int, item: Any, error: BaseException) -> None:
        with self._changed:
            future = self._futures.pop(index)
        future.set_exception(error)

    def broken(self, error: BaseException) -> None:
        with self._changed:
            left = [*self._futures.values(), *(future for _, future in self._waiting)]
            self._futures.clear()
            self._waiting.clear()
        for future in left:
            if not future.cancelled():
                future.set_exception(error)


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
    return tuple(os.path.abspath(entry) for entry in sys.path if entry)
