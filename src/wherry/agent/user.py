"""
What user code calls: ``wherry.report``, ``params``, ``checkpoint_dir``, ``output_dir``, ``rank``,
``world_size``, ``stopping``, ``checkpoint``, ``latest_checkpoint``.

Imported by the user's process, through an installed ``wherry`` or the agent's shim. It talks to the
agent by the variables and the report file of ``agent.protocol``, and does something sensible where
there is no agent: ``report`` checks its arguments and keeps nothing, ``params`` reads the
command line, the folders are ``./checkpoints`` and ``./outputs``.
"""

from __future__ import annotations

import json
import os
import sys
from _thread import get_ident
from time import monotonic, time

from wherry.agent.argv import params_from_argv

TYPE_CHECKING = False
if TYPE_CHECKING:  # user code pays for what is imported here
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from wherry.agent.argv import Scalar

__all__ = [
    "checkpoint",
    "checkpoint_dir",
    "latest_checkpoint",
    "output_dir",
    "params",
    "rank",
    "report",
    "stopping",
    "world_size",
]

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
_GLANCE = 0.05  #: seconds between two looks at whether the program is asked to end

_fd = -1
_pid = 0  #: the process that opened _fd
_steps: dict[str, int] = {}  #: how many points without a step each metric has
_keys: dict[str, str] = {}  #: a metric's name as a JSON key with its colon
_asked = False  #: the program is asked to end
_listening = False  #: to SIGTERM
_forks = False  #: children do not inherit that
_glance_at = 0.0
_masks: dict[int, Any] = {}  #: what each thread that forks had blocked


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


def stopping() -> bool:
    """
    Whether the program is asked to end: save what you need, and leave, within the grace time.

    Cheap enough for every step (well below 1 us). The first call from the main thread also takes
    SIGTERM, where nobody else does: from then on it makes this true instead of killing the process,
    in a run as well as outside. Processes that are forked do not inherit that.
    """
    global _asked, _glance_at
    if _asked:
        return True
    now = monotonic()
    if now >= _glance_at:
        _glance_at = now + _GLANCE
        _listen()
        path = os.environ.get("WHERRY_STOPPING")
        if path and os.path.exists(path):
            _asked = True
    return _asked


def checkpoint(
    step: int | None = None,
    *,
    keep: int | None = None,
    shard: int | None = None,
    shards: int | None = None,
) -> AbstractContextManager[Path]:
    """
    ``with wherry.checkpoint(step) as folder:`` write files there. At the end of the block they are
    one checkpoint, ``checkpoint_dir / "step-N"``, whole and on the disk. A block that raises, or a
    crash, leaves nothing that counts; one that writes nothing does not either.

    ``step``: without one it counts on from the highest. ``keep``: remove complete ones but for the
    newest so many. One rank writes, say rank 0; or each its part, ``shard=rank()``, which goes to
    ``step-N/shard-K``: the checkpoint is complete once all ``shards`` are there (default: the world
    size), of the same attempt.

    :raises ValueError: for a negative step, ``keep`` below 1, a shard without a step or beyond
        ``shards``; for what is neither file nor folder. :raises OSError: where the disk says no.
    """
    from wherry.agent.checkpoint import Writer

    root = _folder("checkpoint_dir")
    return Writer(
        root,
        None if step is None else int(step),
        None if shard is None else int(shard),
        1 if shard is None else (shards or world_size()),
        keep,
    )


def latest_checkpoint() -> Path | None:
    """
    The folder of the newest complete checkpoint of this run, of whatever attempt; None: there is
    none. Sizes and digests are checked; one that is torn is skipped, with a line on stderr.
    """
    from wherry.agent.checkpoint import newest

    return newest(_folder("checkpoint_dir"), lambda text: print("wherry:", text, file=sys.stderr))


def __getattr__(name: str) -> Path:
    """The two folders, made when they are asked for."""
    if name not in _FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _folder(name: str) -> Path:
    from pathlib import Path

    variable, default = _FOLDERS[name]
    return Path(os.environ.get(variable) or default).absolute()


def _listen() -> None:
    """Take SIGTERM, where it would kill, and where this is the main thread. Again: no error."""
    global _listening, _forks
    if _listening:
        return
    import signal

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    try:
        signal.signal(signal.SIGTERM, _on_sigterm)
    except ValueError:  # another thread: perhaps the next call is from the main one
        return
    _listening = True
    if not _forks:
        _forks = True
        os.register_at_fork(
            before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child
        )


def _on_sigterm(number: int, frame: Any) -> None:
    global _asked
    _asked = True


def _before_fork() -> None:
    """What is sent to the child before it is ready must wait, or it would be lost."""
    import signal

    _masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork() -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop(get_ident()))


def _in_child() -> None:
    """A data loader's worker is ended by SIGTERM, and must die of it."""
    global _listening
    import signal

    if _listening and signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _listening = False
    _after_fork()


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
