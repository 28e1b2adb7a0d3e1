"""
What user code calls: ``wherry.report``, ``params``, ``checkpoint_dir``, ``output_dir``, ``rank``,
``world_size``.

Imported by the user's process, through an installed ``wherry`` or the agent's shim. It talks to the
agent by the variables and the report file of ``agent.protocol``, and does something sensible where
there is no agent: ``report`` checks its arguments and keeps nothing, ``params`` reads the
command line, the folders are ``./checkpoints`` and ``./outputs``.
"""

from __future__ import annotations

import json
import os
import sys
from time import time

from wherry.agent.argv import params_from_argv

TYPE_CHECKING = False
if TYPE_CHECKING:  # user code pays for what is imported here
    from pathlib import Path
    from typing import Any

    from wherry.agent.argv import Scalar

__all__ = ["checkpoint_dir", "output_dir", "params", "rank", "report", "world_size"]

checkpoint_dir: Path  #: survives attempts: look here for something to resume from
output_dir: Path  #: what is written here is kept as the run's files

_FOLDERS = {
    "checkpoint_dir": ("WHERRY_CHECKPOINT_DIR", "checkpoints"),
    "output_dir": ("WHERRY_OUTPUT_DIR", "outputs"),
}
#: Where a process finds its rank and the world size, by launcher.
_LAUNCHED = {
    "": ("WHERRY_RANK", "WHERRY_WORLD_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
}
_FINITE = 1.7976931348623157e308

_fd = -1
_pid = 0  #: the process that opened _fd
_steps: dict[str, int] = {}  #: how many points without a step each metric has
_keys: dict[str, str] = {}  #: a metric's name as a JSON key with its colon


def report(step: int | None = None, **metrics: Any) -> None:
    """
    Record the values of metrics, at ``step`` or, without one, at each metric's own count from 0.

    Values are anything that ``float`` takes but text: numbers, scalars of NumPy or PyTorch, NaN and
    infinities. It waits for nothing but one write to a local file (about 3 us), may be called from
    any thread and after a fork, and what it wrote survives the death of the process.

    :raises TypeError: for a value that is not a number, naming it; nothing of the call is kept.
    """
    items = []
    for name, value in metrics.items():
        if value.__class__ is not float:
            value = _number(name, value)
        text = repr(value) if -_FINITE <= value <= _FINITE else _unusual(value)
        items.append((_keys.get(name) or _key(name)) + text)
    head = f'{{"t":{time()!r},"s":'
    if step is not None:
        line = f'{head}{int(step)},"m":{{{",".join(items)}}}}}\n'
    else:
        line = ""
        for name, item in zip(metrics, items):
            _steps[name] = count = _steps.get(name, -1) + 1
            line += f'{head}{count},"m":{{{item}}}}}\n'
    _write(line.encode())


def params() -> dict[str, Scalar]:
    """The run's parameters: those of the job and of the command line; outside a run, the latter."""
    text = os.environ.get("WHERRY_PARAMS")
    if text is None:
        return params_from_argv(sys.argv[1:])
    found: dict[str, Scalar] = json.loads(text)
    return found


def rank() -> int:
    """Which process of the run this is, from 0; 0 outside a run."""
    return _number_of(0, default=0)


def world_size() -> int:
    """How many processes the run has; 1 outside a run."""
    return _number_of(1, default=1)


def _number_of(which: int, *, default: int) -> int:
    # Under a launcher, WHERRY_RANK is the launcher's: it numbers the processes itself.
    launched = _LAUNCHED.get(os.environ.get("WHERRY_LAUNCHER", ""), _LAUNCHED[""])
    return int(os.environ.get(launched[which]) or default)


def __getattr__(name: str) -> Path:
    """The two folders, made when they are asked for."""
    if name not in _FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pathlib import Path

    variable, default = _FOLDERS[name]
    folder = Path(os.environ.get(variable) or default).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    kind = type(value).__name__
    raise TypeError(f"metric {name!r} is not a number but {kind}: {str(value)[:80]!r}")


def _unusual(value: float) -> str:
    if value != value:
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _key(name: str) -> str:
    # Names made up endlessly must not fill the memory.
    if len(_keys) > 10_000:
        _keys.clear()
    return _keys.setdefault(name, json.dumps(name) + ":")


def _write(line: bytes) -> None:
    """Append in one write, which is atomic between processes and threads (O_APPEND)."""
    global _fd, _pid
    if _pid != os.getpid():
        # A child may have closed every descriptor and opened its own files: open anew.
        path = os.environ.get("WHERRY_REPORT")
        _fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path else -1
        _pid = os.getpid()
    if _fd >= 0:
        try:
            if os.write(_fd, line) < len(line):
                os.write(_fd, b"\n")  # the disk was full: end the torn line
        except OSError:
            pass  # a full disk must not end a training
