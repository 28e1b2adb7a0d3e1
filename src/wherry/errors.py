"""
Every error that Wherry raises on purpose, in one tree.

::

    WherryError
    ├── InvalidInput               400  exit 2   something the caller wrote is wrong
    │   ├── InvalidSpec                          a job file or a JobSpec
    │   ├── UnknownKey                           a misspelt key, with the right one
    │   ├── ScriptNotFound                       the script or module is not there
    │   ├── UnsatisfiableResources               more than the back end will ever have
    │   ├── Preflight                            what would go wrong in the run, found before it
    │   ├── UnsafePath                           a path that leaves its folder
    │   ├── NestedSubmit                         a rank that submits while it is imported
    │   └── NotPicklable                         a function, argument or result
    ├── BundleError                400  exit 2   the project cannot be captured
    │   ├── FileTooLarge, LinkOutOfTree, ChangedDuringCapture
    │   └── StaleLock                            uv.lock does not fit pyproject.toml
    ├── EnvironmentFailed          400  exit 2   packages that cannot be resolved or built
    ├── NotFound                   404  exit 3   no such run, file, bundle, ...
    ├── AmbiguousName              409  exit 3   a prefix of several ids
    ├── Conflict                   409  exit 4   not in this state
    │   ├── IdempotencyMismatch                  the key was used for something else
    │   ├── BundleMissing                        push the bundle first
    │   └── StaleToken                           this incarnation of a rank was replaced
    ├── Unauthorized               401  exit 5
    ├── Forbidden                  403  exit 5
    ├── BadHost                    400  exit 5   a foreign Host header
    ├── CapabilityMissing          400  exit 2   the back end cannot do what the job asks
    ├── Unavailable                503  exit 6   the control plane cannot be reached or is not ready
    │   ├── ServerMissing                        wherry[server] is not installed
    │   └── StorageFull                          no space left
    ├── SchemaTooNew               500  exit 6   the database is from a newer Wherry
    ├── RunFailed                       exit 1   ``Run.result()`` of a run that did not succeed
    │   └── WorkerLost                           a task of ``wherry.map`` whose workers died
    ├── WaitTimeout                     exit 7
    └── Internal                   500  exit 70  a defect of Wherry

An error has a stable ``code``, a ``message`` with the offending value, and often a ``hint``: the
way out. The command line prints both and exits with ``exit_status``; the server answers with
``http_status`` and the envelope ``{"error": {"code", "message", "hint"}}``; the client raises the
same class again from the code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class WherryError(Exception):
    """Something went wrong that Wherry has words for."""

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 70

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.message = message or (self.__doc__ or "").strip().split("\n")[0]
        self.hint = hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def envelope(self) -> dict[str, Any]:
        """The body of an HTTP answer that carries this error."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class InvalidInput(WherryError):
    """The input is not valid."""

    code, http_status, exit_status = "invalid-input", 400, 2


class InvalidSpec(InvalidInput):
    """The job description is not valid."""

    code = "invalid-spec"


class UnknownKey(InvalidSpec):
    """A key that nobody knows."""

    code = "unknown-key"


class ScriptNotFound(InvalidInput):
    """The script does not exist."""

    code = "script-not-found"


class UnsatisfiableResources(InvalidInput):
    """No machine of this back end will ever have what the job asks for."""

    code = "unsatisfiable-resources"


class Preflight(InvalidInput):
    """The run would fail: pre-flight says why, all at once."""

    code = "preflight"


class UnsafePath(InvalidInput):
    """A path that leaves its folder."""

    code = "unsafe-path"


class NestedSubmit(InvalidInput):
    """A rank submitted a run while its module was being imported."""

    code = "nested-submit"


class NotPicklable(InvalidInput):
    """A function, an argument or a result that cannot be pickled."""

    code = "not-picklable"


class BundleError(WherryError):
    """The project cannot be captured."""

    code, http_status, exit_status = "bundle-error", 400, 2


class FileTooLarge(BundleError):
    """A file is too large to travel with the code."""

    code = "file-too-large"


class LinkOutOfTree(BundleError):
    """A symbolic link points out of the project."""

    code = "link-out-of-tree"


class ChangedDuringCapture(BundleError):
    """A file was edited while the project was being captured."""

    code = "changed-during-capture"


class StaleLock(BundleError):
    """The lock does not fit the project any more."""

    code = "stale-lock"


class EnvironmentFailed(WherryError):
    """The packages cannot be resolved or installed."""

    code, http_status, exit_status = "environment-failed", 400, 2


class NotFound(WherryError):
    """There is no such thing."""

    code, http_status, exit_status = "not-found", 404, 3


class AmbiguousName(WherryError):
    """The name fits several things."""

    code, http_status, exit_status = "ambiguous-name", 409, 3


class Conflict(WherryError):
    """This cannot be done in the present state."""

    code, http_status, exit_status = "conflict", 409, 4


class IdempotencyMismatch(Conflict):
    """The idempotency key was used for another request."""

    code = "idempotency-mismatch"


class BundleMissing(Conflict):
    """The bundle, or one of its blobs, has not been pushed."""

    code = "bundle-missing"


class StaleToken(Conflict):
    """This incarnation of the rank was replaced; its reports are refused."""

    code = "stale-token"


class Unauthorized(WherryError):
    """The credential is missing or wrong."""

    code, http_status, exit_status = "unauthorized", 401, 5


class Forbidden(WherryError):
    """The credential does not allow this."""

    code, http_status, exit_status = "forbidden", 403, 5


class BadHost(WherryError):
    """The request's Host header names another host."""

    code, http_status, exit_status = "bad-host", 400, 5


class CapabilityMissing(WherryError):
    """The back end cannot do what the job asks."""

    code, http_status, exit_status = "capability-missing", 400, 2


class Unavailable(WherryError):
    """The control plane cannot be reached, or is not ready."""

    code, http_status, exit_status = "unavailable", 503, 6


class ServerMissing(Unavailable):
    """This machine has only the client."""

    code = "server-missing"


class StorageFull(Unavailable):
    """No space is left."""

    code = "storage-full"


class SchemaTooNew(WherryError):
    """The database was written by a newer Wherry."""

    code, http_status, exit_status = "schema-too-new", 500, 6


class RunFailed(WherryError):
    """The run did not succeed."""

    code, http_status, exit_status = "run-failed", 409, 1


class WorkerLost(RunFailed):
    """A task killed its workers."""

    code = "worker-lost"


class WaitTimeout(WherryError):
    """The time to wait is over."""

    code, http_status, exit_status = "wait-timeout", 504, 7


class Internal(WherryError):
    """A defect of Wherry."""

    code, http_status, exit_status = "internal", 500, 70


def _tree(cls: type[WherryError]) -> Iterable[type[WherryError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _tree(sub)


BY_CODE: dict[str, type[WherryError]] = {cls.code: cls for cls in _tree(WherryError)}


def from_envelope(body: Any, *, status: int) -> WherryError:
    """The error that an HTTP answer carries; ``Internal`` where the body is not an envelope."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Internal(f"the server answered {status} without saying why: {str(body)[:200]!r}")
    cls = BY_CODE.get(str(error.get("code")), WherryError)
    return cls(str(error.get("message", "")), hint=str(error.get("hint", "")))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, or all of them where none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
