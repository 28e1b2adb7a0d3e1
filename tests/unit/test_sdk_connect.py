"""Finding the control plane of this machine, starting it, and what is said when that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fake_plane import FakePlane, serving
from tests.unit.fake_plane import json as answer
from wherry import errors
from wherry._version import __version__
from wherry.sdk.connect import ServerInfo, connect, find_server, start_server, stop_server
from wherry.testing.waiting import eventually


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    monkeypatch.setenv("WHERRY_HOME", str(folder))
    monkeypatch.delenv("WHERRY_CONTEXT", raising=False)
    yield folder
    stop_server(folder)


@pytest.fixture
def plane() -> Iterator[FakePlane]:
    with serving() as plane:
        plane.on("GET /healthz", answer({"ok": True, "pid": os.getpid()}))
        yield plane


def announce(home: Path, **facts: Any) -> None:
    home.mkdir(exist_ok=True)
    said = {"pid": os.getpid(), "url": "", "token": "t", "version": __version__, "started": 1.0}
    (home / "server.json").write_text(json.dumps(said | facts))


def test_a_server_that_says_its_own_pid_is_found(home: Path, plane: FakePlane) -> None:
    announce(home, url=plane.url)
    found = find_server(home)
    assert found is not None and found.url == plane.url
    assert "token" not in repr(found)


def test_a_stale_file_is_no_server(home: Path, plane: FakePlane) -> None:
    assert find_server(home) is None
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    announce(home, url=plane.url, pid=gone.pid)
    assert find_server(home) is None


def test_another_program_on_its_port_is_not_given_the_token(home: Path, plane: FakePlane) -> None:
    announce(home, url=plane.url)
    plane.on("GET /healthz", answer({"ok": True, "pid": 1}))
    assert find_server(home) is None
    plane.on("GET /healthz", answer(["what?"]))
    assert find_server(home) is None
    assert all("authorization" not in seen.headers for seen in plane.seen)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0"])
def test_a_torn_file_is_no_server(text: str, home: Path) -> None:
    home.mkdir()
    (home / "server.json").write_text(text)
    assert find_server(home) is None


def test_a_server_of_another_version_is_refused_with_the_way_out(
    home: Path, plane: FakePlane
) -> None:
    announce(home, url=plane.url, version="99.3.1")
    with pytest.raises(errors.Unavailable, match=r"99\.3\.1") as caught:
        connect()
    assert "wherry down" in caught.value.hint


def test_a_patch_release_apart_is_the_same_version(home: Path, plane: FakePlane) -> None:
    major, minor, _ = __version__.split(".")[:3]
    announce(home, url=plane.url, version=f"{major}.{minor}.999")
    assert connect().url == plane.url


def test_without_starting_it_a_missing_server_is_told_with_the_way_out(home: Path) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        connect(start=False)
    assert "wherry up" in caught.value.hint
    assert not home.exists()


def test_a_client_without_the_server_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.ServerMissing, match="litestar") as caught:
        connect()
    assert "wherry[server]" in caught.value.hint


def test_a_server_that_cannot_start_is_told_with_the_end_of_its_log(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERRY_HOST", "192.0.2.1")
    with pytest.raises(errors.Unavailable, match=r"192\.0\.2\.1.*loopback") as caught:
        connect()
    assert str(home / "server.log") in caught.value.hint


def test_stopping_where_there_is_none_says_so(home: Path) -> None:
    assert stop_server(home) is False


def test_it_is_started_once_however_many_ask_and_outlives_them(home: Path) -> None:
    code = (
        "from wherry.sdk.connect import connect; import msgspec, sys;"
        "sys.stdout.write(str(connect().status().pid))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    pids = {process.communicate(timeout=60)[0] for process in processes}
    assert len(pids) == 1
    found = find_server(home)
    assert found is not None and str(found.pid) in pids
    assert (home / "server.log").stat().st_mode & 0o777 == 0o600
    assert stop_server(home) is True
    assert find_server(home) is None and stop_server(home) is False


@pytest.mark.slow
def test_threads_of_one_process_get_one_server_and_a_stopped_one_comes_back(home: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: start_server(home), range(3)))
    assert len({info.pid for info in found}) == 1
    stop_server(home)
    again = start_server(home)
    assert again.pid not in {info.pid for info in found}


@pytest.mark.slow
def test_a_client_brings_a_crashed_server_back_but_not_one_that_was_taken_down(home: Path) -> None:
    client = connect()
    client.http._patience = 20.0
    first = _found(home)
    os.kill(first.pid, signal.SIGKILL)
    eventually(lambda: find_server(home) is None)
    assert client.status().pid != first.pid
    client.http._patience = 0.5
    stop_server(home)
    with pytest.raises(errors.Unavailable):
        client.status()
    assert find_server(home) is None


def test_a_servers_modules_are_never_taken_from_the_current_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in ("litestar", "logging", "wherry"):
        (project / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(project)
    shutil.copy(project / "litestar.py", project / "uvicorn.py")
    assert connect().status().home == str(home)


def _found(home: Path) -> ServerInfo:
    found = find_server(home)
    assert found is not None
    return found
