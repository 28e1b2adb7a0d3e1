"""
Workers that wait for tasks, and the tasks that they have not answered: the engine of
``wherry.map``, ``wherry.Executor`` and the joblib back end.

The workers are the ranks of one run; everything goes through the control plane (``agent.tasks``).
That may forget all, for here is the truth: what is not answered is sent again. A worker that dies
gives its tasks back; each is then done again alone, so that the one that kills is found out.

One thread packs tasks and sends them, another receives. A :class:`Job` says which tasks there are
and what becomes of them.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import pickle
import threading
from collections import deque
from contextlib import suppress
from itertools import chain
from typing import Any

from wherry.agent import parcels
from wherry.agent import tasks as t
from wherry.agent.protocol import pack_item
from wherry.core.run import Run
from wherry.core.states import RUN_TERMINAL, RunState
from wherry.errors import NotPicklable, RunFailed, WherryError, WorkerLost
from wherry.sdk.client import Client
from wherry.sdk.functions import remote_error

TARGET = 0.08  #: seconds that a chunk shall take
LEAST = 0.01  #: seconds that are not worth to be cut further, to spread the last tasks
GROWTH = 32  #: how many times larger a chunk may be than the largest before
DEATHS = 3  #: workers that a task may kill
_SHORT = 0.2  # seconds: what takes less may wait behind another at its worker
_BYTES = 1 << 20  # of a chunk, about
_SEND = 4 << 20  # bytes of one request, about
_WAIT = 10.0  # seconds of one long poll; each keeps the driver's lease
_LEAVE = 20.0  # seconds for the workers to leave


class Task:
    """One call that somebody waits for. ``index``: its place in its job."""

    __slots__ = ("alone", "deaths", "index", "item", "tries")

    def __init__(self, index: int, item: Any) -> None:
        self.index, self.item = index, item
        self.tries = self.deaths = 0
        self.alone = False


class Job:
    """
    The tasks of one function. Subclasses have :meth:`take`, :meth:`finish` and :meth:`broken`.

    :param mode: how an item becomes a call: ``agent.pool.MODES``.
    :param chunksize: tasks of a chunk; 0: as many as take :data:`TARGET` seconds.
    :param timeout: seconds of one task.
    """

    def __init__(
        self,
        function: Any,
        *,
        mode: str = "item",
        retries: int = 0,
        timeout: float | None = None,
        chunksize: int = 0,
    ) -> None:
        self.function, self.mode = function, mode
        self.retries, self.timeout, self.chunksize = retries, timeout, chunksize
        self.again: deque[Task] = deque()  # to be done again, before what is new
        self.packed: tuple[str, parcels.Parcel] | None = None
        self._pace = 0.0  # seconds of a task, measured at the workers
        self._bytes = 0.0  # bytes of a task
        self._largest = 1

    def take(self, count: int) -> list[Task]:
        """At most so many new tasks; none where there are none now."""
        raise NotImplementedError

    def finish(self, task: Task, value: Any, error: BaseException | None) -> None:
        """What became of a task."""
        raise NotImplementedError

    def broken(self, error: BaseException) -> None:
        """Nothing more will come: the run is over."""
        raise NotImplementedError

    def settled(self) -> None:
        """Some tasks were finished; called once for many."""

    def size(self, workers: int, left: int | None) -> int:
        """How many tasks the next chunk shall have. ``left``: how many there are, if known."""
        if self.chunksize:
            return self.chunksize
        if not self._pace:
            return 1
        size = min(int(TARGET / self._pace), self._largest * GROWTH)
        if self._bytes:
            size = min(size, int(_BYTES / self._bytes))
        if left is not None:
            fair = max(-(-left // (2 * workers)), int(LEAST / self._pace))
            size = min(size, fair)
        return max(1, size)

    def learn(self, count: int, seconds: float) -> None:
        """So many tasks took so long, all together."""
        if count:
            pace = max(seconds / count, 1e-7)
            self._pace = (self._pace + pace) / 2 if self._pace else pace
            self._largest = max(self._largest, count)

    def weigh(self, count: int, size: int) -> None:
        """So many tasks were so many bytes."""
        self._bytes = size / count

    def short(self, count: int) -> bool:
        """Whether a chunk of so many is done in an instant."""
        return bool(self._pace) and count * self._pace < _SHORT

    def left(self) -> int | None:
        """How many tasks :meth:`take` can still give; None where nobody knows."""
        return None


class _Chunk:
    __slots__ = ("data", "job", "tasks")

    def __init__(self, job: Job, tasks: list[Task], data: bytes) -> None:
        self.job, self.data = job, data
        self.tasks: list[Task | None] = list(tasks)


class Pool:
    """The workers of one run. Safe from any thread; ``workers``: how many there are to be."""

    def __init__(self, client: Client, run: Run, *, workers: int) -> None:
        self.client, self.run, self.workers = client, run, workers
        self.changed = threading.Condition()
        self.error: WherryError | None = None
        self.alive = 0  #: how many workers run
        self.memo: parcels.Memo | None = None  #: of arguments that do not change while it is set
        self._jobs: list[Job] = []
        self._chunks: dict[int, _Chunk] = {}
        self._number = 0
        self._unsent: deque[int] = deque()
        self._cancelled: list[int] = []
        self._epoch, self._after = "", 0
        self._stored: set[str] = set()
        self._grants: list[str] = []
        self._work = True  # whether there may be something to send
        self._closing = False
        _LIVE.add(self)
        for loop in (self._send_all, self._receive_all):
            threading.Thread(target=self._guarded, args=(loop,), daemon=True).start()

    # --- from outside

    def add(self, job: Job) -> None:
        """Begin with a job. :raises WherryError: where the pool is over."""
        with self.changed:
            if self.error is not None:
                raise self.error
            if self._closing:
                raise RuntimeError("cannot schedule new tasks after shutdown")
            self._jobs.append(job)
            self.wake()

    def wake(self) -> None:
        """A job has new tasks."""
        with self.changed:
            self._work = True
            self.changed.notify_all()

    def remove(self, job: Job) -> None:
        """Forget a job: what no worker has begun is not done. Again: nothing."""
        with self.changed:
            if job not in self._jobs:
                return
            self._jobs.remove(job)
            gone = [n for n, chunk in self._chunks.items() if chunk.job is job]
            for number in gone:
                del self._chunks[number]
            self._cancelled += gone
            self.wake()

    def close(self, *, kill: bool = False, wait: bool = False) -> None:
        """
        Let the workers leave. Again: no error.

        :param kill: in the middle of a task, too. :param wait: until they have left.
        """
        with self.changed:
            first, self._closing = not self._closing, True
            self.changed.notify_all()
        with suppress(WherryError):
            if kill:
                self.client.stop(self.run.id, grace=0.0)
            elif first and self.error is None:
                self.client.end_tasks(self.run.id)
            if wait:
                self._see_off()

    def _see_off(self) -> None:
        """Wait until the workers have left; stop those that do not."""
        with suppress(WherryError):
            if not self.client.wait(self.run.id, _LEAVE).finished:
                self.client.stop(self.run.id, grace=0.0)
                self.client.wait(self.run.id, _LEAVE)
        _LIVE.discard(self)

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closing or self.error is not None

    @property
    def idle(self) -> bool:
        """Whether no task is on its way."""
        return not self._chunks

    # --- sending

    def _guarded(self, loop: Any) -> None:
        try:
            loop()
        except WherryError as error:
            self._break(error)
        except BaseException as error:
            self._break(RunFailed(f"a defect of wherry.map: {type(error).__name__}: {error}"))
            raise

    def _break(self, error: WherryError) -> None:
        with self.changed:
            if self._closing or self.error is not None:
                return
            self.error = error
            jobs = list(self._jobs)
            self.changed.notify_all()
        for job in jobs:
            job.broken(error)
            job.settled()

    def _send_all(self) -> None:
        while True:
            with self.changed:
                while not (self._work or self.closed):
                    self.changed.wait()
                if self.closed:
                    return
                self._work = False
            self._fill()
            self._flush()

    def _fill(self) -> None:
        """Pack chunks while workers have little to do."""
        while True:
            with self.changed:
                jobs = list(self._jobs)
            found = next((f for job in jobs if (f := self._draw(job))), None)
            if found is None:
                return
            job, tasks = found
            try:
                data = self._pack(job, tasks)
            except Exception as error:
                self._unpicklable(job, tasks, error)
                continue
            with self.changed:
                if job not in self._jobs:
                    continue
                self._jobs.append(self._jobs.pop(self._jobs.index(job)))  # the next one's turn
                self._number += 1
                self._chunks[self._number] = _Chunk(job, tasks, data)
                self._unsent.append(self._number)

    def _draw(self, job: Job) -> tuple[Job, list[Task]] | None:
        """The tasks of the job's next chunk."""
        with self.changed:
            count = job.size(self.workers, job.left())
            if len(self._chunks) >= self.workers * (3 if job.short(count) else 2):
                return None
            if job.again:
                tasks = [job.again.popleft()]
                if not tasks[0].alone:
                    while len(tasks) < count and job.again and not job.again[0].alone:
                        tasks.append(job.again.popleft())
                return job, tasks
        tasks = job.take(count)  # may run the code of an iterator
        return (job, tasks) if tasks else None

    def _pack(self, job: Job, tasks: list[Task]) -> bytes:
        if job.packed is None:
            parcel = parcels.pack(job.function, self._keep)
            key = hashlib.sha256(pickle.dumps(parcel)).hexdigest()
            job.packed = key, parcel
        key, function = job.packed
        items = parcels.pack([task.item for task in tasks], self._keep, memo=self.memo)
        body = {
            "key": key,
            "function": function,
            "mode": job.mode,
            "items": items,
            "timeout": job.timeout,
        }
        data = pickle.dumps(body, parcels.PROTOCOL)
        job.weigh(len(tasks), len(data))
        short = job.short(len(tasks)) and not tasks[0].alone
        return bytes([t.SHORT if short else 0]) + data

    def _unpicklable(self, job: Job, tasks: list[Task], error: Exception) -> None:
        """Some item of these cannot be packed: find out which."""
        if isinstance(error, WherryError):
            raise error
        if job.packed is None:
            what = f"the function {getattr(job.function, '__name__', job.function)!r}"
        elif len(tasks) == 1:
            what = f"item {tasks[0].index}"
        else:
            with self.changed:
                for task in tasks:
                    task.alone = True
                job.again.extendleft(reversed(tasks))
            return
        hint = "make it inside the function, or pass what it can be made from"
        for task in tasks:
            reason = NotPicklable(f"{what} cannot be pickled: {error}", hint=hint)
            job.finish(task, None, reason)
        job.settled()

    def _keep(self, source: parcels.Source) -> None:
        """Store a blob, unless it is there, and let the workers read it."""
        if source.digest in self._stored:
            return
        if self.client.missing((source.digest,)):
            head = pack_item(source.digest, source.size)
            self.client.push_pack(lambda: chain((head,), source.pieces()))
        self._stored.add(source.digest)
        with self.changed:
            self._grants.append(source.digest)

    def _flush(self) -> None:
        """Send what is not sent, as far as the broker has room."""
        while True:
            with self.changed:
                numbers, frames = self._batch()
                epoch = self._epoch
            if not frames:
                return
            answer = self.client.put_tasks(self.run.id, epoch, b"".join(frames))
            with self.changed:
                if answer.epoch != epoch:
                    self._begin_anew(answer.epoch)
                    continue
                for number in numbers[: answer.accepted]:
                    if self._unsent and self._unsent[0] == number:
                        self._unsent.popleft()
                if answer.accepted < len(numbers):
                    return  # full: the next answer brings us back

    def _batch(self) -> tuple[list[int], list[bytes]]:
        frames = []
        if self._grants:
            raw = b"".join(bytes.fromhex(digest) for digest in self._grants)
            frames.append(t.frame(t.GRANT, 0, raw))
            self._grants = []
        frames += [t.frame(t.CANCEL, number) for number in self._cancelled]
        self._cancelled = []
        numbers: list[int] = []
        size = 0
        self._unsent = deque(n for n in self._unsent if n in self._chunks)
        for number in self._unsent:
            data = self._chunks[number].data
            if numbers and size + len(data) > _SEND:
                break
            numbers.append(number)
            frames.append(t.frame(t.CHUNK, number, data))
            size += len(data)
        return numbers, frames

    def _begin_anew(self, epoch: str) -> None:
        """The broker remembers nothing: it gets everything that is not answered."""
        self._epoch, self._after = epoch, 0
        self._unsent = deque(self._chunks)
        self._grants = list(self._stored)
        self._work = True
        self.changed.notify_all()

    # --- receiving

    def _receive_all(self) -> None:
        while not self.closed:
            with self.changed:
                epoch, after = self._epoch, self._after
            answer = self.client.collect_tasks(self.run.id, epoch, after, wait=_WAIT)
            self._receive(epoch, answer)
        self._see_off()

    def _receive(self, epoch: str, answer: bytes) -> None:
        frames = t.iter_frames(answer)
        state = json.loads(bytes(next(frames)[2]))
        settled: set[Job] = set()
        with self.changed:
            if state["epoch"] != self._epoch:
                if self._epoch == epoch:
                    self._begin_anew(state["epoch"])
                return
            if epoch != self._epoch:
                return
        for kind, number, payload in frames:
            with self.changed:
                chunk = self._chunks.get(number)
            if chunk is not None:
                settled.add(chunk.job)
                if kind == t.LOST:
                    self._lost(number, chunk, json.loads(bytes(payload))["why"])
                else:
                    self._outcomes(number, chunk, bytes(payload), over=kind == t.RESULT)
        for job in settled:
            job.settled()
        with self.changed:
            self._after, self.alive = state["next"], state["workers"]
            if settled:
                self._work = True
                self.changed.notify_all()
        if state["state"] in RUN_TERMINAL and not self._closing:
            raise self._over()

    def _over(self) -> WherryError:
        from wherry.sdk.runs import failure

        run = self.client.wait(self.run.id, 0)
        if run.state is RunState.SUCCEEDED:
            return RunFailed(f"the workers of run {run.id} have left")
        return failure(run)

    def _outcomes(self, number: int, chunk: _Chunk, payload: bytes, *, over: bool) -> None:
        job = chunk.job
        seconds, parcel = pickle.loads(payload)
        try:
            found = parcels.unpack(parcel, self.client.blob)
        except WherryError:
            raise
        except Exception as error:
            found = [(-1, False, error)]
        if found and found[0][0] == -1:  # the chunk as a whole could not be read, here or there
            self._forget(number)
            tasks = [task for task in chunk.tasks if task is not None]
            for task in tasks:
                if len(tasks) == 1:
                    self._settle(job, task, False, found[0][2])
                else:
                    self._again(job, task, alone=True)
            return
        for place, ok, value in found:
            task = chunk.tasks[place]
            if task is not None:
                chunk.tasks[place] = None
                self._settle(job, task, ok, value)
        job.learn(len(found), seconds)
        if over:
            self._forget(number)
            for left in reversed(chunk.tasks):
                if left is not None:  # it was not begun
                    self._again(job, left, alone=False)

    def _forget(self, number: int) -> None:
        with self.changed:
            self._chunks.pop(number, None)

    def _settle(self, job: Job, task: Task, ok: bool, value: Any) -> None:
        if ok:
            job.finish(task, value, None)
        elif task.tries < job.retries:
            task.tries += 1
            self._again(job, task, alone=False)
        else:
            job.finish(task, None, _as_error(value))

    def _again(self, job: Job, task: Task, *, alone: bool) -> None:
        with self.changed:
            task.alone = alone
            job.again.appendleft(task)

    def _lost(self, number: int, chunk: _Chunk, why: str) -> None:
        self._forget(number)
        for task in reversed(chunk.tasks):
            if task is None:
                continue
            task.deaths += 1
            if task.deaths >= DEATHS:
                words = f"{task.deaths} workers died over item {task.index}"
                error = WorkerLost(f"{words}: {why}" if why else words)
                chunk.job.finish(task, None, error)
            else:
                self._again(chunk.job, task, alone=True)


def _as_error(value: Any) -> BaseException:
    if isinstance(value, dict):
        return remote_error(value)
    return NotPicklable(
        f"the result cannot be unpickled here: {type(value).__name__}: {value}",
        hint="import what it is made of, or return plain data",
    )


_LIVE: set[Pool] = set()


@atexit.register
def _leave() -> None:
    """Leave nothing running behind."""
    for pool in list(_LIVE):
        pool.close(kill=not (pool.closed or pool.idle), wait=True)
