"""
The loop that makes what is so into what was asked for: load → decide → apply.

Started by ``server.app``. One thread decides for all runs, so no two decisions about a run race in
this process; the store's guarded moves keep other processes honest. It is woken by what happens (a
submission, a report, a back end's change) and looks at everything once a second besides.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wherry.agent import protocol
from wherry.backends.base import Backend, Capability, Capacity, Member, Request
from wherry.control.bus import Bus
from wherry.control.live import Live
from wherry.control.options import Options
from wherry.control.reports import Ingest, parse
from wherry.control.tokens import RankIdentity, Tokens
from wherry.core import decide as d
from wherry.core.admission import Ledger, need, threads
from wherry.core.blame import succeeded
from wherry.core.job import Amount
from wherry.core.remarks import remarks, stall_limit
from wherry.core.retry import LONGEST
from wherry.core.roster import own_spec, roster
from wherry.core.run import Attempt, AttemptId, Event, Observation, Run
from wherry.core.states import RUN_ACTIVE, RankState, RunState
from wherry.errors import NotFound, WherryError
from wherry.store.base import Exit, Report, RunFilter, Store

log = logging.getLogger("wherry.reconcile")

_SWEEP = 1.0  # seconds between looks at every live attempt
_STALL = 2.0  # seconds that a look may be late before that excuses agents that were not heard
_TIDY = 30.0  # seconds that an ended attempt's agents have to leave by themselves
_EVERYTHING = 10**9


class Reconciler:
    """Tends every run of one control plane."""

    def __init__(
        self,
        *,
        store: Store,
        backends: Mapping[str, Backend],
        ingest: Ingest,
        live: Live,
        bus: Bus,
        tokens: Tokens,
        url: Callable[[], str],
        options: Options,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.backends, self.ingest = store, backends, ingest
        self.live, self.bus, self.tokens = live, bus, tokens
        self.url, self.options, self.clock = url, options, clock
        self.ledgers = {name: Ledger(_total(b.capacity())) for name, b in backends.items()}
        self._dirty: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._watched: dict[str, AttemptId] = {}  # live attempts, by run
        self._leaving: dict[AttemptId, tuple[str, float]] = {}  # ended: back end, deadline
        self._drained: dict[AttemptId, set[int]] = {}
        self._remarked: set[str] = set()  # runs whose ranks said something of themselves
        self._flagged: set[str] = set()  # and of whom there is something to say
        self._resting: set[str] = set()  # runs whose back-off is not over
        self._lobbies: dict[AttemptId, tuple[object, float]] = {}  # who waits, since when

    # --- from outside

    def start(self) -> None:
        """Adopt what is there and begin."""
        self.adopt()
        threading.Thread(target=self._run, name="reconcile", daemon=True).start()
        for name, backend in self.backends.items():
            threading.Thread(
                target=self._watch, args=(backend,), name=f"watch-{name}", daemon=True
            ).start()

    def close(self) -> None:
        """Stop deciding. Runs go on."""
        self._closing.set()
        self._dirty.put(None)

    def mark(self, run_id: str) -> None:
        """Something happened to this run: look at it soon."""
        self._dirty.put(run_id)

    def changed(self, report: Report) -> None:
        """A report was committed: wake who follows, and decide where a rank moved."""
        if report.state is not None or report.ended is not None or report.exit is not None:
            self.mark(report.attempt.run)
        if report.events or (report.ended is not None and report.attempt.run in self._flagged):
            self._remarked.add(report.attempt.run)
            self.mark(report.attempt.run)
        self.bus.publish(report.attempt.run)

    def adopt(self) -> None:
        """Rebuild what is kept in memory from the store, and find orphans."""
        live = self.store.live_attempts()
        for attempt in live:
            run = self.store.run(attempt.id.run)
            self._watched[run.id] = attempt.id
            self.ledgers[run.backend].charge(run.id, self._need(run))
            if attempt.stopping:
                self.live.stop(attempt.id, d.held(run, attempt))
            for rank in attempt.ranks:
                if rank.state in (RankState.ARRIVED, RankState.RUNNING):
                    self.live.heard(attempt.id, rank.rank)  # its lease starts now
            self.mark(run.id)
        states = frozenset({RunState.SUBMITTED, RunState.QUEUED}) | RUN_ACTIVE
        waiting = self.store.runs(RunFilter(states=states, limit=_EVERYTHING))
        for run in reversed(waiting):  # oldest first
            self.enqueue(run)
        known = {attempt.id for attempt in live}
        for name, backend in self.backends.items():
            for attempt_id in backend.owned():
                if attempt_id not in known:
                    self._leaving[attempt_id] = (name, time.monotonic() + _TIDY)

    def enqueue(self, run: Run) -> None:
        """Let a run wait for its turn, once its back-off is over. Again: it keeps its place."""
        if run.state in (RunState.SUBMITTED, RunState.QUEUED) and not self._rests(run):
            ledger = self.ledgers[run.backend]
            if Capability.QUEUES in self.backends[run.backend].capabilities or self._free(run):
                ledger.charge(run.id, Amount())
            else:
                ledger.wait(run.id, self._need(run), priority=run.spec.priority)
        self.mark(run.id)

    def request(self, run: Run, attempt: AttemptId, incarnations: Sequence[int] = ()) -> Request:
        """What the back end is told of an attempt; by default, of one that is new."""
        spec = run.spec
        total = self.ledgers[run.backend].total
        lease = self.options.lease if spec.lease is None else spec.lease
        members = []
        for place in roster(spec):
            number = incarnations[place.rank] if incarnations else 1
            ask = own_spec(spec, place).resources
            members.append(
                Member(
                    rank=place.rank,
                    incarnation=number,
                    token=self.tokens.mint(RankIdentity(attempt, place.rank, number)),
                    threads=threads(spec, ask, total, foreground=run.foreground),
                )
            )
        return Request(
            attempt=attempt,
            spec=spec,
            members=tuple(members),
            server=self.url(),
            attach=run.attach,
            grace=self._grace(run),
            # A silence is noticed within two of them, the look at it included.
            heartbeat=min(self.options.heartbeat, lease / 1.8),
            lease=lease,
            barrier_timeout=self.options.barrier_timeout,
            spool_limit=self.options.spool_limit,
            stall=stall_limit(spec, self.options.stall),
        )

    # --- the loop

    def _run(self) -> None:
        swept = 0.0
        while not self._closing.is_set():
            dirty = self._gather(max(0.0, swept + _SWEEP - time.monotonic()))
            if (late := time.monotonic() - swept) >= _SWEEP:
                if swept and late > _SWEEP + _STALL:
                    # This process was suspended, or starved: so was whoever hears the agents.
                    self.live.excuse(late)
                swept = time.monotonic()
                dirty |= self._watched.keys()
                self._guarded(self._wake_rested)
                self._guarded(self.tidy)
            for run_id in dirty:
                self._guarded(self.tend, run_id)
            self._guarded(self._admit)

    def _gather(self, timeout: float) -> set[str]:
        """Every run marked by now; waits up to ``timeout`` seconds for the first."""
        found: set[str] = set()
        try:
            item = self._dirty.get(timeout=timeout) if timeout else self._dirty.get_nowait()
            while item is not None:
                found.add(item)
                item = self._dirty.get_nowait()
        except queue.Empty:
            pass
        return found

    def _watch(self, backend: Backend) -> None:
        for attempt in backend.changes():
            if self._closing.is_set():
                return
            self.mark(attempt.run)

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        """A fault in one run must not stop the others; the next sweep tries again."""
        try:
            step(*args)
        except NotFound as error:
            log.info("%s", error)
        except WherryError as error:
            log.warning("%s %s: %s", step.__name__, args, error)
        except Exception:
            log.exception("%s %s", step.__name__, args)

    def _rests(self, run: Run) -> bool:
        """Whether its next attempt has to wait; a clock that was set back holds nobody up."""
        left = run.not_before - self.clock()
        rests = 0 < left <= max(LONGEST, run.spec.backoff or 0.0, self.options.backoff)
        if rests:
            self._resting.add(run.id)
        else:
            self._resting.discard(run.id)
        return rests

    def _wake_rested(self) -> None:
        for run_id in list(self._resting):
            try:
                self.enqueue(self.store.run(run_id))
            except NotFound:
                self._resting.discard(run_id)

    def _admit(self) -> None:
        for ledger in self.ledgers.values():
            for run_id in ledger.admit():
                self._guarded(self.tend, run_id)

    def tend(self, run_id: str) -> None:
        """Load, decide, apply; again while something was decided that calls for another look."""
        for _ in range(8):
            facts = self._load(run_id)
            actions = d.decide(facts)
            for action in actions:
                self._apply(facts, action)
            if not any(isinstance(a, _LOOK_AGAIN) for a in actions):
                break
        if run_id in self._remarked:
            self._remarked.discard(run_id)
            self._remark(self.store.run(run_id))
        if self.store_finished(run_id):
            self._watched.pop(run_id, None)

    def store_finished(self, run_id: str) -> bool:
        """Whether nothing more is to be done for the run."""
        run = self.store.run(run_id)
        attempt = self.store.attempt(AttemptId(run_id, run.attempt)) if run.attempt else None
        return run.finished and (attempt is None or attempt.ended is not None)

    def _load(self, run_id: str) -> d.Facts:
        run = self.store.run(run_id)
        attempt: Attempt | None = None
        observation: Observation | None = None
        silent: frozenset[int] = frozenset()
        drained: frozenset[int] = frozenset()
        if run.attempt:
            attempt = self.store.attempt(AttemptId(run_id, run.attempt))
            if attempt.ended is None:
                observation = self.backends[run.backend].observe(attempt.id)
                silent = self.live.silent(attempt.id, run.spec.lease)
                drained = frozenset(self._drained.get(attempt.id, ()))
        return d.Facts(
            run=run,
            attempt=attempt,
            observation=observation,
            admitted=self.ledgers[run.backend].holds(run_id),
            silent=silent,
            drained=drained,
            ready=frozenset() if attempt is None else self.live.ready(attempt.id),
            settled=attempt is not None and self._settled(attempt),
            kept=frozenset() if attempt is None else self.live.kept(attempt.id),
            now=self.clock(),
            backoff=self.options.backoff,
            stop_reason=self._stop_reason(run),
        )

    def _stop_reason(self, run: Run) -> str:
        if not run.stop_requested:
            return ""
        asked = (e.message for e in self.store.events(run.id) if e.kind == "stop-requested")
        return next(asked, "")

    def _settled(self, attempt: Attempt) -> bool:
        """Whether nobody has come to an elastic group, or gone, for a while."""
        if attempt.ended is not None:
            return False
        ready = self.live.ready(attempt.id)
        lobby = [(r.state, r.incarnation, r.round, r.rank in ready) for r in attempt.ranks]
        known, since = self._lobbies.get(attempt.id, (None, 0.0))
        if known != lobby:
            since = time.monotonic()
            self._lobbies[attempt.id] = lobby, since
        return time.monotonic() - since >= self.options.elastic_settle

    # --- the actions

    def _apply(self, facts: d.Facts, action: d.Action) -> None:
        run, attempt = facts.run, facts.attempt
        match action:
            case d.Wait():
                self._wait(run)
            case d.Start(number):
                if self.store.create_attempt(
                    run.id, number, world_size=run.spec.world_size, time=self.clock()
                ):
                    self._launch(run, AttemptId(run.id, number))
            case d.Finish(state, verdict, exit_code):
                now = self.clock()
                started = _started(run, attempt, now)
                moved = self.store.move_run(
                    run.id,
                    state,
                    verdict=verdict,
                    exit_code=exit_code,
                    started=started,
                    ended=now,
                )
                if moved:
                    self.ledgers[run.backend].release(run.id)
            case d.TryAgain():
                self._try_again(run, action)
            case d.MarkRunning():
                # The first attempt's start: how long a run took has its retries in it.
                started = self.clock() if run.started is None else None
                self.store.move_run(run.id, RunState.RUNNING, started=started)
            case _ if attempt is not None:
                self._apply_to_attempt(run, attempt.id, action)
        self.bus.publish(run.id)

    def _try_again(self, run: Run, action: d.TryAgain) -> None:
        used = run.restarts_used + action.cost
        when = f"in {action.delay:g} s" if action.delay else "now"
        budget = f"restart {used} of {run.spec.restarts}" if action.cost else "free of charge"
        reason = f"attempt {run.attempt} ended: {action.verdict.message}; again {when} ({budget})"
        moved = self.store.move_run(
            run.id,
            RunState.QUEUED,
            reason=reason,
            restarts_used=used,
            not_before=self.clock() + action.delay,
        )
        if moved:
            self.ledgers[run.backend].release(run.id)
            self.enqueue(self.store.run(run.id))

    def _apply_to_attempt(self, run: Run, attempt: AttemptId, action: d.Action) -> None:
        backend = self.backends[run.backend]
        match action:
            case d.Launch():
                self._launch(run, attempt)
            case d.Drain(rank):
                self._drain(run, attempt, rank)
            case d.EndRank(rank, state, cause, message):
                now = self.clock()
                end = Exit(state=state, time=now, cause=cause, message=message) if cause else None
                self.store.move_rank(attempt, rank, state, exit=end)
                self._note(run, "rank", f"rank {rank} {state}: {message}", attempt, rank)
            case d.Replace(rank, incarnation, cost):
                if self.store.replace_rank(attempt, rank, incarnation, cost=cost):
                    self.live.forget(attempt, rank)
                    self._drained.get(attempt, set()).discard(rank)
                    self._launch(run, attempt)
            case d.Excuse(rank, cost):
                number = self.store.attempt(attempt).round
                self.store.leave_round(attempt, rank, number, cost=cost)
            case d.FormRound(number, members):
                self.store.form_round(attempt, number, members)
            case d.Recall(number):
                self.live.recall(attempt, number)
            case d.StopAttempt(why, keep):
                self.store.mark_stopping(attempt, why)
                self.live.stop(attempt, keep)
                if not keep:  # else each is told when it calls: a back end stops all or none
                    backend.stop(attempt, self._grace(run))
            case d.EndAttempt():
                self.store.end_attempt(attempt, self.clock())
                self.live.forget(attempt)
                self._drained.pop(attempt, None)
                self._lobbies.pop(attempt, None)
                self._watched.pop(run.id, None)
                self._flagged.discard(run.id)
                self._leaving[attempt] = (run.backend, time.monotonic() + _TIDY)

    def _remark(self, run: Run) -> None:
        """Say what its ranks said last of themselves: that they are stalled, or held."""
        if run.state in RUN_ACTIVE:
            attempt = self.store.attempt(AttemptId(run.id, run.attempt))
            held, ended = d.held(run, attempt), [r.rank for r in attempt.ranks if succeeded(r)]
            reason = remarks(run, self.store.events(run.id), held=held, ended=ended)
            (self._flagged.add if reason else self._flagged.discard)(run.id)
            self.store.set_reason(run.id, reason, event=False)
            self.bus.publish(run.id)

    def _wait(self, run: Run) -> None:
        reason = self.ledgers[run.backend].reason(run.id)
        if run.state is RunState.SUBMITTED:
            self.enqueue(run)
            if self.ledgers[run.backend].holds(run.id):
                return
            self.store.move_run(run.id, RunState.QUEUED, reason=reason)
        elif reason != run.reason:
            self.store.set_reason(run.id, reason)

    def _launch(self, run: Run, attempt: AttemptId) -> None:
        self._watched[run.id] = attempt
        backend = self.backends[run.backend]
        ranks = self.store.attempt(attempt).ranks
        try:
            request = self.request(run, attempt, [rank.incarnation for rank in ranks])
            backend.launch(backend.plan(request))
        except WherryError as error:
            log.warning("launch of %s: %s", attempt, error)
            lost = RankState.LOST
            end = Exit(state=lost, time=self.clock(), cause="launch", message=str(error))
            for rank in ranks:
                if rank.state is RankState.PENDING:
                    self.store.move_rank(attempt, rank.rank, lost, exit=end)
            self.mark(run.id)

    def _drain(self, run: Run, attempt: AttemptId, rank: int) -> None:
        """Store what the agent wrote to disk and never sent, its EXIT perhaps among it."""
        self._drained.setdefault(attempt, set()).add(rank)
        known = self.store.attempt(attempt).ranks[rank]
        identity, acked = RankIdentity(attempt, rank, known.incarnation), known.acked
        for data in self.backends[run.backend].logs(attempt, rank):
            fresh = b"".join(
                protocol.frame(kind, seq, t, bytes(payload))
                for kind, seq, t, payload in protocol.iter_frames(data)
                if seq > acked
            )
            if (report := parse(identity, fresh)) is not None:
                acked = self.ingest.add_now(report)

    # --- cleaning up behind attempts

    def tidy(self) -> None:
        """Forget ended attempts whose agents have left, or whose time to leave is over."""
        for attempt, (name, deadline) in list(self._leaving.items()):
            backend = self.backends[name]
            seen = backend.observe(attempt)
            left = all(rank.phase in ("ended", "absent") for rank in seen.ranks)
            if left or time.monotonic() >= deadline:
                backend.forget(attempt)
                del self._leaving[attempt]

    def _free(self, run: Run) -> bool:
        """Whether a person at a terminal waits and nothing was asked for."""
        return run.foreground and self._need(run) == Amount()

    def _need(self, run: Run) -> Amount:
        total = self.ledgers[run.backend].total
        return need(run.spec, total, foreground=run.foreground)

    def _grace(self, run: Run) -> float:
        return self.options.grace if run.spec.grace is None else run.spec.grace

    def _note(
        self, run: Run, kind: str, message: str, attempt: AttemptId, rank: int | None
    ) -> None:
        self.store.add_event(
            Event(
                run=run.id,
                time=self.clock(),
                kind=kind,
                message=message,
                attempt=attempt.number,
                rank=rank,
            )
        )


#: After these the facts have changed and the next decision follows at once.
_LOOK_AGAIN = (d.Drain, d.EndRank, d.TryAgain, d.Excuse, d.FormRound)


def _started(run: Run, attempt: Attempt | None, now: float) -> float | None:
    """When the first program began, where the run was over before it was seen running."""
    if run.started is not None or attempt is None:
        return None  # as it is
    began = [rank.started for rank in attempt.ranks if rank.started is not None]
    return min([*began, now]) if began else None


def _total(capacity: Capacity | None) -> Amount:
    # A back end that may not say decides by itself; nothing is withheld here.
    everything = Amount(cpu=float("inf"), memory=2**62, gpu=2**30)
    return capacity.total if capacity else everything
