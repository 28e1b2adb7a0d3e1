"""
Local back ends that break one promise each. ``test_backend_contract_catches`` runs this file as
tests of its own and sees every one of them fail; pytest does not collect it by name.

``CATCHES`` of a class names the test that must catch it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from tests.contract.test_local_backend import LocalPlace
from wherry.backends.base import Amount, Capability, Capacity, Observation, Plan, Request
from wherry.backends.local.backend import LocalBackend
from wherry.backends.local.cgroups import Cgroups
from wherry.backends.local.folder import AttemptFolder, RankFolder
from wherry.core.run import AttemptId, RankObservation
from wherry.testing.stage import BackendFactory


class Faulty(LocalBackend):
    """A local back end with a fault; ``CATCHES``: who must see it."""

    CATCHES: ClassVar[str]


class PlansWithSecrets(Faulty):
    CATCHES = "test_plan_is_plain_data_without_secrets"

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        return replace(plan, body={**plan.body, "token": request.members[0].token})


class PlansWithTheClock(Faulty):
    CATCHES = "test_plan_is_pure"

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        return replace(plan, body={**plan.body, "planned": time.monotonic()})


class PlansByDoing(Faulty):
    CATCHES = "test_plan_is_pure"

    def plan(self, request: Request) -> Plan:
        self._folder(request.attempt).path.mkdir(parents=True, exist_ok=True)
        return super().plan(request)


class AcceptsWhatItCannotDo(Faulty):
    CATCHES = "test_plan_refuses_what_is_not_declared"

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.capabilities = frozenset()


class LaunchesAgainWhileItRuns(Faulty):
    CATCHES = "test_launch_again_is_nothing_while_it_runs"

    def launch(self, plan: Plan) -> None:
        self.forget(plan.request.attempt)
        super().launch(plan)


class LaunchesAgainAfterTheEnd(Faulty):
    CATCHES = "test_launch_again_is_nothing_after_the_end"

    def launch(self, plan: Plan) -> None:
        if self._folder(plan.request.attempt).over():
            self.forget(plan.request.attempt)
        super().launch(plan)


class ChecksThenActs(Faulty):
    CATCHES = "test_objects_that_race_to_launch_launch_once"
    seconds: ClassVar[list[LocalBackend]] = []

    def launch(self, plan: Plan) -> None:
        if self.observe(plan.request.attempt).ranks:
            return
        time.sleep(0.1)  # all who race are here now
        second = LocalBackend(self._home / "races" / str(id(self)), agent=self._agent)
        self.seconds.append(second)
        second.launch(second.plan(plan.request))

    def forget(self, attempt: AttemptId) -> None:
        for second in self.seconds:
            second.forget(attempt)
        super().forget(attempt)


class LaunchesOneRankOnly(Faulty):
    CATCHES = "test_every_rank_is_launched_once_with_its_number"

    def launch(self, plan: Plan) -> None:
        super().launch(
            replace(plan, request=replace(plan.request, members=plan.request.members[:1]))
        )


class LaunchesLater(Faulty):
    CATCHES = "test_runs_outlive_the_process_that_launched_them"

    def launch(self, plan: Plan) -> None:
        threading.Timer(0.1, super().launch, args=(plan,)).start()


class DiesWithItsObject(Faulty):
    CATCHES = "test_runs_outlive_the_object"

    def launch(self, plan: Plan) -> None:
        super().launch(plan)
        self.__dict__.setdefault("mine", []).append(plan.request.attempt)

    def __del__(self) -> None:
        for attempt in self.__dict__.get("mine", []):
            self.forget(attempt)


class SpoilsCharacters(Faulty):
    CATCHES = "test_arguments_and_variables_keep_every_character"

    def plan(self, request: Request) -> Plan:
        words = tuple(w.encode("ascii", "replace").decode() for w in request.spec.command)
        return super().plan(replace(request, spec=replace(request.spec, command=words)))


class TellsTheTokenToEverybody(Faulty):
    CATCHES = "test_no_token_is_in_a_command_line_or_an_environment"

    def _launch_rank(
        self, rank: RankFolder, body: dict[str, Any], token: str, request: Request
    ) -> None:
        python, *rest = body["command"]
        told = {**body, "command": [python, "-X", f"token={token}", *rest]}
        super()._launch_rank(rank, told, token, request)


class LeavesHalfALaunch(Faulty):
    CATCHES = "test_a_launch_that_fails_leaves_nothing"

    def launch(self, plan: Plan) -> None:
        try:
            super().launch(plan)
        except Exception:
            self._folder(plan.request.attempt).path.mkdir()
            raise


class HidesFailedLaunches(Faulty):
    CATCHES = "test_a_launch_that_fails_leaves_nothing"

    def launch(self, plan: Plan) -> None:
        with contextlib.suppress(Exception):
            super().launch(plan)


class DeclaresLimitsOnly(Faulty):
    CATCHES = "test_memory_beyond_the_limit_is_told_as_oom"

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._cgroups = Cgroups()
        self.capabilities = self.capabilities | {Capability.LIMITS}

    def plan(self, request: Request) -> Plan:
        plan = super().plan(request)
        for rank in plan.body["ranks"]:  # an agent that knows the limit may notice in time
            rank["config"]["limits"] = {"memory": None, "cgroup": []}
        return plan


class SeesEveryEndAsALoss(Faulty):
    CATCHES = "test_the_exit_code_is_kept"

    def observe(self, attempt: AttemptId) -> Observation:
        seen = super().observe(attempt)
        lost = (replace(r, cause="agent-lost") if r.phase == "ended" else r for r in seen.ranks)
        return replace(seen, ranks=tuple(lost))


class TakesADeadAgentForALiveOne(Faulty):
    CATCHES = "test_a_killed_agent_is_told_and_nothing_of_its_program_is_left"

    def observe(self, attempt: AttemptId) -> Observation:
        seen = super().observe(attempt)
        alive = (replace(r, phase="running") if r.cause == "agent-lost" else r for r in seen.ranks)
        return replace(seen, ranks=tuple(alive))


class TakesTheUnknownForPending(Faulty):
    CATCHES = "test_what_was_never_launched_is_absent"

    def observe(self, attempt: AttemptId) -> Observation:
        seen = super().observe(attempt)
        return (
            seen if seen.ranks else replace(seen, ranks=(RankObservation(rank=0, phase="pending"),))
        )


class LeavesOrphans(Faulty):
    CATCHES = "test_a_killed_agent_is_told_and_nothing_of_its_program_is_left"

    class Careless(RankFolder):
        def clear(self) -> None:
            pass

    def _folder(self, attempt: AttemptId) -> AttemptFolder:
        folder = super()._folder(attempt)
        sound = folder.ranks
        careless = self.Careless
        folder.ranks = lambda: [  # type: ignore[method-assign]
            careless(folder.path, rank.record, attempt) for rank in sound()
        ]
        return folder


class OwnsWhatOthersHave(Faulty):
    CATCHES = "test_owned_is_every_attempt_of_ours_and_nothing_else"

    def owned(self) -> Iterator[AttemptId]:
        for path in self._attempts.iterdir():
            with contextlib.suppress(ValueError):
                yield AttemptId.parse(path.name)


class OwnsOnlyWhatItLaunched(Faulty):
    CATCHES = "test_owned_is_every_attempt_of_ours_and_nothing_else"

    def launch(self, plan: Plan) -> None:
        super().launch(plan)
        self.__dict__.setdefault("mine", set()).add(plan.request.attempt)

    def owned(self) -> Iterator[AttemptId]:
        yield from self.__dict__.get("mine", set())


class OverlooksAdoptedEnds(Faulty):
    CATCHES = "test_changes_names_every_end"

    def launch(self, plan: Plan) -> None:
        super().launch(plan)
        self.__dict__.setdefault("mine", set()).add(plan.request.attempt)

    def changes(self) -> Iterator[AttemptId]:
        for attempt in super().changes():
            if attempt in self.__dict__.get("mine", set()):
                yield attempt


class NamesEveryAttemptOnce(Faulty):
    CATCHES = "test_changes_names_a_live_attempt_again_and_again"

    def changes(self) -> Iterator[AttemptId]:
        named: set[AttemptId] = set()
        for attempt in super().changes():
            if attempt not in named:
                named.add(attempt)
                yield attempt


class ReplacesWithoutAnEnd(Faulty):
    CATCHES = "test_a_newer_incarnation_takes_the_place_of_one_rank_alone"

    def launch(self, plan: Plan) -> None:
        newer = any(member.incarnation > 1 for member in plan.request.members)
        if newer:
            other = LocalBackend(self._home / "others", agent=self._agent)
            other.launch(other.plan(plan.request))
            other.forget(plan.request.attempt)
        else:
            super().launch(plan)


class ReplacesEverybody(Faulty):
    CATCHES = "test_a_newer_incarnation_takes_the_place_of_one_rank_alone"

    def launch(self, plan: Plan) -> None:
        if any(member.incarnation > 1 for member in plan.request.members):
            self.forget(plan.request.attempt)
        super().launch(plan)


class BringsBackTheOld(Faulty):
    CATCHES = "test_an_older_incarnation_does_not_come_back"

    def launch(self, plan: Plan) -> None:
        if self.observe(plan.request.attempt).ranks:
            self.forget(plan.request.attempt)
        super().launch(plan)


class LosesLogsWithTheAgent(Faulty):
    CATCHES = "test_logs_are_readable_after_the_agents_death"

    def logs(self, attempt: AttemptId, rank: int) -> Iterator[bytes]:
        if not self._folder(attempt).over():
            yield from super().logs(attempt, rank)


class ForgetsThatItWasStopped(Faulty):
    CATCHES = "test_stop_before_the_start_keeps_it_from_starting"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        if self._folder(attempt).ranks():
            super().stop(attempt, grace)


class DoesNotStop(Faulty):
    CATCHES = "test_stop_ends_a_program_that_listens"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        pass


class WaitsForTheEnd(Faulty):
    CATCHES = "test_stop_returns_before_the_program_has_ended"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        super().stop(attempt, 0.0)
        while not self._folder(attempt).over():
            time.sleep(0.01)


class RaisesAtTheSecondStop(Faulty):
    CATCHES = "test_stop_again_or_after_the_end_or_of_nothing_is_no_error"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        if self._folder(attempt).deadline is not None:
            raise RuntimeError("stopped already")
        super().stop(attempt, grace)


class RaisesWhereThereIsNothingToStop(Faulty):
    CATCHES = "test_stop_again_or_after_the_end_or_of_nothing_is_no_error"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        if not self._folder(attempt).path.exists():
            raise RuntimeError("no such attempt")
        super().stop(attempt, grace)


class NeverKills(Faulty):
    CATCHES = "test_stop_kills_what_ignores_it_with_all_its_children"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        super().stop(attempt, 600.0)


class StopsEverything(Faulty):
    CATCHES = "test_stop_and_forget_leave_other_attempts_alone"

    def stop(self, attempt: AttemptId, grace: float) -> None:
        for each in self.owned():
            super().stop(each, grace)


class ForgetsItsFolderOnly(Faulty):
    CATCHES = "test_forget_removes_every_trace"

    def forget(self, attempt: AttemptId) -> None:
        super().forget(attempt)
        (self._home / "logs").mkdir(exist_ok=True)
        (self._home / "logs" / f"{attempt}.log").write_text("a trace")


class ForgetsWithoutKilling(Faulty):
    CATCHES = "test_forget_removes_every_trace"
    hidden: ClassVar[set[AttemptId]] = set()

    def forget(self, attempt: AttemptId) -> None:
        if attempt in self.hidden:
            super().forget(attempt)
        self.hidden.add(attempt)

    def observe(self, attempt: AttemptId) -> Observation:
        seen = super().observe(attempt)
        return replace(seen, ranks=()) if attempt in self.hidden else seen

    def owned(self) -> Iterator[AttemptId]:
        yield from (attempt for attempt in super().owned() if attempt not in self.hidden)


class RaisesWhereThereIsNothingToForget(Faulty):
    CATCHES = "test_forget_again_or_after_the_end_or_of_nothing_is_no_error"

    def forget(self, attempt: AttemptId) -> None:
        if not self._folder(attempt).path.exists():
            raise RuntimeError("no such attempt")
        super().forget(attempt)


class HasMoreFreeThanThereIs(Faulty):
    CATCHES = "test_capacity_is_sane"

    def capacity(self) -> Capacity | None:
        room = super().capacity()
        assert room is not None
        return replace(room, free=Amount(cpu=room.total.cpu + 1))


FAULTS: dict[str, type[Faulty]] = {fault.__name__: fault for fault in Faulty.__subclasses__()}


def _contract_of(fault: type[Faulty]) -> type[LocalPlace]:
    """The tests of a back end with this fault."""

    def backend_factory(self: LocalPlace, agent: Path, tmp_path: Path) -> BackendFactory:
        make: Callable[[], LocalBackend] = lambda: fault(self.enter(tmp_path), agent=agent)  # noqa: E731
        return make

    def broken_factory(self: LocalPlace, agent: Path, tmp_path: Path) -> BackendFactory:
        missing = str(tmp_path / "no-python")
        return lambda: fault(self.enter(tmp_path), agent=agent, python=missing)

    body = {
        "backend_factory": pytest.fixture(backend_factory),
        "broken_factory": pytest.fixture(broken_factory),
        # A promise that is broken is not kept by waiting for it.
        "patience": 1.5,
    }
    return type(f"Test{fault.__name__}", (LocalPlace,), body)


globals().update({f"Test{name}": _contract_of(fault) for name, fault in FAULTS.items()})
