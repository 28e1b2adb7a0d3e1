"""
A control plane and workers of wherry.map in this process: the real broker, the real worker's code.

The engine talks to :class:`FakePlane` as to a client; each worker is a thread that does what
``agent.pool`` does with a chunk. Workers can be killed, the broker can forget everything.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from wherry.agent import call, parcels, pool, tasks
from wherry.agent.protocol import iter_pack
from wherry.control.tasks import Broker, Worker
from wherry.core.api import TasksTaken
from wherry.core.job import JobSpec
from wherry.core.run import Run
from wherry.core.states import RunState
from wherry.sdk.client import Client
from wherry.sdk.pool import Pool

DIE = "please die"


class FakePlane:
    """``limit``: the broker's."""

    def __init__(self, *, workers: int = 2, limit: int = 1 << 26) -> None:
        self.limit = limit
        self.changed = threading.Condition()
        self.broker = Broker(limit=limit)
        self.blobs: dict[str, bytes] = {}
        self.pushed: list[str] = []
        self.stopped = self.ended = False
        self.borrowed: Any = None  # the executor over these workers
        self.chunks: list[int] = []  # how many tasks each had that was begun
        self.incarnations = dict.fromkeys(range(workers), 1)
        self.threads = [
            threading.Thread(target=self._work, args=(rank, 1), daemon=True)
            for rank in range(workers)
        ]
        run = Run(id="r1", name="map", owner="me", project="p", spec=JobSpec())
        self.pool = Pool(cast(Client, self), run, workers=workers)

    def start(self) -> FakePlane:
        """Let the workers begin."""
        for thread in self.threads:
            thread.start()
        return self

    def forget(self) -> None:
        """Start anew, as after a crash: everything in memory is gone."""
        with self.changed:
            self.broker = Broker(limit=self.limit)
            self._look()
            self.changed.notify_all()

    def _look(self) -> None:
        live = {Worker(1, r, i): True for r, i in self.incarnations.items()}
        self.broker.look(RunState.RUNNING, live, lambda _: "killed by SIGKILL")

    def close(self) -> None:
        """End the pool, and see that the workers leave."""
        self.pool.close(wait=True)
        for thread in self.threads:
            if thread.ident:
                thread.join(20)
                assert not thread.is_alive()

    # --- the client
    def put_tasks(self, run: str, epoch: str, frames: bytes) -> TasksTaken:
        with self.changed:
            answer = self.broker.put(epoch, frames)
            self.changed.notify_all()
        return answer

    def collect_tasks(self, run: str, epoch: str, after: int, *, wait: float = 0.0) -> bytes:
        with self.changed:
            while (body := self.broker.collect(epoch, after)) is None:
                if not self.changed.wait(0.05):
                    return self.broker.said()
        return body

    def end_tasks(self, run: str) -> None:
        with self.changed:
            self.ended = True
            self.broker.end()
            self.changed.notify_all()

    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        return tuple(d for d in digests if d not in self.blobs)

    def push_pack(self, pack: Callable[[], Iterable[bytes]]) -> None:
        for digest, _, pieces in iter_pack(io.BytesIO(b"".join(pack())).read):
            self.blobs[digest] = b"".join(pieces)
            self.pushed.append(digest)

    def blob(self, digest: str) -> bytes:
        return self.blobs[digest]

    def stop(self, run: str, *, grace: float | None = None) -> None:
        with self.changed:
            self.stopped = True
            self.broker.end()
            self.changed.notify_all()

    def wait(self, run: str, timeout: float | None = None) -> Run:
        shot = Run(id="r1", name="map", owner="me", project="p", spec=JobSpec())
        return msgspec.structs.replace(shot, state=RunState.STOPPED)

    # --- the workers
    def _work(self, rank: int, incarnation: int) -> None:
        worker = Worker(1, rank, incarnation)
        inside = _Inside(self, worker)
        held: list[int] = []
        while True:
            with self.changed:
                while True:
                    broker = self.broker
                    broker.asks(worker, held)
                    body = broker.take(worker, 1)
                    if body:
                        break
                    self.changed.wait(0.05)
            for kind, number, data in tasks.iter_frames(body):
                if kind == tasks.END:
                    return
                held = [number]
                try:
                    inside.do(number, data)
                except _Killed:
                    self._replace(rank, incarnation)
                    return
            held = []

    def _replace(self, rank: int, incarnation: int) -> None:
        with self.changed:
            self.incarnations[rank] = incarnation + 1
            self._look()
            self.changed.notify_all()
        thread = threading.Thread(target=self._work, args=(rank, incarnation + 1), daemon=True)
        self.threads.append(thread)
        thread.start()


class _Killed(BaseException):
    pass


class _Inside(pool.Worker):
    """The worker's own code, without threads and network."""

    def __init__(self, plane: FakePlane, worker: Worker) -> None:
        calls = SimpleNamespace(Control=lambda _: None)
        self.plane, self.worker = plane, worker
        self.config = {"dir": None, "shared_dir": ""}
        self.calls, self.parcels, self.tasks, self.call = calls, parcels, tasks, call
        self.functions = OrderedDict()
        self.changed = threading.Condition()
        self.out = self

    def blob(self, digest: str) -> bytearray:
        assert digest in self.plane.broker.granted
        return bytearray(self.plane.blobs[digest])

    def keep(self, source: parcels.Source) -> None:
        data = b"".join(source.pieces())
        assert hashlib.sha256(data).hexdigest() == source.digest
        self.plane.blobs[source.digest] = data

    def failure(self, error: BaseException) -> Any:
        if error.args == (DIE,):
            raise _Killed
        return super().failure(error)  # type: ignore[no-untyped-call]

    def append(self, frame: tuple[int, int, bytes]) -> None:
        """What is to be sent is sent at once."""
        with self.plane.changed:
            self.plane.broker.answer(self.worker, self.tasks.frame(*frame))
            self.plane.changed.notify_all()

    def do(self, number: int, data: memoryview) -> Any:
        chunk = pickle.loads(data[1:])
        self.plane.chunks.append(len(parcels.unpack(chunk["items"], self.blob)))
        return super().do(number, data)  # type: ignore[no-untyped-call]


def planes(**options: Any) -> Iterator[FakePlane]:
    """For a fixture."""
    plane = FakePlane(**options)
    yield plane
    plane.close()
