"""
What ranks reported, as rows and back: chunks, series at a glance, parameters, files.

The rows are written by ``queries.reports``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import zstandard
from sqlalchemy import Connection, Row, select

from wherry.core.job import Scalar
from wherry.core.run import File, Series
from wherry.store.base import Chunk, ChunkKind
from wherry.store.tables import chunks, files, params, series

_PACK_FROM = 1024  # bytes: a smaller log chunk is kept as it is
_CHUNK = tuple(chunks.c[name] for name in Chunk.__struct_fields__)


def fit(value: Any) -> Any:
    """
    ``value`` as a column can hold it: text without NUL and lone surrogates.

    :raises ValueError: for an integer of more than 64 bits, and for NaN.
    """
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else _clean(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{value} has more than 64 bits")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("NaN where a number is needed")
    if isinstance(value, dict):
        return {fit(key): fit(each) for key, each in value.items()}
    return tuple(fit(each) for each in value) if isinstance(value, tuple) else value


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def fit_row(row: dict[str, Any]) -> dict[str, Any]:
    """The same of a row's values."""
    return {name: fit(value) for name, value in row.items()}


def chunk_row(chunk: Chunk) -> dict[str, Any]:
    """The row of a chunk; a large log is compressed where that makes it smaller."""
    payload, packed = chunk.payload, False
    if chunk.kind == "log" and len(payload) > _PACK_FROM:
        small = zstandard.ZstdCompressor(level=1).compress(payload)
        if packed := len(small) < len(payload):
            payload = small
    own = {"kind": chunk.kind, "count": chunk.count, "first": chunk.first, "last": chunk.last}
    return fit_row(own) | {"packed": packed, "payload": payload}


def series_row(part: Series) -> dict[str, Any]:
    """The row of a series at a glance. NaN, which SQLite does not know, is NULL."""
    last = float(part.last)
    return fit_row(
        {
            "name": part.name,
            "count": part.count,
            "last": None if math.isnan(last) else last,
            "last_step": part.last_step,
            "last_time": part.last_time,
            "min": _finite(part.min),
            "max": _finite(part.max),
        }
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def file_row(file: File) -> dict[str, Any]:
    """The row of a file."""
    names = ("path", "digest", "size", "modified")
    return fit_row({name: getattr(file, name) for name in names})


def param_row(name: str, value: Scalar) -> dict[str, Any]:
    """The row of a parameter: JSON of the standard library, since msgspec's has no NaN."""
    plain = fit(value) if isinstance(value, str) else value
    return {"name": fit(name), "value": json.dumps(plain)}


def chunk_rows(
    connection: Connection,
    run_id: str,
    kind: ChunkKind,
    *,
    after: int,
    before: int | None,
    attempt: int | None,
    ranks: Iterable[int] | None,
    limit: int,
    newest: bool,
) -> Sequence[Row[Any]]:
    """See ``Store.chunks``; :func:`chunk_of` makes the chunks, outside the transaction."""
    wanted = [chunks.c.run == run_id, chunks.c.kind == kind, chunks.c.id > after]
    if before is not None:
        wanted.append(chunks.c.id < before)
    if attempt is not None:
        wanted.append(chunks.c.attempt == attempt)
    if ranks is not None:
        wanted.append(chunks.c.rank.in_(sorted(ranks)))
    order = chunks.c.id.desc() if newest else chunks.c.id
    statement = select(chunks.c.packed, *_CHUNK).where(*wanted).order_by(order).limit(limit)
    rows = connection.execute(statement).all()
    return rows[::-1] if newest else rows


def chunk_of(row: Row[Any]) -> Chunk:
    """The chunk as it was reported."""
    values = {name: row._mapping[name] for name in Chunk.__struct_fields__}
    if row.packed:
        values["payload"] = zstandard.ZstdDecompressor().decompress(row.payload)
    return Chunk(**values)


def at_a_glance(connection: Connection, run_id: str) -> list[Series]:
    """See ``Store.series``."""
    columns = (series.c[name] for name in Series.__struct_fields__)
    order = (series.c.attempt, series.c.rank, series.c.name)
    rows = connection.execute(select(*columns).where(series.c.run == run_id).order_by(*order))
    return [
        Series(**{**row._mapping, "last": math.nan if row.last is None else row.last})
        for row in rows
    ]


def parameters(connection: Connection, run_id: str) -> dict[str, Scalar]:
    """See ``Store.params``: those reported."""
    statement = select(params.c.name, params.c.value).where(params.c.run == run_id)
    rows = connection.execute(statement.order_by(params.c.name))
    return {row.name: json.loads(row.value) for row in rows}


def kept(connection: Connection, run_id: str) -> list[File]:
    """See ``Store.files``."""
    columns = (files.c[name] for name in File.__struct_fields__)
    statement = select(*columns).where(files.c.run == run_id)
    rows = connection.execute(statement.order_by(files.c.rank, files.c.path))
    return [File(**row._mapping) for row in rows]
