"""
Events, in the order they happened.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select

from wherry.core.run import Event
from wherry.store.tables import events

_FIELDS = Event.__struct_fields__
_INSERT = insert(events)


def add(connection: Connection, event: Event) -> None:
    """See ``Store.add_event``."""
    connection.execute(_INSERT, row_of(event))


def row_of(event: Event) -> dict[str, Any]:
    """The event as a row."""
    return {name: getattr(event, name) for name in _FIELDS}


def of(connection: Connection, run_id: str) -> list[Event]:
    """See ``Store.events``."""
    columns = (events.c[name] for name in _FIELDS)
    rows = connection.execute(select(*columns).where(events.c.run == run_id).order_by(events.c.id))
    return [Event(**row._mapping) for row in rows]
