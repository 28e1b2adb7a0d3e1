"""
What the settings say about attempts. Made by ``server.app``; read by ``control.reconcile``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Options:
    """What the settings say about attempts."""

    def __init__(self, get: Callable[[str], Any]) -> None:
        self.grace: float = get("grace")
        self.heartbeat: float = get("heartbeat")
        self.lease: float = get("lease")
        self.backoff: float = get("backoff")
        self.elastic_settle: float = get("elastic_settle")
        self.barrier_timeout: float = get("barrier_timeout")
        self.spool_limit: int = get("spool_limit")
        self.stall: float = get("stall")
