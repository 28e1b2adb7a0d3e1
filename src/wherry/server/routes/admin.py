"""
Health, status, cleaning, backups: what operators and the command line's ``up`` call.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
from litestar import Response, Router, get, post
from litestar.params import JSONBody
from litestar.status_codes import HTTP_200_OK, HTTP_202_ACCEPTED

from wherry._version import __version__
from wherry.core.api import Backup, BackupDone, Prune, Pruned, Status
from wherry.core.schema import job_file
from wherry.core.states import RunState
from wherry.server.services import Wired


@get("/healthz", sync_to_thread=False)
def healthz() -> dict[str, Any]:
    """The process answers."""
    return {"ok": True, "pid": os.getpid()}


@get("/readyz", sync_to_thread=True)
def readyz(services: Wired) -> dict[str, Any]:
    """The store can be read and written; 503 where it cannot."""
    services.store.check()
    return {"ok": True}


@get("/status", sync_to_thread=True)
def status(services: Wired) -> Status:
    """The control plane: who, where, how much."""
    counts = services.store.count_runs()
    local = services.runs.backends.get("local")
    capacity = local.capacity() if local else None
    return Status(
        pid=os.getpid(),
        url=services.url,
        version=__version__,
        home=str(services.home),
        started=services.started,
        schema=services.schema,
        runs={state.value: counts[state] for state in RunState if state in counts},
        capacity=msgspec.to_builtins(capacity) if capacity else None,
    )


@post("/shutdown", status_code=HTTP_202_ACCEPTED, sync_to_thread=False)
def shutdown() -> Response[None]:
    """End this process. Runs go on and are adopted by the next one."""
    os.kill(os.getpid(), signal.SIGTERM)
    return Response(None, status_code=HTTP_202_ACCEPTED)


@get("/schemas/job", sync_to_thread=False)
def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    return job_file()


@post("/prune", status_code=HTTP_200_OK, sync_to_thread=True)
def prune(data: JSONBody[Prune], services: Wired) -> Pruned:
    """Remove old runs and unreferenced blobs."""
    return services.cleanup.prune(data)


@post("/backup", status_code=HTTP_200_OK, sync_to_thread=True)
def backup(data: JSONBody[Backup], services: Wired) -> BackupDone:
    """Write a backup on the control plane's machine while everything goes on."""
    return services.cleanup.backup(data)


health = Router(path="/", route_handlers=[healthz, readyz])
router = Router(path="/api/v1", route_handlers=[status, shutdown, job_schema, prune, backup])
