"""
Everything before the program starts: its code, its environment, the other ranks; then what to run.

Called by ``agent.main`` in a thread of its own, so that a stop is heard at any time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

from wherry.agent import protocol
from wherry.agent.argv import after_script, params_from_argv
from wherry.agent.errors import Failed
from wherry.agent.journal import Journal
from wherry.agent.variables import OWN, rank_variables, thread_variables
from wherry.agent.wake import Wake

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

#: This folder's parent, which has the shim, and wherry_call.py beside it.
_AGENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


_RSH = os.path.join(_AGENT, "wherry_rsh.py")


def meets(config: dict[str, Any]) -> bool:
    """Whether the rank waits for others before it starts its program."""
    group = config["spec"].get("group", "gang")
    return bool(group == "elastic" or (group == "gang" and config["world_size"] > 1))


class Prepared:
    """What to start, and what to know of it afterwards."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: str, code: Any) -> None:
        self.command = command
        self.env = env
        self.cwd = cwd
        self.code = code  #: ``code.Code``; None where the program works in place


class Preparation:
    """``base``: the program's environment before anything is added. ``ports``: of this rank."""

    def __init__(
        self,
        config: dict[str, Any],
        journal: Journal,
        wake: Wake,
        *,
        base: dict[str, str],
        attached: bool,
        tty: bool,
        ports: list[int],
        note: Callable[[str], None],
    ) -> None:
        self._config = config
        self._spec: dict[str, Any] = config["spec"]
        self._journal = journal
        self._wake = wake
        self._base = base
        self._attached = attached
        self._tty = tty
        self._ports = ports
        self._note = note
        self._launcher: str = config.get("launcher", "")
        self._began = time.monotonic()
        self.round = 0  #: of an elastic group: the one that the rank is in, or was in last

    def run(self) -> Prepared:
        """All phases. :raises Failed: :raises Replaced: :raises Unreachable: when told to stop."""
        self._code, self._cwd = self._bundle()
        self._payload_path = self._payload()
        self.phase("bundle")
        self._python, self._extra = self._environment()
        self.phase("environment")
        return self.meet()

    def meet(self) -> Prepared:
        """The last phase, and again for each round of an elastic group. Raises as ``run``."""
        variables = self._barrier()
        self.phase("barrier")
        env = {**self._base, **self._extra, **self._spec.get("env", {}), **variables}
        place = self._spec.get("code", {}).get("in_place")
        env["PYTHONPATH"] = self._python_path(env, place or str(self._code.folder))
        command = list(self._spec.get("command", ()))
        if self._launcher == "mpi":
            env["PATH"] = os.pathsep.join([env.get("PATH", os.defpath), env["WHERRY_MPI"]])
        if self._payload_path and self._spec["call"].get("tasks"):
            told = os.path.join(self._config["dir"], "config.json")
            pool = os.path.join(_AGENT, "wherry_pool.py")
            command = [self._python, pool, told, self._payload_path]
        elif self._payload_path:
            result = os.path.join(self._config["dir"], "result")
            call = os.path.join(_AGENT, "wherry_call.py")
            command = [self._python, call, self._payload_path, result]
        elif command[0] in ("python", "python3"):
            command[0] = self._python
        elif self._launcher == "mpi" and meets(self._config) and env["WHERRY_WORLD_SIZE"] != "1":
            from wherry.agent import mpi

            command = mpi.command(command, int(env["WHERRY_RANK"]), _RSH)
        return Prepared(command, env, self._cwd, self._code)

    def phase(self, name: str) -> None:
        """Report how long it took since the last one."""
        now = time.monotonic()
        self._record(name, now - self._began)
        self._began = now

    def _record(self, name: str, seconds: float) -> None:
        record = {"phase": name, "seconds": seconds}
        self._journal.append(protocol.PHASE, json.dumps(record).encode())

    def _bundle(self) -> tuple[Any, str]:
        place = self._spec.get("code", {})
        if place.get("in_place"):
            cwd = os.path.normpath(os.path.join(place["in_place"], place.get("workdir", ".")))
            if not os.path.isdir(cwd):
                raise Failed("start", f"the folder {cwd} is not there any more")
            return None, cwd
        from wherry.agent.calls import Control, Refused, persist
        from wherry.agent.code import Code

        code = Code(self._config)
        control = Control(self._config)
        try:
            persist(lambda: code.make(control), self._wake.ended)
        except (Refused, OSError) as error:
            raise Failed("bundle", f"the code cannot be fetched: {error}") from None
        finally:
            control.close()
        return code, str(code.workdir)

    def _payload(self) -> str:
        """The path of a function's payload; "" where the run is a command."""
        call = self._spec.get("call")
        if not call or not call.get("payload"):
            return ""
        path: str = os.path.join(self._config["dir"], "payload")
        with open(path, "wb") as file:
            file.write(self._fetch(call["payload"]))
        return path

    def _fetch(self, digest: str) -> bytes:
        from wherry.agent.calls import Control, Refused, persist

        control = Control(self._config)

        def fetch() -> bytes:
            with control.stream("GET", f"/blobs/{digest}") as read:
                return b"".join(iter(lambda: read(2**20), b""))

        try:
            data: bytes = persist(fetch, self._wake.ended)
            return data
        except Refused as error:
            raise Failed("bundle", f"blob {digest} cannot be fetched: {error}") from None
        finally:
            control.close()

    def _environment(self) -> tuple[str, dict[str, str]]:
        """The interpreter and the variables that belong to it."""
        wanted = self._spec.get("environment", {})
        python = wanted.get("python", "")
        if wanted.get("kind", "active") == "active":
            if not os.access(python, os.X_OK):
                raise Failed(
                    "environment",
                    f"the interpreter {python or '(none)'} is not there any more",
                    "activate the environment again, or let Wherry build one with --python",
                )
            folder = os.path.dirname(python)
            if self._attached:
                return python, {}
            venv = os.path.dirname(folder)
            is_venv = os.path.exists(os.path.join(venv, "pyvenv.cfg"))
            return python, self._paths(folder, venv if is_venv else "")
        from wherry.agent import environment
        from wherry.agent.uv import EnvironmentFailed

        try:
            built = environment.build(
                wanted,
                cache=self._config["cache"],
                uv=self._config["uv"],
                fetch=self._fetch,
                note=self._note,
            )
        except EnvironmentFailed as error:
            for line in error.tail.splitlines():
                self._journal.say(line)
            raise Failed("environment", error.message, error.hint) from None
        if not built.reused:
            # Within the phase of the environment: a run of the same packages would not have it.
            self._record("build", time.monotonic() - self._began)
        return built.python, self._paths(built.bin, built.root)

    def _paths(self, folder: str, venv: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [folder, self._base.get("PATH", os.defpath)]))
        return {"PATH": path, **({"VIRTUAL_ENV": venv} if venv else {})}

    def _barrier(self) -> dict[str, str]:
        config = self._config
        peers = [{"rank": config["rank"], "address": "127.0.0.1", "ports": self._ports}]
        if meets(config):
            from wherry.agent.ranks import meet

            self.round, peers = meet(config, self._wake, self.round)
        folder, report = config["dir"], "report"
        mark = f"{config['run']}-{config['attempt']}/{config['rank']}/{config['incarnation']}"
        if config["spec"].get("group") == "elastic":
            # Numbers are those of the round; what the program reports in it has a file of its own.
            numbers = [int(peer["rank"]) for peer in peers]
            config = {**config, "rank": numbers.index(config["rank"]), "world_size": len(peers)}
            report = f"report.{self.round}"
        found = rank_variables(config, peers)
        found["WHERRY_MARK"] = mark
        found["WHERRY_REPORT"] = os.path.join(folder, report)
        found["WHERRY_STOPPING"] = os.path.join(folder, "stopping")
        found["WHERRY_OUTPUT_DIR"] = os.path.join(folder, "output")
        found["WHERRY_CHECKPOINT_DIR"] = config["checkpoints"]
        found["WHERRY_PARAMS"] = json.dumps(self.params())
        if self._launcher == "mpi":
            # In a pool each runs an mpirun of its own.
            found.update(self._mpi(config["rank"] if len(peers) > 1 else 0, peers))
        # A segmentation fault then says where it was.
        wanted = {"PYTHONFAULTHANDLER": "1"}
        if not self._tty:  # where output shows line by line anyway
            wanted["PYTHONUNBUFFERED"] = "1"
        if config.get("network", {}).get("namespace"):
            # They would look for the interface by the machine's name, which leads out of here.
            names = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
            wanted.update(dict.fromkeys(names, "eth0"))
        # A single process that asked for no share may use the machine, as it would without us.
        several = int(self._spec.get("processes", 1)) if self._launcher else 1
        asked_for = self._spec.get("resources", {}).get("cpu")
        if config["world_size"] > 1 or several > 1 or asked_for:
            wanted.update(thread_variables(config["threads"] // several))
        asked = {**self._base, **self._spec.get("env", {})}
        found.update({name: value for name, value in wanted.items() if name not in asked})
        return found

    def _mpi(self, rank: int, peers: list[dict[str, Any]]) -> dict[str, str]:
        from wherry.agent import mpi

        folder = os.path.join(self._config["dir"], "mpi")
        processes = int(self._spec.get("processes", 1))
        machines = mpi.hosts(peers, processes)
        mpi.write(folder, rank, peers, machines, own=OWN, script=_RSH)
        cores = os.cpu_count() or 1
        return mpi.mpi_variables(folder, machines, root=os.getuid() == 0, cores=cores)

    def params(self) -> dict[str, Any]:
        """The parameters that the command line shows, under those that the job declares."""
        words = after_script(self._spec.get("command", ()))
        return {**params_from_argv(words), **self._spec.get("params", {})}

    def _python_path(self, env: dict[str, str], root: str) -> str:
        """``import wherry`` always works, and the project's own package in a built environment."""
        built = self._spec.get("environment", {}).get("kind") == "built"
        source = os.path.join(root, "src")
        found = [source] if built and os.path.isdir(source) else []
        return os.pathsep.join(filter(None, [env.get("PYTHONPATH"), *found, _AGENT]))
