"""
What lies on disk of an attempt, and what it says: the only memory of the local back end.

Called by ``backend`` alone. The folder of an attempt, beside what the agents put there (see
``agent.protocol``)::

    attempt.json    [{"rank", "incarnation", "gpus"}]: written before the first agent is started
    stop            when to kill what is left; an attempt that was told to stop never starts
    RANK/agent.json {"pid", "started"} of the agent, written right after it was started
    RANK/cleared    nothing is left of a program whose agent died

Whether an agent lives is read from the lock that it holds, never from a pid: pids are used again.
Only between an agent's start and its lock is there nothing but a pid, with the time it started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from wherry.agent import platform
from wherry.backends.local import cgroups, networks
from wherry.core.run import AttemptId, RankObservation

LINGER = 60.0  #: seconds past its grace that an agent has to send what its program left


class Record(Struct, frozen=True, kw_only=True):
    """One rank of ``attempt.json``."""

    rank: int
    incarnation: int
    gpus: tuple[str, ...] = ()


class RankFolder:
    """One rank's folder."""

    def __init__(self, path: Path, record: Record, attempt: AttemptId) -> None:
        #: of the first incarnation RANK, of a later one RANK.INCARNATION
        self.path = path / rank_name(record.rank, record.incarnation)
        self.record = record
        self.mark = f"{attempt}/{record.rank}/{record.incarnation}"

    def observe(self, *, stopped: bool) -> RankObservation:
        """Where the agent is. ``stopped``: the attempt was told to stop."""
        phase, message = self._phase()
        cause = ""
        if phase == "absent" and stopped:
            phase, cause = "ended", "stopped"
        elif phase == "ended" and not self.left:
            cause = "stopped" if stopped else "agent-lost"
        return msgspec.convert(
            {
                "rank": self.record.rank,
                "incarnation": self.record.incarnation,
                "phase": phase,
                "cause": cause,
                "message": message if cause == "agent-lost" else "",
            },
            RankObservation,
        )

    def _phase(self) -> tuple[str, str]:
        if not self.began:
            agent = _read_json(self.path / "agent.json")
            if agent is None:
                return "absent", ""
            if _alive(agent):
                return "pending", ""
            if not self.began:  # it may have begun, and ended, since the first look
                return "ended", f"the agent died before it began{self._last_words()}"
        if self.locked:
            return "running", ""
        return "ended", f"the agent died{self._last_words()}"

    @property
    def began(self) -> bool:
        """Whether an agent ever held the lock: it writes its pid there, and keeps others out."""
        return bool(_read(self.path / "lock"))

    @property
    def left(self) -> bool:
        """Whether the agent left by itself, having said all that there was to say."""
        return _read(self.path / "lock").endswith("left")

    @property
    def locked(self) -> bool:
        """
        Whether an agent holds the lock.

        Only to be asked of one that began: a starting agent that finds the lock taken, if only by
        this question, would leave.
        """
        with contextlib.suppress(FileNotFoundError), open(self.path / "lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def spawned(self) -> bool:
        """Whether there is nothing more to launch."""
        return self.began or (self.path / "agent.json").exists()

    @property
    def over(self) -> bool:
        """Whether the agent is no more."""
        return self._phase()[0] == "ended"

    def _pid(self) -> int | None:
        if self.began:
            return int(_read(self.path / "lock").split()[0]) if self.locked else None
        agent = _read_json(self.path / "agent.json")
        if agent is not None and _alive(agent):
            return int(agent["pid"])
        return None

    def tell_to_stop(self, grace: float) -> None:
        """Say so to the agent, if it lives; a suspended one is woken to hear it."""
        if (pid := self._pid()) is not None:
            _write(self.path / "stop", str(grace).encode())
            platform.kill([pid], signal.SIGTERM)
            platform.kill([pid], signal.SIGCONT)

    def clear(self) -> None:
        """Kill what the program of a dead agent left behind, once."""
        if self.left or not self.began or (self.path / "cleared").exists():
            return
        self.kill_program()
        _write(self.path / "cleared", b"")

    def kill_program(self) -> None:
        """SIGKILL to the program's process group and to all that carry its mark or its group."""
        child = _read_json(self.path / "child.json")
        if child is not None and _alive(child):
            platform.kill([-child["pid"]])
        deadline = time.monotonic() + 5.0
        # Again and again: a process may fork between being found and being killed.
        while (pids := platform.find_marked(self.mark)) and time.monotonic() < deadline:
            platform.kill(pids)
            time.sleep(0.002)
        for group in self.cgroups():
            cgroups.kill(Path(group))

    def overdue(self, late: float, margin: float) -> bool:
        """
        Whether the agent, ``late`` seconds after its grace was over, must be killed.

        Past a margin where its program is not over: a sound agent had killed it. Else it is still
        sending what the program left.
        """
        child = _read_json(self.path / "child.json")
        finished = child is not None and not _alive(child)
        return late > (LINGER if finished else margin)

    def kill(self, *, patience: float = 5.0) -> None:
        """End the agent and its program, now; return when they are gone."""
        deadline = time.monotonic() + patience
        while (pid := self._pid()) is not None and time.monotonic() < deadline:
            platform.kill([pid])
            time.sleep(0.002)
        if self.began and not self.left:
            self.kill_program()

    def cgroups(self) -> list[str]:
        """The control groups that were made for the program."""
        config = _read_json(self.path / "config.json")
        return list(config["limits"]["cgroup"]) if config else []

    def _last_words(self) -> str:
        lines = _read(self.path / "agent.log").strip().splitlines()
        return f": {lines[-1][-500:]}" if lines else ""


class AttemptFolder:
    """One attempt's folder."""

    def __init__(self, path: Path, attempt: AttemptId) -> None:
        self.path = path
        self.attempt = attempt

    @contextlib.contextmanager
    def hold(self, *, create: bool = False) -> Iterator[bool]:
        """
        Keep every other thread and process out while something is changed.

        Yields whether the folder is there. The lock is on the folder itself, so nothing is left
        of it when the folder goes; who waited for a folder that went looks again.
        """
        while True:
            if create:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if create:
                    continue
                yield False
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if self._is(fd):
                    yield True
                    return
            finally:
                os.close(fd)

    def _is(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def ranks(self) -> list[RankFolder]:
        """Every rank that was to be launched, by number; none where launch was never called."""
        try:
            records = msgspec.json.decode(
                (self.path / "attempt.json").read_bytes(), type=list[Record]
            )
        except FileNotFoundError:
            return []
        return [RankFolder(self.path, r, self.attempt) for r in records]

    def record(self, records: Sequence[Record]) -> None:
        """Write ``attempt.json``."""
        _write(self.path / "attempt.json", msgspec.json.encode(records))

    def replace(self, record: Record) -> None:
        """Put an incarnation in place of the one before, which is killed and removed."""
        ranks = self.ranks()
        for old in ranks:
            if old.record.rank == record.rank:
                old.kill()
                cgroups.remove(old.cgroups())
                shutil.rmtree(old.path, ignore_errors=True)
        self.record([record if r.record.rank == record.rank else r.record for r in ranks])

    @property
    def deadline(self) -> float | None:
        """When to kill what is left (``time.monotonic``); ``None``: nobody said stop."""
        text = _read(self.path / "stop")
        return float(text) if text else None

    def tell_to_stop(self, grace: float) -> None:
        """Note it. The earliest deadline holds."""
        known, new = self.deadline, time.monotonic() + grace
        if known is None or new < known:
            _write(self.path / "stop", str(new).encode())

    def over(self) -> bool:
        """Whether no agent lives, or ever will."""
        ranks = self.ranks()
        if self.deadline is not None:
            return all(r.over or not r.spawned for r in ranks)
        return bool(ranks) and all(r.over for r in ranks)

    def erase(self) -> None:
        """Kill what runs and remove every trace. :raises OSError: where something stays."""
        ranks = self.ranks()
        for rank in ranks:
            rank.kill()
            cgroups.remove(rank.cgroups())
        networks.remove(self.attempt)
        for last in (False, False, True):
            # A process in its last moment may still write a file; a copy of code may be read-only.
            shutil.rmtree(self.path, ignore_errors=not last)
            if not self.path.exists():
                return
            for inner, _, _ in os.walk(self.path):
                os.chmod(inner, 0o700)


def rank_name(rank: int, incarnation: int) -> str:
    """What the folder of a rank is called."""
    return str(rank) if incarnation == 1 else f"{rank}.{incarnation}"


def write_config(path: Path, config: dict[str, Any]) -> None:
    """``config.json``: for its owner only, for it holds a token; whole or not at all."""
    _write(path, json.dumps(config).encode())


def write_agent(path: Path, pid: int) -> None:
    """``agent.json``."""
    _write(path, json.dumps({"pid": pid, "started": platform.pid_started(pid)}).encode())


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
    os.replace(new, path)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _read_json(path: Path) -> dict[str, Any] | None:
    text = _read(path)
    return dict(json.loads(text)) if text else None


def _alive(process: dict[str, Any]) -> bool:
    started = process["started"]
    return started is not None and platform.pid_started(process["pid"]) == started
