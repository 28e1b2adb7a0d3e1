"""
What travels between client and control plane, beside the nouns themselves: one set of classes for
both ends.

Called by ``server.routes`` and ``sdk.client``. Paths are below ``/api/v1``; every call but
``/healthz`` and ``/readyz`` carries ``Authorization: Bearer <token>``.

=========================== =================================================================
GET  /status                → Status
POST /shutdown              → 202; runs go on
GET  /schemas/job           → JSON schema of a job file
POST /blobs/missing         Digests → Digests: those the server does not have
POST /blobs/pack            a pack (``agent.protocol.iter_pack``) → 204
GET  /blobs/{digest}        → bytes
POST /runs                  Submit, ``Idempotency-Key`` → 201 Run; 409 bundle-missing: push first
POST /runs/plan             Submit → Planned: what would be sent; nothing is written
GET  /runs                  ?state=&name=&tag=&limit=&before=&all= → [Run], newest first
GET  /runs/{ref}            → RunDetail; ``ref``: id, unique prefix, name, or "last"
GET  /runs/{ref}/wait       ?timeout= → Run, when finished or the time (≤ 60 s) is over
GET  /runs/{ref}/logs       ?follow=&rank=&stream=&tail=&attempt=&after= → LogLine or Cursor a line,
                            as NDJSON; ``format=raw``: the bytes as they were written. Waits for a
                            run that has not started. Blank lines are sent to keep the line open.
GET  /runs/{ref}/metrics    ?name=&attempt=&rank=&limit= → [MetricSeries]
GET  /runs/{ref}/usage      the same of cpu, memory, gpu
GET  /runs/{ref}/files      → [File]
GET  /runs/{ref}/files/{path}  ?rank= → bytes, as an attachment
GET  /runs/{ref}/result     → bytes: the pickle that rank 0 left (never unpickled by the server)
POST /runs/{ref}/stop       Stop → Run
POST /runs/{ref}/retry      Retry, ``Idempotency-Key`` → 201 Run: a new run of the same spec
POST /runs/{ref}/tasks      ?epoch=, frames (``agent.tasks``) → TasksTaken:
                            chunks of tasks for the workers of ``wherry.map``; opaque to the server
GET  /runs/{ref}/tasks      ?epoch=&after=&wait= → frames: what the workers answered. Keeps the
                            driver's lease: without it the run is stopped
DELETE /runs/{ref}/tasks    → 204: no more will come, the workers leave
POST /runs/{ref}/exec       Exec → attach frames (``agent.protocol``) from a program beside the
                            rank's, as they come; the header ``Wherry-Channel`` names the channel.
                            To hang up ends the program.
POST /channels/{id}         attach frames to that program, as they come: START is the first → 204
GET  /runs/{ref}/stack      ?rank=&native= → [RankStack]: what every rank's Python does now
DELETE /runs/{ref}          → 204; 409 while it is not finished
POST /prune                 Prune → Pruned
POST /backup                Backup → BackupDone
=========================== =================================================================
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from wherry.core.bundle import LeftOut
from wherry.core.job import JobSpec, Scalar
from wherry.core.run import Attempt, Event, Run, Series


class Digests(Struct, frozen=True, kw_only=True):
    """SHA-256 digests in hex."""

    digests: tuple[str, ...]


class Submit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run to make."""

    spec: JobSpec
    backend: str = "local"
    foreground: bool = False
    attach: str = ""  #: Unix socket on this machine that the agents connect to
    parent: str = ""  #: the run that this one repeats
    why: str = ""  #: why it goes to this control plane, as an event of the run


class Planned(Struct, frozen=True, kw_only=True):
    """The answer to a dry run."""

    spec: JobSpec
    backend: str
    plan: dict[str, Any]


class RunDetail(Struct, frozen=True, kw_only=True):
    """A run with what belongs to it."""

    run: Run
    attempts: tuple[Attempt, ...]
    params: dict[str, Scalar]
    metrics: tuple[Series, ...]
    events: tuple[Event, ...]
    left_out: tuple[LeftOut, ...] = ()  #: what of the project is not in its bundle, and why


class LogLine(Struct, frozen=True, kw_only=True):
    """One line of output, without its newline. Bytes that are no UTF-8 become U+FFFD."""

    time: float
    attempt: int
    rank: int
    stream: str
    text: str

    def __str__(self) -> str:
        return self.text


class Cursor(Struct, frozen=True, kw_only=True):
    """All before this was sent: ``after=`` this resumes."""

    cursor: int


class MetricSeries(Struct, frozen=True, kw_only=True):
    """The points of one metric. Values that JSON cannot hold are "NaN", "Infinity", "-Infinity"."""

    name: str
    attempt: int
    rank: int
    steps: list[int]
    times: list[float]
    values: list[float | str]


class Stop(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    How to stop: ``grace`` in seconds between SIGTERM and SIGKILL; None: the run's own.

    ``reason``: why, where it was no person who wants it stopped.
    """

    grace: float | None = None
    reason: Annotated[str, Meta(max_length=1000)] = ""


class Retry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Again, as it was."""

    name: str = ""


class TasksTaken(Struct, frozen=True, kw_only=True):
    """How many of the chunks were taken, by the broker of this ``epoch``."""

    epoch: str
    accepted: int


class Exec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where to run something. ``None``: the rank that is held, else rank 0; the latest attempt."""

    rank: int | None = None
    attempt: int | None = None


class Call(Struct, frozen=True, kw_only=True):
    """One call on a stack."""

    name: str  #: of the function
    file: str
    line: int


class ThreadStack(Struct, frozen=True, kw_only=True):
    """What one thread does."""

    name: str
    calls: tuple[Call, ...]  #: the latest first
    active: bool = False  #: it uses a core now, as far as is known
    gil: bool = False  #: it holds the interpreter's lock


class ProcessStack(Struct, frozen=True, kw_only=True):
    """What one Python process does."""

    pid: int
    command: str
    threads: tuple[ThreadStack, ...]


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something could not be looked at."""

    code: str
    message: str
    hint: str = ""


class RankStack(Struct, frozen=True, kw_only=True):
    """What the Python processes of one rank do."""

    rank: int
    processes: tuple[ProcessStack, ...] = ()
    problems: tuple[Problem, ...] = ()


class Prune(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Remove finished runs that ended more than ``days`` ago, then blobs that nobody refers to."""

    days: float | None = None  #: None: only unreferenced blobs and old caches
    dry_run: bool = False


class Pruned(Struct, frozen=True, kw_only=True):
    """What went, or would go."""

    runs: tuple[str, ...]
    blobs: int
    bytes: int


class Backup(Struct, frozen=True, kw_only=True):
    """Write a backup to this absolute path on the control plane's machine."""

    path: str


class BackupDone(Struct, frozen=True, kw_only=True):
    """A finished backup."""

    path: str
    bytes: int
    runs: int


class Status(Struct, frozen=True, kw_only=True):
    """The control plane."""

    pid: int
    url: str
    version: str
    home: str
    started: float
    schema: str
    runs: dict[str, int]  #: how many in each state that has any
    capacity: dict[str, Any] | None = None


_NAMED = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def json_number(value: float) -> float | str:
    """The value, or its name where JSON cannot hold it."""
    return _NAMED.get(repr(value), value)


def encode(value: Any) -> bytes:
    """JSON, as both ends write it."""
    return msgspec.json.encode(value)
