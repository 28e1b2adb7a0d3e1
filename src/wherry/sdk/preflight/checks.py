"""
The other checks: files that stay behind, variables, metric rules, programs, frameworks. Each pure
but for looking whether a file is there.

Called by ``sdk.preflight``.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from wherry.agent.capture import MetricRules
from wherry.core.job import JobSpec
from wherry.core.roster import CHIEFS, SERVANTS
from wherry.sdk.preflight.findings import Finding
from wherry.sdk.preflight.imports import Packages
from wherry.sdk.preflight.known import PROVIDED, PROVIDED_PREFIXES
from wherry.sdk.preflight.project import Project

_OURS = frozenset({"TF_CONFIG", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"})
_PORT_OPTION = re.compile(r"--(?:master[-_]port|rdzv[-_]endpoint)[= ](?:[^\s:]*:)?([0-9]{1,5})\b")
_PORT_TEXT = re.compile(r"tcp://(?:localhost|127\.0\.0\.1|0\.0\.0\.0):([0-9]{1,5})\b")
_LEGACY = "TF_USE_LEGACY_KERAS"


def metrics(spec: JobSpec) -> Iterator[Finding]:
    """Rules that do not read a number from their own sample."""
    for name, rule in spec.metrics.items():
        if not rule.sample:
            continue
        as_agent = MetricRules({name: {"pattern": rule.pattern}})
        if as_agent.scan("stdout", rule.sample.encode(), 0.0):
            continue
        match = re.search(rule.pattern, rule.sample)
        why = f"its group holds {match[1]!r}, which is no number" if match else "it does not match"
        yield Finding(
            level="error",
            code="metric-sample",
            message=f"metric {name!r}: {rule.pattern!r} on its sample {rule.sample!r}: {why}",
            hint="mend the pattern; its first group is the number: accuracy=([0-9.]+)",
        )


def program(project: Project, spec: JobSpec, *, here: bool) -> Iterator[Finding]:
    """A program that is nowhere to be found. ``here``: the run is on this machine."""
    if not here or spec.environment.kind != "active":
        return
    for name in dict.fromkeys(entry.program for entry in project.entries if entry.program):
        yield from _program(project, spec, name)


def _program(project: Project, spec: JobSpec, name: str) -> Iterator[Finding]:
    if "/" in name:
        path = project.folder / name
        if path.exists() and not os.access(path, os.X_OK):
            yield Finding(
                level="error",
                code="entry-point",
                message=f"{name} is not executable",
                hint=f"chmod +x {name}",
                file=project.name(path),
            )
        return
    beside = Path(spec.environment.python).parent / name
    if not beside.exists() and shutil.which(name) is None:
        yield Finding(
            level="error",
            code="entry-point",
            message=f"there is no program {name!r} on PATH or beside {spec.environment.python}",
            hint="install it, or name it by its path",
        )


def data(project: Project) -> Iterator[Finding]:
    """Files that are read by a literal path, are here, and stay behind."""
    if project.travels is None:
        return
    for file, scan in project.scans.items():
        for text, line in scan.paths:
            literal = text.split("*")[0].rstrip("/") if "*" in text else text
            if not literal or literal.startswith(("/", "~")) or "://" in literal or "\0" in literal:
                continue
            path = project.folder / literal
            if not _is_there(path) or project.there(path):
                continue
            inside = project.name(path)
            yield Finding(
                level="warning",
                code="data-left-out",
                message=f"it reads {literal!r}, which is here but left out of the bundle",
                hint=f"write !{inside} into .wherryignore, or run in the foreground",
                file=project.name(file),
                line=line,
            )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long to be one
        return False


def variables(project: Project, spec: JobSpec) -> Iterator[Finding]:
    """Variables that ``os.environ`` must have and that nobody gives the run."""
    ours = {name for scan in project.scans.values() for name in scan.sets} | spec.env.keys()
    for file, scan in project.scans.items():
        for name, line in scan.variables:
            if name in ours or name in PROVIDED or name.startswith(PROVIDED_PREFIXES):
                continue
            here = name in os.environ
            yield Finding(
                level="warning",
                code="env",
                message=f"it needs the variable {name}, which "
                + ("is set here but does not travel" if here else "is not set"),
                hint=f"--env {name}" + ("" if here else "=VALUE"),
                file=project.name(file),
                line=line,
            )


def roles(project: Project, spec: JobSpec) -> Iterator[Finding]:
    """Roles that do not add up, and variables that are Wherry's to set."""
    tensorflow = any(i.top == "tensorflow" for scan in project.scans.values() for i in scan.imports)
    for name in CHIEFS & spec.roles.keys():
        if spec.roles[name].count > 1:
            yield Finding(
                level="error" if tensorflow else "warning",
                code="roles",
                message=f"TF_CONFIG has room for one {name}, and the job has "
                f"{spec.roles[name].count}",
                hint=f"{name}: 1, and workers for the rest",
            )
    if spec.roles and spec.roles.keys() <= SERVANTS and not spec.ends_with:
        named = ", ".join(spec.roles)
        yield Finding(
            level="error",
            code="roles",
            message=f"of the roles {named} none is known to end, so the run would not",
            hint="add the role that does the work, or say ends_with: [...]",
        )
    ranks = spec.world_size > 1
    for name in {**spec.env, **{n: "" for role in spec.roles.values() for n in role.env}}:
        if ranks and name in _OURS:
            yield Finding(
                level="warning",
                code="roles",
                message=f"{name} is set by Wherry for each rank; the job's own is not used",
                hint=f"leave {name} out",
            )


def ports(project: Project, spec: JobSpec, *, here: bool) -> Iterator[Finding]:
    """Ports of this machine that the job names itself, to meet at, and that somebody has taken."""
    if not here:
        return
    words = " ".join([*spec.command, *(w for role in spec.roles.values() for w in role.command)])
    named = {int(found): "" for found in _PORT_OPTION.findall(words)}
    for file, scan in project.scans.items():
        for text in sorted(scan.texts):
            named |= {int(found): project.name(file) for found in _PORT_TEXT.findall(text)}
    for port, where in named.items():
        if not _is_free(port):
            yield Finding(
                level="error",
                code="port-taken",
                message=f"the ranks are to meet at port {port}, which another program has taken",
                hint='leave the port to Wherry: init_method="env://", torchrun without a port',
                file=where,
            )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def gpus(spec: JobSpec, packages: Packages) -> Iterator[Finding]:
    """GPUs for a framework that was built without them."""
    if not spec.resources.gpu:
        return
    torch = packages.has("torch")
    cuda = any(
        n.startswith(("nvidia-", "cuda-", "jax-cuda", "jax-rocm")) for n in packages.versions
    )
    said = ""
    if torch.endswith("+cpu") or (torch and packages.locked and not cuda and "+" not in torch):
        said = f"torch {torch} is built for the CPU alone"
    elif packages.has("tensorflow-cpu") and not packages.has("tensorflow"):
        said = "tensorflow-cpu has no GPU support"
    elif packages.has("jax") and not cuda:
        said = "jax comes without a plug-in for GPUs"
    if said:
        yield Finding(
            level="warning",
            code="gpu-build",
            message=f"the run asks for {spec.resources.gpu} GPU a rank, but {said}",
            hint="lock a build with CUDA (jax[cuda12], torch from its CUDA index), or leave --gpu",
        )


def keras(project: Project, spec: JobSpec, packages: Packages) -> Iterator[Finding]:
    """Keras 3 ``fit`` under ``MultiWorkerMirroredStrategy``, which Keras 3 does not do."""
    scans = project.scans
    words = {word for scan in scans.values() for word in scan.words}
    if "MultiWorkerMirroredStrategy" not in words or not any(s.fits for s in scans.values()):
        return
    version = re.match(r"(\d+)", packages.has("keras"))
    if version is None or int(version[1]) < 3:
        return
    uses = "keras" in words
    legacy = "tf_keras" in words or spec.env.get(_LEGACY, "0") not in ("", "0")
    legacy = legacy or any(_LEGACY in scan.texts for scan in scans.values())
    if not uses or (legacy and packages.has("tf-keras")):
        return
    message = f"Keras {packages.has('keras')} has no fit() under MultiWorkerMirroredStrategy"
    hint = f"--env {_LEGACY}=1 with --with tf-keras, a custom training loop, or Keras on JAX"
    if legacy:
        message = "Keras 2 is asked for, and tf-keras, which has it, is not in the environment"
        hint = "--with tf-keras"
    for file, scan in scans.items():
        for line in scan.fits[:1]:
            yield Finding(
                level="error",
                code="keras-fit",
                message=message,
                hint=hint,
                file=project.name(file),
                line=line,
            )
