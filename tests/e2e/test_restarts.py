"""
What is tried again, and that it goes on where it was: checkpoints, preemption, rules, back-off.

Evidence that does not come from the control plane: every attempt appends to a file of the project.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

import pytest

from tests.e2e.conftest import World
from wherry.core.run import Run
from wherry.testing.waiting import eventually

#: Trains to step 1000, but the first attempt only as long as nobody asks it to end.
TRAIN = """
import os, sys, time, wherry
attempt = int(os.environ["WHERRY_ATTEMPT"])
found = wherry.latest_checkpoint()
start = int((found / "step").read_text()) if found else 0
with open("ledger", "a") as ledger: ledger.write(f"{attempt} {wherry.rank()} from {start}\\n")
step = start
while step < 1000:
    step += 1
    if attempt == 1:
        time.sleep(0.002)
        if step == 1000: step = 999
        if step == 20: open("going", "w").close()
    if wherry.stopping():
        if wherry.rank() == 0:
            with wherry.checkpoint(step) as made: (made / "step").write_text(str(step))
            with open("ledger", "a") as ledger: ledger.write(f"{attempt} saved {step}\\n")
        sys.exit(0)
print("trained")
"""


def ledger(world: World) -> list[str]:
    return (world.project / "ledger").read_text().splitlines()


def agent_pid(world: World, run_id: str, rank: int = 0) -> int:
    lock = world.home / "attempts" / f"{run_id}-1" / str(rank) / "lock"
    return int(eventually(lambda: lock.read_text().split() if lock.exists() else [])[0])


def submit(world: World, job: str, script: str) -> str:
    """Submit a job file for ``work.py``."""
    world.write("work.py", script)
    world.write("job.yaml", f"command: python work.py\n{job}")
    return world.detach("job.yaml")


def over(world: World, run_id: str) -> Run:
    return world.until(run_id, "succeeded", "failed", "lost", "stopped")


# --- preemption


@pytest.mark.parametrize("way", ["folder", "blobs"])
def test_a_run_whose_machine_goes_saves_in_its_grace_and_goes_on_there(
    make_world: Callable[..., World], way: str
) -> None:
    world = make_world(checkpoints=way, backoff="0")
    run = submit_in_place(world, TRAIN)
    eventually((world.project / "going").exists)
    os.kill(agent_pid(world, run), signal.SIGTERM)
    done = over(world, run)
    assert (done.state, done.attempt, done.restarts_used) == ("succeeded", 2, 1)
    first, saved, second = ledger(world)
    assert first == "1 0 from 0"
    step = int(re.fullmatch(r"1 saved (\d+)", saved)[1])  # type: ignore[index]
    assert step >= 20 and second == f"2 0 from {step}"
    kinds = [event.kind for event in world.client().run(run).events]
    assert ("restored" in kinds) == (way == "blobs")
    assert "preempted" not in world.cli("logs", run).stdout


def submit_in_place(world: World, script: str, **fields: object) -> str:
    """Submit a script that works in the project folder, where its ledger is."""
    from tests.e2e.test_faults import spec
    from wherry.core.api import Submit

    world.write("work.py", script)
    fields = {"restarts": 1, **fields}
    return world.client().submit(Submit(spec=spec(world, "work.py", **fields))).id


@pytest.mark.slow
def test_a_run_that_is_stopped_by_a_person_is_not_tried_again(world: World) -> None:
    run = submit_in_place(world, TRAIN)
    eventually((world.project / "going").exists)
    world.client().stop(run)
    assert (over(world, run).state, over(world, run).attempt) == ("stopped", 1)
    assert len(ledger(world)) == 2  # it was asked, and saved


@pytest.mark.slow
@pytest.mark.parametrize("way", ["folder", "blobs"])
def test_a_gang_goes_on_from_its_checkpoint_on_every_rank(
    make_world: Callable[..., World], way: str
) -> None:
    world = make_world(checkpoints=way, backoff="0")
    run = submit_in_place(world, TRAIN, workers=2)
    eventually((world.project / "going").exists)
    eventually(lambda: len(ledger(world)) == 2)
    os.kill(agent_pid(world, run, rank=1), signal.SIGTERM)
    done = over(world, run)
    assert (done.state, done.attempt) == ("succeeded", 2)
    saved = next(line.split()[-1] for line in ledger(world) if "saved" in line)
    later = sorted(line for line in ledger(world) if line.startswith("2 "))
    assert later == [f"2 0 from {saved}", f"2 1 from {saved}"]


ROUNDS = """
import os, signal, sys, time, wherry
found = wherry.latest_checkpoint()
with open("ledger", "a") as ledger: ledger.write(f"{found and found.name} {wherry.stopping()}\\n")
if found is None:
    while not wherry.stopping(): time.sleep(0.01)
    if wherry.rank() == 0:
        with wherry.checkpoint(5) as made: (made / "x").touch()
"""


@pytest.mark.slow
def test_an_elastic_group_saves_when_it_is_called_and_goes_on_in_the_next_round(
    make_world: Callable[..., World],
) -> None:
    world = make_world(checkpoints="blobs", backoff="0", elastic_settle="0.2")
    run = submit_in_place(world, ROUNDS, group="elastic", workers=2, min_workers=1)
    eventually((world.project / "ledger").exists)
    eventually(lambda: len(ledger(world)) == 2)
    os.kill(agent_pid(world, run, rank=1), signal.SIGKILL)
    assert over(world, run).state == "succeeded"
    assert ledger(world)[:2] == ["None False"] * 2
    assert set(ledger(world)[2:]) == {"step-5 False"}


# --- checkpoints by blobs


CRASHES = """
import os, pathlib, signal, time, wherry
folder = wherry.checkpoint_dir
attempt = int(os.environ["WHERRY_ATTEMPT"])
found = wherry.latest_checkpoint()
own = sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "step-")))
line = f"{attempt} {found and found.name} {own} {(folder / 'last').read_text() if own else ''}"
with open("ledger", "a") as ledger: ledger.write(line + "\\n")
if attempt < 4:
    (folder / "last").write_text(str(attempt))
    (folder / f"only-{attempt}").touch()
    if attempt == 3: (folder / "only-1").unlink()
    for step in range(3):
        with wherry.checkpoint(attempt * 10 + step) as made:
            (made / "weights").write_bytes(os.urandom(1000))
    raise SystemExit(75)
"""


@pytest.mark.slow
def test_without_a_shared_folder_checkpoints_and_own_files_come_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world(checkpoints="blobs", backoff="0")
    run = submit_in_place(world, CRASHES, restarts=3, retry_on=("75",))
    assert over(world, run).state == "succeeded"
    assert ledger(world) == [
        "1 None [] ",
        "2 step-12 ['last', 'only-1'] 1",
        "3 step-22 ['last', 'only-1', 'only-2'] 2",
        "4 step-32 ['last', 'only-2', 'only-3'] 3",
    ]
    assert not (world.home / "checkpoints").exists()


@pytest.mark.slow
def test_what_a_dead_attempt_did_not_finish_sending_is_not_seen(
    make_world: Callable[..., World],
) -> None:
    world = make_world(checkpoints="blobs", backoff="0")
    run = submit_in_place(
        world,
        "import os, time, wherry\n"
        "found = wherry.latest_checkpoint()\n"
        "with open('ledger', 'a') as ledger: ledger.write(f'{found and found.name}\\n')\n"
        "if os.environ['WHERRY_ATTEMPT'] == '1':\n"
        "    with wherry.checkpoint(1) as made: (made / 'x').write_text('1')\n"
        "    while not os.path.exists('sent'): time.sleep(0.01)\n"
        "    with wherry.checkpoint(2) as made:\n"
        "        open(made / 'big', 'wb').truncate(2**30)\n"
        "        open('going', 'w').close()\n"
        "    time.sleep(600)\n",
    )
    store = world.home / "blobs"
    eventually(lambda: sum(1 for path in store.rglob("*") if path.is_file()) >= 2)
    world.write("sent", "")
    eventually((world.project / "going").exists)
    os.kill(agent_pid(world, run), signal.SIGKILL)
    assert over(world, run).state == "succeeded"
    assert ledger(world) == ["None", "step-1"]


# --- rules


ONCE = """
import os, signal, sys
attempt = int(os.environ["WHERRY_ATTEMPT"])
print("attempt", attempt, flush=True)
if attempt == 1: {fate}
"""
HUNGRY = """
import os, time
if os.environ["WHERRY_ATTEMPT"] == "1":
    held = [bytearray(os.urandom(10**7)) for _ in range(30)]
    time.sleep(60)
"""


RULES = [
    ("sys.exit(75)", "restarts: 1", "failed", 1),
    ("sys.exit(75)", "restarts: 1\nretry_on: 75", "succeeded", 2),
    ("sys.exit(75)", "restarts: 1\nretry_on: [70-80]", "succeeded", 2),
    ("sys.exit(75)", "retry_on: 75", "failed", 1),
    ("sys.exit(75)", "restarts: 1\nretry_on: any\nfail_on: 75", "failed", 1),
    ("os.kill(0, signal.SIGKILL)", "restarts: 1\nretry_on: SIGKILL", "succeeded", 2),
    ("raise ValueError('no')", "restarts: 1\nretry_on: exit", "succeeded", 2),
    ("os.kill(0, signal.SIGKILL)", "restarts: 1", "failed", 1),
]


@pytest.mark.slow
def test_the_job_file_says_what_is_tried_again(world: World) -> None:
    made = [submit(world, f"backoff: 0\n{r}\n", ONCE.format(fate=f)) for f, r, _, _ in RULES]
    for run, (fate, rules, state, attempts) in zip(made, RULES, strict=True):
        done = over(world, run)
        wanted = (state, attempts, attempts - 1)
        assert (done.state, done.attempt, done.restarts_used) == wanted, (fate, rules)


@pytest.mark.slow
def test_memory_that_ran_out_is_tried_again_only_where_the_job_says_so(world: World) -> None:
    made = [
        submit(world, f"resources: {{memory: 64Mi}}\nrestarts: 1\nbackoff: 0\n{rules}", HUNGRY)
        for rules in ("", "retry_on: oom\n")
    ]
    first, second = [over(world, run) for run in made]
    assert (first.state, first.attempt) == ("failed", 1)
    assert first.verdict is not None and first.verdict.cause == "oom"
    assert (second.state, second.attempt) == ("succeeded", 2)


@pytest.mark.slow
def test_the_restarts_are_used_up_and_each_wait_is_shown(make_world: Callable[..., World]) -> None:
    world = make_world()
    run = submit(world, "restarts: 2\nretry_on: exit\nbackoff: 0.25\n", "raise SystemExit(3)\n")
    done = over(world, run)
    assert (done.state, done.attempt, done.restarts_used) == ("failed", 3, 2)
    assert done.exit_code == 3
    shown = world.cli("show", run).stdout
    assert "again in 0.25 s (restart 1 of 2)" in shown
    assert "again in 0.5 s (restart 2 of 2)" in shown
    starts = [e.time for e in world.client().run(run).events if e.kind == "starting"]
    assert starts[1] - starts[0] >= 0.25 and starts[2] - starts[1] >= 0.5


@pytest.mark.slow
def test_a_run_that_waits_for_its_next_attempt_says_so_and_can_be_stopped(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    run = submit_in_place(world, "raise SystemExit(3)\n", retry_on=("exit",), backoff=3600.0)
    waiting = eventually(
        lambda: (
            r if (r := world.client().run(run).run).attempt == 1 and r.restarts_used == 1 else None
        )
    )
    assert "again in 3600 s" in world.cli("show", run).stdout, waiting
    world.client().stop(run)
    assert over(world, run).state == "stopped"
