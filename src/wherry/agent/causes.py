"""
Why a program failed, from its exit status and its last lines.

Called by ``agent.outcome``. Pure. A failure is either *primary* (it began here) or a *symptom*
(this rank noticed that another one was lost, or never came): ``core.decide`` never lets a symptom
stand for the run while another rank of the same attempt has a primary failure. The frameworks' own
words are in ``agent.texts``.
"""

from __future__ import annotations

import builtins
import re
import signal
from collections import namedtuple
from collections.abc import Sequence

from wherry.agent.modules import distribution
from wherry.agent.texts import OTHERS, OUTPUT, PORT, RULES, SHM
from wherry.agent.traces import Raised, clean, crash_frame, from_words, last_exception, of_rank

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from collections.abc import Collection

#: ``cause``: one of ``core.run.Cause``; ``message`` and ``hint``: for people.
Found = namedtuple("Found", "cause message hint")

_MPI = re.compile(r"MPI_ABORT was invoked|exited on\s+signal|Primary job +terminated normally")
_NATIVE = re.compile(r"^(?:what\(\)|  what\(\)): +(.*)", re.MULTILINE)
_FATAL = re.compile(
    r"^(?:F\d{4} |\S+ \S+ F (?:tensorflow|external|xla)/).*?(?=^\*\*\* |^Fatal Python|\Z)",
    re.MULTILINE | re.DOTALL,
)
_IN_USE = re.compile(r"(?i)address already in use|EADDRINUSE|\[Errno 98\]|\[Errno 48\]")
_SIGNALS = {
    "SIGSEGV": "a segmentation fault: native code touched memory that is not its own",
    "SIGBUS": "a bus error: shared memory is full, or a mapped file was cut short",
    "SIGABRT": "native code gave up",
    "SIGFPE": "native code divided by zero",
    "SIGILL": "the processor lacks an instruction that a package was built for",
}
_SIGNAL_HINTS = {
    "SIGBUS": SHM,
    "SIGILL": "take a build of the package for this processor",
    "SIGKILL": "from outside: a person, or the machine for want of memory; see --memory",
    "SIGTERM": "from outside: nobody of ours sent it",
}
#: Of these, a message of several lines is matched by its first line alone.
_PLAIN = frozenset(
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException)
) - {"RuntimeError", "OSError", "MemoryError", "SystemError"}
_GENERIC_PEER = ("ConnectionResetError", "BrokenPipeError", "ConnectionAbortedError")


def diagnose(
    code: int,
    lines: Sequence[str],
    *,
    error: str = "",
    world: int = 1,
    ports: Sequence[int] = (),
    taken: Collection[int] = (),
) -> Found | None:
    """
    The cause, its words and what to do; None where ``lines`` do not tell.

    ``code``: exit status, negative for a signal. ``error``: what a function raised, with its type.
    ``world``: the world size. ``ports``: those that this rank was given. ``taken``: those of them
    that somebody else has now.
    """
    launched = _launcher(lines)
    if launched is not None:
        return launched
    shown = clean(lines)
    raised = last_exception(shown)
    if error and (raised is None or raised.name != from_words(error).name):
        raised = from_words(error)
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number and number != signal.SIGABRT:
        raised = None
    text = "\n".join(shown)
    if raised is not None and (error or code == 1 or number or _MPI.search(text)):
        return _exception(raised, world=world, ports=ports, taken=taken)
    if code < 0:
        return _signal(number, shown, text, ports, taken)
    found = _output(text) or _symptom(text) or _by_shell(number, shown)
    if found is None and raised is not None:
        message = f"exited with status {code}; the last exception that it printed: {raised.line}"
        found = Found("exit", message, "")
    return found


def _exception(
    raised: Raised, *, world: int, ports: Sequence[int], taken: Collection[int]
) -> Found:
    first = raised.text.split("\n")[0]
    whole = first if raised.name in _PLAIN else raised.text
    text = f"{raised.name}: {whole}"
    at = f", at {raised.where}" if raised.where else ""
    message = raised.line + at
    if _IN_USE.search(text):
        return _port(text, message, ports, taken)
    variable = _variable(raised)
    if variable:
        return Found("exception", f"{message}: no such variable", f"--env {variable}=VALUE")
    found = _match(text)
    if found is not None:
        cause, said, hint = found
        return Found(cause, said + at if said else message, hint)
    if world > 1 and raised.name in _GENERIC_PEER:
        return Found("peer", message, OTHERS)
    return Found("exception", message, "")


def _variable(raised: Raised) -> str:
    """The environment variable whose absence raised; "" where it was something else."""
    frame = raised.frames[-1] if raised.frames else ("", "", "")
    inside = frame[0].endswith(("<frozen os>", "/os.py")) and frame[2] == "__getitem__"
    name = raised.text.strip("'\" \n")
    return name if raised.name == "KeyError" and inside and re.fullmatch(r"\w+", name) else ""


def _port(text: str, message: str, ports: Sequence[int], taken: Collection[int]) -> Found:
    """A port that was in use: ours, if it is named, or if somebody has one of ours now."""
    named = {int(n) for n in re.findall(r"(?<![\d.])\d{4,5}(?![\d.]*\d)", text)}
    ours = sorted(named.intersection(ports)) or sorted(taken if not named else ())
    if ours:
        return Found("port", f"port {ours[0]} of this rank was taken: {message}", PORT)
    return Found("exception", message, "another program listens there: choose a free port, 0")


def _match(text: str) -> Found | None:
    """The first rule that fits; its message is "" where the text itself says it best."""
    for pattern, cause, say, hint in RULES:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            said = say(match) if callable(say) else match.expand(say) if say else ""
            if "{distribution}" in hint:
                hint = hint.format(distribution=distribution(match[1]))
            return Found(cause, said, hint)
    return None


def _symptom(text: str) -> Found | None:
    """What native code said of the others, or of memory, before it ended."""
    native = "\n".join(_NATIVE.findall(text) + _FATAL.findall(text))
    for words in filter(None, (native, text if _MPI_LOST.search(text) else "")):
        found = _match(words)
        if found is not None and found.cause != "exception":
            line = words.strip().split("\n")[0][:400]
            return Found(found.cause, found.message or line, found.hint)
    return None


_MPI_LOST = re.compile(r"(?:ORTE|PRTE|PRRTE) has lost communication")


def _output(text: str) -> Found | None:
    for pattern, say, hint in OUTPUT:
        match = re.search(pattern, text)
        if match:
            return Found("exit", match.expand(say), hint)
    return None


def _signal(
    number: int, shown: Sequence[str], text: str, ports: Sequence[int], taken: Collection[int]
) -> Found:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGABRT:
        if _IN_USE.search(text):
            found = _port(text, "address already in use", ports, taken)
            if found.cause == "port":
                return found
        symptom = _symptom(text)
        if symptom is not None:
            return symptom
    message = f"killed by {name}"
    if name in _SIGNALS:
        message += f", {_SIGNALS[name]}"
    where = crash_frame(shown)
    said = _NATIVE.findall(text) if number == signal.SIGABRT else []
    if said:
        message = f"killed by {name}: {said[-1][:300]}"
    return Found("signal", message + (f"; {where}" if where else ""), _SIGNAL_HINTS.get(name, ""))


def _by_shell(number: int, shown: Sequence[str]) -> Found | None:
    """A status above 128 is how shells and launchers tell of a signal."""
    if not number:
        return None
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    where = crash_frame(shown)
    message = f"exited with status {128 + number}: a program that it started was killed by {name}"
    hint = _SIGNAL_HINTS.get(name, "")
    return Found("exit", message + (f"; {where}" if where else ""), hint)


_CHILD = re.compile(
    r"Root Cause \(first observed failure\):.*?rank\s*: (\d+) .*?exitcode\s*: (-?\d+)", re.DOTALL
)


def _launcher(lines: Sequence[str]) -> Found | None:
    """What ``torchrun`` says of the process of its own that failed first."""
    text = "\n".join(clean(lines))
    match = _CHILD.search(text) if "ChildFailedError" in text else None
    if match is None:
        return None
    rank, code = int(match[1]), int(match[2])
    own = of_rank(lines, rank)
    found = diagnose(code, own) if own else None
    if found is None and code < 0:
        found = _signal(-code, (), "", (), ())
    if found is None:
        found = Found("exit", f"exited with status {code}", "")
    return Found(found.cause, f"process {rank} of torchrun: {found.message}", found.hint)
