"""
Every promise of ``wherry.backends.base.Backend``, as tests.

Subclass :class:`BackendContract` in a test module and override ``backend_factory``::

    class TestMine(BackendContract):
        @pytest.fixture
        def backend_factory(self, tmp_path):
            return lambda: MyBackend(tmp_path)

The tests start real agents. ``AgentSink`` stands in for the control plane, and a ``Leash`` shows
what of a program lives. The fixtures and methods under "what a back end's author says" may be
overridden.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from wherry.backends.base import Backend, Capability
from wherry.core.ids import new_id
from wherry.core.job import Code, Resources
from wherry.core.run import AttemptId
from wherry.errors import CapabilityMissing, WherryError
from wherry.testing.leash import Leash
from wherry.testing.replace import ReplaceContract
from wherry.testing.sink import AgentSink
from wherry.testing.stage import (
    DEAF,
    BackendFactory,
    Bench,
    frames_of,
    output_of,
    secret,
    trace_of,
    what_others_see,
)
from wherry.testing.waiting import eventually


class BackendContract(ReplaceContract):
    """The promises. Each test is one."""

    # --- what a back end's author says
    patience = 20.0  #: seconds that anything may take on a busy machine

    @pytest.fixture
    def backend_factory(self) -> BackendFactory:
        """Makes a new object over the same place, at each call."""
        raise NotImplementedError("override backend_factory")

    @pytest.fixture
    def broken_factory(self) -> BackendFactory:
        """The same, but none of its launches can succeed."""
        raise NotImplementedError("override broken_factory")

    @pytest.fixture
    def python(self) -> str:
        """The interpreter for the programs, where they run."""
        return sys.executable

    def plant_foreign(self) -> None:
        """Put things that are not ours where the back end keeps its own."""

    def traces(self, attempt: AttemptId) -> Sequence[str]:
        """What is left of an attempt that no verb shows."""
        return []

    def signal_agent(self, bench: Bench, attempt: AttemptId, rank: int, number: int) -> None:
        """Send a signal to the agent of a rank."""
        os.kill(bench.sink.hellos[str(attempt), rank]["pid"], number)

    # --- the stage
    @pytest.fixture
    def bench(self, backend_factory: BackendFactory, python: str) -> Iterator[Bench]:
        """A control plane, a leash, and the end of everything that was launched."""
        patience = self.patience
        with AgentSink() as sink, Leash(patience=patience) as leash:
            bench = Bench(backend_factory, sink, leash, python=python, patience=patience)
            yield bench
            backend = backend_factory()
            for attempt in bench.attempts:
                backend.forget(attempt)

    # --- plan
    def test_plan_is_pure(self, bench: Bench) -> None:
        backend = bench.factory()
        request = bench.request()
        first, second = backend.plan(request), bench.factory().plan(request)
        assert first == second
        assert first.request == request
        assert not trace_of(backend, request.attempt)

    def test_plan_is_plain_data_without_secrets(self, bench: Bench) -> None:
        request = bench.request(workers=2)
        plan = bench.factory().plan(request)
        text = json.dumps(plan.body)
        assert json.loads(text) == plan.body
        for member in request.members:
            assert member.token not in text + repr(plan)

    def test_plan_refuses_what_is_not_declared(self, bench: Bench, tmp_path: Path) -> None:
        backend = bench.factory()
        wishes = {
            Capability.IN_PLACE: bench.request(code=Code(in_place=str(tmp_path))),
            Capability.ATTACH: bench.request(attach=str(tmp_path / "socket")),
        }
        for capability, request in wishes.items():
            if capability in backend.capabilities:
                assert backend.plan(request).body
            else:
                with pytest.raises(CapabilityMissing):
                    backend.plan(request)

    # --- launch
    def test_a_launched_rank_runs_and_ends(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend)
        assert bench.phases(attempt, backend) in (["pending"], ["running"])
        program = bench.leash.catch()
        assert bench.phases(attempt, backend) == ["running"]
        program.tell()
        (rank,) = bench.ended(attempt, backend).ranks
        assert (rank.rank, rank.incarnation, rank.cause) == (0, 1, "")
        assert bench.exit(attempt)["state"] == "succeeded"

    def test_every_rank_is_launched_once_with_its_number(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), workers=3)
        programs = bench.leash.catch_all(3)
        assert [program.rank for program in programs] == ["0", "1", "2"]
        assert [rank.rank for rank in bench.factory().observe(attempt).ranks] == [0, 1, 2]

    def test_the_exit_code_is_kept(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), "sys.exit(7)")
        told = bench.exit(attempt)
        assert (told["state"], told["exit_code"], told["cause"]) == ("failed", 7, "exit")
        assert [rank.cause for rank in bench.ended(attempt).ranks] == [""]

    def test_a_signal_is_told_from_an_exit(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), "os.kill(os.getpid(), signal.SIGUSR1)")
        told = bench.exit(attempt)
        assert (told["state"], told["signal"], told["cause"]) == (
            "failed",
            signal.SIGUSR1,
            "signal",
        )

    def test_arguments_and_variables_keep_every_character(self, bench: Bench) -> None:
        words = ["", "ein Wort", "naïve ☃ 𝄞", "a\nb", "'\"$HOME`\\"]
        body = "print(ascii([sys.argv[1:], os.environ['WORD_Ü']]), flush=True)"
        attempt = bench.launch(bench.factory(), body, *words, env={"WORD_Ü": "日本\n☃"})
        bench.exit(attempt)
        assert bench.sink.log(str(attempt)).decode().strip() == ascii([words, "日本\n☃"])

    def test_launch_again_is_nothing_while_it_runs(self, bench: Bench) -> None:
        backend = bench.factory()
        plan = backend.plan(bench.request(workers=2))
        backend.launch(plan)
        backend.launch(plan)
        bench.leash.catch_all(2)
        bench.factory().launch(plan)
        assert bench.strays(workers=2) == 0

    def test_launch_again_is_nothing_after_the_end(self, bench: Bench) -> None:
        backend = bench.factory()
        plan = backend.plan(bench.request("pass"))
        backend.launch(plan)
        bench.ended(plan.request.attempt)
        backend.launch(plan)
        bench.factory().launch(plan)
        assert bench.phases(plan.request.attempt) == ["ended"]
        bench.leash.catch()
        assert bench.strays() == 0

    def test_objects_that_race_to_launch_launch_once(self, bench: Bench) -> None:
        plan = bench.factory().plan(bench.request(workers=2))
        start = threading.Barrier(4)
        failures: list[Exception] = []

        def race(backend: Backend) -> None:
            start.wait()
            try:
                backend.launch(plan)
            except Exception as error:
                failures.append(error)

        racers = [threading.Thread(target=race, args=(bench.factory(),)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert failures == []
        bench.leash.catch_all(2)
        assert bench.strays(workers=2) == 0

    def test_a_launch_that_fails_leaves_nothing(
        self, bench: Bench, broken_factory: BackendFactory
    ) -> None:
        broken, request = broken_factory(), bench.request(workers=2)
        with pytest.raises(WherryError):
            broken.launch(broken.plan(request))
        sound = bench.factory()
        assert not trace_of(sound, request.attempt)
        assert not self.traces(request.attempt)
        sound.launch(sound.plan(request))
        bench.leash.catch_all(2)

    def test_no_token_is_in_a_command_line_or_an_environment(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory())
        bench.leash.catch()
        assert secret(attempt, 0) not in what_others_see()

    def test_memory_beyond_the_limit_is_told_as_oom(self, bench: Bench) -> None:
        backend = bench.factory()
        enforced = Capability.LIMITS in backend.capabilities
        body = "block = b'x' * (300 * 2**20)\nprint(len(block))"
        limit = Resources(cpu=1.0, memory=100 * 2**20)
        told = bench.exit(bench.launch(backend, body, resources=limit))
        # Without a limit of the kernel's, the agent looks now and then, and may be too late.
        expected = {("failed", "oom")} | (set() if enforced else {("succeeded", "")})
        assert (told["state"], told["cause"]) in expected

    # --- what outlives what
    def test_runs_outlive_the_object(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend)
        del backend
        gc.collect()
        program = bench.leash.catch()
        assert bench.phases(attempt) == ["running"]
        program.tell()
        assert [rank.cause for rank in bench.ended(attempt).ranks] == [""]
        assert bench.exit(attempt)["exit_code"] == 0

    def test_runs_outlive_the_process_that_launched_them(self, bench: Bench) -> None:
        request = bench.request(workers=2)
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that hold locks; the child only launches, and dies.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                backend = bench.factory()
                backend.launch(backend.plan(request))
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        programs = bench.leash.catch_all(2)
        backend = bench.factory()
        assert bench.phases(request.attempt, backend) == ["running", "running"]
        backend.launch(backend.plan(request))
        for program in programs:
            program.tell()
        assert [rank.cause for rank in bench.ended(request.attempt).ranks] == ["", ""]
        assert bench.leash.started() == 2

    # --- observe, owned
    def test_what_was_never_launched_is_absent(self, bench: Bench) -> None:
        backend, unknown = bench.factory(), AttemptId(new_id("r"), 1)
        assert set(bench.phases(unknown, backend)) <= {"absent"}
        assert list(backend.logs(unknown, 0)) == []
        assert list(backend.owned()) == []

    def test_owned_is_every_attempt_of_ours_and_nothing_else(self, bench: Bench) -> None:
        backend = bench.factory()
        self.plant_foreign()
        running = bench.launch(backend)
        ended = bench.launch(backend, "pass")
        bench.ended(ended)
        assert sorted(bench.factory().owned()) == sorted([running, ended])

    # --- changes
    def test_changes_names_every_end(self, bench: Bench) -> None:
        backend, other = bench.factory(), bench.factory()
        before = bench.launch(other, "pass")
        bench.ended(before)
        ours, theirs = bench.launch(backend), bench.launch(other)
        over = self._ends(backend, {before})
        assert over == {before}
        for program in [bench.leash.catch() for _ in range(3)]:
            if not program.gone(0.001):
                program.tell()
        assert self._ends(backend, {ours, theirs}) >= {ours, theirs}

    def _ends(self, backend: Backend, wanted: set[AttemptId]) -> set[AttemptId]:
        """What ``changes`` names and is then seen to have ended, until all ``wanted`` were."""
        found: set[AttemptId] = set()
        finished = threading.Event()

        def consume() -> None:
            for attempt in backend.changes():
                if all(rank.phase == "ended" for rank in backend.observe(attempt).ranks):
                    found.add(attempt)
                if wanted <= found or finished.is_set():
                    return

        consumer = threading.Thread(target=consume, daemon=True)
        consumer.start()
        consumer.join(self.patience)
        finished.set()
        return found

    def test_changes_names_a_live_attempt_again_and_again(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend)
        bench.leash.catch()
        named: list[AttemptId] = []

        def consume() -> None:
            for found in backend.changes():
                named.append(found)
                if len(named) == 2:
                    return

        consumer = threading.Thread(target=consume, daemon=True)
        consumer.start()
        consumer.join(self.patience)
        assert named == [attempt] * 2

    # --- logs
    def test_logs_are_readable_after_the_agents_death(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), "told(); print('unsent', flush=True); told()")
        program = bench.leash.catch()
        bench.sink.mode = "refuse"
        program.tell()
        eventually(lambda: b"unsent" in output_of(bench.factory(), attempt), within=bench.patience)
        self.signal_agent(bench, attempt, 0, signal.SIGKILL)
        bench.ended(attempt)
        assert b"unsent\n" in output_of(bench.factory(), attempt)
        numbers = [seq for _, seq, _, _ in frames_of(bench.factory(), attempt)]
        assert numbers == sorted(set(numbers))

    # --- stop
    def test_stop_before_the_start_keeps_it_from_starting(self, bench: Bench) -> None:
        plan = bench.factory().plan(bench.request(workers=2))
        bench.factory().stop(plan.request.attempt, 1.0)
        bench.factory().launch(plan)
        seen = bench.factory().observe(plan.request.attempt)
        assert [(rank.phase, rank.cause) for rank in seen.ranks] == [("ended", "stopped")] * 2
        assert bench.strays(workers=2) == 0

    def test_stop_ends_a_program_that_listens(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend, workers=2)
        programs = bench.leash.catch_all(2)
        bench.factory().stop(attempt, 10.0)
        assert all(program.gone() for program in programs)
        bench.ended(attempt)
        assert [bench.exit(attempt, rank)["state"] for rank in (0, 1)] == ["stopped", "stopped"]

    def test_stop_returns_before_the_program_has_ended(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend, DEAF, grace=600.0)
        program = bench.leash.catch()
        assert program.hear() == b"!"
        backend.stop(attempt, 600.0)
        assert bench.phases(attempt, backend) == ["running"]
        assert not program.gone(0.001)

    def test_stop_again_or_after_the_end_or_of_nothing_is_no_error(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory())
        bench.leash.catch()
        bench.factory().stop(attempt, 10.0)
        bench.factory().stop(attempt, 10.0)
        before = bench.ended(attempt)
        bench.factory().stop(attempt, 10.0)
        assert bench.factory().observe(attempt) == before
        ended = bench.launch(bench.factory(), "pass")
        seen = bench.ended(ended)
        bench.factory().stop(ended, 0.0)
        assert bench.factory().observe(ended) == seen
        unknown = AttemptId(new_id("r"), 1)
        bench.attempts.append(unknown)
        bench.factory().stop(unknown, 1.0)
        bench.factory().stop(unknown, 1.0)

    def test_stop_kills_what_ignores_it_with_all_its_children(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), DEAF, grace=600.0)
        program = bench.leash.catch()
        assert program.hear() == b"!"
        bench.factory().stop(attempt, 0.2)
        assert program.gone()
        bench.ended(attempt)

    def test_stop_reaches_an_agent_that_is_suspended(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), DEAF, grace=600.0)
        program = bench.leash.catch()
        assert program.hear() == b"!"
        self.signal_agent(bench, attempt, 0, signal.SIGSTOP)
        bench.factory().stop(attempt, 0.2)
        assert program.gone()
        bench.ended(attempt)

    def test_stop_and_forget_leave_other_attempts_alone(self, bench: Bench) -> None:
        backend = bench.factory()
        spared = bench.launch(backend)
        program = bench.leash.catch()
        stopped, forgotten = bench.launch(backend), bench.launch(backend)
        bench.leash.catch_all(2)
        backend.stop(stopped, 5.0)
        backend.forget(forgotten)
        bench.ended(stopped)
        assert bench.phases(spared) == ["running"]
        program.tell()
        assert bench.exit(spared)["state"] == "succeeded"

    # --- nothing is left
    def test_nothing_is_left_of_a_program_that_ended(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), "fork(); fork(daemon=True, deaf=True)", grace=0.1)
        assert bench.leash.catch().gone()
        bench.ended(attempt)
        assert bench.exit(attempt)["exit_code"] == 0

    def test_a_killed_agent_is_told_and_nothing_of_its_program_is_left(self, bench: Bench) -> None:
        attempt = bench.launch(bench.factory(), DEAF)
        program = bench.leash.catch()
        assert program.hear() == b"!"
        self.signal_agent(bench, attempt, 0, signal.SIGKILL)
        (rank,) = bench.ended(attempt).ranks
        assert (rank.phase, rank.cause) == ("ended", "agent-lost")
        assert program.gone()

    # --- forget
    def test_forget_removes_every_trace(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend, DEAF, workers=2, resources=Resources(cpu=1, memory=2**28))
        programs = bench.leash.catch_all(2)
        for program in programs:
            assert program.hear() == b"!"
        bench.factory().forget(attempt)
        assert all(program.gone() for program in programs)
        assert not trace_of(backend, attempt)
        assert not self.traces(attempt)

    def test_forget_again_or_after_the_end_or_of_nothing_is_no_error(self, bench: Bench) -> None:
        backend = bench.factory()
        attempt = bench.launch(backend, "pass")
        bench.ended(attempt)
        backend.forget(attempt)
        assert not trace_of(backend, attempt)
        assert not self.traces(attempt)
        bench.factory().forget(attempt)
        backend.forget(AttemptId(new_id("r"), 1))
        assert list(backend.logs(attempt, 0)) == []

    # --- capacity
    def test_capacity_is_sane(self, bench: Bench) -> None:
        room = bench.factory().capacity()
        if room is not None:
            assert room.total.cpu > 0
            assert room.total.memory > 0
            for kind in ("cpu", "memory", "gpu"):
                assert 0 <= getattr(room.free, kind) <= getattr(room.total, kind)
