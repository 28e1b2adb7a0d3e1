"""
The texts by which frameworks tell of failures, and what each means.

Called by ``agent.causes``. Data: ``tests/unit/test_agent_causes.py`` holds each against what was
really printed.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from collections.abc import Callable
    from re import Match
    from typing import Union

    Say = Union[str, Callable[[Match[str]], str]]

OTHERS = "it is a consequence: look at the rank that was lost, wherry explain names it"
_STUCK = "a rank is stuck, slow, or takes another path: every rank must make the same calls"
_NEVER = "every rank must reach the rendezvous: look at the log of those that are missing"
PORT = "another program took it between choice and use; run it again: other ports are chosen"
_GPU = "use less GPU memory: a smaller batch, mixed precision; or fewer ranks for each device"
_MEMORY = "give it more with --memory, or make batches smaller"
SHM = "loader workers share memory: num_workers=0, or a larger /dev/shm"
_NCCL = "--env NCCL_DEBUG=INFO says more; the network between the ranks is the usual reason"


def _seconds(milliseconds: str) -> str:
    return f"{int(milliseconds) / 1000:g} s"


def _ranks(text: str) -> str:
    numbers = re.findall(r"\d+", text)
    return f"rank{'s' * (len(numbers) != 1)} {', '.join(numbers)}"


def _jax_barrier(match: Match[str]) -> str:
    text = match.string
    count = re.search(r"# of tasks that reached the barrier: (\d+)/(\d+)", text)
    _, late, after = text.partition("timed out task names")
    missing = re.findall(r"/task:(\d+)", after.partition("\n\n")[0]) if late else []
    said = f"; {count[1]} of {count[2]} ranks arrived" if count else ""
    said += f"; missing: {_ranks(' '.join(missing))}" if missing else ""
    return f"the rendezvous was never complete{said}"


def _lost_task(match: Match[str]) -> str:
    tasks = re.findall(r"/task:(\d+) (?:heartbeat|has been|unhealthy|is )", match.string)
    crashed = re.search(r"(?s)heartbeats\):\s*(.*?)\s*The tasks have crashed", match.string)
    if crashed:
        tasks = re.findall(r"(?m)(?:/task:|^)(\d+)\s*$", crashed[1])
    who = _ranks(" ".join(tasks)) if tasks else "another rank"
    return f"{who} {'were' if len(tasks) > 1 else 'was'} lost: the coordination service says so"


def _xgboost(match: Match[str]) -> str:
    said = re.findall(r"(?m)^- \[[^\]]*\]: *(.+)", match.string)
    return f"XGBoost: {said[-1].strip('. ')}" if said else ""


#: pattern → cause, words (a template for ``match.expand``, a function, or "" for the text as it
#: is), hint. The first that matches counts.
RULES: list[tuple[str, str, Say, str]] = [
    # --- the program's rendezvous
    (
        r"Timed out after (\d+) seconds waiting for (?:clients|workers)\. (\d+)/(\d+)",
        "rendezvous",
        r"the rendezvous was never complete: \2 of \3 ranks had joined after \1 s",
        _NEVER,
    ),
    (
        r"client socket has (?:timed out|failed)[^(\[]*(?:\(|\[)([^,\s]+?)\]?, (\d+)\)",
        "rendezvous",
        r"missing: rank 0; it did not listen at \1:\2",
        _NEVER,
    ),
    (
        r"via c10d key-value store|store->get\(",
        "rendezvous",
        "missing: rank 0; it did not give its address to the others",
        _NEVER,
    ),
    (r"Gloo connectFullMesh failed", "rendezvous", "", _NEVER),
    (r"Rendezvous(?:Timeout|Connection|Closed|State)Error", "rendezvous", "", _NEVER),
    (r"(?i)barrier timed out(?!.*shutdown)", "rendezvous", _jax_barrier, _NEVER),
    (
        (
            r"(?s)(?:DEADLINE_EXCEEDED|Deadline Exceeded|UNAVAILABLE).*RegisterTask"
            r"|RegisterTask.*(?:DEADLINE|Deadline)"
        ),
        "rendezvous",
        "the rendezvous was never complete: JAX's coordinator did not see all ranks in time",
        _NEVER,
    ),
    (
        (
            r"(?si)failed to connect to (?:the )?tracker|bootstrap.*(?:fail|tracker)"
            r"|failed to bootstrap|tracker.*(?:timeout|timed out)"
        ),
        "rendezvous",
        "XGBoost: the ranks did not all meet at the tracker",
        _NEVER,
    ),
    (
        r"wait timeout after (\d+)ms, keys: \S+",
        "rendezvous",
        lambda m: (
            f"the rendezvous was never complete: others were not there after {_seconds(m[1])}"
        ),
        _NEVER,
    ),
    # --- another rank is gone
    (
        (
            r"(?s)\A(?=.*(?:gloo|c10d|TCPStore|recvValue|recvBytes|sendBytes|Failed to recv))"
            r"(?=.*(?:closed by peer|reset by peer|Broken pipe|got 0 bytes|likely closed))"
        ),
        "peer",
        "",
        OTHERS,
    ),
    (r"Connection closed by (?:remote )?peer|closed by remote peer", "peer", "", OTHERS),
    (
        (
            r"ncclRemoteError|remote process exited or there was a network error"
            r"|NCCL communicator was aborted|ncclCommAbort"
        ),
        "peer",
        "",
        OTHERS,
    ),
    (
        (
            r"heartbeat timeout|JAX distributed service detected fatal errors"
            r"|another task died|Failed to send RPC to coordination service|tasks are unhealthy"
            r"|coordination service .*(?:UNAVAILABLE|Socket closed)"
        ),
        "peer",
        _lost_task,
        OTHERS,
    ),
    (
        (
            r"(?si)Collective ops is aborted by:.*(?:UNAVAILABLE|reset by peer|Socket closed|failed"
            r" to connect|preempt|crash)"
        ),
        "peer",
        "",
        OTHERS,
    ),
    (
        (
            r"(?s)(?:UnavailableError|\bUNAVAILABLE\b|grpc|GRPC).*(?:reset by peer|Socket closed"
            r"|failed to connect to all addresses|worker task)|worker task \S+ .*unavailable"
            r"|UnavailableError"
        ),
        "peer",
        "",
        OTHERS,
    ),
    (
        r"(?s)(?:rabit|src/collective|XGBoostError).*(?:closed|reset by peer|Broken pipe|refused)",
        "peer",
        _xgboost,
        OTHERS,
    ),
    (r"(?:ORTE|PRTE|PRRTE) has lost communication", "peer", "", OTHERS),
    # --- a collective that did not come to its end
    (
        r"(?s)collective operation timeout: WorkNCCL\(.*?OpType=(\w+).*?ran for (\d+) milliseconds",
        "collective",
        lambda m: f"NCCL: {m[1]} did not end within {_seconds(m[2])}",
        _STUCK,
    ),
    (
        r"(?:\[Rank \d+\]: )?Ranks? ([\d, ]+) failed to pass monitoredBarrier in (\d+) ms",
        "collective",
        lambda m: f"{_ranks(m[1])} did not reach the barrier within {_seconds(m[2])}",
        _STUCK,
    ),
    (
        r"Timed out waiting (\d+)ms for (send|recv) operation",
        "collective",
        lambda m: f"gloo: another rank did not answer within {_seconds(m[1])}",
        _STUCK,
    ),
    (r"(?si)Collective ops is aborted by:", "collective", "", _STUCK),
    (r"(?s)(?:rabit|src/collective).*(?:[Pp]oll timeout|[Tt]imeout)", "collective", "", _STUCK),
    (r"(?i)shutdown.*barrier|barrier timed out", "collective", "", _STUCK),
    (
        r"NCCL WARN .*Duplicate GPU|Duplicate GPU detected",
        "exception",
        "",
        "two ranks use one device: torch.cuda.set_device(LOCAL_RANK), or fewer ranks",
    ),
    (
        (
            r"ncclSystemError|unhandled system error|ncclInternalError|ncclUnhandledCudaError"
            r"|unhandled cuda error|NCCL error"
        ),
        "collective",
        "",
        _NCCL,
    ),
    # --- memory
    (
        r"insufficient shared memory|/torch_\d+.*No space left|shared memory.*(?:limit|No space)",
        "oom",
        "",
        SHM,
    ),
    (r"allocator cpu|DefaultCPUAllocator|Unable to allocate [\d.]+ \w+", "oom", "", _MEMORY),
    (
        (
            r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|HIP out of memory"
            r"|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|OOM when allocating tensor"
            r"|ResourceExhaustedError|(?s:RESOURCE_EXHAUSTED.*(?:[Oo]ut of memory|allocat))"
        ),
        "oom",
        "",
        _GPU,
    ),
    (
        (
            r"\bMemoryError\b|std::bad_alloc|Cannot allocate memory|\[Errno 12\]"
            r"|java\.lang\.OutOfMemoryError|DataLoader worker .* killed by signal: Killed"
        ),
        "oom",
        "",
        _MEMORY,
    ),
    # --- what a person can mend at once
    (
        r"ModuleNotFoundError: No module named '([\w.]+)'",
        "exception",
        "",
        "add it to the project's requirements, or: --with {distribution}",
    ),
    (
        r"ImportError: (\S+\.so[.\d]*): cannot open shared object",
        "exception",
        "",
        "a library of the system is missing there: install it, or use a package that has it",
    ),
    (
        r"No space left on device|\[Errno 28\]|Disk quota exceeded",
        "exception",
        "",
        "make room where it writes: wherry prune frees what old runs kept",
    ),
    (
        r"^PermissionError|Permission denied",
        "exception",
        "",
        "write into wherry.output_dir, or mend the rights of the path",
    ),
    (
        r"^FileNotFoundError|No such file or directory",
        "exception",
        "",
        "relative paths begin at the working folder; --env and arguments can name others",
    ),
    (
        r"CUDA error: no kernel image|Torch not compiled with CUDA|Found no NVIDIA driver",
        "exception",
        "",
        "this build of the framework does not fit the device: take another one, --with",
    ),
    (
        r"ImportError: cannot import name '(\w+)' from .*",
        "exception",
        "",
        "a file of yours may hide the package of that name, or its version differs from yours",
    ),
    (r"RecursionError", "exception", "", ""),
]

#: What programs that are not Python say, or Python where it cannot say more.
OUTPUT: list[tuple[str, str, str]] = [
    (r"MPI_ABORT was invoked on rank (\d+)[^\n]*\n[^\n]*?with errorcode (-?\d+)",
     r"rank \1 of MPI called MPI_Abort with status \2", ""),
    (r"MPI_ABORT was invoked on rank (\d+)[^\n]*with errorcode (-?\d+)",
     r"rank \1 of MPI called MPI_Abort with status \2", ""),
    (r"process rank (\d+) with PID \d+ on node (\S+) exited on\s+signal (\d+)(?: \(([^)]+)\))?",
     r"rank \1 of MPI was killed by signal \3 on \2", ""),
    (r"Process name: \[\[[^\]]*\],(\d+)\]\s+Exit code:\s+(\d+)",
     r"rank \1 of MPI exited with status \2", ""),
    (r"(?:No matching distribution found for|satisfies the requirement) ([\w.\[\]=<>!~-]+)",
     r"pip: there is no distribution \1 for this Python", "see that its name and version exist"),
    (r"No solution found when resolving[^\n]*", "uv: the requirements contradict each other",
     "the lines before say which; loosen one of them"),
    (r"(?m)^error: (Failed to (?:download|fetch|build|prepare)[^\n]*)", r"uv: \1", ""),
    (r"(?m)^(?:\S*/)?(?:ba|z|da|k)?sh: (?:line )?\d*:? ?(\S+): (?:command )?not found",
     r"the program \1 is not there", "install it, or name it by its path"),
    (r"(?m)^(?:/usr/bin/)?env: .(\S+?).: No such file or directory",
     r"the program \1 is not there", "install it, or name it by its path"),
    (r"(?m)^\S*python[\d.]*: can't open file '([^']+)'", r"there is no file \1", ""),
    (r"(?m)^\S*python[\d.]*: (No module named \S+)", r"\1", "see: wherry check"),
]  # fmt: skip
