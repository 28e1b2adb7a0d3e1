"""Faults are injected at their moment, once, and the control plane knows before it is cut off."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent_rank import Rank, interpreters, until
from wherry.agent import platform, protocol
from wherry.agent.faults import Faults, Machine, Progress, mine
from wherry.agent.journal import Journal
from wherry.agent.wake import Wake
from wherry.testing.sink import AgentSink

# --- the injector by itself: an imagined machine, an imagined clock


class Imagined(Machine):
    """Keeps what would have been done."""

    def __init__(self) -> None:
        super().__init__({"network": {"missing": "it needs root"}})
        self.done: list[str] = []

    def program(self, number: int) -> None:
        self.done.append(signal.Signals(number).name)

    def die(self) -> None:
        self.done.append("die")

    def stand_still(self) -> None:
        self.done.append("stand still")

    def notice(self) -> None:
        self.done.append("notice")

    def plane(self, there: bool) -> None:
        self.done.append(f"plane {there}")

    def line(self, there: bool) -> None:
        self.done.append(f"line {there}")


class Acknowledging(Journal):
    """A control plane that has everything at once."""

    def append(self, kind: int, payload: bytes, when: float | None = None) -> None:
        super().append(kind, payload, when)
        self.acknowledge(self.last)
        self.kept = [*getattr(self, "kept", []), (kind, payload)]


class Scene:
    """One rank with faults."""

    def __init__(self, folder: Path, *faults: dict[str, Any], **over: Any) -> None:
        self.folder = folder
        config: dict[str, Any] = {
            "rank": 2, "attempt": 1, "incarnation": 1, "lease": 5.0,
            "checkpoints": str(folder / "checkpoints"),
            "spec": {"faults": [{"rank": 2, **fault} for fault in faults]}, **over,
        }  # fmt: skip
        self.now = 100.0
        self.journal = Acknowledging(folder, 2**20)
        self.machine, self.wake, self.taken = Imagined(), Wake(), 0
        self.faults = Faults(
            config,
            self.journal,
            self.wake,
            machine=self.machine,
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        # What runs beside the rest runs before it here.
        self.faults._aside = lambda action, *args: action(*args)  # type: ignore[method-assign]

    def sleep(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def step(self, number: int, name: str = "loss", value: float = 0.5) -> list[str]:
        """The program reports a step; what was done then."""
        packed = protocol.pack_series({name: ([number], [self.now], [value])})
        self.journal.append(protocol.METRIC, packed)
        return self.look()

    def look(self) -> list[str]:
        self.machine.done.clear()
        self.faults.tick(self.take)
        return list(self.machine.done)

    def take(self) -> None:
        self.taken += 1

    def said(self) -> list[dict[str, str]]:
        return [json.loads(p) for kind, p in self.journal.kept if kind == protocol.EVENT]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def test_a_fault_comes_at_its_step_once_and_says_so(folder: Path) -> None:
    scene = Scene(folder, {"kind": "kill", "step": 3})
    assert scene.look() == []
    scene.faults.began()
    assert scene.step(2) == []
    assert scene.step(4) == ["SIGSTOP", "die"]
    assert scene.taken == 1, "what was reported until then is told"
    assert scene.said() == [
        {
            "kind": "fault",
            "message": "kill: rank 2 at step 4: its program and its agent are killed",
        }
    ]
    assert scene.step(5) == []


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("crash", ["SIGSTOP", "SIGKILL"]),
        ("stop", ["SIGSTOP", "stand still", "SIGCONT"]),
        ("term", ["notice"]),
    ],
)
def test_each_kind_does_what_it_says(folder: Path, kind: str, done: list[str]) -> None:
    scene = Scene(folder, {"kind": kind, "step": 0})
    scene.faults.began()
    assert scene.step(0) == done


def test_a_time_counts_from_the_start_of_the_program(folder: Path) -> None:
    scene = Scene(folder, {"kind": "term", "after": 30.0})
    scene.now = 200.0
    scene.faults.began()
    scene.now = 229.0
    assert scene.look() == []
    scene.now = 230.0
    assert scene.look() == ["notice"]


def test_without_a_moment_it_comes_at_the_first_step_that_follows_a_checkpoint(
    folder: Path,
) -> None:
    scene = Scene(folder, {"kind": "term"})
    scene.faults.began()
    assert scene.step(0) == []
    (folder / "checkpoints" / "deep").mkdir()
    assert scene.step(1) == []
    (folder / "checkpoints" / "deep" / "step-1").touch()
    assert scene.look() == []
    assert scene.step(2) == ["notice"]


def test_a_program_that_writes_no_checkpoint_is_not_waited_for_without_end(folder: Path) -> None:
    scene = Scene(folder, {"kind": "term"})
    scene.faults.began()
    scene.now += 50
    assert scene.step(0) == []
    scene.now += 29
    assert scene.look() == []
    scene.now += 1
    assert scene.look() == ["notice"]
    silent = Scene(folder, {"kind": "term"})
    silent.faults.began()
    silent.now += 60
    assert silent.look() == ["notice"]


def test_a_partition_cuts_both_lines_and_mends_the_one_to_the_control_plane_first(
    folder: Path,
) -> None:
    scene = Scene(folder, {"kind": "partition", "step": 1})
    scene.wake.ended.set()
    scene.faults.began()
    assert scene.step(1) == ["line False", "plane False", "plane True", "line True"]
    assert scene.now == 110.0, "twice the lease"
    assert (
        "cut off for 10 s from the control plane, not from its peers: it needs root"
        in (scene.said()[0]["message"])
    )


def test_a_slow_program_gets_its_part_of_the_time(folder: Path) -> None:
    scene = Scene(folder, {"kind": "slow", "factor": 4.0, "seconds": 1.0})
    scene.faults.began()
    done = scene.step(0)
    assert done == ["SIGSTOP", "SIGCONT"] * 5
    assert scene.now == pytest.approx(101.0)


def test_nothing_is_injected_once_the_program_is_over_or_must_end(folder: Path) -> None:
    scene = Scene(folder, {"kind": "kill", "step": 0})
    scene.faults.began()
    scene.faults.over()
    assert scene.step(0) == []
    scene.faults.began()
    scene.wake.end("stopped")
    assert scene.look() == []


def test_only_the_first_incarnation_of_the_right_rank_in_the_right_attempt_has_it() -> None:
    kill = {"kind": "kill", "rank": 2}
    config = {"rank": 2, "attempt": 1, "incarnation": 1, "spec": {"faults": [kill]}}
    assert mine(config) == [kill]
    for other in ({"rank": 1}, {"attempt": 2}, {"incarnation": 2}):
        assert mine({**config, **other}) == []
    second = {**kill, "attempt": 2}
    assert mine({**config, "attempt": 2, "spec": {"faults": [kill, second]}}) == [second]


def test_a_counter_read_from_output_counts_by_its_value() -> None:
    progress = Progress()
    points = ([0, 1], [1.0, 2.0], [40.0, 41.0])
    progress.feed(protocol.pack_series({"step": points, "loss": points}))
    assert progress.step == 41
    progress = Progress()
    progress.feed(protocol.pack_series({"step": ([7], [1.0], [900.0])}))
    assert progress.step == 7, "it has a step of its own"


def test_signals_that_come_while_it_is_cut_off_are_heard_afterwards() -> None:
    wake = Wake()
    wake.deaf()
    wake._told("stopped")
    assert wake.why == ""
    wake.hear()
    assert wake.why == "stopped"


# --- in an agent


STEPS = """
import itertools, time, wherry
for step in itertools.count():
    wherry.report(step=step, loss=1.0)
    time.sleep(0.02)
"""


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


def faulty(tmp_path: Path, sink: AgentSink, python: str, **fault: Any) -> Rank:
    return Rank(
        tmp_path, sink, python=python, grace=1.0, lease=0.3,
        spec={"faults": [{"rank": 0, **fault}]},
    )  # fmt: skip


def events(rank: Rank) -> list[Any]:
    return rank.sink.payloads(protocol.EVENT, rank.attempt)


def quiet(sink: AgentSink) -> bool:
    """Whether no heartbeat comes for the time of three."""
    before = sink.requests
    time.sleep(0.3)
    return sink.requests == before


@pytest.mark.parametrize("python", interpreters())
def test_a_killed_rank_is_gone_at_once_with_its_program_and_its_steps_are_known(
    tmp_path: Path, sink: AgentSink, python: str
) -> None:
    rank = faulty(tmp_path, sink, python, kind="kill", step=5)
    assert rank.start(STEPS).wait() == -signal.SIGKILL
    (said,) = events(rank)
    assert said["message"].startswith("kill: rank 0 at step ")
    until(lambda: rank.living() == [])
    assert sink.exit(rank.attempt) is None
    frames = [(f.kind, f.payload) for f in sink.frames(rank.attempt)]
    last = max(
        step
        for kind, payload in frames
        if kind == protocol.METRIC
        for _, steps, _, _ in protocol.unpack_series(payload)
        for step in steps
    )
    assert last >= 5 and said["message"].startswith(f"kill: rank 0 at step {last}:")


def test_a_crash_is_told_by_the_agent(tmp_path: Path, sink: AgentSink) -> None:
    end = faulty(tmp_path, sink, sys.executable, kind="crash", step=2).run(STEPS)
    assert (end["cause"], end["signal"]) == ("signal", signal.SIGKILL)


def test_a_rank_that_was_cut_off_and_replaced_ends_its_program(
    tmp_path: Path, sink: AgentSink
) -> None:
    rank = faulty(tmp_path, sink, sys.executable, kind="partition", step=2, seconds=1.5)
    rank.start(STEPS)
    until(lambda: bool(events(rank)) and quiet(sink))
    rank.stop()  # who tells it to stop cannot reach it
    assert quiet(sink) and rank.living() != []
    sink.mode = "stale"
    assert rank.wait() == 0
    assert rank.living() == []
    assert sink.exit(rank.attempt) is None


def test_a_frozen_rank_stands_still_until_it_is_woken(tmp_path: Path, sink: AgentSink) -> None:
    rank = faulty(tmp_path, sink, sys.executable, kind="stop", step=2)
    rank.start(STEPS)
    assert rank.process is not None
    pid = rank.process.pid
    until(lambda: state(pid) == "T")
    assert {state(p) for p in rank.living()} == {"T"}
    rank.stop()
    platform.kill([pid], signal.SIGCONT)
    assert rank.wait() == 0
    assert sink.wait_exit(rank.attempt)["cause"] == "stopped"


def state(pid: int) -> str:
    """A process's state, as the kernel names it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_slow_program_is_stopped_and_goes_on_and_ends_well(
    tmp_path: Path, sink: AgentSink
) -> None:
    rank = faulty(tmp_path, sink, sys.executable, kind="slow", seconds=0.8, factor=10.0)
    rank.start(STEPS.replace("itertools.count()", "range(15)"))
    sink.wait(lambda: bool(sink.payloads(protocol.STARTED, rank.attempt)))
    pid = int(sink.payloads(protocol.STARTED, rank.attempt)[0]["pid"])
    until(lambda: state(pid) == "T")
    until(lambda: state(pid) in "RS")
    assert rank.wait() == 0
    assert sink.wait_exit(rank.attempt)["state"] == "succeeded"
