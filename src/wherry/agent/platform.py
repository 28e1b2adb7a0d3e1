"""
What depends on the operating system, in one file with a fallback: processes, their memory and time,
the kernel's word on out-of-memory kills.

Used by the agent and by the local back end. Linux reads ``/proc``; elsewhere ``ps`` answers what it
can, and what nobody knows is 0 or empty.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator

LINUX = sys.platform == "linux"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_PTRACER = 1, 36, 0x59616D61


class Process:
    """
    One process at one moment.

    ``started``: ticks since boot (Linux) or seconds, only good for telling processes apart.
    ``cpu``: seconds, with those of its children that have ended. ``memory``: resident bytes.
    ``stopped``: by SIGSTOP or another signal for job control; one that is traced is not.
    """

    def __init__(
        self,
        pid: int,
        parent: int,
        name: str,
        started: float,
        cpu: float,
        memory: int,
        zombie: bool,
        stopped: bool = False,
    ) -> None:
        self.pid, self.parent, self.name = pid, parent, name
        self.started, self.cpu, self.memory = started, cpu, memory
        self.zombie, self.stopped = zombie, stopped


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _linux_process(pid: int) -> Process | None:
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return None
    # The name is in parentheses and may hold anything, parentheses too.
    head, _, tail = stat.rpartition(b")")
    words = tail.split()
    return Process(
        pid=pid,
        parent=int(words[1]),
        name=head.partition(b"(")[2].decode("utf-8", "replace"),
        started=float(words[19]),
        cpu=sum(map(int, words[11:15])) / _TICKS,
        memory=int(words[21]) * _PAGE,
        zombie=words[0] in (b"Z", b"X"),
        stopped=words[0] == b"T",
    )


def _ps_processes() -> list[Process]:
    columns = ["ps", "-axo", "pid=,ppid=,rss=,state=,time=,lstart=,comm="]
    found = []
    for line in subprocess.run(columns, capture_output=True, text=True).stdout.splitlines():
        words = line.split(None, 10)
        with contextlib.suppress(ValueError, IndexError):
            seconds = 0.0
            for part in words[4].split(":"):
                seconds = seconds * 60 + float(part)
            began = time.mktime(time.strptime(" ".join(words[5:10]), "%a %b %d %H:%M:%S %Y"))
            name = os.path.basename(words[10])
            zombie, stopped = words[3].startswith("Z"), words[3].startswith("T")
            pid, parent, memory = int(words[0]), int(words[1]), int(words[2]) * 1024
            found.append(Process(pid, parent, name, began, seconds, memory, zombie, stopped))
    return found


def processes() -> list[Process]:
    """Every process that can be seen."""
    if not LINUX:
        return _ps_processes()
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return [found for found in map(_linux_process, pids) if found is not None]


#: children of the agent that are its own and not the program's
_helpers: set[int] = set()


def own(pid: int) -> None:
    """A child of the agent's own: it and all below it are no descendants of the program."""
    _helpers.add(pid)


@contextlib.contextmanager
def helper(
    command: list[str], *, stderr: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A short-lived process of the agent's own, with its output: no descendant of the program."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
    )
    own(process.pid)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        _helpers.discard(process.pid)


def descendants(root: int) -> list[Process]:
    """The living processes below ``root``, itself left out."""
    by_parent: dict[int, list[Process]] = {}
    for process in processes():
        by_parent.setdefault(process.parent, []).append(process)
    found, todo = [], [root]
    while todo:
        below = [p for p in by_parent.get(todo.pop(), []) if p.pid not in _helpers]
        todo += [process.pid for process in below]
        found += [process for process in below if not process.zombie]
    return found


def command_line(pid: int) -> str:
    """The words that a process was started with; "" where they are not known."""
    if LINUX:
        words = _read(f"/proc/{pid}/cmdline").split(b"\0")
        return b" ".join(words).decode("utf-8", "replace").strip()
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True)
    return listed.stdout.decode("utf-8", "replace").strip()


def pid_started(pid: int) -> float | None:
    """When the process began, to tell it from a later one of the same number; None: it is gone."""
    if LINUX:
        found = _linux_process(pid)
    else:
        found = next((p for p in _ps_processes() if p.pid == pid), None)
    return None if found is None or found.zombie else found.started


def find_marked(mark: str) -> list[int]:
    """Living processes whose ``WHERRY_MARK`` is ``mark`` or begins with it and a slash."""
    wanted = f"WHERRY_MARK={mark}".encode()
    if not LINUX:
        # BSD's ps shows the environment of one's own processes behind the command.
        listed = subprocess.run(["ps", "-axEwwo", "pid=,command="], capture_output=True).stdout
        lines = (line.strip().partition(b" ") for line in listed.splitlines())
        return [int(p) for p, _, rest in lines if any(_fits(w, wanted) for w in rest.split())]
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            environ = _read(f"/proc/{name}/environ")
            if wanted in environ and any(_fits(v, wanted) for v in environ.split(b"\0")):
                found.append(int(name))
    return found


def _fits(variable: bytes, wanted: bytes) -> bool:
    return variable == wanted or variable.startswith(wanted + b"/")


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Send a signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_until_gone(find: Callable[[], Collection[int]], deadline: float = 5.0) -> bool:
    """
    SIGKILL what ``find`` finds until it finds nothing; whether that was so within ``deadline``
    seconds. Repeated, because a process may fork between being found and being killed.
    """
    end = time.monotonic() + deadline
    while True:
        pids = find()
        if not pids:
            return True
        if time.monotonic() > end:
            return False
        kill(pids)
        time.sleep(0.005)


def kill_marked(mark: str) -> None:
    """SIGKILL every process that carries the mark."""
    kill_until_gone(lambda: find_marked(mark))


def reap() -> dict[int, int]:
    """The wait statuses, by pid, of children that have ended, orphans that we adopted too."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
            _helpers.discard(pid)  # its number may be another's soon
    return ended


def childless() -> bool:
    """Whether this process has no children at all, living or not; cheaper than to look for them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    except AttributeError:  # macOS before Python 3.13
        return False
    return False


def adopt_orphans() -> Callable[[], None]:
    """
    Make this process the parent of every orphan below it; for ``preexec_fn``: a function by which
    a child asks to be killed when the thread that forked it dies, and lets us and ours look into it
    (``agent.stack``) where only those that are told may. Without Linux, both do nothing.
    """
    if not LINUX:
        return lambda: None
    import ctypes  # 3 ms, and only here

    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_PTRACER, parent, 0, 0, 0)  # outlives exec; refused where there is no Yama
        if os.getppid() != parent:
            os._exit(137)

    return die_with_parent


def proportional_memory(pids: Iterable[int]) -> int:
    """Bytes of memory with shared pages counted once (Linux); 0 where it is not known."""
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def enforced(cgroups: Iterable[str]) -> bool:
    """Whether one of these cgroups limits memory."""
    names = ("memory.max", "memory.limit_in_bytes")
    return any(os.path.exists(f"{group}/{name}") for group in cgroups for name in names)


def oom_kills(cgroups: Iterable[str]) -> int:
    """How many processes the kernel has killed for memory: in these cgroups, else anywhere here."""
    names = ("memory.events", "memory.oom_control")
    files = [f"{group}/{name}" for group in cgroups for name in names]
    for text in [*map(_read, files), _read("/proc/vmstat")]:
        for line in text.splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def cgroup_memory(cgroups: Iterable[str], *, peak: bool = False) -> int:
    """Bytes in use in these cgroups, or the most that ever were; 0 where that is not known."""
    names = ("memory.current", "memory.usage_in_bytes")
    if peak:
        names = ("memory.peak", "memory.max_usage_in_bytes")
    return max((int(_read(f"{g}/{n}") or 0) for g in cgroups for n in names), default=0)


def enter_cgroups(cgroups: Iterable[str]) -> None:
    """Move this process into the cgroups; for ``preexec_fn``. What cannot be entered is left."""
    for group in cgroups:
        with contextlib.suppress(OSError):
            fd = os.open(f"{group}/cgroup.procs", os.O_WRONLY)
            os.write(fd, b"0")
            os.close(fd)


def network(namespace: str) -> Callable[[], None]:
    """For ``preexec_fn``: moves the child into the network namespace of this path; "": nothing."""
    if not namespace:
        return lambda: None
    import ctypes  # os.setns: only since Python 3.12

    setns = ctypes.CDLL(None, use_errno=True).setns

    def enter() -> None:
        fd = os.open(namespace, os.O_RDONLY)
        if setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "the network of the rehearsal", namespace)
        os.close(fd)

    return enter


def widen_pipe(fd: int) -> None:
    """Let a pipe hold 1 MiB instead of 64 KiB, where the kernel allows it."""
    if LINUX:
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, 1031, 2**20)  # F_SETPIPE_SZ: named only since Python 3.10
