"""What the agent asks the machine, where it is another one: GPUs, and a system without /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry.agent import platform, protocol
from wherry.agent.journal import Journal, read_folder
from wherry.agent.usage import Usage
from wherry.testing.waiting import eventually


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that are found first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def points(folder: Path) -> list[dict[str, float]]:
    """What is in the journal."""
    data = b"".join(read_folder(folder))
    frames = [bytes(p) for kind, _, _, p in protocol.iter_frames(data) if kind == protocol.USAGE]
    return [
        {name: values[0] for name, _, _, values in protocol.unpack_series(frame)}
        for frame in frames
    ]


def used(folder: Path, *, times: int = 1) -> list[dict[str, float]]:
    """What so many looks found."""
    folder.mkdir(exist_ok=True)
    usage = Usage(Journal(str(folder), 2**20), {"memory": None, "cgroup": []}, 0)
    for _ in range(times):
        usage.poll()
        usage._gpu_due = 0.0  # as if the time had come
    return points(folder)


def test_the_use_of_every_gpu_is_recorded(tmp_path: Path, fakes: Path) -> None:
    program(fakes, "nvidia-smi", "echo '0, 75, 1024'; echo '1, 0, 3'")
    (found,) = used(tmp_path / "rank")
    assert found["gpu0.utilization"] == 0.75 and found["gpu1.utilization"] == 0.0
    assert found["gpu0.memory"] == 2**30 and found["gpu1.memory"] == 3 * 2**20


@pytest.mark.parametrize("answer", ["echo '0, [N/A], 3'", "exit 9", "echo no devices were found"])
def test_a_gpu_that_does_not_say_costs_no_other_point(
    tmp_path: Path, fakes: Path, answer: str
) -> None:
    program(fakes, "nvidia-smi", answer)
    found = used(tmp_path / "rank", times=2)
    assert all({"cpu", "memory"} <= set(point) for point in found) and len(found) == 2
    assert not any(name.startswith("gpu") for point in found for name in point)


def test_a_program_that_is_too_short_to_be_looked_at_has_its_use_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "rank"
    folder.mkdir()
    usage = Usage(Journal(str(folder), 2**20), {"memory": None, "cgroup": []}, 0)
    began, spent, _ = usage._before
    usage._before = (began, spent, 0)  # of this process's earlier children one may be larger
    subprocess.run([sys.executable, "-c", "sum(range(10**6)); b = b'x' * 2**28"], check=True)
    usage.finish()
    (found,) = points(folder)
    assert found["cpu"] > 0 and found["memory"] >= 2**28
    usage.poll()
    usage.finish()
    assert len(points(folder)) == 2


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "LINUX", False)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.usefixtures("elsewhere")
def test_without_proc_processes_are_found_with_their_parents_and_memory(
    child: subprocess.Popen[bytes],
) -> None:
    found = {process.pid: process for process in platform.processes()}
    assert found[child.pid].parent == os.getpid() and found[os.getpid()].memory > 2**20
    assert child.pid in [process.pid for process in platform.descendants(os.getpid())]
    began = platform.pid_started(child.pid)
    assert began is not None and began == platform.pid_started(child.pid)
    child.kill()
    child.wait()
    assert platform.pid_started(child.pid) is None


@pytest.mark.parametrize("linux", [platform.LINUX, False])
def test_a_process_that_a_signal_stopped_is_told_from_others(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, linux: bool
) -> None:
    monkeypatch.setattr(platform, "LINUX", linux)

    def stopped() -> bool:
        return next(p.stopped for p in platform.processes() if p.pid == child.pid)

    assert not stopped()
    child.send_signal(signal.SIGSTOP)
    eventually(stopped)
    child.send_signal(signal.SIGCONT)
    eventually(lambda: not stopped())


@pytest.mark.usefixtures("elsewhere")
def test_without_proc_a_rank_is_found_by_its_mark(fakes: Path) -> None:
    lines = (
        "  12 python x.py A=1 WHERRY_MARK=r1-1/0 B=2",
        "  13 python WHERRY_MARK=r1-10/0",
        "  14 sh WHERRY_MARK=r1-1",
    )
    program(fakes, "ps", "\n".join(f"echo '{line}'" for line in lines))
    assert platform.find_marked("r1-1") == [12, 14]
    assert platform.find_marked("r1-1/0") == [12]


@pytest.mark.usefixtures("elsewhere")
def test_without_linux_what_it_alone_can_do_is_left() -> None:
    platform.adopt_orphans()()
    read, write = os.pipe()
    platform.widen_pipe(write)
    os.close(read)
    os.close(write)
