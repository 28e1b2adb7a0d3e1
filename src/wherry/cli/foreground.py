"""
A run in the foreground: its ranks' output on this terminal, this terminal's keys to its rank 0.

Called by ``run`` once the run is submitted. Agents connect to a Unix socket (``attach``); a thread
asks the control plane how the run stands, so that the loop here waits for nobody. If no agent ever
attaches, ``Outcome.attached`` is false and the caller follows the log instead.

Ctrl-C is SIGINT for the script; a second one within 5 s stops the run; Ctrl-\\ detaches.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from wherry.agent import protocol
from wherry.cli.attach import Listener, Peer
from wherry.cli.terminal import STDERR, STDOUT, Screen, Terminal
from wherry.core.run import Run
from wherry.errors import Unavailable, WherryError

QUIET = 0.3  # seconds before anything but the script's output is shown
TWICE = 5.0  # seconds within which a second Ctrl-C stops the run
DRAIN = 1.0  # seconds for output to arrive after the control plane has said that the run is over
UNATTACHED = 10.0  # seconds that a running run may take to attach
_STDIN_AHEAD = 1 << 18  # bytes of stdin read ahead of the script
_HANDLED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH", "SIGTSTP", "SIGCONT")
_SUSPEND, _DETACH, _INTERRUPT = b"\x1a", b"\x1c", b"\x03"


class Plane(Protocol):
    """What is asked of the control plane: a part of ``sdk.client.Client``."""

    def wait(self, ref: str, *, timeout: float) -> Run:
        """The run, when it has finished or the time is over."""
        ...

    def stop(self, ref: str) -> Run:
        """Stop it."""
        ...


@dataclass(frozen=True)
class Outcome:
    """How it went on. ``status`` is set where it is not for the run to say."""

    attached: bool  #: whether an agent ever connected
    detached: bool = False  #: the run goes on
    interrupted: bool = False  #: the person pressed Ctrl-C
    status: int | None = None
    run: Run | None = None


class Watcher:
    """Asks how the run stands, in a thread; wakes the loop at each answer."""

    def __init__(self, connect: Callable[[], Plane], run: Run, wake: Callable[[], None]) -> None:
        self.run = run
        self.attached = False
        self._connect = connect
        self._wake = wake
        self._started = False

    def start(self) -> None:
        """Begin. Again: nothing."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._loop, daemon=True).start()

    def stop_run(self) -> None:
        """Ask the control plane to stop the run, however long it takes to hear us."""
        threading.Thread(target=lambda: self._insist("stop"), daemon=True).start()

    def _loop(self) -> None:
        while not self.run.finished:
            self.run = self._insist("wait", timeout=5.0 if self.attached else 0.5)
            self._wake()

    def _insist(self, verb: str, **options: Any) -> Run:
        while True:
            try:
                answer: Run = getattr(self._connect(), verb)(self.run.id, **options)
                return answer
            except Unavailable:
                time.sleep(0.5)
            except WherryError:  # it was removed, say: there is nothing more to learn
                return self.run


class Foreground:
    """One attended run."""

    def __init__(
        self, listener: Listener, run: Run, connect: Callable[[], Plane], *, stdout: int = STDOUT
    ) -> None:
        self._listener = listener
        self._run = run
        self._terminal = Terminal()
        single = run.spec.world_size == 1
        self._tty = single and stdout == STDOUT and os.isatty(STDOUT) and _is_tty(0)
        self._screen = Screen(ranks=run.spec.world_size, stdout=stdout, newline=self._newline)
        self._selector = selectors.SelectSelector()  # the only one that takes any kind of stdin
        self._peers: set[Peer] = set()
        self._signals: deque[int] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._watcher = Watcher(connect, run, self._wake)
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._stdin_open = _is_open(0)
        self._stdin_read = False
        self._attached = False
        self._attempt = 0
        self._interrupts: list[float] = []
        self._stopping: int | None = None
        self._outcome: Outcome | None = None

    # --- the loop

    def attend(self) -> Outcome:
        """Until the run has finished or the person detaches."""
        with self._handlers(), contextlib.closing(self._selector):
            self._selector.register(self._listener.socket, selectors.EVENT_READ, self._accept)
            self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
            self._later(QUIET, self._watcher.start)
            try:
                while self._outcome is None:
                    self._step()
            except BrokenPipeError:
                self._detach(141)
                self._screen.say(f"the reader of the output went away; {self._goes_on()}")
            finally:
                self._terminal.restore()
                self._screen.status("")
                for peer in self._peers:
                    peer.close()
        assert self._outcome is not None
        return self._outcome

    def _step(self) -> None:
        now = time.monotonic()
        due = [call for when, call in self._timers if when <= now]
        self._timers = [(when, call) for when, call in self._timers if when > now]
        for call in due:
            call()
        while self._signals:
            self._signalled(self._signals.popleft())
        if self._outcome is None:
            self._mind_stdin()
            wait = min((when for when, _ in self._timers), default=now + 60) - time.monotonic()
            for key, events in self._selector.select(max(0.0, wait)):
                if key.fileobj in self._selector.get_map():
                    key.data(events)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + seconds, call))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already
            self._wake_in.send(b"\0")

    def _woken(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)
        run = self._watcher.run
        if run.finished:
            self._selector.unregister(self._wake_out)
            self._later(DRAIN if self._peers else 0.0, self._finish)
            self._over()
        elif not self._attached and run.state == "running":
            self._later(UNATTACHED, self._give_up_waiting)
        if not self._peers and not run.finished:
            self._screen.status(f"{run.name} is {run.state}" + (run.reason and f": {run.reason}"))

    def _give_up_waiting(self) -> None:
        if not self._attached and self._outcome is None:
            self._outcome = Outcome(attached=False, run=self._watcher.run)

    def _over(self) -> None:
        if self._watcher.run.finished and not self._peers:
            self._accept(0)  # one may have come and gone while we looked elsewhere
            if not self._peers:
                self._finish()

    def _finish(self) -> None:
        for peer in self._peers:
            self._screen.flush(peer.rank)
        self._outcome = Outcome(
            attached=self._attached,
            interrupted=bool(self._interrupts),
            status=self._stopping,
            run=self._watcher.run,
        )

    # --- agents

    def _accept(self, events: int) -> None:
        while peer := self._listener.accept():
            self._peers.add(peer)
            self._selector.register(
                peer.socket, selectors.EVENT_READ, lambda events, peer=peer: self._serve(peer)
            )

    def _serve(self, peer: Peer) -> None:
        alive = peer.receive()
        peer.flush()
        for kind, payload in peer.frames():
            if kind == protocol.ATTACH_OUT:
                self._screen.out(peer.rank, payload[0], payload[1:])
            elif kind == protocol.ATTACH_HELLO:
                self._hello(peer, payload)
            elif kind == protocol.ATTACH_NOTE:
                self._screen.status(bytes(payload).decode(errors="replace"))
            elif kind == protocol.ATTACH_ENDED:
                self._ended(peer)
        if not alive:
            self._ended(peer)
            self._selector.unregister(peer.socket)
            self._peers.discard(peer)
            peer.close()
            self._over()

    def _hello(self, peer: Peer, payload: memoryview) -> None:
        import json

        said = json.loads(bytes(payload))
        peer.rank, peer.attempt = said["rank"], said["attempt"]
        if self._attempt and peer.attempt > self._attempt:
            self._screen.say(f"{self._run.name}: attempt {peer.attempt}")
        self._attempt = max(self._attempt, peer.attempt)
        self._attached = self._watcher.attached = True
        peer.tty = self._tty and self._terminal.mine()
        if peer.tty:
            self._terminal.make_raw()
        peer.send_json(
            protocol.ATTACH_START,
            {
                "env": dict(os.environ),
                "tty": self._terminal.size() if peer.tty else None,
                "stdin": peer.rank == 0 and self._stdin_open,
            },
        )

    def _ended(self, peer: Peer) -> None:
        if peer.ended is None:
            peer.ended = {}
            self._screen.flush(peer.rank)
            self._watcher.start()
            if all(other.ended is not None for other in self._peers):
                self._terminal.restore()

    def _first(self) -> Peer | None:
        """Rank 0's agent, if its program takes input."""
        for peer in self._peers:
            if peer.rank == 0 and peer.ended is None:
                return peer
        return None

    # --- keys and other input

    def _mind_stdin(self) -> None:
        """Read stdin only while rank 0 takes it, and only where that does not stop us."""
        peer = self._first()
        want = (
            self._stdin_open
            and peer is not None
            and peer.waiting < _STDIN_AHEAD
            and self._terminal.mine()
        )
        if want and not self._stdin_read:
            self._selector.register(0, selectors.EVENT_READ, self._input)
        elif not want and self._stdin_read:
            self._selector.unregister(0)
        self._stdin_read = want
        for other in self._peers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if other.waiting else 0)
            key = self._selector.get_key(other.socket)
            if key.events != events:
                self._selector.modify(other.socket, events, key.data)

    def _input(self, events: int) -> None:
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        peer = self._first()
        if peer is None:
            return
        if not data:
            self._stdin_open = False
            peer.send(protocol.ATTACH_IN)
        elif self._terminal.raw:
            self._keys(peer, data)
        else:
            peer.send(protocol.ATTACH_IN, data)

    def _keys(self, peer: Peer, data: bytes) -> None:
        """Keys of a terminal in raw mode: three are for us, and Ctrl-C is also for the script."""
        for key, number in ((_DETACH, signal.SIGQUIT), (_SUSPEND, signal.SIGTSTP)):
            before, found, _ = data.partition(key)
            if found:
                self._signals.append(number)
                data = before
        if data:
            peer.send(protocol.ATTACH_IN, data)
        if _INTERRUPT in data:
            self._interrupt()

    # --- signals

    @contextlib.contextmanager
    def _handlers(self) -> Any:
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        numbers = [getattr(signal, name) for name in _HANDLED]
        before = {
            number: signal.signal(number, lambda got, _: self._signals.append(got))
            for number in numbers
            if signal.getsignal(number) is not signal.SIG_IGN  # as nohup asks
        }
        previous = signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._wake_in.close()
            self._wake_out.close()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGINT:
            for peer in self._peers:
                peer.send_json(protocol.ATTACH_SIGNAL, {"signal": int(signal.SIGINT)})
            self._interrupt()
        elif number == signal.SIGTERM:
            self._stop(128 + number)
        elif number == signal.SIGHUP:
            self._detach(128 + number)
        elif number == signal.SIGQUIT:
            self._detach(0)
            self._screen.say(f"detached; {self._goes_on()}")
        elif number == signal.SIGTSTP:
            self._suspend()
        elif number == signal.SIGCONT:
            self._resume()
        elif number == signal.SIGWINCH and self._terminal.raw:
            for peer in self._peers:
                peer.send_json(protocol.ATTACH_RESIZE, self._terminal.size())

    def _interrupt(self) -> None:
        now = time.monotonic()
        twice = bool(self._interrupts) and now - self._interrupts[-1] < TWICE
        self._interrupts.append(now)
        if self._stopping is not None:
            self._detach(self._stopping)
            self._screen.say(f"the run is being stopped: wherry show {self._run.id}")
        elif twice or not self._attached:
            self._stop(130)
            self._screen.say(f"stopping {self._run.name}; Ctrl-C again leaves it to itself")
        else:
            self._later(QUIET, self._advise)

    def _advise(self) -> None:
        """A script that ends on SIGINT needs no advice."""
        if self._stopping is None and any(peer.ended is None for peer in self._peers):
            self._screen.say(
                f"sent SIGINT; Ctrl-C again stops the run (within {TWICE:g} s), Ctrl-\\ detaches"
            )

    def _stop(self, status: int) -> None:
        self._stopping = status
        self._watcher.start()
        self._watcher.stop_run()

    def _detach(self, status: int) -> None:
        for peer in self._peers:
            peer.send(protocol.ATTACH_DETACH)
        self._terminal.restore()
        self._outcome = Outcome(
            attached=True, detached=True, interrupted=bool(self._interrupts), status=status,
            run=self._watcher.run,
        )  # fmt: skip

    def _suspend(self) -> None:
        """Ctrl-Z: the script pauses and the shell comes back, until ``fg`` or ``bg``."""
        for peer in self._peers:
            peer.send_json(protocol.ATTACH_SIGNAL, {"signal": int(signal.SIGSTOP)})
        self._terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _resume(self) -> None:
        """We were continued, or brought to the foreground: so is the script."""
        for peer in self._peers:
            peer.send_json(protocol.ATTACH_SIGNAL, {"signal": int(signal.SIGCONT)})
            if peer.tty and peer.ended is None and self._terminal.mine():
                self._terminal.make_raw()
                peer.send_json(protocol.ATTACH_RESIZE, self._terminal.size())

    # --- words

    def _newline(self) -> str:
        return "\r\n" if self._terminal.raw else "\n"

    def _goes_on(self) -> str:
        run = self._run.id
        return f"the run goes on: wherry logs -f {run}  (stop it: wherry stop {run})"


def _is_tty(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def attend(
    listener: Listener, run: Run, connect: Callable[[], Plane], *, json: bool = False
) -> Outcome:
    """Show the run until it has finished; with ``json`` its stdout goes to our stderr."""
    sys.stdout.flush()
    return Foreground(listener, run, connect, stdout=STDERR if json else STDOUT).attend()
