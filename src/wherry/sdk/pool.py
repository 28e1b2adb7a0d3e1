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
from concurrent.futures import CancelledError
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
from wherry.sdk.jobs import Again, Batch, Job, Paces

DEATHS = 3  #: workers that a task may kill
_SEND = 4 << 20  # bytes of one request, about
_WAIT = 10.0  # seconds of one long poll; each keeps the driver's lease
_LEAVE = 20.0  # seconds for the workers to leave


class Pool:
    """The workers of one run. Safe from any thread; ``workers``: how many there are to be."""

    def __init__(self, client: Client, run: Run, *, workers: int) -> None:
        self.client, self.run, self.workers = client, run, workers
        self.changed = threading.Condition()
        self.error: WherryError | None = None
        self.alive = 0  #: how many workers run
        self.memo: parcels.Memo | None = None  #: of arguments that do not change while it is set
        self._jobs: list[Job] = []
        self._paces: Paces = {}
        self._batches: dict[int, Batch] = {}
        self._number = 0
        self._unsent: deque[int] = deque()
        self._resent: set[int] = set()  # those that a worker may have from before
        self._cancelled: list[int] = []
        self._fixed: parcels.Memo = {}  # large bytes and text, until a job ends
        self._epoch, self._after = "", 0
        self._stored: set[str] = set()
        self._grants: list[str] = []
        self._work = True  # whether there may be something to send
        self._closing = False
        self._deaths = 0  # workers that had been replaced when the last task was answered
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
            if job.function is not None:
                job.recall(self._paces)
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
            self._fixed = {}
            gone = [n for n, batch in self._batches.items() if batch.job is job]
            for number in gone:
                del self._batches[number]
            self._cancelled += gone
            self.wake()

    def drain(self) -> None:
        """Wait until no job is busy, or the pool is over."""
        with self.changed:
            while not self.closed and any(job.busy for job in self._jobs):
                self.changed.wait()

    def close(self, *, kill: bool = False, wait: bool = False, why: str = "") -> None:
        """
        Let the workers leave. Again: no error.

        :param kill: in the middle of a task, too. :param wait: until they have left.
        :param why: what to say of a run that is stopped.
        """
        with self.changed:
            first, self._closing = not self._closing, True
            jobs = list(self._jobs) if first else []
            self.changed.notify_all()
        for job in jobs:
            job.broken(CancelledError("the workers were told to leave"))
            job.settled()
        with suppress(WherryError):
            if kill:
                self.client.stop(self.run.id, grace=0.0, reason=why or self._why())
            elif first and self.error is None:
                self.client.end_tasks(self.run.id)
            if wait:
                self._see_off()

    def _why(self) -> str:
        return self.error.message if self.error is not None else "its script gave it up"

    def _see_off(self) -> None:
        """Wait until the workers have left; stop those that do not."""
        with suppress(WherryError):
            if not self.client.wait(self.run.id, _LEAVE).finished:
                self.client.stop(self.run.id, grace=0.0, reason="its workers did not leave")
                self.client.wait(self.run.id, _LEAVE)
        _LIVE.discard(self)

    @property
    def closed(self) -> bool:
        """Whether it takes no more."""
        return self._closing or self.error is not None

    @property
    def idle(self) -> bool:
        """Whether no task is on its way."""
        return not self._batches

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
        with suppress(WherryError):
            self.client.stop(self.run.id, grace=0.0, reason=error.message)

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
        """Pack batches while workers have little to do."""
        while (batch := self._draw()) is not None:
            job = batch.job
            try:
                batch.data = self._pack(batch)
            except WherryError:
                raise
            except Exception as error:
                self._unpicklable(batch, error)
                continue
            with self.changed:
                if job not in self._jobs:
                    continue
                self._jobs.append(self._jobs.pop(self._jobs.index(job)))  # the next one's turn
                self._number += 1
                self._batches[self._number] = batch
                self._unsent.append(self._number)

    def _draw(self) -> Batch | None:
        """The next batch, of the job whose turn it is."""
        with self.changed:
            jobs = list(self._jobs)
        for job in jobs:
            ahead = 3 if job.short(job.size(self.workers)) else 2
            if len(self._batches) >= self.workers * ahead:
                continue
            if (batch := job.draw(self.workers)) is not None:
                return batch
        return None

    def _pack(self, batch: Batch) -> bytes:
        job, count = batch.job, len(batch.items)
        if job.packed is None:
            parcel = parcels.pack(job.function, self._keep, fixed=self._fixed)
            job.packed = hashlib.sha256(pickle.dumps(parcel)).hexdigest(), parcel
        body = {
            "key": job.packed[0],
            "function": job.packed[1],
            "mode": job.mode,
            "items": parcels.pack(batch.items, self._keep, memo=self.memo, fixed=self._fixed),
            "timeout": job.timeout,
        }
        data = pickle.dumps(body, parcels.PROTOCOL)
        job.weigh(count, len(data))
        short = job.short(count) and not batch.alone
        return bytes([t.SHORT if short else 0]) + data

    def _unpicklable(self, batch: Batch, error: Exception) -> None:
        """Something in this batch cannot be packed: find out what, and tell its tasks."""
        job, hint = batch.job, "make it inside the function, or pass what it can be made from"
        if job.packed is not None and len(batch.items) > 1:
            self._again(batch, batch.left(), alone=True)
            return
        what = f"the function {getattr(job.function, '__name__', job.function)!r}"
        for index, item in zip(batch.indexes, batch.items, strict=True):
            if job.packed is not None:
                what = f"item {index}"
            words = f"{what} cannot be pickled: {error}"
            job.fail(index, item, NotPicklable(words, hint=hint))
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
        self._unsent = deque(n for n in self._unsent if n in self._batches)
        for number in self._unsent:
            data = self._batches[number].data
            if numbers and size + len(data) > _SEND:
                break
            numbers.append(number)
            if number in self._resent:
                data = bytes([data[0] | t.AGAIN]) + data[1:]
            frames.append(t.frame(t.CHUNK, number, data))
            size += len(data)
        return numbers, frames

    def _begin_anew(self, epoch: str) -> None:
        """The broker remembers nothing: it gets everything that is not answered."""
        if self._epoch:
            self._resent.update(self._batches)
        self._epoch, self._after = epoch, 0
        self._unsent = deque(self._batches)
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
                batch = self._batches.get(number)
            if not number:
                raise self._unfit(bytes(payload))
            if batch is not None:
                settled.add(batch.job)
                if kind == t.LOST:
                    self._lost(number, batch, json.loads(bytes(payload))["why"])
                else:
                    self._outcomes(number, batch, bytes(payload), over=kind == t.RESULT)
        for job in settled:
            job.settled()
        with self.changed:
            self._after, self.alive = state["next"], state["workers"]
            if settled:
                self._deaths = state.get("replaced", 0)
                self._work = True
            self.changed.notify_all()
        if state["state"] in RUN_TERMINAL and not self._closing:
            raise self._over()
        if state.get("replaced", 0) - self._deaths > DEATHS * (self.workers + 3):
            raise WorkerLost(
                f"the workers of run {self.run.id} die as soon as they start",
                hint=f"see why: wherry logs {self.run.id}",
            )

    def _unfit(self, payload: bytes) -> WherryError:
        """The initializer has raised."""
        [(_, _, found)] = parcels.unpack(pickle.loads(payload)[1], self.client.blob)
        error = WorkerLost(f"the initializer raised {found['type']}: {found['message']}")
        error.__cause__ = remote_error(found)
        return error

    def _over(self) -> WherryError:
        from wherry.sdk.runs import failure

        run = self.client.wait(self.run.id, 0)
        if run.state is RunState.SUCCEEDED:
            return RunFailed(f"the workers of run {run.id} have left")
        return failure(run)

    def _outcomes(self, number: int, batch: Batch, payload: bytes, *, over: bool) -> None:
        job = batch.job
        seconds, parcel = pickle.loads(payload)
        try:
            found = parcels.unpack(parcel, self.client.blob)
        except WherryError:
            raise
        except Exception as error:
            found = [(-1, False, error)]
        if found and found[0][0] == -1:
            self._forget(number)
            self._unreadable(batch, found[0][2])
            return
        count = 0
        for place, ok, value in found:
            many = len(value) if ok else 1
            count += many
            if not batch.close(place, many):
                continue  # known already
            if ok:
                job.finish(batch.indexes[place : place + many], value)
            else:
                self._failed(batch, place, value)
        job.learn(count, seconds)
        if over:
            self._forget(number)
            self._again(batch, batch.left(), alone=False)  # what was not begun

    def _unreadable(self, batch: Batch, why: Any) -> None:
        """The batch, or its results, could not be read as a whole: one by one, then."""
        left = batch.left()
        if len(left) == 1:
            self._failed(batch, left[0], why)
        else:
            self._again(batch, left, alone=True)

    def _failed(self, batch: Batch, place: int, why: Any) -> None:
        job, index = batch.job, batch.indexes[place]
        tries = job.tries[index] = job.tries.get(index, 0) + 1
        if tries <= job.retries:
            self._again(batch, [place], alone=False)
        else:
            job.fail(index, batch.items[place], _as_error(why))

    def _again(self, batch: Batch, places: list[int], *, alone: bool) -> None:
        again = [Again(batch.indexes[p], batch.items[p], alone) for p in places]
        with self.changed:
            batch.job.again.extendleft(reversed(again))

    def _forget(self, number: int) -> None:
        with self.changed:
            self._batches.pop(number, None)
            self._resent.discard(number)

    def _lost(self, number: int, batch: Batch, why: str) -> None:
        """Its worker died: what is left is done again, each alone, but not for ever."""
        self._forget(number)
        job, spared = batch.job, []
        for place in batch.left():
            index = batch.indexes[place]
            deaths = job.deaths[index] = job.deaths.get(index, 0) + 1
            if deaths < DEATHS:
                spared.append(place)
                continue
            words = f"{deaths} workers died over item {index}"
            error = WorkerLost(f"{words}: {why}" if why else words)
            job.fail(index, batch.items[place], error)
        self._again(batch, spared, alone=True)


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
