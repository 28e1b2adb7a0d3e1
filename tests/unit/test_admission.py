"""The queue: who may start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry.core.admission import Ledger, check, need, threads
from wherry.core.job import Amount, JobSpec, Resources
from wherry.errors import UnsatisfiableResources

GIB = 2**30
MACHINE = Amount(cpu=4.0, memory=8 * GIB, gpu=1)


def spec(workers: int = 1, **resources: object) -> JobSpec:
    return JobSpec(command=("x",), workers=workers, resources=Resources(**resources))  # type: ignore[arg-type]


def test_first_come_first_served() -> None:
    ledger = Ledger(MACHINE)
    for name in ("a", "b", "c"):
        ledger.wait(name, Amount(cpu=2))
    assert ledger.admit() == ["a", "b"]
    ledger.release("a")
    assert ledger.admit() == ["c"]


def test_priority_overtakes_but_a_small_run_never_passes_a_large_one() -> None:
    ledger = Ledger(MACHINE)
    ledger.charge("running", Amount(cpu=3))
    ledger.wait("large", Amount(cpu=4))
    ledger.wait("small", Amount(cpu=1))
    assert ledger.admit() == []
    ledger.wait("urgent", Amount(cpu=1), priority=1)
    assert ledger.admit() == ["urgent"]


def test_a_run_keeps_its_place_when_it_is_enqueued_again() -> None:
    ledger = Ledger(Amount(cpu=1))
    for name in ("a", "b", "a"):
        ledger.wait(name, Amount(cpu=1))
    assert ledger.admit() == ["a"]
    ledger.wait("a", Amount(cpu=1))
    ledger.release("a")
    assert ledger.admit() == ["b"]


def test_a_waiting_run_says_what_it_waits_for() -> None:
    ledger = Ledger(MACHINE)
    ledger.charge("running", Amount(cpu=3, memory=6 * GIB))
    ledger.wait("first", Amount(cpu=2))
    ledger.wait("second", Amount(cpu=1, memory=4 * GIB))
    assert ledger.reason("first") == "needs 2 cores, 1 of 4 free; 1 running"
    assert ledger.reason("second").startswith("1 ahead in the queue; needs 4.0Gi of memory")
    assert ledger.reason("running") == ""


def test_what_can_never_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(UnsatisfiableResources, match=r"asks for 8 cores.*has 4"):
        check(spec(workers=4, cpu=2.0), MACHINE)
    with pytest.raises(UnsatisfiableResources, match=r"16.0Gi memory.*8.0Gi"):
        check(spec(memory=16 * GIB), MACHINE)
    with pytest.raises(UnsatisfiableResources, match="2 GPUs"):
        check(spec(gpu=2), MACHINE)


def test_a_gang_that_says_nothing_fits_any_machine() -> None:
    check(spec(workers=64), MACHINE)
    assert need(spec(workers=64), MACHINE).cpu == 4.0


def test_a_person_at_a_terminal_who_asks_for_nothing_waits_for_nothing() -> None:
    assert need(spec(), MACHINE, foreground=True) == Amount()
    assert need(spec(), MACHINE) == Amount(cpu=1.0)


def _threads(job: JobSpec, *, foreground: bool = False) -> int:
    return threads(job, job.resources, MACHINE, foreground=foreground)


def test_threads_are_the_cores_allotted_never_the_machines() -> None:
    assert _threads(spec(cpu=2.5)) == 2
    assert _threads(spec()) == 1
    assert _threads(spec(), foreground=True) == 4
    assert _threads(spec(workers=2), foreground=True) == 2
    assert _threads(spec(workers=9), foreground=True) == 1


@given(st.lists(st.tuples(st.sampled_from("war"), st.integers(0, 9), st.integers(1, 4))))
def test_what_is_used_is_the_sum_of_what_is_charged(steps: list[tuple[str, int, int]]) -> None:
    ledger, charged = Ledger(MACHINE), {}
    wanted: dict[str, float] = {}
    for verb, number, cores in steps:
        name = str(number)
        if verb == "w":
            if name not in charged and name not in wanted:
                wanted[name] = cores / 3
                ledger.wait(name, Amount(cpu=cores / 3))
        elif verb == "a":
            for admitted in ledger.admit():
                charged[admitted] = wanted.pop(admitted)
        else:
            ledger.release(name)
            charged.pop(name, None)
            wanted.pop(name, None)
        assert abs(ledger.used.cpu - sum(charged.values())) < 1e-6
        assert ledger.used.cpu <= MACHINE.cpu + 1e-6


def test_one_is_counted_in_the_singular_and_nothing_is_offered_that_is_not_there() -> None:
    ledger = Ledger(MACHINE)
    ledger.charge("a", Amount(cpu=MACHINE.cpu - 0.268555, gpu=1))
    ledger.wait("b", Amount(cpu=1.0, gpu=1))
    reason = ledger.reason("b")
    assert "needs 1 core, 0.269 of 4 free" in reason and "needs 1 GPU, 0 of 1 free" in reason
    with pytest.raises(UnsatisfiableResources) as caught:
        check(spec(cpu=64.0), MACHINE)
    assert "--on" not in caught.value.hint and "wherry status" in caught.value.hint
