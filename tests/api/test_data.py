"""What travels: blobs, logs, metrics, files, results; and what prune and backup do with them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import tarfile
import threading
from pathlib import Path

import pytest

from tests.api.conftest import Agent, Plane
from tests.api.test_runs import pack
from wherry.agent import protocol as p
from wherry.core.bundle import Entry, Manifest
from wherry.core.job import Code
from wherry.core.run import Run
from wherry.testing.waiting import eventually


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def run(plane: Plane) -> Run:
    return plane.submit()


@pytest.fixture
def agent(plane: Plane, run: Run) -> Agent:
    made = plane.agent(run)
    made.start()
    return made


def lines(text: str) -> list[str]:
    rows = [json.loads(row) for row in text.splitlines() if row]
    return [row["text"] for row in rows if "text" in row]


def test_only_missing_blobs_are_asked_for(plane: Plane) -> None:
    body = {"digests": [sha(b"a"), sha(b"b")]}
    assert plane.http.post("/api/v1/blobs/missing", json=body).json() == body
    assert plane.http.post("/api/v1/blobs/pack", content=pack(b"a")).status_code == 204
    assert plane.http.post("/api/v1/blobs/missing", json=body).json() == {"digests": [sha(b"b")]}
    assert plane.http.get(f"/api/v1/blobs/{sha(b'a')}").content == b"a"


def test_a_pack_that_is_cut_off_or_lies_is_refused(plane: Plane) -> None:
    cut = plane.http.post("/api/v1/blobs/pack", content=pack(b"whole", b"cut off")[:-2])
    assert cut.status_code == 400 and "cut off" in cut.json()["error"]["message"]
    lie = p.pack_item(sha(b"truth"), 3) + b"lie"
    assert plane.http.post("/api/v1/blobs/pack", content=lie).status_code == 400
    for data in (b"cut off", b"truth", b"lie"):
        assert plane.http.get(f"/api/v1/blobs/{sha(data)}").status_code == 404


def test_frames_that_are_sent_again_are_stored_once(plane: Plane, run: Run, agent: Agent) -> None:
    body = agent.frames((p.LOG, b"\x01once\n"))
    assert agent.send(body).json()["acked"] == agent.send(body).json()["acked"] == 2
    assert lines(plane.http.get(f"/api/v1/runs/{run.id}/logs").text) == ["once"]


def test_logs_are_filtered_tailed_and_resumed(plane: Plane, run: Run, agent: Agent) -> None:
    for n in range(5):
        agent.say((p.LOG, b"\x01out %d\n" % n), (p.LOG, b"\x02err %d\n" % n))
    url = f"/api/v1/runs/{run.id}/logs"
    assert len(lines(plane.http.get(url).text)) == 10
    assert lines(plane.http.get(f"{url}?stream=stderr&tail=2").text) == ["err 3", "err 4"]
    assert lines(plane.http.get(f"{url}?stream=stdout&rank=1").text) == []
    cursors = [json.loads(row) for row in plane.http.get(url).text.splitlines() if "cursor" in row]
    after = cursors[3]["cursor"]
    assert lines(plane.http.get(f"{url}?after={after}").text) == ["out 4", "err 4"]
    raw = plane.http.get(f"{url}?format=raw&stream=stdout").content
    assert raw == b"".join(b"out %d\n" % n for n in range(5))


def test_metrics_keep_nan_and_infinity_by_name(plane: Plane, run: Run, agent: Agent) -> None:
    values = [0.5, math.nan, math.inf, -math.inf]
    agent.say((p.METRIC, p.pack_series({"loss": (range(4), [1.0] * 4, values)})))
    (series,) = plane.http.get(f"/api/v1/runs/{run.id}/metrics").json()
    assert series["values"] == [0.5, "NaN", "Infinity", "-Infinity"]
    (glance,) = plane.http.get(f"/api/v1/runs/{run.id}").json()["metrics"]
    assert (glance["count"], glance["min"], glance["max"]) == (4, 0.5, 0.5)


def test_a_file_is_seen_when_it_is_whole(plane: Plane, run: Run, agent: Agent) -> None:
    data = os.urandom(3 << 20)
    wrong = agent.http.put(f"/agent/v1/blobs/{sha(data)}", content=data[:-1])
    assert wrong.status_code == 400
    assert agent.http.put(f"/agent/v1/blobs/{sha(data)}", content=data).status_code == 204
    agent.say((p.FILE, {"path": "m/ü model.bin", "digest": sha(data), "size": len(data)}))
    (file,) = plane.http.get(f"/api/v1/runs/{run.id}/files").json()
    assert (file["path"], file["size"]) == ("m/ü model.bin", len(data))
    got = plane.http.get(f"/api/v1/runs/{run.id}/files/m/ü model.bin")
    assert got.content == data
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["../token", "..%2Ftoken", "%2e%2e/token", "/etc/passwd", "m\\..\\x"]
)
def test_no_path_leads_out_of_the_runs_files(
    plane: Plane, run: Run, agent: Agent, path: str
) -> None:
    got = plane.http.get(f"/api/v1/runs/{run.id}/files/{path}")
    assert got.status_code == 404 and plane.control.keys.token not in got.text


def test_a_rank_gets_its_own_code_and_no_other_blob(plane: Plane) -> None:
    manifest = Manifest(entries=(Entry(path="x.py", digest=sha(b"code"), size=4),)).encode()
    plane.http.post("/api/v1/blobs/pack", content=pack(b"code", b"secret", manifest))
    agent = plane.agent(plane.submit(code=Code(bundle=sha(manifest))))
    assert agent.http.get(f"/agent/v1/blobs/{sha(manifest)}").content == manifest
    fetched = agent.http.post("/agent/v1/blobs/fetch", json={"digests": [sha(b"code")]})
    assert fetched.content == pack(b"code")
    assert agent.http.get(f"/agent/v1/blobs/{sha(b'secret')}").status_code == 403


def test_a_result_goes_out_as_bytes_that_nobody_opened(
    plane: Plane, run: Run, agent: Agent
) -> None:
    evil = b"cos\nsystem\n(S'touch /tmp/wherry-was-here'\ntR."
    agent.http.put(f"/agent/v1/blobs/{sha(evil)}", content=evil)
    agent.say((p.RESULT, {"digest": sha(evil)}), (p.EXIT, {"state": "succeeded", "exit_code": 0}))
    plane.until(run.id, "succeeded")
    assert plane.http.get(f"/api/v1/runs/{run.id}/result").content == evil
    assert not Path("/tmp/wherry-was-here").exists()


def test_a_log_that_is_followed_ends_with_the_run(plane: Plane, run: Run, agent: Agent) -> None:
    def later() -> None:
        agent.say((p.LOG, b"\x01late\n"))
        agent.exit()

    threading.Timer(0.1, later).start()
    text = plane.http.get(f"/api/v1/runs/{run.id}/logs?follow=true").text
    assert lines(text) == ["late"]


def test_prune_removes_old_runs_and_blobs_that_nobody_names(
    plane: Plane, run: Run, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.http.put(f"/agent/v1/blobs/{sha(b'kept')}", content=b"kept")
    agent.say((p.FILE, {"path": "kept", "digest": sha(b"kept"), "size": 4}))
    plane.http.post("/api/v1/blobs/pack", content=pack(b"nobody's"))
    agent.exit()
    plane.until(run.id, "succeeded")
    cleanup = plane.control.services.cleanup
    real = cleanup.clock
    monkeypatch.setattr(cleanup, "clock", lambda: real() + 10 * 86400)
    first = plane.http.post("/api/v1/prune", json={"days": 30}).json()
    assert (first["runs"], first["blobs"]) == ([], 1)
    assert plane.http.get(f"/api/v1/runs/{run.id}/files/kept").content == b"kept"
    would = plane.http.post("/api/v1/prune", json={"days": 5, "dry_run": True}).json()
    assert would["runs"] == [run.id] and plane.run(run.id)
    gone = eventually(lambda: plane.http.post("/api/v1/prune", json={"days": 5}).json()["runs"])
    assert gone == [run.id]
    assert plane.http.get("/api/v1/runs").json() == []


def test_a_backup_is_whole_private_and_taken_while_runs_go_on(
    plane: Plane, run: Run, agent: Agent, tmp_path: Path
) -> None:
    agent.http.put(f"/agent/v1/blobs/{sha(b'model')}", content=b"model")
    target = tmp_path / "backup.tar"
    done = plane.http.post("/api/v1/backup", json={"path": str(target)})
    assert done.status_code == 200, done.text
    assert target.stat().st_mode & 0o077 == 0
    with tarfile.open(target) as tar:
        tar.extractall(tmp_path / "out")
    rows = sqlite3.connect(tmp_path / "out/wherry.db").execute("select id from runs").fetchall()
    assert rows == [(run.id,)]
    assert (tmp_path / "out/blobs" / sha(b"model")).read_bytes() == b"model"
    assert plane.http.post("/api/v1/backup", json={"path": str(target)}).status_code == 409
    assert plane.http.post("/api/v1/backup", json={"path": "relative"}).status_code == 400
