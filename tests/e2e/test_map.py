"""wherry.map, executors and joblib with real workers: what is done, done again, and left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import World
from wherry.core.explain import explain
from wherry.core.run import Run
from wherry.core.states import RUN_TERMINAL
from wherry.testing.waiting import eventually

HEAD = """
import os, signal, sys, time
from pathlib import Path
import wherry

MARKS = Path("marks")
MARKS.mkdir(exist_ok=True)

def mark(name, text="x"):
    with open(MARKS / name, "a") as file:
        file.write(text)

def marked(name):
    return (MARKS / name).exists()

def wait_for(name):
    while not marked(name):
        time.sleep(0.01)
"""


class Program:
    """A person's script that maps, as a process."""

    def __init__(self, world: World) -> None:
        self.world, self.marks = world, world.project / "marks"

    def run(self, body: str) -> str:
        """What it printed. It must end well, and leave no run behind."""
        process = self.start(body)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0, out + err
        self.nothing_is_left()
        return out

    def start(self, body: str) -> subprocess.Popen[str]:
        """The process; its stdout and stderr are pipes."""
        self.world.write("program.py", HEAD + body)
        return subprocess.Popen(
            [sys.executable, "program.py"], cwd=self.world.project, env=self.world.environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def nothing_is_left(self) -> None:
        """Every run is over."""
        client = self.world.client()
        eventually(lambda: all(run.state in RUN_TERMINAL for run in client.runs()), within=60)

    @property
    def runs(self) -> list[Run]:
        """Those of this program, newest first."""
        folder = str(self.world.project)
        return [run for run in self.world.client().runs() if run.spec.code.in_place == folder]

    @property
    def newest(self) -> Run:
        return self.runs[0]

    def marked(self, name: str) -> str:
        """What was marked by this name, once something was."""
        path = self.marks / name
        eventually(path.exists, within=60)
        return path.read_text()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One control plane for all: its start takes longer than most of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(tmp_path_factory.mktemp("machine"))
        patch.setenv("WHERRY_HOME", str(world.home))
        yield world
        world.close()


@pytest.fixture
def program(machine: World, tmp_path: Path) -> Program:
    machine.project = tmp_path / "project"
    machine.project.mkdir()
    return Program(machine)


def test_a_map_from_a_script_gives_its_results_and_the_run_succeeds(program: Program) -> None:
    printed = program.run(
        "offset = 100\nprint(sum(wherry.map(lambda x: x * x + offset, range(1000), workers=2)))\n"
    )
    assert int(printed) == sum(x * x + 100 for x in range(1000))
    run = program.newest
    assert run.state == "succeeded"
    assert (run.spec.group, run.spec.workers) == ("pool", 2)


def test_a_function_of_a_module_and_its_classes_come_back_as_they_are(program: Program) -> None:
    program.world.write(
        "shapes.py",
        "class Square:\n"
        "    def __init__(self, side): self.side = side\n"
        "def area(square): return square.side ** 2, square\n",
    )
    printed = program.run(
        "import shapes\n"
        "found = list(wherry.map(shapes.area, [shapes.Square(n) for n in range(5)], workers=2))\n"
        "print([a for a, s in found if isinstance(s, shapes.Square)])\n"
    )
    assert printed == "[0, 1, 4, 9, 16]\n"


def test_a_worker_killed_in_the_middle_is_replaced_and_its_items_are_done_again_once(
    program: Program,
) -> None:
    program.run(
        "def work(x):\n"
        "    if x == 37 and not marked('killed'):\n"
        "        mark('killed')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    mark(f'done{x}')\n"
        "    time.sleep(0.002)\n"
        "    return x\n"
        "assert list(wherry.map(work, range(150), workers=2)) == list(range(150))\n"
    )
    done = Counter({x: len(program.marked(f"done{x}")) for x in range(150)})
    assert set(done.values()) <= {1, 2}
    assert done[37] == 1
    run = program.newest
    assert run.state == "succeeded"
    [attempt] = program.world.client().run(run.id).attempts
    assert sum(rank.incarnation for rank in attempt.ranks) == 3


@pytest.mark.slow
def test_an_item_that_kills_every_worker_is_named_and_the_others_are_done(
    program: Program,
) -> None:
    printed = program.run(
        "def work(x):\n"
        "    if x == 3:\n"
        "        mark('tried')\n"
        "        os._exit(9)\n"
        "    return x\n"
        "print(*wherry.map(work, range(6), workers=2, errors='return'), sep='\\n')\n"
    )
    lines = printed.splitlines()
    assert [line for line in lines if line.isdigit()] == ["0", "1", "2", "4", "5"]
    assert "3 workers died over item 3: exited with status 9" in printed
    assert program.marked("tried") == "xxx"


@pytest.mark.slow
@pytest.mark.parametrize("items", ["range(40)", "[2]"])
def test_a_map_that_an_error_ended_says_so_and_blames_nobody(items: str, program: Program) -> None:
    program.run(
        "def odd(x):\n"
        "    if x == 2:\n"
        "        raise ValueError('two is even')\n"
        f"try: list(wherry.map(odd, {items}, workers=2))\n"
        "except ValueError: pass\n"
    )
    over = program.newest
    assert over.state == "stopped" and over.verdict is not None
    assert over.verdict.message.endswith("of the map raised ValueError: two is even")
    told = [str(fact) for fact in explain(program.world.client().run(over.id))]
    assert not any("a person" in text for text in told)
    assert any("it was told to stop: item" in text for text in told)


@pytest.mark.slow
def test_a_map_outlives_its_control_plane_and_counts_every_item_once(world: World) -> None:
    program = Program(world)
    process = program.start(
        "def work(x):\n"
        "    mark(f'begun{x}')\n"
        "    wait_for('go')\n"
        "    mark(f'done{x}')\n"
        "    return x\n"
        "print(list(wherry.map(work, range(30), workers=2)))\n"
    )
    try:
        program.marked("begun0")
        world.kill_server(signal.SIGKILL)
        (program.marks / "go").touch()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert out == f"{list(range(30))}\n", err
    assert {len(program.marked(f"done{x}")) for x in range(30)} == {1}
    program.nothing_is_left()


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_running(make_world: Callable[..., World]) -> None:
    world = make_world(driver_lease="2")
    program = Program(world)
    process = program.start(
        "def work(x):\n"
        "    mark('begun')\n"
        "    time.sleep(600)\n"
        "list(wherry.map(work, range(4), workers=2))\n"
    )
    program.marked("begun")
    process.kill()
    process.communicate()
    program.nothing_is_left()
    assert program.newest.state == "stopped"


def test_ctrl_c_stops_the_workers_in_the_middle(program: Program) -> None:
    process = program.start(
        "def work(x):\n"
        "    mark('begun')\n"
        "    time.sleep(600)\n"
        "    mark('ended')\n"
        "list(wherry.map(work, range(4), workers=2))\n"
    )
    program.marked("begun")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err
    assert process.returncode == -signal.SIGINT
    program.nothing_is_left()
    assert not (program.marks / "ended").exists()


def test_a_map_that_is_dropped_and_an_executor_that_is_left_open_leave_nothing(
    program: Program,
) -> None:
    printed = program.run(
        "results = wherry.map(time.sleep, [600, 600], workers=1)\n"
        "executor = wherry.Executor(1)\n"
        "future = executor.submit(pow, 2, 5)\n"
        "future.add_done_callback(lambda f: print('in the end', f.result()))\n"
    )
    assert printed == "in the end 32\n"  # as other executors do


def test_a_task_over_its_time_is_an_error_and_its_worker_goes_on(program: Program) -> None:
    printed = program.run(
        "def work(x):\n"
        "    time.sleep(x)\n"
        "    return os.getpid()\n"
        "found = list(wherry.map(work, [0, 60, 0], workers=1, timeout=0.3, errors='return'))\n"
        "print(found[0] == found[2], repr(found[1]))\n"
    )
    assert printed == "True TimeoutError('the task took longer than 0.3 s')\n"


def test_an_initializer_that_raises_ends_it_with_that(program: Program) -> None:
    printed = program.run(
        "def prepare(name):\n"
        "    raise KeyError(name)\n"
        "try:\n"
        "    with wherry.Executor(2, initializer=prepare, initargs=('data',)) as executor:\n"
        "        executor.submit(abs, -1).result()\n"
        "except wherry.errors.WorkerLost as error:\n"
        "    print(error)\n"
    )
    assert printed == "the initializer raised KeyError: 'data'\n"


@pytest.mark.slow
def test_workers_that_die_as_they_start_are_not_started_for_ever(program: Program) -> None:
    printed = program.run(
        "try:\n"
        "    with wherry.Executor(1, initializer=os._exit, initargs=(3,)) as executor:\n"
        "        executor.submit(abs, -1).result()\n"
        "except wherry.errors.WorkerLost as error:\n"
        "    print(error.message)\n"
    )
    assert "die as soon as they start" in printed


def test_an_executor_does_what_concurrent_futures_promises(program: Program) -> None:
    printed = program.run(
        "import concurrent.futures as cf\n"
        "import json\n"
        "def slow(x):\n"
        "    time.sleep(0.05)\n"
        "    return x\n"
        "def scenario(executor):\n"
        "    seen = {}\n"
        "    with executor:\n"
        "        seen['map'] = list(executor.map(pow, [2, 3, 4], [5, 2]))\n"
        "        futures = [executor.submit(slow, n) for n in range(40)]\n"
        "        seen['cancels the last'] = futures[-1].cancel()\n"
        "        seen['cancels it again'] = futures[-1].cancel()\n"
        "        done, waiting = cf.wait(futures, timeout=60)\n"
        "        seen['all'] = sorted(f.result() for f in done if not f.cancelled())\n"
        "        seen['waiting'] = len(waiting)\n"
        "        seen['cancels what is done'] = futures[0].cancel()\n"
        "        error = executor.submit(divmod, 1, 0).exception(timeout=60)\n"
        "        seen['error'] = [type(error).__name__, str(error)]\n"
        "        called = []\n"
        "        executor.submit(abs, -1).add_done_callback(lambda f: called.append(f.result()))\n"
        "        late = [executor.submit(slow, n) for n in range(10)]\n"
        "    seen['called'] = called\n"
        "    seen['the block waits'] = all(f.done() for f in late)\n"
        "    try:\n"
        "        executor.submit(abs, 1)\n"
        "    except RuntimeError as error:\n"
        "        seen['after'] = 'cannot schedule new futures after shutdown' in str(error)\n"
        "    executor.shutdown()\n"
        "    return seen\n"
        "if __name__ == '__main__':\n"
        "    print(json.dumps(scenario(wherry.Executor(2))))\n"
        "    print(json.dumps(scenario(cf.ProcessPoolExecutor(2))))\n"
    )
    ours, theirs = map(json.loads, printed.splitlines())
    assert ours == theirs
    assert ours["the block waits"] and ours["cancels the last"] and ours["after"]


@pytest.mark.slow
def test_a_shutdown_may_cancel_what_has_not_begun(program: Program) -> None:
    printed = program.run(
        "executor = wherry.Executor(1)\n"
        "futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]\n"
        "futures[0].result()\n"
        "executor.shutdown(cancel_futures=True)\n"
        "print(all(f.done() for f in futures), sum(f.cancelled() for f in futures) > 30)\n"
    )
    assert printed == "True True\n"


def test_workers_have_their_share_of_the_cores_and_know_no_wherry_but_the_users(
    program: Program,
) -> None:
    printed = program.run(
        "def look(_):\n"
        "    return os.environ.get('OMP_NUM_THREADS'), 'wherry' in sys.modules, "
        "os.environ.get('MASTER_ADDR')\n"
        "print(set(wherry.map(look, range(8), workers=2)))\n"
    )
    cores = len(os.sched_getaffinity(0))
    assert printed == f"{{('{max(1, cores // 2)}', False, None)}}\n"


@pytest.mark.parametrize("size", [20_000_000, pytest.param(10**9, marks=pytest.mark.slow)])
def test_a_large_argument_is_sent_once_and_not_copied_about(program: Program, size: int) -> None:
    printed = program.run(
        "import resource\n"
        f"size = {size}\n"
        "data = bytes(size)\n"
        "def work(item):\n"
        "    data, n = item\n"
        "    return len(data) + n\n"
        "print(list(wherry.map(work, [(data, n) for n in range(4)], workers=2)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    results, peak = printed.splitlines()
    assert json.loads(results) == [size + n for n in range(4)]
    if size == 10**9:
        assert int(peak) < 1.5 * size


JOBLIB = """
import json, warnings
import joblib, numpy, wherry.joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

X, y = load_digits(return_X_y=True)
X, y = X[:600], y[:600]

def search(**options):
    found = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.001, 0.01]}, cv=3, **options).fit(X, y)
    return found.best_params_, found.cv_results_["mean_test_score"].tolist()
"""


@pytest.mark.slow
def test_scikit_learn_runs_on_it_unchanged(program: Program) -> None:
    printed = program.run(
        JOBLIB + "alone = search(), cross_val_score(SVC(), X, y).tolist()\n"
        "with joblib.parallel_config('wherry', n_jobs=2):\n"
        "    together = search(), cross_val_score(SVC(), X, y).tolist()\n"
        "print(alone == together)\n"
    )
    assert printed == "True\n"
    run = program.newest  # the workers stayed warm from one to the other
    assert len(program.runs) == 1
    assert (run.name, run.state) == ("joblib", "succeeded")


@pytest.mark.slow
def test_joblib_tasks_share_arrays_raise_their_errors_and_do_not_multiply(
    program: Program,
) -> None:
    printed = program.run(
        JOBLIB + "from joblib import Parallel, delayed\n"
        "big = numpy.arange(300_000.0)\n"
        "def total(array, n):\n"
        "    array[0] = n  # its own: the others do not see it\n"
        "    return array.sum()\n"
        "def nested(n):\n"
        "    pids = Parallel(n_jobs=4)(delayed(os.getpid)() for _ in range(8))\n"
        "    return len(set(pids)) == 1 and pids[0] == os.getpid()\n"
        "def wrong(n):\n"
        "    if n == 7:\n"
        "        raise ZeroDivisionError(n)\n"
        "    return n\n"
        "with joblib.parallel_backend('wherry', n_jobs=2):\n"
        "    found = Parallel()(delayed(total)(big, n) for n in range(12))\n"
        "    print([n == int(f - big[1:].sum()) for n, f in enumerate(found)].count(True))\n"
        "    print(all(Parallel()(delayed(nested)(n) for n in range(4))))\n"
        "    try:\n"
        "        Parallel()(delayed(wrong)(n) for n in range(100))\n"
        "    except ZeroDivisionError as error:\n"
        "        print('raised', error)\n"
        "    print(Parallel()(delayed(abs)(-n) for n in range(3)))\n"
        "    print(sorted(Parallel(return_as='generator_unordered')(delayed(abs)(-n) "
        "for n in range(3))))\n"
    )
    assert printed.splitlines() == ["12", "True", "raised 7", "[0, 1, 2]", "[0, 1, 2]"]
