"""
What may be swept: digests still in use, idempotency keys out of date.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, union

from wherry.store.queries import checkpoints
from wherry.store.tables import files, idempotency, ranks, uses


def referenced_blobs(connection: Connection) -> list[str]:
    """See ``Store.referenced_blobs``."""
    named = union(
        select(uses.c.digest),
        select(ranks.c.result).where(ranks.c.result != ""),
        select(files.c.digest),
    )
    return sorted({*connection.scalars(named), *checkpoints.digests(connection)})


def prune_idempotency(connection: Connection, before: float) -> int:
    """See ``Store.prune_idempotency``."""
    old = delete(idempotency).where(idempotency.c.created < before)
    return connection.execute(old).rowcount
