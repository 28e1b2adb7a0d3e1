"""The small parts of the control plane: tokens, leases, the bus, reports taken apart."""

from __future__ import annotations

import asyncio
import json
import math
import threading

import pytest

from wherry.agent import protocol as p
from wherry.control import logs
from wherry.control.bus import Bus
from wherry.control.live import Live
from wherry.control.reports import parse
from wherry.control.tokens import RankIdentity, Tokens
from wherry.core.run import AttemptId
from wherry.core.states import RankState
from wherry.errors import InvalidInput, Unauthorized, UnsafePath

WHO = RankIdentity(AttemptId("r1", 2), 3, 1)


def frames(*parts: tuple[int, object]) -> bytes:
    made = []
    for seq, (kind, payload) in enumerate(parts, start=1):
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        made.append(p.frame(kind, seq, 100.0 + seq, raw))
    return b"".join(made)


def test_a_token_names_its_rank_and_nobody_can_make_one() -> None:
    tokens = Tokens(b"k" * 32)
    token = tokens.mint(WHO)
    assert tokens.read(token) == WHO
    assert tokens.mint(WHO) == token
    for forged in (token[:-1], token.replace(".3.", ".4."), "", "wr...", "wu" + token[2:]):
        with pytest.raises(Unauthorized):
            tokens.read(forged)
    with pytest.raises(Unauthorized):
        Tokens(b"j" * 32).read(token)


def test_a_lease_runs_from_the_last_word_and_only_after_the_first() -> None:
    now = [0.0]
    live = Live(lease=30.0, clock=lambda: now[0])
    assert live.silent(WHO.attempt) == frozenset()
    live.heard(WHO.attempt, 3)
    now[0] = 29.0
    assert live.silent(WHO.attempt) == frozenset()
    live.heard(WHO.attempt, 3)
    now[0] = 60.0
    assert live.silent(WHO.attempt) == {3}
    live.forget(WHO.attempt)
    assert live.silent(WHO.attempt) == frozenset()


def test_time_in_which_nobody_could_be_heard_counts_against_nobody() -> None:
    now = [100.0]
    live = Live(lease=30.0, clock=lambda: now[0])
    live.heard(WHO.attempt, 3)
    now[0] += 40.0
    live.excuse(25.0)
    assert live.silent(WHO.attempt) == frozenset()
    now[0] += 20.0
    assert live.silent(WHO.attempt) == {3}


def test_a_change_between_reading_and_waiting_is_not_missed() -> None:
    async def scene() -> None:
        bus = Bus()
        version = bus.version("r1")
        bus.publish("r1")
        assert await bus.wait("r1", version, timeout=5)
        version = bus.version("r1")
        threading.Timer(0.02, bus.publish, ["r1"]).start()
        assert await bus.wait("r1", version, timeout=5)
        assert not await bus.wait("r1", bus.version("r1"), timeout=0.01)
        assert not bus._waiters

    asyncio.run(scene())


def test_a_report_is_taken_apart() -> None:
    points = p.pack_series({"loss": ([1, 2, 3], [1.0, 2.0, 3.0], [0.5, math.nan, 0.25])})
    report = parse(
        WHO,
        frames(
            (p.PHASE, {"phase": "bundle", "seconds": 0.5}),
            (p.STARTED, {"pid": 1}),
            (p.LOG, b"\x01one\ntwo\n"),
            (p.LOG, b"\x02bad\n"),
            (p.METRIC, points),
            (p.PARAMS, {"lr": 0.1}),
            (p.FILE, {"path": "m/model.ubj", "digest": "a" * 64, "size": 9}),
            (p.RESULT, {"digest": "b" * 64}),
            (p.EXIT, {"state": "failed", "exit_code": 3, "cause": "exit", "last_lines": ["x"]}),
        ),
    )
    assert report is not None and (report.first_seq, report.last_seq) == (1, 9)
    assert report.state is RankState.RUNNING and report.phases == {"bundle": 0.5}
    assert report.params == {"lr": 0.1} and report.files[0].path == "m/model.ubj"
    assert report.exit is not None
    assert (report.exit.exit_code, report.exit.last_lines) == (3, ("x",))
    assert (report.started, report.result) == (102.0, "b" * 64)
    log, metric = report.chunks
    assert (log.count, metric.count) == (3, 3)
    texts = [(line.stream, line.text) for line in logs.lines(log, logs.LogQuery())]
    assert texts == [("stdout", "one"), ("stdout", "two"), ("stderr", "bad")]
    (series,) = report.series
    assert (series.count, series.last, series.min, series.max) == (3, 0.25, 0.25, 0.5)


def test_no_frames_are_a_heartbeat() -> None:
    assert parse(WHO, b"") is None


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense that is long enough to be a header",
        p.frame(p.LOG, 1, 0.0, b"\x01a") + p.frame(p.LOG, 3, 0.0, b"\x01b"),
        frames((p.METRIC, b"\xff\xff\xff")),
        frames((p.PARAMS, b"[1]")),
        frames((p.EXIT, {"state": "running"})),
        frames((p.EXIT, {"state": "failed", "cause": "boredom"})),
        frames((p.RESULT, {"digest": "../../etc/passwd"})),
    ],
)
def test_nonsense_in_a_report_is_refused_with_words(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse(WHO, body)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a//b", ".", ""])
def test_a_file_name_that_leaves_its_folder_is_refused(path: str) -> None:
    with pytest.raises(UnsafePath):
        parse(WHO, frames((p.FILE, {"path": path, "digest": "a" * 64, "size": 1})))
