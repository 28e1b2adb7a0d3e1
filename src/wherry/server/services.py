"""
What a route may call: every use case, built once by ``server.app``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from litestar.di import NamedDependency
from msgspec import Struct

from wherry.blobs.base import Blobs
from wherry.control.bus import Bus
from wherry.control.cleanup import Cleanup
from wherry.control.live import Live
from wherry.control.reconcile import Reconciler
from wherry.control.reports import Ingest
from wherry.control.runs import Runs
from wherry.control.tasks import Brokers
from wherry.control.tokens import Tokens
from wherry.store.base import Store


class Services(Struct, frozen=True, kw_only=True):
    """Handed to routes as the dependency ``services``."""

    store: Store
    blobs: Blobs
    runs: Runs
    tasks: Brokers
    ingest: Ingest
    live: Live
    tokens: Tokens
    bus: Bus
    reconciler: Reconciler
    cleanup: Cleanup
    bundled: Callable[[str], frozenset[str]]  #: a bundle's digest → those of its files; cached
    home: Path
    owner: str
    url: str
    schema: str
    started: float = time.time()


#: How a route asks for them.
Wired = NamedDependency[Services]
