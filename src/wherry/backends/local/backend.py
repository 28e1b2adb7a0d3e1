"""
The back end of this machine: one detached agent a rank.

Made by ``server.app``. It keeps nothing that matters in memory: every answer is read from the
folders below ``home/attempts`` (see ``folder``), so another object, or another process after a
crash, knows as much. The control plane queues; here is launched what it says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from wherry.agent import journal, protocol
from wherry.backends.base import Capability, Capacity, Member, Observation, Plan, Request
from wherry.backends.local import machine, networks
from wherry.backends.local.cgroups import Cgroups
from wherry.backends.local.folder import (
    AttemptFolder,
    RankFolder,
    Record,
    rank_name,
    write_agent,
    write_config,
)
from wherry.core.roster import Place, own_spec, roster, shares
from wherry.core.run import AttemptId
from wherry.errors import CapabilityMissing, StorageFull, Unavailable, WherryError

POLL = 0.5  #: seconds between looks at agents that are no children of this process
OURS = re.compile(r"[0-9a-z]+-[1-9][0-9]*")  #: names of attempts' folders
REMIND = 1.0  #: seconds after which ``changes`` names a live attempt again


class LocalBackend:
    """
    Keeps ``backends.base.Backend``.

    ``agent``: the unpacked agent's ``__main__.py`` (see ``agent.package``). ``python``: what it
    runs on. ``server_file``: the file that says where a restarted control plane listens.
    ``margin``: seconds after its grace in which an agent that was told to stop may kill its
    program itself.
    """

    def __init__(
        self,
        home: Path,
        *,
        agent: Path,
        python: str = sys.executable,
        server_file: str = "",
        margin: float = 2.0,
    ) -> None:
        self._home = home
        self._attempts = home / "attempts"
        self._agent = agent
        self._python = python
        self._server_file = server_file
        self._margin = margin
        self._uv = machine.uv()
        self._cgroups = Cgroups.detect()
        self._listeners: list[queue.SimpleQueue[AttemptId]] = []
        limits = self._cgroups.memory is not None and self._cgroups.cpu is not None
        self.capabilities = frozenset(
            {Capability.IN_PLACE, Capability.ATTACH, Capability.REPLACE}
            | ({Capability.LIMITS} if limits else set())
        )

    # --- plan
    def plan(self, request: Request) -> Plan:
        """What ``launch`` would write and start, without the tokens."""
        gpus = sum(count * ask.gpu for count, ask in shares(request.spec))
        if gpus > len(machine.gpus()):
            raise CapabilityMissing(
                f"the run asks for {gpus} GPU{'s' * (gpus != 1)} over its ranks, of which there "
                f"{'is 1' if len(request.members) == 1 else f'are {len(request.members)}'}; this "
                f"machine has {len(machine.gpus())}",
                hint="ask for fewer with --gpu",
            )
        places = roster(request.spec)
        roles = [[p.role, p.index] for p in places] if request.spec.roles else []
        ranks = [self._plan_rank(request, m, places[m.rank], roles) for m in request.members]
        return Plan(request=request, body={"backend": "local", "ranks": ranks})

    def _plan_rank(
        self, request: Request, member: Member, place: Place, roles: list[list[Any]]
    ) -> dict[str, Any]:
        spec, attempt = own_spec(request.spec, place), request.attempt
        shared = self._attempts / str(attempt)
        name = rank_name(member.rank, member.incarnation)
        folder = shared / name
        config = {
            "protocol": protocol.PROTOCOL,
            "server": request.server,
            "server_file": self._server_file,
            "run": attempt.run,
            "attempt": attempt.number,
            "rank": member.rank,
            "incarnation": member.incarnation,
            "world_size": spec.world_size,
            "processes": 1 if spec.launcher else spec.processes,
            "roles": roles,
            "launcher": spec.launcher,
            "spec": msgspec.json.decode(msgspec.json.encode(spec)),
            "dir": str(folder),
            "shared_dir": str(shared),
            "cache": str(self._home / "cache"),
            "checkpoints": str(self._home / "checkpoints" / attempt.run),
            "threads": member.threads,
            "attach": request.attach,
            "uv": self._uv,
            "grace": request.grace,
            "heartbeat": request.heartbeat,
            "lease": request.lease,
            "barrier_timeout": request.barrier_timeout,
            "spool_limit": request.spool_limit,
            "network": self._network(request, member),
            "limits": {
                "memory": spec.resources.memory,
                "cgroup": self._cgroups.folders(
                    f"{attempt}.{name}", memory=spec.resources.memory, cpu=spec.resources.cpu
                ),
            },
        }
        # -I: nothing of the user's environment or folder gets into the agent. -S: it needs no
        # packages, and starts twice as fast without. utf8: names and arguments are bytes to us.
        command = [self._python, "-I", "-S", "-X", "utf8", str(self._agent)]
        return {
            "rank": member.rank,
            "command": [*command, str(folder / "config.json")],
            "gpus": spec.resources.gpu,
            "config": config,
        }

    def _network(self, request: Request, member: Member) -> dict[str, str]:
        """Where the rank's program lives, if not where we are."""
        if not networks.wanted(request.spec, request.attempt):
            return {}
        if why := networks.missing():
            return {"missing": why}
        wire = networks.wire(request.attempt, member.rank, member.incarnation)
        return wire.config(shutil.which("ip") or "ip")

    # --- launch
    def launch(self, plan: Plan) -> None:
        """Start the agents that were not started yet."""
        request = plan.request
        folder = self._folder(request.attempt)
        with folder.hold(create=True):
            try:
                self._launch(folder, plan)
            except (OSError, WherryError) as error:
                folder.erase()
                if isinstance(error, OSError):
                    raise _unlaunched(request.attempt, error) from error
                raise

    def _launch(self, folder: AttemptFolder, plan: Plan) -> None:
        request = plan.request
        if not self._agent.is_file():
            raise FileNotFoundError(errno.ENOENT, "the agent is missing", str(self._agent))
        if not folder.ranks():
            with self._allot(plan) as gpus:
                folder.record(
                    [
                        Record(rank=m.rank, incarnation=m.incarnation, gpus=gpus.get(m.rank, ()))
                        for m in request.members
                    ]
                )
        if folder.deadline is not None:
            return
        newer = {m.rank: m for m in request.members}
        bodies = {body["rank"]: body for body in self._wired(plan)}
        for rank in folder.ranks():
            member = newer.get(rank.record.rank)
            if member is None or member.incarnation < rank.record.incarnation:
                continue
            if member.incarnation > rank.record.incarnation:
                record = replace(rank.record, incarnation=member.incarnation)
                folder.replace(record)
                rank = RankFolder(folder.path, record, folder.attempt)
            if not rank.spawned:
                self._launch_rank(rank, bodies[member.rank], member.token, request)

    def _wired(self, plan: Plan) -> list[dict[str, Any]]:
        """The ranks of the plan, with networks where it says so and they can be made."""
        bodies: list[dict[str, Any]] = plan.body["ranks"]
        attempt = plan.request.attempt
        if not any("namespace" in body["config"]["network"] for body in bodies):
            return bodies
        try:
            networks.make(
                networks.wire(attempt, m.rank, m.incarnation) for m in plan.request.members
            )
        except WherryError as error:
            networks.remove(attempt)
            none = {"missing": error.message}
            return [{**body, "config": {**body["config"], "network": none}} for body in bodies]
        return bodies

    def _launch_rank(
        self, rank: RankFolder, body: dict[str, Any], token: str, request: Request
    ) -> None:
        config = {**body["config"], "token": token}
        if rank.record.gpus:
            env = {
                **config["spec"].get("env", {}),
                "CUDA_VISIBLE_DEVICES": ",".join(rank.record.gpus),
            }
            config["spec"] = {**config["spec"], "env": env}
        rank.path.mkdir(mode=0o700, exist_ok=True)
        write_config(rank.path / "config.json", config)
        resources = config["spec"].get("resources", {})
        self._cgroups.make(
            f"{request.attempt}.{rank.path.name}",
            memory=resources.get("memory"),
            cpu=resources.get("cpu"),
        )
        with open(rank.path / "agent.log", "ab") as log:
            # Without preexec_fn this is a vfork: its cost does not grow with the control plane.
            agent = subprocess.Popen(
                body["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=rank.path,
                env=machine.agent_environment(os.environ),
                start_new_session=True,
            )
        threading.Thread(
            target=_announce_end,
            args=(agent, request.attempt, self._listeners),
            name="agent-end",
            daemon=True,
        ).start()
        write_agent(rank.path / "agent.json", agent.pid)

    @contextlib.contextmanager
    def _allot(self, plan: Plan) -> Iterator[dict[int, tuple[str, ...]]]:
        """GPUs by rank, distinct from those of every live attempt; written before this ends."""
        wanted = {body["rank"]: int(body["gpus"]) for body in plan.body["ranks"] if body["gpus"]}
        if not wanted:
            yield {}
            return
        fd = os.open(self._attempts, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            busy = self._busy_gpus()
            free = [gpu for gpu in machine.gpus() if gpu not in busy]
            if len(free) < sum(wanted.values()):
                raise Unavailable(
                    f"{plan.request.attempt} needs {sum(wanted.values())} GPUs; "
                    f"{len(free)} of {len(machine.gpus())} are free"
                )
            take = iter(free)
            yield {rank: tuple(islice(take, count)) for rank, count in wanted.items()}
        finally:
            os.close(fd)

    def _busy_gpus(self) -> set[str]:
        found: set[str] = set()
        for attempt in self.owned():
            folder = self._folder(attempt)
            gpus = {gpu for rank in folder.ranks() for gpu in rank.record.gpus}
            if gpus and not folder.over():
                found |= gpus
        return found

    # --- watch
    def observe(self, attempt: AttemptId) -> Observation:
        """
        What the folders and locks say now.

        An agent that died is also tidied up after here, and one that is overdue killed, so that
        it happens whoever looks.
        """
        folder = self._folder(attempt)
        deadline = folder.deadline
        ranks = folder.ranks()
        if deadline is not None and (late := time.monotonic() - deadline) > self._margin:
            for rank in ranks:
                if not rank.over and rank.overdue(late, self._margin):
                    rank.kill()
        seen = tuple(rank.observe(stopped=deadline is not None) for rank in ranks)
        for rank, one in zip(ranks, seen, strict=True):
            if one.phase == "ended":
                rank.clear()
        return Observation(attempt=attempt, ranks=seen)

    def changes(self) -> Iterator[AttemptId]:
        """At once when a child ends; else by looking at every attempt that is not over."""
        listener: queue.SimpleQueue[AttemptId] = queue.SimpleQueue()
        self._listeners.append(listener)
        told: dict[AttemptId, tuple[Observation, float]] = {}
        over: set[AttemptId] = set()
        try:
            while True:
                for attempt in self.owned():
                    if attempt in over:
                        continue
                    seen = self.observe(attempt)
                    last, when = told.get(attempt, (None, 0.0))
                    if seen.ranks and all(rank.phase == "ended" for rank in seen.ranks):
                        over.add(attempt)
                        told.pop(attempt, None)
                    elif seen == last and time.monotonic() - when < REMIND:
                        continue
                    else:
                        told[attempt] = seen, time.monotonic()
                    yield attempt
                yield from _drain(listener, POLL)
        finally:
            self._listeners.remove(listener)

    def logs(self, attempt: AttemptId, rank: int) -> Iterator[bytes]:
        """The journal's frames."""
        for found in self._folder(attempt).ranks():
            if found.record.rank == rank:
                yield from journal.read_folder(found.path)

    # --- end
    def stop(self, attempt: AttemptId, grace: float) -> None:
        """SIGTERM now; SIGKILL after the grace, by whoever looks first."""
        folder = self._folder(attempt)
        with folder.hold(create=True):
            ranks = folder.ranks()
            if ranks and folder.over():
                return
            folder.tell_to_stop(grace)
            for rank in ranks:
                rank.tell_to_stop(grace)
        timer = threading.Timer(grace + self._margin + 0.05, self.observe, args=(attempt,))
        timer.daemon = True
        timer.start()

    def forget(self, attempt: AttemptId) -> None:
        """Kill and remove."""
        folder = self._folder(attempt)
        with folder.hold() as there:
            if there:
                folder.erase()

    def owned(self) -> Iterator[AttemptId]:
        """Attempts with a folder."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._attempts) if entry.is_dir())
        except FileNotFoundError:
            return
        yield from (AttemptId.parse(name) for name in names if OURS.fullmatch(name))

    def capacity(self) -> Capacity | None:
        """This machine, within the limits that hold for this process."""
        busy = len(self._busy_gpus()) if machine.gpus() else 0
        return Capacity(total=machine.total(), free=machine.free(busy))

    def _folder(self, attempt: AttemptId) -> AttemptFolder:
        return AttemptFolder(self._attempts / str(attempt), attempt)


def _announce_end(
    agent: subprocess.Popen[bytes],
    attempt: AttemptId,
    listeners: list[queue.SimpleQueue[AttemptId]],
) -> None:
    agent.wait()
    for listener in list(listeners):
        listener.put(attempt)


def _drain(listener: queue.SimpleQueue[AttemptId], timeout: float) -> Iterator[AttemptId]:
    """What is said within ``timeout`` seconds, as soon as it is."""
    with contextlib.suppress(queue.Empty):
        yield listener.get(timeout=timeout)
        while True:
            yield listener.get_nowait()


def _unlaunched(attempt: AttemptId, error: OSError) -> WherryError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"{attempt} cannot be launched: {error}", hint="wherry prune frees space"
        )
    return Unavailable(f"{attempt} cannot be launched: {error}")
