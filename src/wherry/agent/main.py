"""
The agent of one rank, from its config to its exit: prepare, start, watch, upload, leave.

Run by a back end as ``python AGENT config.json``; ``agent.protocol`` says what it reads and leaves.
What only some runs need is imported where it is needed: a foreground run waits for this.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable

from wherry.agent import platform, program, protocol
from wherry.agent.attach import Terminal, TerminalGone
from wherry.agent.capture import Capture, MetricRules
from wherry.agent.errors import Failed
from wherry.agent.journal import Journal
from wherry.agent.outcome import not_started, outcome
from wherry.agent.prepare import Preparation, Prepared, meets
from wherry.agent.sender import Sender
from wherry.agent.supervise import Supervisor
from wherry.agent.variables import PORTS
from wherry.agent.wake import Wake
from wherry.agent.watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

    from wherry.agent.faults import Faults

_FIRST = 0.05  #: seconds that belong to the start of the program alone
_SHOWN = 20  #: last lines that go with a failure
_READ = 500  #: last lines that are looked at for its cause


def main(path: str) -> int:
    """Run the rank that ``path``, a config.json, describes; the agent's own exit status."""
    with open(path, "rb") as file:
        config: dict[str, Any] = json.load(file)
    folder = config["dir"]
    lock = _take_lock(folder)
    if lock is None:
        return 0
    agent = Agent(config, folder)
    agent.run()
    os.write(lock, b" left")
    # Where a machine that goes away counts ends, this one must not count as a success.
    return 128 + signal.SIGTERM if agent.preempted else 0


def _take_lock(folder: str) -> int | None:
    """The lock's descriptor, held for life; None where this rank runs, or ran, already."""
    lock = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    if os.read(lock, 1):
        return None
    os.write(lock, str(os.getpid()).encode())
    return lock


class Agent:
    """One rank."""

    def __init__(self, config: dict[str, Any], folder: str) -> None:
        self._config = config
        self._spec: dict[str, Any] = config["spec"]
        self._folder = folder
        self._wake = Wake()
        self._wake.catch_signals(lambda: os.path.exists(f"{folder}/stop"))
        self._journal = Journal(folder, int(config["spool_limit"]))
        self._gone = threading.Event()  # this incarnation was replaced
        self._sender: Sender | None = None
        self._terminal: Terminal | None = None
        self._ports: Any = None
        self._faults = self._make_faults()
        self._preparation: Preparation | None = None
        self._prepared: Prepared | None = None
        self._working = False  # the program runs, or will at once
        self._result = ""
        self._began = time.monotonic()

    @property
    def preempted(self) -> bool:
        """Whether the machine asked it to leave."""
        return self._wake.why == "preempted"

    def run(self) -> None:
        """Everything. Returns when all is acknowledged, or this incarnation was replaced."""
        try:
            end = self._work()
        except Failed as failed:
            end = not_started(failed)
            self._hang_up(end)
        if self._wake.why == "replaced":
            return
        sender = self._start_sender()
        self._journal.append(protocol.ENDED, json.dumps(end).encode())
        try:
            self._upload()
        except _given_up():
            return
        self._phase("upload")
        self._journal.append(protocol.EXIT, json.dumps(end).encode())
        sender.finish()

    def _work(self) -> dict[str, Any]:
        """The payload of EXIT. :raises Failed: where the program was not started."""
        attached = bool(self._config["attach"])
        if meets(self._config):
            from wherry.agent.ranks import Ports

            self._ports = Ports(PORTS)
        if attached:
            self._terminal = self._attach()
        prepared = self._prepare(attached)
        while True:
            started = self._start(prepared)
            self._start_sender()
            end = self._supervise(prepared, started)
            again = self._next_round(end)
            if again is None:
                return end
            prepared = again

    # --- elastic groups
    def _called(self, round: int) -> None:
        """The group is in this round, or is to meet for it."""
        if self._working and self._preparation and round > self._preparation.round:
            self._wake.end("round")

    def _next_round(self, end: dict[str, Any]) -> Prepared | None:
        """
        What to start in the next round; None where there is none: ``end`` is the end.

        Whoever was called comes at once. Whose program failed says so, and waits for the control
        plane to tell a loss of somebody else, or a failure that may be tried again, from an end.
        """
        assert self._preparation is not None
        recalled = self._wake.why == "round"
        if self._spec.get("group") != "elastic" or (self._wake.why and not recalled):
            return None
        if not recalled and end["state"] != "failed":
            return None
        self._wake.again()
        if not recalled:
            self._journal.append(protocol.ENDED, json.dumps(end).encode())
        # What was said of this round has to be known before the next is asked for.
        while self._journal.unsent and not self._wake.ended.wait(_FIRST):
            pass
        try:
            return self._run_aside(self._preparation.meet)
        except Failed:
            return None

    # --- before the program
    def _attach(self) -> Terminal:
        hello = {name: self._config[name] for name in ("rank", "world_size", "attempt")}
        try:
            return Terminal(self._config["attach"], hello)
        except TerminalGone as error:
            raise Failed(
                "start",
                f"the terminal that the run was started from is gone ({error}), and with it the "
                "environment to run in",
                "wherry run --detach does not need a terminal",
            ) from None

    def _prepare(self, attached: bool) -> Prepared:
        base = self._terminal.environment if self._terminal else dict(os.environ)
        self._preparation = Preparation(
            self._config,
            self._journal,
            self._wake,
            base=base,
            attached=attached,
            tty=bool(self._terminal and self._terminal.size),
            ports=self._ports.numbers if self._ports else [0] * PORTS,
            note=self._note,
        )
        if self._config["rank"] == 0:
            params = self._preparation.params()
            self._journal.append(protocol.PARAMS, json.dumps(params).encode())
        if self._needs_others():
            self._start_sender()
        return self._run_aside(self._preparation.run)

    def _run_aside(self, action: Callable[[], Prepared]) -> Prepared:
        """Prepare in a thread, so that a stop is heard meanwhile. :raises Failed:"""
        done: list[Prepared | BaseException] = []

        def run() -> None:
            try:
                done.append(action())
            except BaseException as error:
                done.append(error)
            self._wake.set()

        threading.Thread(target=run, name="prepare", daemon=True).start()
        while not done and not self._wake.why:
            self._wake.wait()
        if self._wake.why:
            platform.kill_until_gone(lambda: [p.pid for p in platform.descendants(os.getpid())])
            cause = "preempted" if self.preempted else "stopped"
            raise Failed(cause, "told to stop before the program was started")
        if isinstance(done[0], BaseException):
            raise _as_failed(done[0])
        self._prepared = done[0]
        return done[0]

    def _needs_others(self) -> bool:
        """Whether the control plane is needed before the program can start."""
        built = self._spec.get("environment", {}).get("kind") == "built"
        fetches = not self._spec.get("code", {}).get("in_place") or bool(self._spec.get("call"))
        return meets(self._config) or built or fetches

    def _note(self, text: str) -> None:
        self._journal.say(text)
        if self._terminal:
            # That it is gone is found out again, and dealt with, when the program runs.
            with contextlib.suppress(TerminalGone):
                self._terminal.note(text)

    def _make_faults(self) -> Faults | None:
        """Those that a rehearsal injects here."""
        if not self._spec.get("faults"):
            return None
        from wherry.agent.faults import Faults

        return Faults(self._config, self._journal, self._wake)

    def _start_sender(self) -> Sender:
        """The sender; again: the same."""
        if self._sender is None:
            self._sender = Sender(
                self._config,
                self._journal,
                ports=self._ports.numbers if self._ports else [],
                on_stop=lambda: self._wake.end("stopped"),
                on_replaced=self._replaced,
                on_round=self._called,
                patience=0.0 if self._needs_others() else _FIRST,
            )
            self._sender.start()
        return self._sender

    def _replaced(self) -> None:
        self._gone.set()
        self._wake.end("replaced")

    # --- the program
    def _start(self, prepared: Prepared) -> program.Program:
        die_with_agent = platform.adopt_orphans()
        cgroups = list(self._config["limits"].get("cgroup") or ())
        enter_network = platform.network(self._config.get("network", {}).get("namespace", ""))

        def in_child() -> None:
            die_with_agent()
            platform.enter_cgroups(cgroups)
            enter_network()

        if self._ports:
            self._ports.release()
        try:
            for name in ("WHERRY_OUTPUT_DIR", "WHERRY_CHECKPOINT_DIR"):
                os.makedirs(prepared.env[name], exist_ok=True)
            started = program.start(
                prepared.command,
                prepared.env,
                prepared.cwd,
                tty=self._terminal.size if self._terminal else None,
                stdin=self._terminal.stdin if self._terminal else False,
                in_child=in_child,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            name = prepared.command[0]
            raise Failed("start", f"{name!r} cannot be started: {error}") from None
        child = {"pid": started.pid, "started": platform.pid_started(started.pid)}
        # On a full disk the program is still found by its mark.
        with contextlib.suppress(OSError), open(f"{self._folder}/child.json", "w") as file:
            json.dump(child, file)
        record = json.dumps({"pid": started.pid}).encode()
        self._working = True
        self._journal.append(protocol.STARTED, record)
        if self._faults is not None:
            self._faults.began()
        self._began = time.monotonic()
        return started

    def _supervise(self, prepared: Prepared, started: program.Program) -> dict[str, Any]:
        rules = MetricRules(self._spec.get("metrics", {}))
        capture = Capture(self._journal, rules, terminal=started.tty)
        watch = Watch(
            self._config,
            self._journal,
            env=prepared.env,
            cwd=prepared.cwd,
            command=prepared.command,
            on_oom=lambda: self._wake.end("oom"),
            faults=self._faults,
        )
        watch.start()
        ended = Supervisor(
            started,
            capture,
            self._terminal,
            self._wake,
            grace=self._grace,
            timeout=self._spec.get("timeout"),
            warn=lambda: _touch(prepared.env["WHERRY_STOPPING"]),
        ).run()
        when = time.time()
        self._working = False
        if self._faults is not None:
            self._faults.over()
        watch.finish()
        if ended.left:
            names = ", ".join(ended.left)
            self._journal.say(f"ended what the program left behind: {names}")
        self._result = watch.reports.result
        code = prepared.code
        lines = capture.last_lines(_READ) if ended.code else []
        end = outcome(
            ended.code,
            self._wake.why if ended.why == "round" else ended.why,
            attached=bool(self._config["attach"]),
            ran_out=watch.usage.ran_out(ended.code),
            error=watch.reports.error,
            missing=code.explain(lines[-_SHOWN:]) if code and ended.code else None,
            spec=self._spec,
            peak=watch.usage.peak,
            last_lines=lines,
            shown=_SHOWN,
            world=self._config["world_size"],
            ports=self._ports.numbers if self._ports else (),
            taken=self._ports.taken() if self._ports and ended.code else (),
            ended=when,
        )
        self._hang_up(end)
        self._phase("run")
        return end

    def _grace(self) -> float:
        """Seconds from SIGTERM to SIGKILL: what the back end said last."""
        try:
            with open(f"{self._folder}/stop") as file:
                return float(file.read())
        except (OSError, ValueError):
            return float(self._config["grace"])

    def _hang_up(self, end: dict[str, Any]) -> None:
        if self._terminal:
            self._terminal.ended({name: end[name] for name in ("state", "exit_code", "signal")})

    # --- after the program
    def _upload(self) -> None:
        prepared = self._prepared
        if prepared is None:
            return
        from pathlib import Path

        from wherry.agent.calls import Control
        from wherry.agent.files import Uploader, outputs

        control = Control(self._config)
        uploader = Uploader(control, self._journal, self._gone)
        root = Path(prepared.env["WHERRY_OUTPUT_DIR"])
        uploader.keep(root, outputs(root, self._journal))
        if prepared.code and self._config["rank"] == 0:
            uploader.keep(prepared.code.folder, prepared.code.new_files())
        if self._result:
            digest = uploader.store(Path(self._result))[0]
            self._journal.append(protocol.RESULT, json.dumps({"digest": digest}).encode())
        control.close()

    def _phase(self, name: str) -> None:
        now = time.monotonic()
        record = {"phase": name, "seconds": now - self._began}
        self._began = now
        self._journal.append(protocol.PHASE, json.dumps(record).encode())


def _touch(path: str) -> None:
    # A full disk must not keep a program from being asked to end.
    with contextlib.suppress(OSError), open(path, "a"):
        pass


def _as_failed(problem: BaseException) -> Failed:
    from wherry.agent.calls import Refused, Replaced, Unreachable

    if isinstance(problem, Failed):
        return problem
    if isinstance(problem, (Replaced, Unreachable)):
        return Failed("stopped", "this incarnation was replaced")
    if isinstance(problem, (Refused, OSError)):
        return Failed("bundle", f"the run cannot be prepared: {problem}")
    raise problem


def _given_up() -> tuple[type[BaseException], ...]:
    """The exceptions that say that this incarnation was replaced."""
    from wherry.agent.calls import Replaced, Unreachable

    return Replaced, Unreachable
