"""
What the agent and the control plane say to each other, and how: the one description of both ends.

Used by ``agent`` (writes) and ``control.reports`` (reads). Standard library only.

**Frames.** A rank's reports are a journal of frames, numbered from 1::

    u32 length of the rest | u8 kind | u64 seq | f64 time (s since the epoch) | payload

little-endian, no padding. The journal lies on disk until the control plane has acknowledged it.

======== ===========================================================================================
LOG      ``u8 stream`` then bytes: whole lines, but for a last partial line at the end of a stream.
METRIC   packed series, see :func:`pack_series`: what the user reported
USAGE    packed series: ``cpu`` (cores), ``memory`` (bytes), ``gpu0.utilization`` (0-1) ...
PARAMS   JSON object
FILE     JSON ``{"path", "digest", "size", "modified"}``; sent after the blob was stored
PHASE    JSON ``{"phase", "seconds"}``
STARTED  JSON ``{"pid"}``: the program runs
RESULT   JSON ``{"digest"}``: blob with the pickled result or exception
EXIT     JSON ``{"state", "exit_code", "signal", "cause", "message", "last_lines"}``: always the
         last. A signal: no exit code. The message may end in a line ``hint: ...``
ENDED    the same: the program is over; its files are still to be sent. In an elastic group another
         STARTED may follow
EVENT    JSON ``{"kind", "message"}``: something for the run's history
======== ===========================================================================================

**Calls**, all below ``/agent/v1`` with ``Authorization: Bearer <token>``:

=================================== ================================================================
POST /hello                         JSON ``{"protocol", "host", "address", "ports", "pid",
                                    "python"}`` → ``{"acked", "lease"}``
GET  /peers?wait=SECONDS&round=N    → 200 ``{"round", "peers": [{"rank", "address", "ports",
                                    "key"}]}`` in their order, once all have arrived; 202
                                    ``{"missing": [ranks]}`` when ``wait`` is over. ``round``: of an
                                    elastic group: the last that this rank was in, and has left; 0
                                    at first. ``key``: hexadecimal; whoever knows a rank's key is of
                                    its attempt, see ``agent.remote``
POST /reports                       body: frames, none for a heartbeat → ``{"acked", "stop",
                                    "round"}``. ``stop``: the run is being stopped; treat it as
                                    SIGTERM. ``round``: leave an older one and meet for this
GET  /blobs/DIGEST                  → bytes
POST /blobs/fetch                   JSON ``{"digests": [...]}`` → a pack, see :func:`iter_pack`
PUT  /blobs/DIGEST                  bytes → 204
=================================== ================================================================

Any answer 409 with code ``stale-token`` means: another incarnation took over; kill the program and
leave. 401, 403: the same. 5xx and no answer: try again, for as long as it takes.

**The rank's folder** (``dir``), which the back end reads too, also after the agent's death:

=========== ========================================================================================
config.json what the agent was told, mode 0600
lock        the agent holds ``flock(LOCK_EX)`` on it for life: the proof that it lives. Once it has
            the lock it writes its pid into the file; one that finds a pid there leaves at once, so
            that a rank runs once. One that leaves by itself appends " left" as its last act.
stop        written by the back end before SIGTERM: the seconds of grace, instead of config's
stopping    the program is being asked to end: ``wherry.stopping``
child.json  ``{"pid", "started"}`` of the program, written right after it was started
journal     the newest frames; a torn last frame is possible. ``journal.SEQ``: older segments, named
            by their first frame; ``agent.journal.read_folder`` reads them all, in order
acked       text: the last seq that the control plane has stored
report      what the user's process appends, see below
output/     ``wherry.output_dir``
mpi/        under ``mpirun``: the host file, and who may start what, see ``agent.remote``
agent.log   the agent's own stderr
=========== ========================================================================================

**The user's process** gets ``WHERRY_*`` variables (:data:`VARIABLES`) and appends lines of JSON to
the file ``WHERRY_REPORT``, each in one ``write``; the agent tails it::

    {"t": 1732400000.5, "s": 3, "m": {"loss": 0.1, "acc": NaN}}     metrics at step 3
    {"p": {"lr": 0.1}}                                              parameters
    {"r": "/path/of/pickle"}                                        the result, whole on disk
    {"r": "/path/of/pickle", "e": "ValueError: no"}                 it holds an exception

**Attaching a terminal.** A foreground command listens on a Unix socket; every rank's agent connects
before it starts its program. Frames ``u32 length of payload | u8 type | payload``; types
:data:`ATTACH`. The environment of a foreground run travels here and is stored nowhere. A client
that goes away, or says DETACH, leaves the program running.

**Config.** A back end starts ``python AGENT config.json`` (mode 0600) with the fields of
:data:`CONFIG`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

PROTOCOL = 1

LOG, METRIC, USAGE, PARAMS, FILE, PHASE, STARTED, RESULT, EXIT, ENDED, EVENT = range(1, 12)
STDOUT, STDERR, SYSTEM = 1, 2, 3
STREAMS = {STDOUT: "stdout", STDERR: "stderr", SYSTEM: "system"}

HEADER = struct.Struct("<IBQd")
_REST = HEADER.size - 4

#: The fields of ``config.json``: name → meaning. All are required.
CONFIG = {
    "protocol": "PROTOCOL of the writer",
    "server": "URL of the control plane",
    "server_file": "JSON file whose 'url' is newer than 'server' after a restart; '' if none",
    "token": "the bearer token of this incarnation",
    "run": "run id",
    "attempt": "attempt number, from 1",
    "rank": "0 to world_size - 1",
    "incarnation": "from 1",
    "world_size": "workers x processes",
    "processes": "ranks per worker; local rank = rank % processes",
    "roles": "[role, index within it] of every rank; [] in a job without roles",
    "launcher": "'torchrun' or 'mpi' where the command starts a worker's processes itself, else ''",
    "spec": "the JobSpec as JSON data, as this rank has it",
    "dir": "this rank's own folder: config, journal, output, report file",
    "shared_dir": "the attempt's folder on this machine: the code's copy",
    "cache": "folder shared by all runs on this machine: envs, uv, trees",
    "checkpoints": "folder that survives attempts",
    "threads": "cores allotted to this rank",
    "attach": "Unix socket of a waiting terminal, or ''",
    "uv": "path of uv, or ''",
    "grace": "seconds from SIGTERM to SIGKILL",
    "heartbeat": "seconds",
    "lease": "seconds",
    "barrier_timeout": "seconds",
    "spool_limit": "bytes of unsent reports on disk",
    "network": "of a rehearsal: {'namespace', 'address'} of the program, {'ip', 'hub', 'link'} to "
    "cut it off, or {'missing'}: why not; else {}",
    "limits": "{'memory': bytes or None, 'cgroup': [paths] } set by the back end",
}


def frame(kind: int, seq: int, time: float, payload: bytes) -> bytes:
    """One frame as bytes."""
    return HEADER.pack(len(payload) + _REST, kind, seq, time) + payload


def iter_frames(
    data: bytes | memoryview,
) -> Iterator[tuple[int, int, float, memoryview]]:
    """
    ``(kind, seq, time, payload)`` for each whole frame of ``data`` (bytes or memoryview).

    A torn last frame is left out. :raises ValueError: where the bytes are not frames.
    """
    view = memoryview(data)
    at, end = 0, len(view)
    while end - at >= HEADER.size:
        length, kind, seq, time = HEADER.unpack_from(view, at)
        if length < _REST or not LOG <= kind <= EVENT:
            raise ValueError(f"not a frame at byte {at}")
        if at + 4 + length > end:
            return
        yield kind, seq, time, view[at + HEADER.size : at + 4 + length]
        at += 4 + length


#: What the user's process finds in its environment, at any world size.
VARIABLES = {
    "WHERRY_PROTOCOL": "version of the report file's format: 1",
    "WHERRY_RUN_ID": "the run",
    "WHERRY_RUN_NAME": "its name",
    "WHERRY_ATTEMPT": "the attempt's number, from 1",
    "WHERRY_RANK": "this process: 0 to WHERRY_WORLD_SIZE - 1",
    "WHERRY_LOCAL_RANK": "the same within its worker",
    "WHERRY_WORLD_SIZE": "how many processes there are",
    "WHERRY_WORKERS": "how many workers there are",
    "WHERRY_MASTER_ADDR": "rank 0's address",
    "WHERRY_MASTER_PORT": "a port that was free there",
    "WHERRY_PEERS": "host:port of every rank, comma-separated, by rank",
    "WHERRY_REPORT": "file to append reports to",
    "WHERRY_OUTPUT_DIR": "folder whose files are kept",
    "WHERRY_CHECKPOINT_DIR": "folder that survives attempts",
    "WHERRY_STOPPING": "file that is there once the program is asked to end",
    "WHERRY_PARAMS": "parameters as a JSON object",
    "WHERRY_MARK": "RUN-ATTEMPT/RANK/INCARNATION: how the agent finds what its program left behind",
}

ATTACH_HEADER = struct.Struct("<IB")
# agent to terminal
ATTACH_HELLO = 1  #: JSON {"rank", "world_size", "attempt"}
ATTACH_OUT = 2  #: u8 stream, bytes
ATTACH_ENDED = 3  #: JSON {"state", "exit_code", "signal"}
ATTACH_NOTE = 4  #: UTF-8 text for the person, such as "building the environment"
# terminal to agent
ATTACH_START = 11  #: JSON {"env": {...}, "tty": {"rows", "cols"} or null, "stdin": bool}
ATTACH_IN = 12  #: bytes for stdin; empty: end of file
ATTACH_SIGNAL = 13  #: JSON {"signal": number}: to the program's foreground process group
ATTACH_RESIZE = 14  #: JSON {"rows", "cols"}
ATTACH_DETACH = 15  #: nothing
ATTACH = {
    name: value
    for name, value in list(globals().items())
    if name.startswith("ATTACH_") and isinstance(value, int)
}


def attach_frame(kind: int, payload: bytes = b"") -> bytes:
    """One attach frame as bytes."""
    return ATTACH_HEADER.pack(len(payload), kind) + payload


_SERIES = struct.Struct("<HI")


def pack_series(
    series: Mapping[str, tuple[Iterable[int], Iterable[float], Iterable[float]]],
) -> bytes:
    """
    ``{name: (steps, times, values)}`` as bytes: arrays of int64, float64, float64 of equal length.

    For each: ``u16 length of name | u32 count | name (UTF-8) | steps | times | values``. NaN and
    infinities are values like others.
    """
    parts = []
    for name, (steps, times, values) in series.items():
        raw = name.encode("utf-8", "surrogatepass")[:1000]
        column = array("q", steps)
        parts += [
            _SERIES.pack(len(raw), len(column)),
            raw,
            column.tobytes(),
            array("d", times).tobytes(),
            array("d", values).tobytes(),
        ]
    return b"".join(parts)


def unpack_series(
    data: bytes | memoryview,
) -> Iterator[tuple[str, array[int], array[float], array[float]]]:
    """The inverse of :func:`pack_series`: yields ``(name, steps, times, values)`` with arrays."""
    view = memoryview(data)
    at = 0
    while at < len(view):
        size, count = _SERIES.unpack_from(view, at)
        at += _SERIES.size
        name = bytes(view[at : at + size]).decode("utf-8", "replace")
        at += size
        columns: list[Any] = []
        for code in "qdd":
            column: array[Any] = array(code)
            column.frombytes(view[at : at + 8 * count])
            if len(column) != count:
                raise ValueError("a series is cut off")
            columns.append(column)
            at += 8 * count
        yield name, columns[0], columns[1], columns[2]


PACK = struct.Struct("<32sQ")


def pack_item(digest: str, size: int) -> bytes:
    """The header of one blob in a pack: SHA-256 (hex) and size; the bytes follow."""
    return PACK.pack(bytes.fromhex(digest), size)


def read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """``size`` bytes from ``read(n)``. :raises EOFError: where it ends before."""
    parts = []
    while size:
        part = read(min(size, 1 << 20))
        if not part:
            raise EOFError("the stream was cut off")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def iter_pack(
    read: Callable[[int], bytes],
) -> Iterator[tuple[str, int, Iterator[bytes]]]:
    """
    ``(digest, size, pieces)`` for each blob of a pack; ``pieces`` must be used up before the next.

    ``read(n)`` gives at most n bytes, b"" at the end. :raises EOFError: where the pack is cut off.
    """

    def pieces(size: int) -> Iterator[bytes]:
        while size:
            part = read(min(size, 1 << 20))
            if not part:
                raise EOFError("the pack was cut off")
            size -= len(part)
            yield part

    while True:
        first = read(PACK.size)
        if not first:
            return
        head = first + read_exactly(read, PACK.size - len(first))
        digest, size = PACK.unpack(head)
        yield digest.hex(), size, pieces(size)
