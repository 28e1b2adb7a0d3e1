"""
What people ask of a rank while it runs: a thread that fetches commands and has them done.

Started by ``agent.main`` when the program runs; the control plane cannot call an agent, so this
asks. ``agent.protocol`` lists the commands; ``agent.beside`` and ``agent.stack`` do them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

from wherry.agent import platform

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

    from wherry.agent.calls import Control

_FIRST = 0.3  #: seconds that belong to the start of the program
_WAIT = 30.0  #: seconds of one question
_LEAVE = 3.0  #: seconds for what runs beside to end by itself, its grace among them
_MAIN = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "__main__.py"
)


class Commands(threading.Thread):
    """``env`` and ``cwd`` are the program's. ``stacks(native)`` answers the command ``stack``."""

    def __init__(
        self,
        config: dict[str, Any],
        env: dict[str, str],
        cwd: str,
        stacks: Callable[[bool], dict[str, Any]],
    ) -> None:
        super().__init__(name="commands", daemon=True)
        self._config, self._stacks = config, stacks
        self.beside(env, cwd)
        self._after = 0
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self) -> None:
        """The thread."""
        self._closing.wait(_FIRST)
        from wherry.agent.calls import Control, Refused, Replaced, Unreachable, backoff

        control = Control(self._config)
        delays = backoff()
        while not self._closing.is_set():
            try:
                self._step(control)
                delays = backoff()
            except (Refused, Replaced):
                return  # the control plane knows no commands, or not us any more
            except Unreachable:
                self._closing.wait(next(delays))
            except Exception:
                # One command that fails in a way that nobody foresaw must not cost the others.
                traceback.print_exc()
                self._closing.wait(next(delays))

    def beside(self, env: dict[str, str], cwd: str) -> None:
        """The program has these from now on: an elastic group begins anew."""
        self._env, self._cwd = env, cwd

    def close(self) -> None:
        """End what runs beside the program. Again: no error."""
        self._closing.set()
        with self._lock:
            for process in self._running:
                assert process.stdin
                process.stdin.close()
            deadline = time.monotonic() + _LEAVE
            for process in self._running:
                while process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                if process.poll() is None:
                    below = [p.pid for p in platform.descendants(process.pid)]
                    platform.kill([process.pid, *below])
            self._running.clear()

    def _step(self, control: Control) -> None:
        answer = control.call("GET", f"/commands?after={self._after}&wait={_WAIT}")
        for command in answer["commands"]:
            self._after = max(self._after, int(command["number"]))
            if command["kind"] == "exec":
                self._exec(command["channel"])
            elif command["kind"] == "stack":
                threading.Thread(target=self._stack, args=(command,), daemon=True).start()

    def _exec(self, channel: str) -> None:
        told = {
            "config": {name: self._config[name] for name in ("server", "server_file", "token")},
            "channel": channel,
            "env": self._env,
            "cwd": self._cwd,
            "cgroup": list(self._config["limits"].get("cgroup") or ()),
        }
        with self._lock:
            self._running = [process for process in self._running if process.poll() is None]
            if self._closing.is_set():
                return
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", _MAIN, "--beside"],
                stdin=subprocess.PIPE,
                start_new_session=True,
                close_fds=True,
            )
            platform.own(process.pid)
            self._running.append(process)
        assert process.stdin
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()

    def _stack(self, command: dict[str, Any]) -> None:
        from wherry.agent.calls import Control, Refused, Replaced, Unreachable

        control = Control(self._config)
        try:
            answer = json.dumps(self._stacks(bool(command.get("native"))), allow_nan=False)
            control.call("POST", f"/commands/{command['id']}", answer.encode())
        except (Refused, Replaced, Unreachable):
            pass  # whoever asked is told that we did not answer
        except Exception:
            traceback.print_exc()
        finally:
            control.close()
