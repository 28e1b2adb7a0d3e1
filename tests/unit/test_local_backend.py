"""
The local back end's own promises, with a stand-in for the agent: crashes half-way through a launch,
hung agents, GPUs, detachment. What every back end promises is in ``tests/contract``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wherry.agent import platform
from wherry.agent.protocol import CONFIG
from wherry.backends import registry
from wherry.backends.base import Member, Request
from wherry.backends.local import backend as module
from wherry.backends.local import folder, machine
from wherry.backends.local.backend import LocalBackend
from wherry.backends.local.folder import AttemptFolder, RankFolder, Record
from wherry.core.ids import new_id
from wherry.core.job import JobSpec, Resources
from wherry.core.run import AttemptId
from wherry.errors import CapabilityMissing, NotFound, StorageFull, Unavailable
from wherry.testing.waiting import eventually

STAND_IN = """
import fcntl, json, os, signal, sys

deaf = json.load(open(sys.argv[1]))["spec"].get("name") == "deaf"
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.chdir(os.path.dirname(sys.argv[1]))
lock = open("lock", "a+b", buffering=0)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit()
lock.seek(0)
if lock.read():
    sys.exit()
lock.write(b"%d" % os.getpid())
with open("starts", "a") as starts:
    starts.write("x")
if deaf:
    signal.pause()
signal.sigwait({signal.SIGTERM})
lock.write(b" left")
"""


class Killed(BaseException):
    """Stands for SIGKILL at this line: no handler of ours runs."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], LocalBackend]]:
    agent = tmp_path / "agent.py"
    agent.write_text(STAND_IN)
    home = tmp_path / "home"

    def factory() -> LocalBackend:
        return LocalBackend(home, agent=agent, margin=0.0)

    yield factory
    backend = factory()
    for attempt in backend.owned():
        backend.forget(attempt)


def request(workers: int = 1, **spec: object) -> Request:
    attempt = AttemptId(new_id("r"), 1)
    return Request(
        attempt=attempt,
        spec=JobSpec(command=("python", "x.py"), workers=workers, **spec),  # type: ignore[arg-type]
        members=tuple(Member(rank=n, incarnation=1, token=f"secret-{n}") for n in range(workers)),
        server="http://127.0.0.1:1",
    )


def launch(backend: LocalBackend, wanted: Request) -> Path:
    backend.launch(backend.plan(wanted))
    return backend._folder(wanted.attempt).path


def phases(backend: LocalBackend, attempt: AttemptId) -> list[str]:
    return [rank.phase for rank in backend.observe(attempt).ranks]


def running(backend: LocalBackend, attempt: AttemptId) -> bool:
    return set(phases(backend, attempt)) == {"running"}


def pid(path: Path, rank: int = 0) -> int:
    return int((path / str(rank) / "lock").read_text())


# --- launching


def test_config_has_every_field_and_is_for_its_owner_only(make: Callable[[], LocalBackend]) -> None:
    wanted = request(workers=2)
    path = launch(make(), wanted)
    config = path / "1" / "config.json"
    told = json.loads(config.read_text())
    assert set(told) == set(CONFIG)
    assert (told["token"], told["rank"], told["dir"]) == ("secret-1", 1, str(path / "1"))
    assert config.stat().st_mode & 0o777 == 0o600
    assert (path / "1").stat().st_mode & 0o777 == 0o700


def test_agents_are_cut_off_from_the_terminal_and_from_our_files(
    make: Callable[[], LocalBackend], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("LC_TIME", "C")
    with open(tmp_path / "ours", "w") as ours:
        os.set_inheritable(ours.fileno(), True)
        backend, wanted = make(), request()
        path = launch(backend, wanted)
        eventually(lambda: running(backend, wanted.attempt))
    agent = Path(f"/proc/{pid(path)}")
    assert os.getsid(pid(path)) == pid(path)
    opened = {os.readlink(fd) for fd in (agent / "fd").iterdir()}
    assert opened == {"/dev/null", str(path / "0" / "agent.log"), str(path / "0" / "lock")}
    environ = dict(v.split("=", 1) for v in (agent / "environ").read_text().split("\0") if v)
    assert "AWS_SECRET_ACCESS_KEY" not in environ
    assert environ["LC_TIME"] == "C"


@pytest.mark.parametrize("cut", ["mkdir of a rank", "spawn", "writing the pid"])
def test_a_launch_that_was_cut_short_is_healed_by_the_next(
    make: Callable[[], LocalBackend], monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    backend, wanted = make(), request(workers=3)
    whole = backend._launch_rank
    done: list[RankFolder] = []

    def first_then_killed(rank: RankFolder, *rest: object) -> None:
        if done:
            where = {
                "mkdir of a rank": (Path, "mkdir"),
                "spawn": (subprocess, "Popen"),
                "writing the pid": (module, "write_agent"),
            }[cut]
            monkeypatch.setattr(*where, killed)
        done.append(rank)
        whole(rank, *rest)  # type: ignore[arg-type]

    plan = backend.plan(wanted)
    monkeypatch.setattr(backend, "_launch_rank", first_then_killed)
    with pytest.raises(Killed):
        backend.launch(plan)
    monkeypatch.undo()
    seen = phases(make(), wanted.attempt)
    assert seen[0] in ("pending", "running")
    assert seen[2] == "absent"
    healer = make()
    healer.launch(plan)
    eventually(lambda: running(healer, wanted.attempt))
    path = healer._folder(wanted.attempt).path
    starts = [path / str(n) / "starts" for n in range(3)]
    eventually(lambda: [s.read_text() for s in starts if s.exists()] == ["x"] * 3)


def test_a_full_disk_is_told_and_leaves_nothing(
    make: Callable[[], LocalBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    backend, wanted = make(), request()
    monkeypatch.setattr(module, "write_config", full)
    with pytest.raises(StorageFull, match=str(wanted.attempt)):
        launch(backend, wanted)
    assert list(backend.owned()) == []


@pytest.mark.parametrize("missing", ["agent", "python"])
def test_a_missing_agent_or_python_is_told(tmp_path: Path, missing: str) -> None:
    agent = tmp_path / "agent.py"
    if missing == "python":
        agent.write_text(STAND_IN)
    python = sys.executable if missing == "agent" else str(tmp_path / "python")
    backend = LocalBackend(tmp_path / "home", agent=agent, python=python)
    with pytest.raises(Unavailable, match=missing):
        launch(backend, request(workers=2))
    assert list(backend.owned()) == []


# --- looking


def test_an_agent_that_died_before_it_began_is_told_with_its_last_words(
    make: Callable[[], LocalBackend], tmp_path: Path
) -> None:
    backend, wanted = make(), request()
    (tmp_path / "agent.py").write_text("raise SystemExit('no such thing')")
    launch(backend, wanted)
    eventually(lambda: phases(backend, wanted.attempt) == ["ended"])
    (rank,) = backend.observe(wanted.attempt).ranks
    assert rank.cause == "agent-lost"
    assert "no such thing" in rank.message


def test_a_pid_that_was_used_again_is_not_taken_for_the_agent(
    make: Callable[[], LocalBackend],
) -> None:
    backend, wanted = make(), request()
    path = launch(backend, wanted)
    eventually(lambda: running(backend, wanted.attempt))
    os.kill(pid(path), signal.SIGKILL)
    eventually(lambda: phases(backend, wanted.attempt) == ["ended"])
    (path / "0" / "lock").unlink()
    with subprocess.Popen(["sleep", "60"]) as bystander:
        agent = {"pid": bystander.pid, "started": 1.0}
        (path / "0" / "agent.json").write_text(json.dumps(agent))
        assert phases(backend, wanted.attempt) == ["ended"]
        backend.stop(wanted.attempt, 0.0)
        backend.forget(wanted.attempt)
        assert bystander.poll() is None
        bystander.kill()


# --- ending


def test_a_hung_agent_is_killed_when_its_grace_is_over(make: Callable[[], LocalBackend]) -> None:
    backend, wanted = make(), request(name="deaf")
    path = launch(backend, wanted)
    eventually(lambda: running(backend, wanted.attempt))
    agent = pid(path)
    backend.stop(wanted.attempt, 0.0)
    # Nobody observes: the timer alone has to do it.
    eventually(lambda: platform.pid_started(agent) is None)
    (rank,) = backend.observe(wanted.attempt).ranks
    assert (rank.phase, rank.cause) == ("ended", "stopped")


def test_who_comes_after_a_crash_kills_the_overdue(make: Callable[[], LocalBackend]) -> None:
    backend, wanted = make(), request(name="deaf")
    launch(backend, wanted)
    eventually(lambda: running(backend, wanted.attempt))
    # What a control plane had written that was killed right after it said stop.
    backend._folder(wanted.attempt).tell_to_stop(-1.0)
    assert phases(make(), wanted.attempt) == ["ended"]


def test_an_agent_whose_program_is_over_may_go_on_sending(tmp_path: Path) -> None:
    attempt = AttemptId("r1", 1)
    rank = RankFolder(tmp_path, Record(rank=0, incarnation=1), attempt)
    rank.path.mkdir()
    child = rank.path / "child.json"
    ours = platform.pid_started(os.getpid())
    child.write_text(json.dumps({"pid": os.getpid(), "started": ours}))
    assert rank.overdue(2.1, 2.0)
    child.write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    assert not rank.overdue(2.1, 2.0)
    assert rank.overdue(folder.LINGER + 1, 2.0)


def test_the_agent_is_told_the_grace_before_the_signal(make: Callable[[], LocalBackend]) -> None:
    backend, wanted = make(), request(name="deaf")
    path = launch(backend, wanted)
    eventually(lambda: running(backend, wanted.attempt))
    backend.stop(wanted.attempt, 77.0)
    assert (path / "0" / "stop").read_text() == "77.0"


def test_the_earliest_deadline_holds(tmp_path: Path) -> None:
    attempt = AttemptFolder(tmp_path, AttemptId("r1", 1))
    attempt.tell_to_stop(60.0)
    first = attempt.deadline
    attempt.tell_to_stop(600.0)
    assert attempt.deadline == first
    attempt.tell_to_stop(1.0)
    assert attempt.deadline is not None
    assert first is not None
    assert attempt.deadline < first


def test_who_waited_for_a_folder_that_went_sees_that_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = AttemptFolder(tmp_path / "r1-1", AttemptId("r1", 1))
    lock = fcntl.flock

    def lock_what_went(fd: int, how: int) -> None:
        attempt.erase()
        lock(fd, how)

    with attempt.hold(create=True) as there:
        assert there
    monkeypatch.setattr(fcntl, "flock", lock_what_went)
    with attempt.hold() as there:
        assert not there


def test_read_only_folders_are_erased_too(tmp_path: Path) -> None:
    attempt = AttemptFolder(tmp_path / "r1-1", AttemptId("r1", 1))
    inner = attempt.path / "code" / "deep"
    inner.mkdir(parents=True)
    (inner / "file").write_text("")
    inner.chmod(0o500)
    attempt.erase()
    assert not attempt.path.exists()


# --- GPUs


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: ("0", "1", "2"))


def visible(path: Path, rank: int) -> str:
    spec = json.loads((path / str(rank) / "config.json").read_text())["spec"]
    return str(spec["env"]["CUDA_VISIBLE_DEVICES"])


@pytest.mark.usefixtures("three_gpus")
def test_every_rank_has_gpus_of_its_own(make: Callable[[], LocalBackend]) -> None:
    one_each, env = Resources(gpu=1), {"A": "b"}
    pair = launch(make(), request(workers=2, resources=one_each, env=env))
    other = launch(make(), request(resources=one_each))
    assert {visible(pair, 0), visible(pair, 1), visible(other, 0)} == {"0", "1", "2"}
    assert json.loads((pair / "0" / "config.json").read_text())["spec"]["env"]["A"] == "b"
    room = make().capacity()
    assert room is not None
    assert (room.total.gpu, room.free.gpu) == (3, 0)


@pytest.mark.usefixtures("three_gpus")
def test_gpus_are_free_again_when_their_attempt_has_ended(
    make: Callable[[], LocalBackend],
) -> None:
    backend = make()
    first = request(resources=Resources(gpu=2))
    path = launch(backend, first)
    second = request(resources=Resources(gpu=2))
    with pytest.raises(Unavailable, match="1 of 3 are free"):
        launch(backend, second)
    assert second.attempt not in backend.owned()
    eventually(lambda: running(backend, first.attempt))
    os.kill(pid(path), signal.SIGTERM)
    eventually(lambda: phases(backend, first.attempt) == ["ended"])
    assert visible(launch(backend, second), 0) == "0,1"


@pytest.mark.usefixtures("three_gpus")
def test_plan_refuses_more_gpus_than_there_are(make: Callable[[], LocalBackend]) -> None:
    with pytest.raises(CapabilityMissing, match="has 3"):
        make().plan(request(workers=2, resources=Resources(gpu=2)))


# --- the registry


def test_a_back_end_is_found_by_name_and_a_misspelt_one_suggests() -> None:
    assert registry.find("local") is LocalBackend
    with pytest.raises(NotFound) as caught:
        registry.find("lokal")
    assert "'local'" in caught.value.hint
