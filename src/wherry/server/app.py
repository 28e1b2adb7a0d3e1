"""
The composition root: which store, which blobs, which back ends; the routes over them.

Called by ``server.__main__`` and by tests. The only module, beside ``wherry.testing``, that names
concrete stores and back ends.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.types import ASGIApp
from msgspec import Struct

from wherry import settings
from wherry._version import __version__
from wherry.agent import environment, package
from wherry.backends.base import Backend
from wherry.backends.local.backend import LocalBackend
from wherry.blobs.base import Blobs
from wherry.blobs.objects import ObjectBlobs
from wherry.control.bus import Bus
from wherry.control.cleanup import Cleanup, entries
from wherry.control.commands import Commands
from wherry.control.live import Live
from wherry.control.look import Look
from wherry.control.options import Options
from wherry.control.reconcile import Reconciler
from wherry.control.reports import Ingest
from wherry.control.runs import Runs
from wherry.control.tasks import Brokers
from wherry.control.tokens import Tokens
from wherry.core.api import Prune, encode
from wherry.core.ids import new_token
from wherry.errors import Internal, InvalidInput, NotFound, WherryError
from wherry.server.auth import Guard
from wherry.server.routes import admin, agents, blobs, checkpoints, logs, look, runs, tasks
from wherry.server.services import Services
from wherry.store.base import Store
from wherry.store.sql import SCHEMA, SqlStore

log = logging.getLogger("wherry.server")
_PRUNE_EVERY = 3600.0  # seconds


class Keys(Struct, frozen=True):
    """The secrets of one home, made at its first start, readable by its owner alone."""

    token: str
    secret: bytes

    @classmethod
    def of(cls, home: Path) -> Keys:
        """Read, or make, the keys of this home."""
        token = _once(home / "token", lambda: new_token("wu").encode())
        return cls(token.decode(), _once(home / "secret", lambda: secrets.token_bytes(32)))


def _once(path: Path, make: Callable[[], bytes]) -> bytes:
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_bytes(make())
        partial.replace(path)
    return path.read_bytes()


class ControlPlane:
    """Everything behind one address."""

    def __init__(
        self,
        *,
        home: Path,
        url: str,
        keys: Keys,
        store: Store,
        blobs: Blobs,
        backends: Mapping[str, Backend],
    ) -> None:
        self.url, self.keys = url, keys
        options = Options(settings.get)
        bus, live, tokens = Bus(), Live(lease=options.lease), Tokens(keys.secret)
        ingest = Ingest(store, live, lambda report: self.reconciler.changed(report))
        self.reconciler = Reconciler(
            store=store,
            backends=backends,
            ingest=ingest,
            live=live,
            bus=bus,
            tokens=tokens,
            url=lambda: self.url,
            options=options,
        )
        use_cases = Runs(
            store=store,
            blobs=blobs,
            backends=backends,
            reconciler=self.reconciler,
            bus=bus,
            removed=lambda run_id: shutil.rmtree(home / "checkpoints" / run_id, ignore_errors=True),
        )
        brokers = Brokers(store=store, runs=use_cases, bus=bus, lease=settings.get("driver_lease"))
        self.services = Services(
            store=store,
            blobs=blobs,
            runs=use_cases,
            tasks=brokers,
            ingest=ingest,
            live=live,
            tokens=tokens,
            bus=bus,
            reconciler=self.reconciler,
            cleanup=_cleanup(home, store, blobs, use_cases, brokers),
            look=Look(store, Commands()),
            bundled=lru_cache(64)(lambda bundle: entries(blobs, bundle)),
            home=home,
            owner=getpass.getuser(),
            url=url,
            schema=SCHEMA,
        )
        self.routes = _routes(self)
        self.app: ASGIApp = Guard(
            self.routes,
            token=keys.token,
            owner=self.services.owner,
            tokens=tokens,
            hosts=lambda: _hosts(self.url),
        )

    def start(self) -> None:
        """Begin to write and to decide."""
        self.services.ingest.start()
        self.reconciler.start()

    def leave(self) -> None:
        """Let nobody wait any longer: the process is about to end. On the event loop."""
        self.services.look.commands.close()
        self.services.bus.close()

    def close(self) -> None:
        """Stop deciding, write what is queued, release the store. Runs go on."""
        self.reconciler.close()
        self.services.bus.close()
        self.services.ingest.close()
        self.services.store.close()

    async def prune_for_ever(self) -> None:
        """Keep the retention setting and forget old idempotency keys; a fault is tried again."""
        while True:
            for step in (self._prune_keys, self._prune_runs):
                try:
                    await asyncio.to_thread(step)
                except Exception:
                    log.exception("%s", step.__name__)
            await asyncio.sleep(_PRUNE_EVERY)

    def _prune_keys(self) -> None:
        before = self.services.runs.clock() - settings.get("idempotency_retention") * 86400
        self.services.store.prune_idempotency(before)

    def _prune_runs(self) -> None:
        self.services.cleanup.prune(Prune(days=settings.get("retention") or None))


def embedded(home: Path, *, url: str) -> ControlPlane:
    """
    The control plane of one machine: SQLite, a folder, the local back end.

    :raises SchemaTooNew: :raises StorageFull:
    """
    zipped = package.build_zip()
    agent = package.unpack(zipped, home / "cache" / "agent")
    backend = LocalBackend(
        home,
        agent=agent,
        server_file=str(home / "server.json"),
        checkpoints_shared=settings.get("checkpoints") != "blobs",
    )
    return ControlPlane(
        home=home,
        url=url,
        keys=Keys.of(home),
        store=SqlStore.open(f"sqlite:///{home / 'wherry.db'}"),
        blobs=ObjectBlobs.open(str(home / "blobs")),
        backends={"local": backend},
    )


def _cleanup(home: Path, store: Store, blobs: Blobs, use_cases: Runs, brokers: Brokers) -> Cleanup:
    return Cleanup(
        store=store,
        blobs=blobs,
        delete=use_cases.delete,
        prune_cache=lambda days: environment.prune(str(home / "cache"), days),
        keep=(home / "secret", home / "token"),
        lent=brokers.lent,
    )


def _hosts(url: str) -> frozenset[str]:
    port = url.rpartition(":")[2]
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))


def _routes(plane: ControlPlane) -> Litestar:
    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        plane.start()
        await plane.services.tasks.start()
        pruning = asyncio.create_task(plane.prune_for_ever())
        try:
            yield
        finally:
            pruning.cancel()
            plane.services.tasks.close()
            plane.close()

    return Litestar(
        route_handlers=[
            admin.health,
            admin.router,
            agents.router,
            checkpoints.router,
            blobs.router,
            runs.router,
            logs.router,
            look.router,
            tasks.router,
            tasks.workers,
        ],
        dependencies={"services": Provide(lambda: plane.services, sync_to_thread=False)},
        exception_handlers={
            WherryError: _on_wherry_error,
            HTTPException: _on_http_error,
            RecursionError: _on_deep_json,
            Exception: _on_defect,
        },
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(
            title="Wherry",
            version=__version__,
            path="/api/v1/openapi",
            render_plugins=[JsonRenderPlugin()],
            use_handler_docstrings=True,
        ),
        request_max_body_size=32 * 2**20,
    )


def _envelope(error: WherryError, status: int) -> Response[Any]:
    return Response(encode(error.envelope()), status_code=status, media_type="application/json")


def _on_wherry_error(_: Request[Any, Any, Any], error: WherryError) -> Response[Any]:
    return _envelope(error, error.http_status)


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    """The framework's own refusals: bad bodies and parameters, unknown paths and methods."""
    said = str(error.detail)
    if isinstance(error.extra, list) and error.extra:
        said += ": " + "; ".join(
            f"{item.get('key', '')}: {item.get('message', '')}"
            for item in error.extra
            if isinstance(item, dict)
        )
    cls = NotFound if error.status_code == 404 else InvalidInput
    if error.status_code >= 500:
        return _on_defect(request, error)
    return _envelope(cls(said[:1000]), error.status_code)


def _on_deep_json(_: Request[Any, Any, Any], __: RecursionError) -> Response[Any]:
    return _envelope(InvalidInput("the JSON is nested too deeply"), InvalidInput.http_status)


def _on_defect(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    number = secrets.token_hex(4)
    log.exception("%s: %s %s", number, request.method, request.url.path, exc_info=error)
    return _envelope(
        Internal(f"a defect of Wherry, number {number} in server.log"), Internal.http_status
    )
