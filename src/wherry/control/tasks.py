"""
The broker of ``wherry.map``: between a driver and the workers of its run, in memory.

Called by ``server.routes.tasks``; ``agent.tasks`` says what travels. It moves opaque bytes and
unpickles nothing. The driver holds the truth and sends again what a restart of the control plane
has forgotten; so what is kept here is bounded and may be lost at any time.

Everything but :class:`Brokers` is plain data on the event loop: no locks, nothing waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct

from wherry.agent import tasks as t
from wherry.control.bus import Bus
from wherry.control.runs import Runs
from wherry.core.api import Stop, TasksTaken
from wherry.core.run import AttemptId, Rank, Run
from wherry.core.states import RUN_TERMINAL, RankState, RunState
from wherry.errors import InvalidInput, NotFound, Unavailable
from wherry.store.base import RunFilter, Store

log = logging.getLogger("wherry.tasks")

LIMIT = 64 * 2**20  #: bytes of chunks, and of results, that one run may leave here
_LOOK = 1.0  # seconds between looks at a quiet run
_PAUSE = 0.05  # seconds between looks at a busy one
_MEET = 15.0  # seconds that a broker that starts anew waits for workers to say what they have
_KEEP = 60.0  # seconds that the broker of a finished run is kept for its driver
_LIVE = (RankState.PENDING, RankState.ARRIVED, RankState.RUNNING)
_UNFINISHED = frozenset(RunState) - RUN_TERMINAL


class Worker(Struct, frozen=True):
    """One incarnation of a rank."""

    attempt: int
    rank: int
    incarnation: int


class _Chunk:
    __slots__ = ("again", "data", "holder", "short")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.short = bool(data and data[0] & t.SHORT)
        self.again = bool(data and data[0] & t.AGAIN)
        self.holder: Worker | None = None


class Broker:
    """The chunks of one run. ``limit``: bytes of chunks, and of answers, that it takes."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, limit: int = LIMIT) -> None:
        self.epoch = secrets.token_hex(8)
        self.limit, self._clock = limit, clock
        self.heard = clock()  #: when the driver last called
        self.ended = False  #: the driver has said that no more will come
        self.state = RunState.SUBMITTED  #: as of the last look
        self.workers = 0  #: how many run
        self.replaced = 0  #: how many have died and were replaced
        self._born = clock()
        self._live: frozenset[Worker] | None = None  # those that run; None: not known yet
        self.known: set[Worker] = set()  #: whose tokens were checked against the store
        self.granted: set[str] = set()
        self._chunks: dict[int, _Chunk] = {}
        self._queue: deque[int] = deque()
        self._held: dict[Worker, set[int]] = {}
        self._claims: dict[Worker, set[int]] = {}
        self._polls: dict[Worker, int] = {}
        self._answers: deque[bytes] = deque()
        self._first = 0  # the number of the first answer that is kept
        self._bytes = self._answered = 0
        self._workers_waiting: dict[Worker, asyncio.Future[None]] = {}
        self._driver_waiting: list[asyncio.Future[None]] = []

    # --- the driver

    def put(self, epoch: str, body: bytes) -> TasksTaken:
        """
        Take chunks, in order, while there is room.

        With another ``epoch`` than this broker's: none, so that the driver begins anew.
        A chunk that is here already is accepted and changes nothing.
        """
        self.heard = self._clock()
        accepted = 0
        if epoch == self.epoch:
            for kind, number, payload in _frames(body):
                if kind == t.CHUNK:
                    if self._bytes and self._bytes + len(payload) > self.limit:
                        break
                    self._add(number, bytes(payload))
                    accepted += 1
                elif kind == t.CANCEL:
                    self._cancel(number)
                elif kind == t.GRANT:
                    raw = bytes(payload)
                    self.granted.update(raw[i : i + 32].hex() for i in range(0, len(raw), 32))
        return TasksTaken(epoch=self.epoch, accepted=accepted)

    def _add(self, number: int, data: bytes) -> None:
        if number in self._chunks:
            return
        chunk = self._chunks[number] = _Chunk(data)
        self._bytes += len(data)
        for worker, claims in self._claims.items():
            if number in claims:  # it was given out before this broker started
                claims.discard(number)
                self._give(number, chunk, worker)
                return
        self._queue.append(number)
        self.offer()

    def _cancel(self, number: int) -> None:
        chunk = self._chunks.get(number)
        if chunk is not None and chunk.holder is None:
            self._drop(number)

    def _drop(self, number: int) -> None:
        """Forget a chunk; the queue skips its number."""
        chunk = self._chunks.pop(number, None)
        if chunk is not None:
            self._bytes -= len(chunk.data)
            if chunk.holder is not None:
                self._held.get(chunk.holder, set()).discard(number)

    def collect(self, epoch: str, after: int) -> bytes | None:
        """
        What has been answered after the first ``after`` answers; those are forgotten.

        None where there is nothing to say. With another epoch: the new one, at once.
        """
        self.heard = self._clock()
        fresh = epoch == self.epoch
        while fresh and self._answers and self._first < after:
            self._answered -= len(self._answers.popleft())
            self._first += 1
        if fresh and not (self._answers or self._over or self.ended):
            return None
        return self.said()

    def said(self) -> bytes:
        """STATE and every answer that is kept."""
        state = {
            "epoch": self.epoch,
            "next": self._first + len(self._answers),
            "state": self.state,
            "workers": self.workers,
            "replaced": self.replaced,
        }
        return b"".join([t.frame(t.STATE, 0, json.dumps(state).encode()), *self._answers])

    def end(self) -> None:
        """No more will come: workers that ask are told to leave. Again: nothing."""
        self.ended = True
        self.heard = self._clock()
        for number in list(self._chunks):
            self._drop(number)
        self.tell_workers()
        self.tell_driver()

    # --- the workers

    def asks(self, worker: Worker, held: Iterable[int]) -> int:
        """
        A worker asks for work and has ``held``: settle what it was given against that.

        What it does not name never reached it, or it gave it back: another may have it. What it
        names and nobody else has is its own, also where this broker has forgotten it.
        :returns: the number of the question, for :meth:`stands`.
        """
        named = set(held)
        mine = self._held.setdefault(worker, set())
        for number in sorted(mine - named, reverse=True):
            mine.discard(number)
            if (chunk := self._chunks.get(number)) is not None:
                chunk.holder = None
                self._queue.appendleft(number)
                self.offer()
        unknown = set()
        for number in named - mine:
            chunk = self._chunks.get(number)
            if chunk is None:
                unknown.add(number)
            elif chunk.holder is None:
                self._give(number, chunk, worker)
        self._claims[worker] = unknown
        self._polls[worker] = self._polls.get(worker, 0) + 1
        self.offer()
        return self._polls[worker]

    def stands(self, worker: Worker, question: int) -> bool:
        """Whether the worker has not asked again since: a lost connection's question is void."""
        return self._polls.get(worker) == question

    def take(self, worker: Worker, want: int) -> bytes:
        """Frames for this worker, at most ``want`` chunks; empty where there is nothing for it."""
        if self.ended:
            return t.frame(t.END)
        out: list[bytes] = []
        while len(out) < want and (number := self._next()) is not None:
            chunk = self._chunks[number]
            if not self._may(worker, chunk):
                break
            self._queue.popleft()
            self._give(number, chunk, worker)
            out.append(t.frame(t.CHUNK, number, chunk.data))
        self.offer()
        return b"".join(out)

    def offer(self) -> None:
        """Wake a worker that may have the next chunk, one with empty hands where there is any."""
        number = self._next()
        if number is None:
            return
        chunk = self._chunks[number]
        able = [w for w in self._workers_waiting if self._may(w, chunk)]
        if able:
            worker = next((w for w in able if not self._held.get(w)), able[0])
            _wake(self._workers_waiting.pop(worker))

    def _may(self, worker: Worker, chunk: _Chunk) -> bool:
        """Only behind what takes an instant may another wait, and only if it is one itself."""
        if chunk.again and not self._met():
            return False
        mine = self._held.get(worker)
        return not mine or (chunk.short and all(self._short(n) for n in mine))

    def _met(self) -> bool:
        """
        Whether every worker has said what it has since this broker started, or had time to.

        Before that, what the driver sends again may be at work.
        """
        if self._clock() > self._born + _MEET:
            return True
        return self._live is not None and self._live <= self._polls.keys()

    def _next(self) -> int | None:
        while self._queue:
            chunk = self._chunks.get(self._queue[0])
            if chunk is not None and chunk.holder is None:
                return self._queue[0]
            self._queue.popleft()
        return None

    def _short(self, number: int) -> bool:
        chunk = self._chunks.get(number)
        return chunk is None or chunk.short

    def _give(self, number: int, chunk: _Chunk, worker: Worker) -> None:
        chunk.holder = worker
        self._held.setdefault(worker, set()).add(number)

    def answer(self, worker: Worker, body: bytes) -> None:
        """
        A worker's outcomes, passed on whole.

        :raises Unavailable: while the driver has not fetched what is here; try again.
        """
        if self._answered and self._answered + len(body) > self.limit:
            raise Unavailable("the driver has not fetched the results that are here")
        for kind, number, payload in _frames(body):
            if kind == t.RESULT:
                self._drop(number)
                self._held.get(worker, set()).discard(number)
                self.offer()
            if kind in (t.RESULT, t.PART):
                self._say(t.frame(kind, number, bytes(payload)))

    def _say(self, answer: bytes) -> None:
        self._answers.append(answer)
        self._answered += len(answer)
        self.tell_driver()

    def tell_driver(self) -> None:
        """Wake the driver's call."""
        while self._driver_waiting:
            _wake(self._driver_waiting.pop())

    # --- what becomes of the workers

    @property
    def _over(self) -> bool:
        return self.state in RUN_TERMINAL

    @property
    def holders(self) -> set[Worker]:
        """The workers that have chunks."""
        return {worker for worker, held in self._held.items() if held}

    def look(self, state: RunState, live: Mapping[Worker, bool], why: Callable[[int], str]) -> None:
        """
        Take note of the run's state and of the workers that live (and whether each runs).

        The chunks of one that does not live go back to the driver, with the reason.
        """
        self.state = state
        replaced = sum(worker.incarnation - 1 for worker in live)
        changed, self.replaced = (
            replaced > self.replaced or self._over,
            max(replaced, self.replaced),
        )
        self.workers = sum(live.values())
        self._live = frozenset(worker for worker, runs in live.items() if runs)
        self.known &= live.keys()
        for worker in [w for w in self._held if w not in live]:
            for number in sorted(self._held.pop(worker)):
                self._drop(number)
                self._say(t.frame(t.LOST, number, json.dumps({"why": why(worker.rank)}).encode()))
            self._claims.pop(worker, None)
            self._polls.pop(worker, None)
        if changed:
            self.tell_driver()
        self.offer()

    # --- waiting

    async def wait_for_chunk(self, worker: Worker, timeout: float) -> None:
        """Until there may be work for this worker, or ``timeout`` seconds are over."""
        future = asyncio.get_running_loop().create_future()
        if (before := self._workers_waiting.pop(worker, None)) is not None:
            _wake(before)
        self._workers_waiting[worker] = future
        self.offer()
        await asyncio.wait([future], timeout=timeout)
        if self._workers_waiting.get(worker) is future:
            del self._workers_waiting[worker]

    async def wait_for_answer(self, timeout: float) -> None:
        """Until there may be an answer, or ``timeout`` seconds are over."""
        future = asyncio.get_running_loop().create_future()
        self._driver_waiting.append(future)
        await asyncio.wait([future], timeout=timeout)
        with contextlib.suppress(ValueError):
            self._driver_waiting.remove(future)

    def tell_workers(self) -> None:
        """Wake every worker's call."""
        while self._workers_waiting:
            _wake(self._workers_waiting.popitem()[1])


def _frames(body: bytes) -> Iterator[tuple[int, int, memoryview]]:
    try:
        yield from t.iter_frames(body)
    except ValueError as error:
        raise InvalidInput(f"the body does not decode: {error}") from None


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Brokers:
    """The broker of every run that serves tasks. On the event loop; ``lease`` in seconds."""

    def __init__(self, *, store: Store, runs: Runs, bus: Bus, lease: float) -> None:
        self._store, self._runs, self._bus, self._lease = store, runs, bus, lease
        self._brokers: dict[str, Broker] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._closing = False

    async def start(self) -> None:
        """Take up the runs that are there: a driver that does not come back loses its lease."""
        where = RunFilter(states=_UNFINISHED, limit=10**9)
        for run in await asyncio.to_thread(self._store.runs, where):
            if run.spec.call is not None and run.spec.call.tasks:
                self._open(run)

    def close(self) -> None:
        """Wake everybody and watch no more."""
        self._closing = True
        for task in self._watches:
            task.cancel()
        for broker in self._brokers.values():
            broker.tell_driver()
            broker.tell_workers()

    @property
    def closing(self) -> bool:
        """Whether the process is about to end."""
        return self._closing

    def known(self, run_id: str) -> Broker | None:
        """The broker of a run that was asked for before."""
        return self._brokers.get(run_id)

    async def of(self, run_id: str) -> Broker:
        """The broker of a run. :raises NotFound: :raises InvalidInput: for one without tasks."""
        found = self._brokers.get(run_id)
        if found is None:
            run = await asyncio.to_thread(self._store.run, run_id)
            if run.spec.call is None or not run.spec.call.tasks:
                raise InvalidInput(f"run {run_id} does not serve tasks")
            found = self._open(run)
        return found

    def granted(self, run_id: str) -> frozenset[str]:
        """The blobs that the run's driver lets its workers read."""
        broker = self._brokers.get(run_id)
        return frozenset(broker.granted) if broker else frozenset()

    def lent(self) -> frozenset[str]:
        """Every blob that a driver has granted. From any thread."""
        return frozenset().union(*(set(b.granted) for b in list(self._brokers.values())))

    def _open(self, run: Run) -> Broker:
        broker = self._brokers.get(run.id)
        if broker is None:
            broker = self._brokers[run.id] = Broker()
            broker.state = run.state
            task = asyncio.get_running_loop().create_task(self._watch(run.id, broker))
            self._watches.add(task)
            task.add_done_callback(self._watches.discard)
        return broker

    async def _watch(self, run_id: str, broker: Broker) -> None:
        """Tell the broker of the run's ranks, and stop the run when its driver is gone."""
        seen = -1
        try:
            while not self._closing:
                version = self._bus.version(run_id)
                if version != seen:
                    seen = version
                    if await self._look(run_id, broker):
                        await asyncio.sleep(_KEEP)
                        return
                if not broker.ended and time.monotonic() > broker.heard + self._lease:
                    run = await asyncio.to_thread(self._store.run, run_id)
                    log.info("run %s: its driver is gone", run_id)
                    await asyncio.to_thread(
                        self._runs.stop,
                        run,
                        Stop(
                            reason="its driver is gone: it said nothing for longer than its lease"
                        ),
                    )
                    broker.ended = True
                broker.offer()  # time may have brought what is owed to nobody any more
                await self._bus.wait(run_id, version, timeout=_LOOK)
                await asyncio.sleep(_PAUSE)
        except NotFound:
            pass  # it was removed
        except Exception:
            log.exception("run %s", run_id)
        finally:
            self._brokers.pop(run_id, None)

    async def _look(self, run_id: str, broker: Broker) -> bool:
        """Whether the run is finished."""
        run = await asyncio.to_thread(self._store.run, run_id)
        ranks: tuple[Rank, ...] = ()
        if run.attempt:
            attempt = await asyncio.to_thread(self._store.attempt, AttemptId(run_id, run.attempt))
            ranks = attempt.ranks
        live = {
            Worker(run.attempt, r.rank, r.incarnation): r.state is RankState.RUNNING
            for r in ranks
            if r.state in _LIVE and not run.finished
        }
        fates: dict[int, str] = {}
        if broker.holders - live.keys():
            events = await asyncio.to_thread(self._store.events, run_id)
            fates = {e.rank: _reason(e.message) for e in events if e.rank is not None}
        fates |= {r.rank: why for r in ranks if r.state not in _LIVE and (why := _fate(r))}
        broker.look(run.state, live, lambda rank: fates.get(rank, ""))
        return run.finished


def _fate(rank: Rank) -> str:
    """What is known of a rank's end, for people."""
    if rank.signal:
        return f"killed by {signal.Signals(rank.signal).name}"
    return (rank.message or rank.cause).partition("\n")[0]


def _reason(message: str) -> str:
    """Of an event such as "rank 0 is replaced (killed by SIGKILL)"."""
    return message.partition("(")[2].rstrip(")") or message
