"""
From what a person asked to a submitted run: the one way, for the command line and ``wherry.run``.

::

    Draft ── prepare: target → project → capture → environment ──▶ Prepared ── send ──▶ Run

``prepare`` talks to nobody but the package index (where an environment must be locked); ``send``
pushes only the blobs that the control plane does not have.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from wherry import settings
from wherry.agent.protocol import pack_item
from wherry.bundle import Captured, capture, find_root, write_pack
from wherry.core import files
from wherry.core.api import RunDetail, Submit
from wherry.core.bundle import LeftOut
from wherry.core.job import Code, Environment, JobSpec, usable_name
from wherry.core.run import Run
from wherry.errors import BundleMissing, ChangedDuringCapture
from wherry.sdk.client import Client, new_key
from wherry.sdk.functions import Function, import_folder, import_path
from wherry.sdk.target import Target, find_target, missing_program

if TYPE_CHECKING:
    from wherry.bundle.environment import Choice


_TRIES = 3  # captures of a project that is edited meanwhile, before the last


@dataclass(frozen=True, kw_only=True)
class Draft:
    """
    What a person asked for.

    ``words`` is a script with its arguments, ``-m`` and a module, a command, or one job file, whose
    command gets the words that follow it. ``changes`` are a JobSpec's keys in the form of a job
    file: ``{"workers": 4, "resources": {"memory": "4Gi"}, "timeout": "2h"}``; what they do not say
    is as in the job file or ``base``.
    """

    words: tuple[str, ...] = ()
    function: Function | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    #: a run's spec, to run again: its code and environment stay; ``words`` replace its arguments
    base: JobSpec | None = None
    parent: str = ""  #: that run
    folder: Path | None = None  #: where the person stands; None: the current folder
    foreground: bool = False
    in_place: bool | None = None  #: work in the project folder itself; None: where in foreground
    environment: Choice = "auto"  #: the rung of the environment ladder
    python: str = ""  #: build the environment with this version
    packages: tuple[str, ...] = ()  #: build the environment with these in addition


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that is ready to be sent."""

    spec: JobSpec
    captured: Captured | None = None  #: None: the code is that of an earlier run
    blobs: Mapping[str, bytes] = field(default_factory=dict, repr=False)  #: beside the files
    notes: tuple[str, ...] = ()  #: for the person
    parent: str = ""  #: the run that this one repeats
    draft: Draft | None = None  #: what it was made of, where the project can be captured again

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What did not travel, and why."""
        return self.captured.manifest.left_out if self.captured else ()

    @property
    def digests(self) -> tuple[str, ...]:
        """Every blob that the run needs of this machine."""
        return (*self.blobs, *(self.captured.paths if self.captured else ()))


def prepare(draft: Draft, *, unsettled: Collection[str] = ()) -> Prepared:
    """
    The draft as a complete JobSpec, and the bytes that it refers to.

    :param unsettled: paths of the project that are left out.
    :raises ScriptNotFound: :raises InvalidSpec: :raises BundleError: :raises EnvironmentFailed:
    """
    if draft.base is not None:
        return _again(draft, draft.base)
    target = _target(draft)
    in_place = draft.foreground if draft.in_place is None else draft.in_place
    anchor = target.script if draft.function is None else draft.function.file
    target, root = _place(target, anchor, in_place=in_place)
    settings.make_home(settings.home())
    captured = capture(
        root,
        cache=settings.home() / "client",
        script=anchor,
        large="leave-out" if in_place else "refuse",
        unsettled=unsettled,
    )
    environment, blobs, notes = _environment(draft, root, target, in_place=in_place)

    if draft.function is None and "PATH" not in draft.changes.get("env", {}):
        path = os.environ.get("PATH", os.defpath)
        missing = missing_program(target, environment.python, path)
        # What a built environment brings is known when it is there.
        if missing and (environment.kind == "active" or "[project.scripts]" in missing.hint):
            raise missing

    data = {"name": usable_name(target.name), **files.merge(target.job, files.check(draft.changes))}
    if target.command:
        data["command"] = target.command
    if draft.function is not None:
        payload = draft.function.pack(captured.root, captured.manifest, environment)
        digest = hashlib.sha256(payload).hexdigest()
        blobs[digest] = payload
        data["call"] = {"payload": digest, "name": draft.function.name}
        path = os.pathsep.join(import_path(captured.root, target.folder))
        data["env"] = ({"PYTHONPATH": path} if path else {}) | data.get("env", {})
    # Last in the pack: where the manifest is, its files are.
    blobs[captured.manifest.digest] = captured.manifest.encode()
    code = Code(
        bundle=captured.manifest.digest,
        workdir=target.folder.resolve().relative_to(captured.root).as_posix(),
        in_place=str(captured.root) if in_place else "",
    )
    spec = msgspec.structs.replace(files.spec(data), code=code, environment=environment)
    if spec.call is not None and draft.function is not None and draft.function.tasks:
        call = msgspec.structs.replace(spec.call, tasks=True)
        spec = msgspec.structs.replace(spec, call=call, group="pool")
    return Prepared(spec=spec, captured=captured, blobs=blobs, notes=notes, draft=draft)


def send(
    client: Client,
    prepared: Prepared,
    *,
    backend: str = "local",
    foreground: bool = False,
    attach: str = "",
    key: str = "",
    why: str = "",
) -> Run:
    """
    Make the run; push first what the control plane does not have.

    A file that was edited since :func:`prepare` is captured again. One that never rests is an error
    where the run needs it; where it works in the folder itself, the record does without.

    :param attach: a Unix socket on this machine that the run's agents connect to.
    :param key: an idempotency key; by default a fresh one for this call.
    :param why: it goes to this control plane, for people (``contexts.chosen``).
    :raises ChangedDuringCapture: where a file is written to all the time.
    """
    unsettled: set[str] = set()
    for _ in range(_TRIES):
        try:
            return _send(
                client,
                _submit(prepared, backend, foreground, attach, why),
                prepared,
                key or new_key(),
            )
        except ChangedDuringCapture:
            if prepared.draft is None:
                raise
            again = prepare(prepared.draft, unsettled=unsettled)
            if again.spec.code.in_place:
                unsettled |= _edited(prepared, again)
            prepared = again
    return _send(
        client, _submit(prepared, backend, foreground, attach, why), prepared, key or new_key()
    )


def _edited(before: Prepared, after: Prepared) -> set[str]:
    """The paths that are not as they were."""
    assert before.captured is not None and after.captured is not None
    was = {entry.path: entry for entry in before.captured.manifest.entries}
    now = {entry.path: entry for entry in after.captured.manifest.entries}
    return {path for path in was if was[path] != now.get(path)}


def _submit(prepared: Prepared, backend: str, foreground: bool, attach: str, why: str) -> Submit:
    return Submit(
        spec=prepared.spec,
        backend=backend,
        foreground=foreground,
        attach=attach,
        parent=prepared.parent,
        why=why,
    )


def _send(client: Client, submit: Submit, prepared: Prepared, key: str) -> Run:
    try:
        return client.submit(submit, key=key)
    except BundleMissing:
        push(client, prepared)
        return client.submit(submit, key=key)


def push(client: Client, prepared: Prepared) -> int:
    """Send what the control plane does not have, in one pack. :returns: how many blobs."""
    missing = client.missing(prepared.digests)
    if missing:
        client.push_pack(lambda: _pack(prepared, missing))
    return len(missing)


def from_run(detail: RunDetail, draft: Draft | None = None) -> Draft:
    """
    The same run again, with the changes of ``draft``: same code, same environment.

    It works in a copy of the code as it was then, also where that run worked in place.
    """
    return replace(draft or Draft(), base=detail.run.spec, parent=detail.run.id)


def _again(draft: Draft, base: JobSpec) -> Prepared:
    data = files.merge(files.dump(base), files.check(draft.changes))
    if draft.words:
        data["command"] = (*base.command[: _arguments(base.command)], *draft.words)
    spec = files.spec(data)
    environment = spec.environment
    blobs: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    if draft.environment != "auto" or draft.python or draft.packages:
        folder = (draft.folder or Path.cwd()).absolute()
        target = Target(command=spec.command, folder=folder)
        environment, blobs, notes = _environment(draft, folder, target, in_place=False)
    code = msgspec.structs.replace(spec.code, in_place="")
    spec = msgspec.structs.replace(spec, code=code, environment=environment)
    return Prepared(spec=spec, blobs=blobs, notes=notes, parent=draft.parent)


def _arguments(command: tuple[str, ...]) -> int:
    """Where a command's arguments begin: after the program, the script or the module."""
    if command[:1] != ("python",):
        return 1
    return 3 if command[1:2] == ("-m",) else 2


def _target(draft: Draft) -> Target:
    folder = (draft.folder or Path.cwd()).absolute()
    if draft.function is not None:
        return Target(folder=folder, name=draft.function.name)
    target = find_target(draft.words, folder)
    if not target.command and "command" in draft.changes:
        return find_target(tuple(files.check(draft.changes)["command"]), folder)
    return target


def _place(target: Target, anchor: Path | None, *, in_place: bool) -> tuple[Target, Path]:
    """
    The project's folder, and the target with its working folder inside.

    That of the folder where the person stands. In a copy, a script or module outside of it would
    not be there: then its own project, working beside it.
    """
    root = find_root(target.folder)
    if in_place or anchor is None or anchor.resolve().is_relative_to(root):
        return target, root
    folder = anchor.resolve().parent if target.command else import_folder(anchor)
    command = target.command
    if target.script is not None:
        command = tuple(
            anchor.name if target.folder / word == target.script else word for word in command
        )
    return replace(target, folder=folder, command=command), find_root(folder)


def _environment(
    draft: Draft, root: Path, target: Target, *, in_place: bool
) -> tuple[Environment, dict[str, bytes], tuple[str, ...]]:
    """The run's environment, the blobs that it refers to, and notes for the person."""
    from wherry.bundle.environment import Ask, resolve

    ask = Ask(
        root=root,
        environ=os.environ,
        script=target.script,
        python=draft.python,
        with_packages=draft.packages,
        choice=draft.environment,
        foreground=in_place,
    )
    resolved = resolve(ask, cache=settings.home() / "client")
    return resolved.environment, dict(resolved.blobs), resolved.notes


def _pack(prepared: Prepared, missing: tuple[str, ...]) -> Iterator[bytes]:
    if prepared.captured is not None:
        yield from write_pack(
            prepared.captured, [d for d in missing if d in prepared.captured.paths]
        )
    for digest, data in prepared.blobs.items():
        if digest in missing:
            yield pack_item(digest, len(data)) + data
