"""The pure parts of looking into ranks: which is meant, what they say, stacks in words."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from wherry.agent import protocol, stack
from wherry.agent.stall import Stall, in_words
from wherry.cli.stack import lines, problems
from wherry.control.look import choose, read_stack, started
from wherry.core.api import Call, Problem, ProcessStack, RankStack, ThreadStack
from wherry.core.job import JobSpec
from wherry.core.remarks import remarks, spans
from wherry.core.run import Attempt, AttemptId, Event, Rank, Run
from wherry.core.states import RankState, RunState
from wherry.errors import NotFound, NotRunning
from wherry.testing.waiting import eventually

ID = AttemptId("r1", 2)
RUN = Run(
    id="r1", name="digits", owner="me", project="default", attempt=2, state=RunState.RUNNING,
    spec=JobSpec(command=("python", "train.py"), workers=3),
)  # fmt: skip


def attempt(*states: RankState) -> Attempt:
    ranks = tuple(Rank(attempt=ID, rank=n, state=state) for n, state in enumerate(states))
    return Attempt(id=ID, created=0.0, ranks=ranks)


MIXED = attempt(RankState.RUNNING, RankState.ARRIVED, RankState.SUCCEEDED)


# --- which rank


def test_rank_0_is_meant_where_none_is_named() -> None:
    assert choose(RUN, MIXED, number=None, rank=None).rank == 0
    assert choose(RUN, MIXED, number=2, rank=0).rank == 0


@pytest.mark.parametrize(
    ("run", "number", "rank", "said"),
    [
        (replace(RUN, state=RunState.FAILED), None, 0, "run r1 has failed"),
        (replace(RUN, state=RunState.STOPPED), None, 0, "run r1 was stopped"),
        (RUN, 1, 0, "attempt 1 of run r1 does not run"),
        (RUN, None, 1, "rank 1 of run r1 has not started its program yet: it is arrived"),
        (RUN, None, 2, "rank 2 of run r1 has succeeded"),
    ],
)
def test_what_does_not_run_is_said_with_a_way_out(
    run: Run, number: int | None, rank: int, said: str
) -> None:
    with pytest.raises(NotRunning, match=said) as caught:
        choose(run, MIXED, number=number, rank=rank)
    assert caught.value.hint and caught.value.code == "not-running"


def test_a_queued_run_says_what_it_waits_for() -> None:
    queued = replace(RUN, state=RunState.QUEUED, attempt=0, reason="needs 2 cores")
    with pytest.raises(NotRunning, match="is queued") as caught:
        choose(queued, None, number=None, rank=None)
    assert caught.value.hint == "needs 2 cores"


def test_all_ranks_are_those_whose_programs_run_and_a_named_one_must() -> None:
    assert [rank.rank for rank in started(RUN, MIXED, ranks=())] == [0]
    with pytest.raises(NotRunning, match="rank 2"):
        started(RUN, MIXED, ranks=(2,))
    with pytest.raises(NotFound, match="no rank 9"):
        started(RUN, MIXED, ranks=(9,))
    with pytest.raises(NotRunning, match="no rank of run r1"):
        started(RUN, attempt(RankState.PENDING), ranks=())


# --- what ranks say of themselves


def event(kind: str, rank: int, message: str = "", *, number: int = 2) -> Event:
    return Event(run="r1", time=float(rank), kind=kind, message=message, attempt=number, rank=rank)


QUIET = "no output, metric or CPU for 10m\n123 python\n  MainThread"


def test_stalled_ranks_are_named_until_they_move() -> None:
    stalled = [event("stalled", n, QUIET) for n in (0, 1, 2)]
    assert remarks(RUN, stalled) == (
        "ranks 0-2 show no output, metric or CPU for 10m: wherry stack r1"
    )
    moving = [event("moving", n) for n in (0, 2)]
    assert remarks(RUN, stalled + moving).startswith("rank 1 shows no output")
    assert remarks(RUN, [*stalled, *moving, event("moving", 1)]) == ""


HALTED = "no output, metric or CPU for 10m; stopped (SIGSTOP): kill -CONT 123\n123 python"


def test_a_rank_that_a_signal_stopped_is_named_before_those_that_wait_for_it() -> None:
    said = [event("stalled", 0, QUIET), event("stalled", 1, HALTED), event("stalled", 2, QUIET)]
    quiet = "ranks 0-2 show no output, metric or CPU for 10m: wherry stack r1"
    assert remarks(RUN, said) == f"rank 1 is stopped (SIGSTOP): kill -CONT 123; {quiet}"
    assert remarks(RUN, [*said[:2], event("stalled", 2, HALTED)]) == (
        f"ranks 1-2 are stopped (SIGSTOP); {quiet}"
    )
    assert remarks(RUN, [*said, event("stalled", 1, QUIET)]) == quiet


def test_a_rank_that_had_ended_well_is_named_beside_those_that_stall() -> None:
    said = [event("stalled", n, QUIET) for n in (0, 1, 2)]
    quiet = "ranks 0-1 show no output, metric or CPU for 10m"
    left = "rank 2 had ended, with status 0"
    assert remarks(RUN, said, ended=[2]) == f"{quiet}; {left}: wherry stack r1"
    pool = replace(RUN, spec=replace(RUN.spec, group="pool"))
    assert remarks(pool, said, ended=[2]) == f"{quiet}: wherry stack r1"
    assert remarks(RUN, said, ended=[0, 1, 2]) == remarks(RUN, [], ended=[2]) == ""


def test_what_ranks_of_an_earlier_attempt_said_is_over() -> None:
    assert remarks(RUN, [event("stalled", 0, QUIET, number=1), event("rank", 0, "lost")]) == ""


def test_the_rank_that_was_held_first_is_told_with_the_way_in() -> None:
    said = [
        event("stalled", 0, QUIET),
        event("held", 2, "failed (exited with status 1); held for 30m"),
        event("held", 1, "failed (exited with status 9); held for 30m"),
    ]
    assert remarks(RUN, said, held={2}) == (
        "rank 2 failed (exited with status 1); held for 30m: wherry exec r1 --rank 2 -- bash"
    )


def test_numbers_are_written_as_spans() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


# --- stalls


class Scene:
    """A program that is looked at, a clock that is turned, and what was said."""

    def __init__(self, limit: float = 600.0) -> None:
        self.now, self.signs, self.said = 0.0, 0, list[dict[str, str]]()
        self.stall = Stall(
            limit, self, lambda: self.signs, lambda: "stacks", clock=lambda: self.now  # type: ignore[arg-type]
        )  # fmt: skip

    def append(self, kind: int, payload: bytes) -> None:
        """As the journal's."""
        assert kind == protocol.EVENT
        self.said.append(json.loads(payload))

    def pass_by(
        self, seconds: float, *, cores: float = 0.0, stopped: tuple[int, ...] = ()
    ) -> list[str]:
        """Time with this use of cores, these processes stopped; what was said meanwhile."""
        before = len(self.said)
        for _ in range(int(seconds / 2)):
            self.now += 2
            self.stall.poll(2 * cores, stopped)
        return [event["kind"] for event in self.said[before:]]


def test_a_program_without_a_sign_of_life_is_flagged_once_with_its_stacks() -> None:
    scene = Scene()
    assert scene.pass_by(598) == []
    assert scene.pass_by(6000) == ["stalled"]
    assert scene.said[0]["message"] == "no output, metric or CPU for 10m\nstacks"


def test_processes_that_a_signal_stopped_are_told_once_and_again_where_that_changes() -> None:
    scene = Scene()
    assert scene.pass_by(6000, stopped=(12, 13)) == ["stalled"]
    assert scene.said[0]["message"] == (
        "no output, metric or CPU for 10m; stopped (SIGSTOP): kill -CONT 12 13\nstacks"
    )
    assert scene.pass_by(600) == ["stalled"]
    assert scene.said[1]["message"] == "no output, metric or CPU for 10m\nstacks"
    assert scene.pass_by(600, stopped=(13,)) == ["stalled"]
    scene.signs += 1
    assert scene.pass_by(2) == ["moving"]


def test_output_metrics_or_cpu_count_and_a_little_cpu_does_not() -> None:
    scene = Scene()
    for _ in range(10):
        scene.signs += 1
        assert scene.pass_by(500) == []
    scene.signs += 1
    assert scene.pass_by(6000, cores=0.02) == []
    assert scene.pass_by(6000, cores=0.005) == ["stalled"]


def test_the_flag_is_taken_back_when_it_moves_and_set_anew() -> None:
    scene = Scene()
    assert scene.pass_by(700) == ["stalled"]
    scene.signs += 1
    assert scene.pass_by(2) == ["moving"]
    assert scene.said[-1]["message"] == "it moves again, after 11m 42s"
    assert scene.pass_by(700) == ["stalled"]
    assert scene.pass_by(20, cores=1.0) == ["moving"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (59, "59 s"), (600, "10m"), (3661, "1h 1m 1s")]
)
def test_times_are_written_short(seconds: float, text: str) -> None:
    assert in_words(seconds) == text


# --- stacks


@pytest.mark.parametrize(
    ("said", "scope", "code", "hint"),
    [
        ("Permission Denied: Try running again", "1", "ptrace-refused", "first process"),
        ("Error: Operation not permitted (os error 1)", "2", "ptrace-refused", "only root"),
        ("Permission denied (os error 13)", "3", "ptrace-refused", "nobody may look"),
        ("Permission denied (os error 13)", "", "ptrace-refused", "SYS_PTRACE"),
        ("Error: Failed to find\n\nStack backtrace:\n  0: x", "", "stack-unreadable", ""),
        ("", "", "stack-unreadable", ""),
    ],
)  # fmt: skip
def test_why_a_process_cannot_be_looked_into_is_said(
    said: str, scope: str, code: str, hint: str
) -> None:
    problem = stack.explain(7, said, scope)
    assert problem["code"] == code and hint in problem["hint"] and "process 7" in problem["message"]
    assert "backtrace" not in problem["message"]


def test_without_py_spy_the_answer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (problem,) = stack.stacks("", {"PATH": "/nowhere"}, native=False)["problems"]
    assert problem["code"] == "py-spy-missing" and "--with py-spy" in problem["hint"]


def test_a_process_that_a_signal_stopped_is_named_with_the_way_to_let_it_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)

        def problems() -> list[dict[str, Any]]:
            found = stack.stacks("", {"PATH": "/nowhere"}, native=False)["problems"]
            return [problem for problem in found if problem["code"] == "stopped"]

        (problem,) = eventually(problems)
        process.kill()
    assert problem["message"] == f"process {process.pid} is stopped (SIGSTOP)"
    assert f"kill -CONT {process.pid}" in problem["hint"]


THREAD: dict[str, Any] = {
    "pid": 7, "thread_id": 255, "thread_name": None, "os_thread_id": 8, "active": True,
    "owns_gil": False, "process_info": None,
    "frames": [{"name": "train", "filename": "/a/train.py", "line": 3, "locals": None}],
}  # fmt: skip


def test_an_agents_answer_is_read_and_nonsense_refused() -> None:
    process = {"pid": 7, "command": "python train.py", "threads": [THREAD]}
    found = read_stack(3, {"processes": [process], "problems": []})
    assert found.rank == 3
    (thread,) = found.processes[0].threads
    assert (thread.name, thread.active) == ("thread 0xff", True)
    assert thread.calls == (Call(name="train", file="/a/train.py", line=3),)
    with pytest.raises(msgspec.ValidationError):
        read_stack(3, {"processes": "none"})


def ranked(rank: int, line: int, *, gil: bool = False) -> RankStack:
    calls = (Call(name="wait", file="a.py", line=line), Call(name="native", file="a.so", line=0))
    thread = ThreadStack(name="MainThread", calls=calls, active=True, gil=gil)
    return RankStack(
        rank=rank, processes=(ProcessStack(pid=rank, command=f"python {rank}", threads=(thread,)),)
    )


def test_ranks_that_do_the_same_are_shown_once() -> None:
    found = [ranked(0, 1), ranked(1, 1, gil=True), ranked(2, 9), ranked(3, 1)]
    assert list(lines(found)) == [
        "[0-1,3] python 0",
        "  MainThread (active)",
        "    wait (a.py:1)",
        "    native (a.so)",
        "",
        "[2] python 2",
        "  MainThread (active)",
        "    wait (a.py:9)",
        "    native (a.so)",
    ]


def test_problems_of_several_ranks_are_told_once() -> None:
    problem = Problem(code="py-spy-missing", message="there is none", hint="get it")
    found = [RankStack(rank=n, problems=(problem,)) for n in (1, 2)]
    assert problems(found) == [("[1-2]", problem)]
