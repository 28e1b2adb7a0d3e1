"""
What a program's last lines hold: the exception that ended it, the frame in which it crashed.

Called by ``agent.causes``. Pure. Written for the texts of CPython 3.6 to 3.14 and of what wraps
them: torch's ``[rank0]:`` before each line, colours, chained exceptions, groups, other processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from collections.abc import Iterable

_NOISE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_PREFIX = re.compile(r"^\[(?:rank|default)(\d+)\]: ?")
_HEADER = re.compile(r"^[\s|+]*(?:Exception Group )?Traceback \(most recent call last\):\s*$")
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)(?:,? in (.+))?$')
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:\.<locals>\.\w+)*)(?:: ?(.*))?$")
_SYNTAX = re.compile(r"^(SyntaxError|IndentationError|TabError): ")
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+")
#: Tracebacks after these words tell of something that did not end the program.
_ASIDE = re.compile(
    r"^(?:Exception ignored in|Exception in thread|Exception ignored on|--- Logging error ---"
    r"|Error in atexit|Error in sys\.excepthook)"
)
_LIBRARY = re.compile(r"[/\\](?:site-packages|dist-packages|lib[/\\]python3[.\d]*)[/\\]|^<")
#: Where torch was compiled, and advice that gloo adds.
_BOILERPLATE = re.compile(r"^\[\S*/\w+\.cc:\d+\] |\.? This is typically caused.*")
_CONTINUED = 30  # lines of a message that are looked at


class Raised:
    """An exception: ``kind`` with its module, the whole ``text``, and where it was raised."""

    def __init__(self, kind: str, text: str, frames: Sequence[tuple[str, str, str]] = ()) -> None:
        self.kind, self.text, self.frames = kind, text, frames

    @property
    def name(self) -> str:
        """The type's name alone."""
        return self.kind.rpartition(".")[2]

    @property
    def line(self) -> str:
        """``ValueError: bad batch``: its first line that says something."""
        said = next((line.strip() for line in self.text.splitlines() if line.strip()), "")
        said = _BOILERPLATE.sub("", said).strip()
        return f"{self.name}: {said}"[:400] if said else self.name

    @property
    def where(self) -> str:
        """``train.py:12``: the last frame of the person's own code; "" where there is none."""
        for path, line, _ in reversed(self.frames):
            if not _LIBRARY.search(path):
                return f"{os.path.basename(path)}:{line}"
        return ""


def clean(lines: Iterable[str]) -> list[str]:
    """The lines without colours and without torch's ``[rank0]:``."""
    return [_PREFIX.sub("", _NOISE.sub("", line)).rstrip() for line in lines]


def of_rank(lines: Iterable[str], rank: int) -> list[str]:
    """What torch marked as written by one rank, unmarked."""
    found = []
    for line in lines:
        match = _PREFIX.match(_NOISE.sub("", line))
        if match and int(match[1]) == rank:
            found.append(_NOISE.sub("", line)[match.end() :])
    return found


def from_words(error: str) -> Raised:
    """The exception that ``ValueError: bad`` tells of."""
    kind, _, text = error.partition(": ")
    return Raised(kind, text)


def last_exception(lines: Sequence[str]) -> Raised | None:
    """The last exception in cleaned lines that may have ended the program."""
    for at in range(len(lines) - 1, -1, -1):
        if _HEADER.match(lines[at]) and not _aside(lines, at):
            found = _read(lines, at + 1)
            if found is not None:
                return found
        elif _SYNTAX.match(lines[at]) and (found := _syntax(lines, at)) is not None:
            return found
    return None


def _aside(lines: Sequence[str], header: int) -> bool:
    before = [line for line in lines[max(0, header - 2) : header] if line.strip()]
    return any(_ASIDE.match(line) for line in before)


def _read(lines: Sequence[str], start: int) -> Raised | None:
    """The exception whose frames begin at ``start``; None where it was cut off."""
    frames: list[tuple[str, str, str]] = []
    for at in range(start, len(lines)):
        line = re.sub(r"^\s*\| ?", "", lines[at])
        frame = _FRAME.match(line)
        if frame:
            frames.append((frame[1], frame[2], frame[3] or ""))
        elif line[:1] not in ("", " ") and (raised := _RAISED.match(line)):
            rest = _message(lines[at + 1 :])
            text = "\n".join([raised[2] or "", *rest])
            return Raised(raised[1], text.strip("\n"), frames)
        elif line and not line.startswith(" ") and not line.startswith("["):
            return None
    return None


def _message(lines: Sequence[str]) -> list[str]:
    """The further lines of a message, as far as they can be told from what follows."""
    found: list[str] = []
    for line in lines[:_CONTINUED]:
        if _HEADER.match(line) or _ASIDE.match(line):
            break
        found.append(line)
    return found


def _syntax(lines: Sequence[str], at: int) -> Raised | None:
    """A SyntaxError of the script itself, which comes without a traceback."""
    for back in range(at - 1, max(-1, at - 8), -1):
        frame = _FRAME.match(lines[back])
        if frame:
            kind, _, text = lines[at].partition(": ")
            return Raised(kind, text, [(frame[1], frame[2], "")])
    return None


def crash_frame(lines: Sequence[str]) -> str:
    """
    Where ``faulthandler`` saw a crash: ``in load, model.py:31``; "" where it said nothing.

    The innermost frame of the person's own code, else the innermost.
    """
    fatal = next((i for i, x in enumerate(lines) if x.startswith("Fatal Python error:")), None)
    if fatal is None:
        return ""
    frames: list[tuple[str, str, str]] = []
    inside = False
    for line in lines[fatal + 1 :]:
        if _THREAD.match(line):
            if inside:
                break
            inside = line.startswith("Current thread")
        elif inside and (frame := _FRAME.match(line)):
            frames.append((frame[1], frame[2], frame[3] or ""))
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])] or frames
    if not own:
        return ""
    path, number, function = own[0]
    inner = f"in {function}, " if function and function != "<module>" else ""
    return f"{inner}{os.path.basename(path)}:{number}"
