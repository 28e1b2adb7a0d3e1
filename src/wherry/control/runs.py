"""
What people do with runs: submit, plan, read, stop, retry, remove.

Called by ``server.routes.runs``. Each method says what it raises; nothing here waits.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

import msgspec
from msgspec import structs

from wherry.agent.argv import after_script, params_from_argv
from wherry.backends.base import Backend, Capability
from wherry.blobs.base import Blobs
from wherry.control.bus import Bus
from wherry.control.cleanup import left_out
from wherry.control.reconcile import Reconciler
from wherry.core import admission
from wherry.core.api import Planned, Retry, RunDetail, Stop, Submit, json_number
from wherry.core.bundle import check_digest
from wherry.core.ids import new_id
from wherry.core.job import JobSpec, with_defaults
from wherry.core.run import AttemptId, File, Run
from wherry.errors import BundleMissing, CapabilityMissing, Conflict, InvalidInput, NotFound
from wherry.store.base import RunFilter, Store

PROJECT = "default"


class Runs:
    """The runs of one owner's view. Safe from any thread."""

    def __init__(
        self,
        *,
        store: Store,
        blobs: Blobs,
        backends: Mapping[str, Backend],
        reconciler: Reconciler,
        bus: Bus,
        removed: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.blobs, self.backends = store, blobs, backends
        self.reconciler, self.bus, self.removed, self.clock = reconciler, bus, removed, clock

    def submit(self, ask: Submit, *, owner: str, key: str = "") -> Run:
        """
        Make a run. With a ``key`` used before: the run that was made then.

        :raises InvalidSpec: :raises UnsatisfiableResources: :raises CapabilityMissing:
        :raises BundleMissing: push it first. :raises IdempotencyMismatch:
        """
        spec = self._complete(ask)
        self._require_blobs(spec)
        run = Run(
            id=new_id("r"),
            name=spec.name,
            owner=owner,
            project=PROJECT,
            spec=spec,
            created=self.clock(),
            reason=ask.why[:400],
            backend=ask.backend,
            parent=ask.parent,
            foreground=ask.foreground,
            attach=ask.attach,
        )
        # The socket is another one when a client tries again; it is still the same request.
        same = structs.replace(ask, attach="")
        digest = hashlib.sha256(msgspec.json.encode(same)).hexdigest()
        made = self.store.create_run(run, key=f"{owner}/{key}" if key else "", request=digest)
        self.reconciler.enqueue(made)
        return made

    def plan(self, ask: Submit) -> Planned:
        """What ``submit`` would have the back end do. Nothing is written."""
        spec = self._complete(ask)
        run = Run(id="r-dry-run", name=spec.name, owner="", project=PROJECT, spec=spec,
                  backend=ask.backend, foreground=ask.foreground)  # fmt: skip
        request = self.reconciler.request(run, AttemptId(run.id, 1))
        body = self.backends[ask.backend].plan(request).body
        return Planned(spec=spec, backend=ask.backend, plan=body)

    def find(self, ref: str, *, owner: str) -> Run:
        """The run that ``ref`` means. :raises NotFound: :raises AmbiguousName:"""
        return self.store.resolve(ref, owner=owner, project=PROJECT)

    def list(self, where: RunFilter) -> list[Run]:
        """Newest first."""
        return self.store.runs(where)

    def detail(self, run: Run) -> RunDetail:
        """The run with what belongs to it."""
        return RunDetail(
            run=run,
            attempts=tuple(self.store.attempts(run.id)),
            params={**run.spec.params, **self.store.params(run.id)},
            metrics=tuple(
                structs.replace(s, last=json_number(float(s.last)))
                for s in self.store.series(run.id)
            ),
            events=tuple(self.store.events(run.id)),
            left_out=left_out(self.blobs, run.spec.code.bundle),
        )

    def stop(self, run: Run, how: Stop) -> Run:
        """Ask for the end of a run. Again, or after the end: nothing."""
        self.store.request_stop(run.id, reason=how.reason)
        if how.grace is not None and run.attempt and not run.finished:
            attempt = AttemptId(run.id, run.attempt)
            self.store.mark_stopping(attempt, "user")
            self.reconciler.live.stop(attempt)
            self.backends[run.backend].stop(attempt, how.grace)
        self.reconciler.mark(run.id)
        return self.store.run(run.id)

    def retry(self, run: Run, how: Retry, *, owner: str, key: str = "") -> Run:
        """A new run of the same spec, in a copy of the same code. :raises Conflict: unfinished."""
        if not run.finished:
            raise Conflict(
                f"run {run.id} is {run.state}", hint=f"stop it first: wherry stop {run.id}"
            )
        spec = run.spec
        if spec.code.bundle:
            spec = structs.replace(spec, code=structs.replace(spec.code, in_place=""))
        spec = structs.replace(spec, name=how.name or spec.name)
        ask = Submit(spec=spec, backend=run.backend, parent=run.id)
        return self.submit(ask, owner=owner, key=key)

    def delete(self, run: Run) -> None:
        """Remove a finished run with everything it kept. :raises Conflict: while it is not."""
        self.store.delete_run(run.id)
        self.removed(run.id)
        self.bus.forget(run.id)

    def file(self, run: Run, path: str, *, rank: int = 0) -> File:
        """One file that the run kept. :raises NotFound:"""
        for file in self.store.files(run.id):
            if file.path == path and file.rank == rank:
                return file
        raise NotFound(
            f"run {run.id} keeps no file {path[:200]!r} of rank {rank}",
            hint=f"wherry files {run.id} lists them",
        )

    def result(self, run: Run) -> str:
        """The digest of what rank 0 returned. :raises NotFound: where it returned nothing."""
        if run.attempt:
            rank = self.store.attempt(AttemptId(run.id, run.attempt)).ranks[0]
            if rank.result:
                return rank.result
        raise NotFound(f"run {run.id} has no result", hint="only functions return a value")

    def _complete(self, ask: Submit) -> JobSpec:
        """The spec with its defaults, checked against what the back end can do."""
        spec = with_defaults(ask.spec.check())
        backend = self.backends.get(ask.backend)
        if backend is None:
            raise NotFound(f"there is no back end {ask.backend[:80]!r}")
        if spec.group != "gang" and Capability.REPLACE not in backend.capabilities:
            raise CapabilityMissing(
                f"this back end cannot replace a single rank, as group {spec.group!r} needs",
                hint="group: gang starts all ranks again",
            )
        if spec.code.in_place and Capability.IN_PLACE not in backend.capabilities:
            raise CapabilityMissing("this back end cannot work in a folder of yours")
        if ask.attach and Capability.ATTACH not in backend.capabilities:
            raise CapabilityMissing("this back end cannot attach a terminal of this machine")
        admission.check(spec, self.reconciler.ledgers[ask.backend].total)
        said = params_from_argv(after_script(spec.command))
        return structs.replace(spec, params={**said, **spec.params})

    def _require_blobs(self, spec: JobSpec) -> None:
        """The manifest is pushed after its files, so its presence vouches for them."""
        named = (
            spec.code.bundle,
            spec.environment.requirements,
            spec.environment.frozen,
            spec.call.payload if spec.call else "",
        )
        digests = [check_digest(digest) for digest in named if digest]
        if missing := self.blobs.missing(digests):
            count = "1 blob is" if len(missing) == 1 else f"{len(missing)} blobs are"
            raise BundleMissing(f"{count} not here: {', '.join(missing)}")
        if not spec.code.bundle and not spec.code.in_place and not spec.command and not spec.call:
            raise InvalidInput("the run has no code")
