"""
How fast reports become durable: metric points a second, megabytes of log a second, small reports a
second, all through ``SqlStore.ingest`` alone.

Run: ``python bench/store.py [--json] [--folder FOLDER]``. Beside each figure stands what the disk
gives a plain file in the same run (write and fsync in pieces of the same size).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wherry.agent.protocol import pack_series
from wherry.core.ids import new_id
from wherry.core.job import JobSpec
from wherry.core.run import AttemptId, Run, Series
from wherry.store.base import Chunk, Report
from wherry.store.sql import SqlStore

RANKS = 8
SECONDS = 3.0  # of each measurement


def attempt_of(store: SqlStore) -> AttemptId:
    """A fresh run's first attempt, its ranks arrived."""
    run = Run(
        id=new_id("r"),
        name="bench",
        owner="bench",
        project="default",
        spec=JobSpec(command=("true",), workers=RANKS),
        created=time.time(),
    )
    store.create_run(run)
    store.create_attempt(run.id, 1, world_size=RANKS, time=time.time())
    attempt = AttemptId(run.id, 1)
    for rank in range(RANKS):
        store.arrive(attempt, rank, 1, address="127.0.0.1", ports=())
    return attempt


def metric_report(names: int, points: int) -> tuple[tuple[Chunk, ...], tuple[Series, ...]]:
    """One report's metrics: ``points`` points, shared out over ``names`` names."""
    each = points // names
    steps, times = range(each), [float(step) for step in range(each)]
    values = [random.random() for _ in range(each)]
    payload = pack_series({f"metric{n}": (steps, times, values) for n in range(names)})
    chunk = Chunk(kind="metric", payload=payload, count=each * names, first=0.0, last=1.0)
    series = tuple(
        Series(
            name=f"metric{n}",
            attempt=1,
            rank=0,
            count=each,
            last=values[-1],
            last_step=each,
            last_time=1.0,
            min=0.0,
            max=1.0,
        )
        for n in range(names)
    )
    return (chunk,), series


def log_report(size: int) -> tuple[tuple[Chunk, ...], tuple[Series, ...]]:
    """One report's log: lines as a training script prints them, every number different."""
    lines = []
    while size > 0:
        loss, speed = random.random(), random.random()
        lines.append(b"epoch %d step %d loss %.6f img/s %.1f\n" % (size % 97, size, loss, speed))
        size -= len(lines[-1])
    payload = b"".join(lines)
    return (Chunk(kind="log", payload=payload, count=len(lines), first=0.0, last=1.0),), ()


def groups(
    attempt: AttemptId, body: tuple[tuple[Chunk, ...], tuple[Series, ...]]
) -> Iterator[list[Report]]:
    """Groups of reports, one of every rank, without end."""
    chunks, series = body
    for seq in range(1, 10**9):
        yield [
            Report(
                attempt=attempt,
                rank=rank,
                incarnation=1,
                first_seq=seq,
                last_seq=seq,
                chunks=chunks,
                series=series,
            )
            for rank in range(RANKS)
        ]


def rate(store: SqlStore, body: tuple[tuple[Chunk, ...], tuple[Series, ...]]) -> float:
    """Reports a second."""
    stored = 0
    todo = groups(attempt_of(store), body)
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < SECONDS:
        stored += sum(isinstance(outcome, int) for outcome in store.ingest(next(todo)))
    return stored / spent


def disk(folder: Path, size: int) -> float:
    """Bytes a second of a plain file, synced after every ``size`` bytes."""
    data, written = os.urandom(size), 0
    with open(folder / "plain", "wb") as file:
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < SECONDS / 3:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written += size
    os.unlink(file.name)
    return written / spent


def measure(folder: Path) -> dict[str, float]:
    """Every figure."""
    log = log_report(2**20)
    many, few = metric_report(10, 1000), metric_report(10, 10)
    figures: dict[str, float] = {}

    def fresh(name: str, factor: float, body: tuple[tuple[Chunk, ...], tuple[Series, ...]]) -> None:
        store = SqlStore.open(f"sqlite:///{folder}/{len(figures)}.db")
        figures[name] = rate(store, body) * factor
        store.close()

    fresh("metric points/s (10 metrics, 1000 points a report)", 1000, many)
    fresh("reports/s (10 metrics, 1 point each)", 1, few)
    fresh("log MB/s (1 MiB reports)", len(log[0][0].payload) / 1e6, log)
    noise = (Chunk(kind="log", payload=os.urandom(2**20), count=1, first=0.0, last=1.0),)
    fresh("log MB/s that does not compress", 2**20 / 1e6, (noise, ()))
    figures["disk MB/s (8 MiB writes, each synced)"] = disk(folder, 8 * 2**20) / 1e6
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="how fast reports become durable")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--folder", help="where to write; a temporary folder if not given")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        figures = measure(Path(folder))
    if asked.json:
        print(json.dumps({name: round(value, 1) for name, value in figures.items()}))
    else:
        for name, value in figures.items():
            print(f"{value:14,.0f}  {name}")


if __name__ == "__main__":
    main()
