"""
What the Python processes of a rank do at this moment, by py-spy, which looks at them from outside.

Called by ``agent.commands`` for ``wherry stack`` and by ``agent.stall``. Nothing has to be prepared
in the program, and it is paused for some milliseconds only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping

from wherry.agent import platform

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

_PATIENCE = 10.0  #: seconds for one process
_LONGEST = 20.0  #: seconds for all
_MOST = 64  #: processes that are looked into
_SCOPE = "/proc/sys/kernel/yama/ptrace_scope"


def stacks(py_spy: str, env: Mapping[str, str], *, native: bool) -> dict[str, Any]:
    """
    The answer to the command ``stack``.

    ``py_spy``: its path, or "": the one on the path of the program's environment or on ours.
    """
    below = platform.descendants(os.getpid())
    halted = [{"pid": p.pid, **_stopped(p.pid)} for p in below if p.stopped]
    answer: dict[str, Any] = {"processes": [], "problems": halted[:_MOST]}
    path = py_spy or shutil.which("py-spy", path=env.get("PATH")) or shutil.which("py-spy")
    found = [p for p in below if is_python(p.pid, p.name)]
    if not path:
        missing = _problem("py-spy-missing", "py-spy is not on the machine of the rank", _GET)
        answer["problems"].append(missing)
        return answer
    if not found:
        none = _problem("no-python", "the rank runs no Python process", "")
        answer["problems"].append(none)
    deadline = time.monotonic() + _LONGEST
    for process in found[:_MOST]:
        if time.monotonic() >= deadline:
            answer["problems"].append(_problem("stack-timeout", "some processes were left out", ""))
            break
        # One that is stopped already cannot be paused, and need not be.
        how = ["--nonblocking"] if process.stopped else ["--native"] * native
        threads, problem = _dump(path, process.pid, how)
        if threads:
            command = platform.command_line(process.pid) or process.name
            entry = {"pid": process.pid, "command": command, "threads": threads}
            answer["processes"].append(entry)
        elif problem and not process.stopped and platform.pid_started(process.pid) is not None:
            answer["problems"].append({"pid": process.pid, **problem})
    return answer


_GET = "add py-spy to the run's packages (--with py-spy), or to the image"


def _stopped(pid: int) -> dict[str, Any]:
    hint = f"where the rank runs, kill -CONT {pid} lets it go on"
    return _problem("stopped", f"process {pid} is stopped (SIGSTOP)", hint)


def is_python(pid: int, name: str) -> bool:
    """Whether an interpreter runs there, also one inside another program (Linux)."""
    if not platform.LINUX:
        return name.lower().startswith("python")
    try:
        if os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith(("python", "pypy")):
            return True
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return b"/libpython" in maps.read()
    except OSError:
        return False


def _dump(path: str, pid: int, how: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The threads of a process, or why there are none. ``how``: options of py-spy."""
    command = [path, "dump", "--json", "--pid", str(pid), *how]
    try:
        with platform.helper(command, stderr=subprocess.PIPE) as process:
            out, said = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        hint = "a process that is stopped, or deep in the kernel, cannot be looked into"
        return [], _problem("stack-timeout", f"process {pid} does not hold still", hint)
    except OSError as error:
        return [], _problem("py-spy-missing", f"py-spy cannot be started: {error.strerror}", _GET)
    try:
        threads: list[dict[str, Any]] = json.loads(out)
    except ValueError:
        return [], explain(pid, (out + said).decode("utf-8", "replace"), _scope())
    for thread in threads:
        if not thread.get("thread_name") and thread.get("os_thread_id") == pid:
            thread["thread_name"] = "MainThread"
    return threads, {}


def in_words(answer: dict[str, Any]) -> str:
    """The answer as text; "" where nothing could be seen. Pure."""
    lines = []
    for process in answer["processes"]:
        lines.append(f"{process['pid']} {process['command']}")
        for thread in process["threads"]:
            lines.append(f"  {thread['thread_name'] or 'thread %#x' % thread['thread_id']}")
            lines += [f"    {f['name']} ({f['filename']}:{f['line']})" for f in thread["frames"]]
    return "\n".join(lines)


def _problem(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"code": code, "message": message, "hint": hint}


def _scope() -> str:
    try:
        with open(_SCOPE) as file:
            return file.read().strip()
    except OSError:
        return ""


def explain(pid: int, said: str, scope: str) -> dict[str, Any]:
    """
    What py-spy's refusal means. Pure. ``scope``: the kernel's ``ptrace_scope``, "" without Yama.

    With 1, the rank's program itself lets us look (``platform.adopt_orphans``), but the processes
    that it starts do not.
    """
    flat = " ".join(said.split())
    if "permission" in flat.lower() or "not permitted" in flat.lower():
        hint = {
            "1": "only the rank's first process can be looked into with kernel.yama.ptrace_scope "
            "1; as root: sysctl kernel.yama.ptrace_scope=0",
            "2": "kernel.yama.ptrace_scope is 2: only root may look; sysctl "
            "kernel.yama.ptrace_scope=1 lets others",
            "3": "kernel.yama.ptrace_scope is 3: nobody may look until the machine starts anew",
        }.get(scope, "in a container it needs the capability SYS_PTRACE")
        if sys.platform == "darwin":
            hint = "macOS lets only root look into another process"
        return _problem("ptrace-refused", f"process {pid} may not be looked into", hint)
    cause = flat.partition(" Stack backtrace:")[0].partition("Error: ")[2] or flat
    return _problem(
        "stack-unreadable", f"process {pid}: {cause[:300] or 'py-spy said nothing'}", ""
    )
