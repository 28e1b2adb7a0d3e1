"""
JobSpec: what a person asks for. One class for job files, the API and the database.

Decoding is tolerant (unknown keys are dropped), so that client, server and database may differ by
one version; ``core.files`` is strict about what people write.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from wherry.core import retry
from wherry.core.faults import Fault
from wherry.core.launch import launcher
from wherry.errors import InvalidSpec

SPEC_VERSION = 1

Scalar = str | int | float | bool | None
Group = Literal["gang", "elastic", "pool"]
EnvironmentKind = Literal["active", "built"]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{p}i": 1024**n for n, p in enumerate("kmgt", start=1)}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str | int | float) -> int:
    """``"4Gi"``, ``"512M"`` or a number as bytes. :raises InvalidSpec: otherwise."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?\s*", str(text), re.IGNORECASE)
    if not match or match[2].lower() not in _UNITS:
        raise InvalidSpec(f"{text!r} is not an amount of memory", hint="write 512Mi, 4Gi or 2G")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_seconds(text: str | int | float) -> float:
    """``"90"``, ``"2h"`` or ``"1h30m"`` as seconds. :raises InvalidSpec: otherwise."""
    if isinstance(text, int | float):
        return float(text)
    if re.fullmatch(r"\s*[0-9]+(?:\.[0-9]+)?\s*", text):
        return float(text)
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])", text)
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text.replace(" ", ""):
        raise InvalidSpec(f"{text!r} is not a duration", hint="write 90s, 45m, 2h or 1h30m")
    return sum(float(n) * _SECONDS[u] for n, u in parts)


def format_bytes(n: float) -> str:
    """``4294967296`` as ``4.0Gi``."""
    for unit in ("B", "Ki", "Mi", "Gi", "Ti"):
        if abs(n) < 1024 or unit == "Ti":
            return f"{n:.0f}{unit}" if unit == "B" else f"{n:.1f}{unit}"
        n /= 1024
    raise AssertionError


def check_label(kind: str, text: str) -> None:
    """
    Names and tags stand in tables, on command lines and, names, in paths.

    :raises InvalidSpec: for one that is empty, long, blank at an end, or not printable.
    """
    if not text or len(text) > 100 or not text.isprintable() or text != text.strip():
        raise InvalidSpec(
            f"{text[:100]!r} is not a {kind}",
            hint=f"a {kind} is 1 to 100 printable characters, with no blank at its ends",
        )


def check_name(text: str) -> None:
    """:raises InvalidSpec: for a run's name that is no label, a path, or a word of Wherry's."""
    check_label("name", text)
    if "/" in text or "\\" in text or text in (".", "..", "last"):
        raise InvalidSpec(
            f"{text!r} is not a name for a run",
            hint='a name has no / and no \\ and is not ".", ".." or "last"',
        )


def usable_name(text: str) -> str:
    """``text``, made for another purpose, as a run's name."""
    try:
        check_name(text)
    except InvalidSpec:
        text = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip("-_.")[:60]
        return f"{text}-run" if text == "last" else text or "run"
    return text


class Amount(Struct, frozen=True, kw_only=True):
    """Some of a machine."""

    cpu: float = 0.0  #: cores
    memory: int = 0  #: bytes
    gpu: int = 0  #: devices


class Resources(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one rank's program needs. ``None``: not said; ``core.admission`` has the rule."""

    cpu: Annotated[float, Meta(gt=0)] | None = None  #: cores, fractions allowed
    memory: Annotated[int, Meta(gt=0)] | None = None  #: bytes
    gpu: Annotated[int, Meta(ge=0)] = 0  #: whole devices


class MetricRule(Struct, frozen=True, kw_only=True, rename={"source": "from"}):
    """How a metric is read from an unchanged script's output."""

    pattern: str  #: a regular expression; its first group is the number
    source: Literal["stdout", "stderr"] = "stdout"
    sample: str = ""  #: a line of the output that must match; pre-flight tries it


class Environment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The Python and the packages of a run."""

    kind: EnvironmentKind = "active"
    #: active: the interpreter's absolute path. built: the version to build with, "3.11.7".
    python: str = ""
    #: built: SHA-256 of the blob that holds the hashed requirements; "" means no packages.
    requirements: str = ""
    #: which rung of the ladder it came from, for people
    origin: str = ""
    #: active: SHA-256 of the blob with the frozen package list, as a record
    frozen: str = ""


class Code(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the run's code is."""

    bundle: str = ""  #: the bundle's digest; "" only where there is no project
    workdir: str = "."  #: the working directory inside the bundle
    in_place: str = ""  #: absolute folder on this machine: work there, not in a copy


class Call(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A Python function instead of a command."""

    #: SHA-256 of the blob: pickled (function or "module:qualname", args, kwargs)
    payload: str = ""
    name: str = ""  #: the function's name, for people
    tasks: bool = False  #: serve the tasks of ``wherry.map`` instead of one function


class Role(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Workers of a job that do one kind of work: a chief, parameter servers, an evaluator."""

    count: Annotated[int, Meta(ge=1, le=10_000)] = 1
    command: tuple[str, ...] = ()  #: (): the job's
    resources: Resources | None = None  #: of one rank; None: the job's
    env: dict[str, str] = {}  #: over the job's


class JobSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    A frozen description of work.

    ``command`` is an argument vector; ``python`` as its first word means the environment's own
    interpreter. ``call`` replaces the command by a function. There are workers × processes ranks
    or, with ``roles``, as many as these have together, numbered in the order of the roles.
    ``core.retry`` has the rules of ``retry_on`` and ``fail_on``, ``core.roster`` those of roles.
    """

    spec_version: int = SPEC_VERSION
    name: str = ""
    command: tuple[str, ...] = ()
    call: Call | None = None
    group: Group = "gang"
    workers: Annotated[int, Meta(ge=1, le=10_000)] = 1
    processes: Annotated[int, Meta(ge=1, le=1_000)] = 1
    min_workers: Annotated[int, Meta(ge=1)] | None = None  #: elastic: it goes on with so few
    roles: dict[str, Role] = {}
    ends_with: tuple[str, ...] = ()  #: roles whose success ends the run; (): see ``core.roster``
    resources: Resources = Resources()
    environment: Environment = Environment()
    env: dict[str, str] = {}
    code: Code = Code()
    params: dict[str, Scalar] = {}
    metrics: dict[str, MetricRule] = {}
    restarts: Annotated[int, Meta(ge=0)] = 0
    retry_on: tuple[str, ...] = ()  #: exit statuses, signals, causes to try again, beside faults
    fail_on: tuple[str, ...] = ()  #: those that are never tried again
    backoff: Annotated[float, Meta(ge=0)] | None = None  #: seconds before the first retry
    timeout: Annotated[float, Meta(gt=0)] | None = None  #: seconds of one attempt
    grace: Annotated[float, Meta(ge=0)] | None = None  #: seconds from SIGTERM to SIGKILL
    hold: Annotated[float, Meta(ge=0)] | None = None  #: seconds that a failed rank is kept
    stall: Annotated[float, Meta(ge=0)] | None = None  #: seconds without a sign of life; 0: never
    lease: Annotated[float, Meta(gt=0)] | None = None  #: seconds of silence after which one is lost
    faults: tuple[Fault, ...] = ()  #: what a rehearsal injects
    priority: int = 0  #: larger first
    tags: tuple[str, ...] = ()
    note: str = ""

    @property
    def launcher(self) -> str:
        """What starts a worker's processes in the agent's place, see ``core.launch``; or ""."""
        return launcher(self.command)

    @property
    def world_size(self) -> int:
        """How many ranks the run has: with a launcher, one a worker."""
        if self.roles:
            return sum(role.count for role in self.roles.values())
        return self.workers * (1 if self.launcher else self.processes)

    def check(self) -> JobSpec:
        """This spec. :raises InvalidSpec: where its parts do not fit together."""
        commands = [role.command or self.command for role in self.roles.values()] or [self.command]
        if not all(commands) and self.call is None:
            raise InvalidSpec("the job has no command", hint="command: python train.py")
        if any("\0" in word for command in (self.command, *commands) for word in command):
            raise InvalidSpec("the command holds a NUL character")
        if self.name:
            check_name(self.name)
        for tag in self.tags:
            check_label("tag", tag)
        for env in (self.env, *(role.env for role in self.roles.values())):
            for key, value in env.items():
                if not key or "=" in key or "\0" in key + value:
                    raise InvalidSpec(
                        f"{key!r} is not the name of an environment variable",
                        hint="write NAME=VALUE",
                    )
        self._check_group()
        for name, rule in self.metrics.items():
            try:
                groups = re.compile(rule.pattern).groups
            except re.error as error:
                raise InvalidSpec(
                    f"metric {name!r}: {rule.pattern!r}: {error}",
                    hint="a regular expression with the number in parentheses: loss=([0-9.]+)",
                ) from None
            if groups < 1:
                raise InvalidSpec(
                    f"metric {name!r}: {rule.pattern!r} has no group",
                    hint="put the number in parentheses: accuracy=([0-9.]+)",
                )
        for end in (*self.retry_on, *self.fail_on):
            retry.check(end)
        for fault in self.faults:
            fault.check(self.world_size)
        return self

    def _check_group(self) -> None:
        """Roles and sizes. :raises InvalidSpec: where they do not fit together."""
        elastic = self.group == "elastic"
        if self.min_workers is not None and not elastic:
            raise InvalidSpec(
                f"workers from {self.min_workers} to {self.workers} need a job that can shrink",
                hint="group: elastic",
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise InvalidSpec(f"workers: min {self.min_workers} is more than max {self.workers}")
        if elastic and ((self.processes > 1 and not self.launcher) or self.roles):
            raise InvalidSpec(
                "an elastic group has neither processes nor roles",
                hint="workers: {min: 2, max: 8}; the processes of a worker are started by torchrun",
            )
        if self.roles and (self.workers > 1 or self.processes > 1):
            raise InvalidSpec(
                "a job has workers or roles, not both", hint="roles: {chief: 1, worker: 4}"
            )
        for name in self.roles:
            if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", name):
                raise InvalidSpec(
                    f"roles: {name!r} is not a name", hint="lower-case letters, digits and -"
                )
        for name in self.ends_with:
            if name not in self.roles:
                known = ", ".join(self.roles) or "none"
                raise InvalidSpec(
                    f"ends_with: there is no role {name!r}", hint=f"the job's roles: {known}"
                )


def with_defaults(spec: JobSpec) -> JobSpec:
    """The spec with a name: of its function, script, module or program."""
    if spec.name:
        return spec
    if spec.call is not None:
        stem = spec.call.name.rpartition(":")[2].rpartition(".")[2]
    else:
        commands = [spec.command, *(role.command for role in spec.roles.values())]
        command: tuple[str, ...] = next(filter(None, commands), ())
        words = [w for w in command if w not in ("python", "python3", "-m")] or ["run"]
        if launcher(command):  # the script's name tells more
            words = [w for w in words if w.endswith(".py")] or words
        stem = words[0].rpartition("/")[2].removesuffix(".py")
    return msgspec.structs.replace(spec, name=usable_name(stem))


def decode_spec(data: bytes | str) -> JobSpec:
    """A JobSpec from JSON, tolerant of unknown keys. :raises InvalidSpec: otherwise."""
    try:
        return msgspec.json.decode(data, type=JobSpec).check()
    except msgspec.DecodeError as error:
        raise InvalidSpec(f"the job description does not decode: {error}") from None


def json_schema() -> dict[str, Any]:
    """The JSON schema of a JobSpec in its own form. ``core.schema`` has what people write."""
    return msgspec.json.schema(JobSpec)
