"""
``import wherry.joblib`` makes Wherry a back end of joblib, and so of scikit-learn::

    import wherry.joblib
    from joblib import parallel_config

    with parallel_config("wherry", on="cluster", n_jobs=16):
        GridSearchCV(model, grid).fit(X, y)

Options of the back end are those of ``wherry.Executor``. Arrays that several tasks use travel
once. The workers stay warm from call to call, for five minutes after the last. Within a task,
joblib works without further processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib.parallel import (  # type: ignore[import-untyped]
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
    cpu_count,
    register_parallel_backend,
)

from wherry.errors import InvalidInput
from wherry.sdk.executor import Executor

__all__ = ["WherryBackend"]

IDLE = 300.0  #: seconds that workers wait for another call, as loky's do

_lock = threading.Lock()
_warm: dict[str, _Warm] = {}


class WherryBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """joblib makes it, by name. ``options``: of ``wherry.Executor``."""

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers ``n_jobs`` means: below 0, as many as there are cores, and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs < 0 and self.backend_kwargs.get("on"):
            raise InvalidInput("how many workers?", hint="n_jobs=8")
        return n_jobs if n_jobs > 0 else max(cpu_count() + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: Any = None,
        require: Any = None,
        **_: Any,
    ) -> int:
        """Have the workers ready; how many. What joblib says of its memory maps is not for us."""
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1 or os.environ.get("WHERRY_RUN_ID"):  # in a task, that has its share
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = dict(self.backend_kwargs)
        if self.inner_max_num_threads is not None:
            env = self._prepare_worker_env(n_jobs=workers)
            options["env"] = {**env, **(options.get("env") or {})}
        self.parallel, self._n_jobs = parallel, n_jobs
        self._workers = _take(workers, options)
        return workers

    def start_call(self) -> None:
        """The arrays of one call to ``Parallel`` are taken not to change within it."""
        self._workers.begin()

    def stop_call(self) -> None:
        """The call is over."""
        self._workers.rest()

    def submit(self, func: Callable[[], Any], callback: Any = None) -> Future[Any]:
        """Call it in a worker."""
        future = self._workers.executor.submit_call(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit  # before joblib 1.5

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What became of it."""
        return out.result()

    def terminate(self) -> None:
        """The workers stay for the next call."""

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop what runs."""
        self._workers.drop()
        if ensure_ready:
            self.configure(n_jobs=self._n_jobs, parallel=self.parallel)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Within a task: no further processes or threads, for every core has its worker."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


class _Warm:
    """Workers that may serve several calls."""

    def __init__(self, key: str, executor: Executor) -> None:
        self.key, self.executor = key, executor
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.executor.memo = {}

    def rest(self) -> None:
        self.executor.memo = None
        self._timer = threading.Timer(IDLE, self._retire)
        self._timer.daemon = True
        self._timer.start()

    def drop(self, *, kill: bool = True) -> None:
        with _lock:
            if _warm.get(self.key) is self:
                del _warm[self.key]
        if kill:
            self.executor.kill()
        else:
            self.executor.shutdown(wait=False)

    def _retire(self) -> None:
        self.drop(kill=False)


def _take(workers: int, options: dict[str, Any]) -> _Warm:
    key = f"{workers} {sorted(options.items())!r} {os.getcwd()}"
    with _lock:
        found = _warm.get(key)
        if found is None or found.executor.closed:
            title = options.get("name") or "joblib"
            found = _warm[key] = _Warm(key, Executor(workers, **{**options, "name": title}))
        return found


register_parallel_backend("wherry", WherryBackend)
