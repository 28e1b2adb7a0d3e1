"""``wherry.run`` against the real control plane: real agents, real processes, real results."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import wherry
from wherry import errors
from wherry.core.job import Environment
from wherry.sdk import connect as sdk
from wherry.sdk.submit import Draft, from_run, prepare, send
from wherry.testing.waiting import eventually

WAIT = 60.0

TRAIN = """
import sys, wherry
print("rank", wherry.rank(), "of", wherry.world_size(), sys.argv[1:])
print("to stderr", file=sys.stderr)
wherry.report(step=1, loss=0.5, bad=float("nan"))
(wherry.output_dir / "model.txt").write_text(f"model of {wherry.rank()}")
(wherry.output_dir / "deep").mkdir()
(wherry.output_dir / "deep" / "x.bin").write_bytes(bytes(range(256)))
"""

STEPS = """
import helper

class Odd(Exception):
    pass

def total(*numbers, start=0):
    print("adding", len(numbers))
    return helper.add(numbers, start)

def refuse(x):
    raise Odd(f"not {x}")

def refuse_on(rank):
    import wherry, time
    if wherry.rank() == rank:
        raise ValueError(f"rank {rank} refuses")
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One control plane for all tests of this file."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in os.environ if n.startswith("WHERRY_")]:
            patch.delenv(name)
        patch.setenv("WHERRY_HOME", str(folder))
        yield folder
        client = sdk.connect()
        for run in client.runs():
            if not run.finished:
                client.stop(run.id, grace=0.1)
                client.wait(run.id, WAIT)
        sdk.stop_server(folder)


@pytest.fixture
def project(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project, the current folder, importable."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "helper.py").write_text(
        "def add(numbers, start):\n    return sum(numbers, start)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("steps", "helper"):
        sys.modules.pop(name, None)


def test_a_script_runs_and_all_it_said_and_kept_is_there(project: Path) -> None:
    run = wherry.run("train.py", "--epochs", 3, tags=["a"], params={"depth": 2})
    texts = [str(line) for line in run.logs(follow=True)]
    assert "rank 0 of 1 ['--epochs', '3']" in texts and "to stderr" in texts
    assert [str(line) for line in run.logs(stream="stderr")] == ["to stderr"]
    assert run.result(WAIT) is None
    assert run.state == "succeeded" and run.spec.tags == ("a",)
    detail = run.detail()
    assert {"epochs": 3, "depth": 2}.items() <= detail.params.items()
    assert {s.name: repr(s.values) for s in run.metrics()} == {"loss": "[0.5]", "bad": "[nan]"}
    assert [s.name for s in run.metrics("loss", rank=0)] == ["loss"]
    assert {f.path for f in run.files()} == {"model.txt", "deep/x.bin"}


def test_its_files_are_copied_whole_or_one_by_one(project: Path) -> None:
    run = wherry.run("train.py", workers=2).wait(WAIT)
    out = project / "out"
    written = run.download(out)
    assert {p.relative_to(out).as_posix() for p in written} == {
        "model.txt", "deep/x.bin", "rank-1/model.txt", "rank-1/deep/x.bin",
    }  # fmt: skip
    assert (out / "rank-1/model.txt").read_text() == "model of 1"
    assert (out / "deep/x.bin").read_bytes() == bytes(range(256))
    one = run.download(project / "one", "deep/x.bin")
    assert project / "one/deep/x.bin" in one and not (project / "one/model.txt").exists()
    with pytest.raises(errors.NotFound, match=r"'model\.bin'") as caught:
        run.download(out, "model.bin")
    assert "model.txt" in caught.value.hint


def test_a_module_and_a_job_file_run(project: Path) -> None:
    (project / "job.yaml").write_text("command: python train.py a\nworkers: 2\nname: from-file")
    job = wherry.run("job.yaml", note="n")
    module = wherry.run("x y", module="train")
    for run in (job, module):
        assert run.result(WAIT) is None
    assert (job.name, job.spec.workers, job.spec.note) == ("from-file", 2, "n")
    assert module.spec.command == ("python", "-m", "train", "x y")


def test_a_jobspec_runs_in_a_copy_of_the_project_with_what_it_says(project: Path) -> None:
    spec = wherry.JobSpec(command=("python", "train.py"), name="by-spec", workers=2, tags=("a",))
    run = wherry.run(spec, "--epochs", 3, tags=["b"])
    run.wait(WAIT)
    assert run.state == "succeeded", run.verdict
    assert (run.name, run.spec.workers, run.spec.tags) == ("by-spec", 2, ("b",))
    assert run.spec.code.bundle and not run.spec.code.in_place
    assert "rank 1 of 2 ['--epochs', '3']" in {line.text for line in run.logs()}


def test_a_client_takes_a_jobspec_as_it_is(project: Path) -> None:
    client = wherry.connect()
    python = Environment(python=sys.executable)
    made = client.submit(wherry.JobSpec(command=("python", "-c", ""), environment=python))
    assert client.wait(made.id, WAIT).state == "succeeded"


def test_a_function_of_a_module_returns_its_value(project: Path) -> None:
    import steps  # type: ignore[import-not-found]

    run = wherry.run(steps.total, 1, 2, start=10)
    assert run.result(WAIT) == 13
    assert "adding 2" in [line.text for line in run.logs()]
    assert run.name == "total"


def test_a_closure_returns_its_value_from_rank_0(project: Path) -> None:
    factor = 3

    def work(x: int) -> tuple[int, int]:
        return x * factor, wherry.rank()

    assert wherry.run(work, 14, workers=2).result(WAIT) == (42, 0)


def test_an_exception_comes_back_as_what_it_was_with_its_traceback(project: Path) -> None:
    import steps

    run = wherry.run(steps.refuse, 7)
    with pytest.raises(steps.Odd, match="not 7") as caught:
        run.result(WAIT)
    assert 'raise Odd(f"not {x}")' in str(caught.value.__cause__)
    assert run.state == "failed" and run.verdict is not None
    assert (run.verdict.cause, run.verdict.rank) == ("exception", 0)


def test_the_exception_is_that_of_the_rank_that_failed_first(project: Path) -> None:
    import steps

    with pytest.raises(ValueError, match="rank 1 refuses"):
        wherry.run(steps.refuse_on, 1, workers=2).result(WAIT)


def test_a_failed_script_is_told_with_its_last_lines(project: Path) -> None:
    (project / "bad.py").write_text("print('before')\nraise SystemExit('out of luck')")
    run = wherry.run("bad.py")
    with pytest.raises(errors.RunFailed, match="out of luck") as caught:
        run.result(WAIT)
    assert run.id in caught.value.message and "wherry logs" in caught.value.hint


def test_waiting_has_an_end_and_stopping_ends_the_run(project: Path) -> None:
    (project / "slow.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)")
    run = wherry.run("slow.py")
    assert next(run.logs(follow=True)).text == "up"
    with pytest.raises(errors.WaitTimeout):
        run.result(timeout=0.1)
    run.stop(grace=5).stop()
    assert run.wait(WAIT).state == "stopped"
    with pytest.raises(errors.RunFailed, match="was stopped"):
        run.result()


@pytest.mark.slow
def test_following_goes_on_over_a_crash_of_the_control_plane(project: Path, home: Path) -> None:
    go = project / "go"
    (project / "count.py").write_text(
        "import os, sys, time\n"
        "for n in range(2000): print(n, flush=n % 100 == 0)\n"
        "sys.stdout.flush()\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.02)\n"
        "for n in range(2000, 4000): print(n)\n"
    )
    run = wherry.run("count.py")
    lines = run.logs(follow=True)
    seen = [next(lines).text for _ in range(1000)]
    info = sdk.find_server(home)
    assert info is not None
    os.kill(info.pid, signal.SIGKILL)
    eventually(lambda: sdk.find_server(home) is None)
    go.touch()
    seen += [line.text for line in lines]
    assert seen == [str(n) for n in range(4000)]
    assert run.result(WAIT) is None


def test_a_run_again_has_the_code_of_then(project: Path) -> None:
    first = wherry.run("train.py", "first").wait(WAIT)
    (project / "train.py").write_text("raise SystemExit('edited')")
    client = sdk.connect()
    draft = from_run(client.run(first.id), Draft(words=("again",)))
    again = wherry.Run(client, send(client, prepare(draft)))
    assert again.result(WAIT) is None
    assert "rank 0 of 1 ['again']" in [line.text for line in again.logs()]
    assert again.detail().run.parent == first.id


def test_a_script_that_submits_is_told_to_be_started_without_us(project: Path) -> None:
    (project / "nested.py").write_text("import wherry\nwherry.run('train.py')")
    run = wherry.run("nested.py")
    with pytest.raises(errors.RunFailed):
        run.result(WAIT)
    said = "\n".join(line.text for line in run.logs())
    assert "NestedSubmit" in said and "python nested.py" in said and "__main__" not in said


def test_a_module_that_submits_when_a_rank_imports_it_is_told_how_to_guard_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import wherry\ndef work():\n    return 1\n"
    (project / "guarded.py").write_text(text)
    monkeypatch.syspath_prepend(project)
    work = importlib.import_module("guarded").work
    (project / "guarded.py").write_text(text + "wherry.run(work)\n")
    with pytest.raises(errors.NestedSubmit) as caught:
        wherry.run(work).result(WAIT)
    assert 'if __name__ == "__main__":' in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("wherry.run('train.py', worker=2)", "no option 'worker'.*'workers'"),
        ("wherry.run()", "nothing to run"),
        ("wherry.run('trian.py')", "'train.py'"),
        ("wherry.run('train.py', timeout='soon')", "timeout: 'soon'"),
        ("wherry.run(len, [], [])", "len"),
        ("wherry.run('train.py', on='moon')", "no context 'moon'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_submitted(
    call: str, words: str, project: Path
) -> None:
    before = len(sdk.connect().runs(limit=1000))
    with pytest.raises(errors.WherryError, match=f"(?s){words}"):
        eval(call, {"wherry": wherry})
    assert len(sdk.connect().runs(limit=1000)) == before


def test_a_handle_shows_itself_and_escapes_what_it_shows(project: Path) -> None:
    run = wherry.run("train.py", name="<b>").wait(WAIT)
    assert repr(run) == f"<Run {run.id} '<b>' succeeded>"
    page = run._repr_html_()
    assert "&lt;b&gt;" in page and "<b>" not in page


@pytest.mark.slow
def test_functions_of_the_prompt_work_and_leave_signals_alone(project: Path) -> None:
    """As in a REPL or a notebook: code without a file, a running event loop, signal handlers."""
    code = """
import asyncio, json, signal, wherry
before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
scale = 2
def area(r):
    return scale * r
async def cell():
    return wherry.run(area, 21).result(60)
value = asyncio.run(cell())
after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
print(json.dumps([value, before == after]))
"""
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [42, True]
