"""Nothing that a rank reports is lost, and nothing arrives twice."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.agent_rank import Rank, until
from wherry.agent import journal as journals
from wherry.agent import protocol
from wherry.agent.journal import Journal, read_folder
from wherry.testing.sink import AgentSink, Mode

LOG = protocol.LOG
COUNT = """
import time
for i in range(300):
    print(i, flush=True); time.sleep(0.002)
"""
COUNTED = b"".join(b"%d\n" % i for i in range(300))


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


@pytest.fixture
def rank(tmp_path: Path, sink: AgentSink) -> Iterator[Rank]:
    made = Rank(tmp_path, sink)
    yield made
    made.kill()


@pytest.mark.parametrize("mode", ["refuse", "offline", "cut"])
def test_a_control_plane_that_fails_for_a_while_loses_nothing(rank: Rank, mode: Mode) -> None:
    rank.start(COUNT)
    rank.sink.wait(lambda: len(rank.log()) > 100)
    rank.sink.mode = mode
    seen = rank.sink.requests
    rank.sink.wait(lambda: rank.sink.requests > seen + 3)
    rank.sink.mode = "ok"
    assert rank.wait() == 0
    assert rank.log() == COUNTED
    seqs = [frame.seq for frame in rank.sink.frames(rank.attempt)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_control_plane_that_comes_back_elsewhere_is_found(
    rank: Rank, tmp_path: Path, sink: AgentSink
) -> None:
    file = tmp_path / "server.json"
    rank.config["server_file"] = str(file)
    file.write_text(json.dumps({"url": sink.url}))
    rank.start(COUNT)
    sink.wait(lambda: len(rank.log()) > 100)
    with AgentSink() as second:
        second.acked = sink.acked
        second._frames = sink._frames
        sink.mode = "offline"
        sink.close()
        file.write_text(json.dumps({"url": second.url}))
        assert rank.wait() == 0
        assert second.log(rank.attempt) == COUNTED


def test_a_program_ends_while_the_control_plane_is_down_and_is_told_later(rank: Rank) -> None:
    rank.sink.mode = "offline"
    rank.start("print('done'); open('ended', 'w')")
    until(lambda: (rank.work / "ended").exists())
    assert rank.process is not None
    assert rank.process.poll() is None
    rank.sink.mode = "ok"
    assert rank.wait() == 0
    assert rank.log() == b"done\n" and rank.sink.exit(rank.attempt) is not None


def test_a_replaced_incarnation_kills_its_program_and_leaves(rank: Rank) -> None:
    rank.start("import time; time.sleep(600)")
    rank.sink.wait(lambda: bool(rank.sink.payloads(protocol.STARTED, rank.attempt)))
    before = len(rank.sink.frames(rank.attempt))
    rank.sink.mode = "stale"
    assert rank.wait() == 0
    assert rank.living() == []
    rank.sink.mode = "ok"
    assert len(rank.sink.frames(rank.attempt)) == before


def test_what_was_sent_is_forgotten_on_disk(rank: Rank) -> None:
    rank.run("import sys; sys.stdout.write(('y' * 99 + '\\n') * 400_000)")
    size = sum(map(os.path.getsize, journals.segments(rank.folder)))
    assert rank.sink.received >= 40_000_000 > size
    assert int((rank.folder / "acked").read_text()) == rank.sink.acked[rank.attempt, 0]


# --- the journal by itself


def frames(folder: Path) -> list[tuple[int, bytes]]:
    """(seq, payload) of what lies on disk."""
    raw = b"".join(read_folder(folder))
    return [(seq, bytes(payload)) for _, seq, _, payload in protocol.iter_frames(raw)]


def everything(journal: Journal) -> list[tuple[int, bytes]]:
    """(seq, payload) of all that there is to send, sent in small batches."""
    found = []
    while journal.unsent:
        data, last = journal.read(50)
        found += [(seq, bytes(payload)) for _, seq, _, payload in protocol.iter_frames(data)]
        journal.acknowledge(last)
    return found


def test_a_torn_tail_is_dropped_and_the_numbers_go_on(tmp_path: Path) -> None:
    first = Journal(tmp_path, 10**9)
    for n in range(5):
        first.append(LOG, b"\x01line %d\n" % n)
    first.acknowledge(2)
    with open(tmp_path / "journal", "ab") as file:
        file.write(protocol.frame(LOG, 6, 0.0, b"\x01torn")[:-2])
    again = Journal(tmp_path, 10**9)
    assert (again.acked, again.last) == (2, 5)
    again.append(LOG, b"\x01new\n")
    assert [seq for seq, _ in everything(again)] == [3, 4, 5, 6]
    assert frames(tmp_path)[-1] == (6, b"\x01new\n")


def test_segments_are_read_in_order_and_go_when_they_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENT", 200)
    journal = Journal(tmp_path, 10**9)
    for n in range(100):
        journal.append(LOG, b"\x01line %d\n" % n)
    assert len(journals.segments(tmp_path)) > 10
    assert [seq for seq, _ in frames(tmp_path)] == list(range(1, 101))
    assert [seq for seq, _ in everything(journal)] == list(range(1, 101))
    assert journals.segments(tmp_path) == [str(tmp_path / "journal")]


def test_beyond_the_limit_output_is_dropped_with_one_line_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, 2000)
    for n in range(200):
        journal.append(LOG, b"\x01line %d\n" % n)
        journal.append(protocol.METRIC, b"m")
    first = [payload for _, payload in everything(journal)]
    lost = 200 - sum(payload.startswith(b"\x01") for payload in first)
    assert 0 < lost < 200
    assert first.count(b"m") == 200
    journal.append(LOG, b"\x01after\n")
    said, after = everything(journal)
    assert f"({lost} lines) of output were not kept".encode() in said[1]
    assert after[1] == b"\x01after\n"


def test_a_full_disk_blocks_nothing_and_keeps_what_is_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, 10**9)
    journal.append(LOG, b"\x01before\n")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        write(fd, data[:7])  # a full disk takes a part first
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        journal.append(LOG, b"\x01lost\n")
        journal.append(protocol.METRIC, b"m")
        journal.append(protocol.EXIT, b"{}")
    assert [payload for _, payload in everything(journal)] == [b"\x01before\n", b"m", b"{}"]
    journal.append(LOG, b"\x01after\n")
    said, after = everything(journal)
    assert b"5 bytes (1 lines) of output were not kept" in said[1]
    assert after == (5, b"\x01after\n")
