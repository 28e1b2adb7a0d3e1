"""The agent's main promises, on every Python that it runs on."""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest

from tests.unit.agent_rank import Rank, interpreters
from wherry.agent import protocol
from wherry.testing.sink import AgentSink

STDERR = protocol.STDERR


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


@pytest.fixture(params=interpreters())
def every(request: pytest.FixtureRequest, tmp_path: Path, sink: AgentSink) -> Iterator[Rank]:
    """A rank on each Python."""
    rank = Rank(tmp_path, sink, python=request.param)
    yield rank
    rank.kill()


@pytest.fixture
def rank(tmp_path: Path, sink: AgentSink) -> Iterator[Rank]:
    made = Rank(tmp_path, sink)
    yield made
    made.kill()


def test_a_run_reports_its_output_its_phases_and_its_end(every: Rank) -> None:
    end = every.run("import sys; print('out'); print('err', file=sys.stderr)")
    assert every.log() == b"out\n" and every.log(STDERR) == b"err\n"
    assert (end["state"], end["exit_code"], end["signal"], end["cause"]) == (
        "succeeded",
        0,
        None,
        "",
    )
    phases = every.sink.payloads(protocol.PHASE, every.attempt)
    assert [p["phase"] for p in phases] == ["bundle", "environment", "barrier", "run", "upload"]
    kinds = [f.kind for f in every.sink.frames(every.attempt)]
    assert protocol.STARTED in kinds and kinds[-1] == protocol.EXIT
    assert (every.folder / "lock").read_text().endswith(" left")


def test_exit_status_signal_and_last_lines_are_told_apart(every: Rank) -> None:
    end = every.run("import sys; print('a'); print('why', file=sys.stderr); sys.exit(3)")
    assert (end["state"], end["exit_code"], end["signal"], end["cause"]) == (
        "failed",
        3,
        None,
        "exit",
    )
    assert end["last_lines"] == ["why"]


def test_a_signal_is_no_exit_status(rank: Rank) -> None:
    end = rank.run("import os; os.kill(os.getpid(), 9)")
    assert (end["exit_code"], end["signal"], end["cause"]) == (None, signal.SIGKILL, "signal")
    assert end["message"].startswith("killed by SIGKILL\nhint: ")


def test_import_wherry_works_without_installation(every: Rank) -> None:
    every.config["spec"]["command"] = ["python", "-S", "script.py", "--lr", "0.5"]
    every.run(
        "import wherry\n"
        "wherry.report(3, loss=0.5, acc=float('nan'))\n"
        "wherry.report(loss=float('inf'))\n"
        "print(wherry.params(), wherry.rank(), wherry.world_size())\n"
        "(wherry.output_dir / 'model.txt').write_text('m')\n"
        "(wherry.checkpoint_dir / 'last').write_text('c')\n"
        "try: wherry.run\n"
        "except AttributeError as error: print(error)\n"
    )
    words = every.log().decode()
    assert words.startswith("{'lr': 0.5} 0 1\nwherry.run is not there inside this run"), words
    points = every.sink.metrics(every.attempt)
    assert points["loss"] == [(3, 0.5), (0, float("inf"))]
    assert points["acc"][0][0] == 3 and points["acc"][0][1] != points["acc"][0][1]
    assert every.sink.payloads(protocol.PARAMS, every.attempt) == [{"lr": 0.5}]
    assert (Path(every.config["checkpoints"]) / "last").read_text() == "c"


def test_reports_survive_a_sigkill_right_after_them(rank: Rank) -> None:
    rank.run(
        "import os, wherry\nfor i in range(1000): wherry.report(i, x=i)\nos.kill(os.getpid(), 9)\n"
    )
    assert rank.sink.metrics(rank.attempt)["x"] == [(i, float(i)) for i in range(1000)]


def test_forked_processes_report_whole_lines(rank: Rank) -> None:
    rank.run(
        "import os, wherry\n"
        "wherry.report(0, parent=1)\n"
        "for child in range(4):\n"
        "    if os.fork() == 0:\n"
        "        for i in range(500): wherry.report(i, **{f'c{child}': i})\n"
        "        os._exit(0)\n"
        "for child in range(4): os.wait()\n"
    )
    points = rank.sink.metrics(rank.attempt)
    assert {name: len(column) for name, column in points.items()} == {
        "parent": 1, "c0": 500, "c1": 500, "c2": 500, "c3": 500,
    }  # fmt: skip


def test_a_character_cut_in_two_and_binary_output_arrive_as_they_were(every: Rank) -> None:
    data = bytes(range(256)) * 20 + b"\n" + "ö€😀".encode() + b"\xff\xfe end without newline"
    every.run(
        "import os, time\n"
        f"data = {data!r}\n"
        "for at in range(0, len(data), 997):\n"
        "    os.write(1, data[at:at + 997]); time.sleep(0.001)\n"
    )
    assert every.log() == data


def test_a_line_of_five_megabytes_stays_one_line(rank: Rank) -> None:
    rank.run("import sys; sys.stdout.write('x' * 5_000_000 + '\\n' + 'y\\n')")
    frames = [f for f in rank.sink.frames(rank.attempt) if f.kind == protocol.LOG]
    assert rank.log() == b"x" * 5_000_000 + b"\ny\n"
    assert all(f.payload.endswith(b"\n") for f in frames)


def test_a_million_lines_arrive_complete_and_in_order(rank: Rank) -> None:
    rank.run(
        "import sys\n"
        "for at in range(0, 1_000_000, 1000):\n"
        "    sys.stdout.write(''.join(f'{i}\\n' for i in range(at, at + 1000)))\n"
    )
    assert rank.log() == b"".join(b"%d\n" % i for i in range(1_000_000))


def test_metrics_are_read_from_output_by_strict_numbers(rank: Rank) -> None:
    rank.config["spec"]["metrics"] = {
        "acc": {"pattern": r"acc=(\S+)", "from": "stdout"},
        "loss": {"pattern": r"loss: (\S+)", "from": "stderr"},
    }
    rank.run(
        "import sys\n"
        "for v in ('0.5', '1e-3', 'nan', '-inf', '0.5.', '1_0', 'high', '+7'):\n"
        "    print('epoch acc=' + v); print('loss: ' + v, file=sys.stderr)\n"
        "print('loss: 1')\n"
    )
    points = rank.sink.metrics(rank.attempt)
    assert [step for step, _ in points["acc"]] == [0, 1, 2, 3, 4]
    assert repr([v for _, v in points["acc"]]) == "[0.5, 0.001, nan, -inf, 7.0]"
    assert repr([v for _, v in points["loss"]]) == "[0.5, 0.001, nan, -inf, 7.0]"


def test_the_use_of_the_machine_is_seen(rank: Rank) -> None:
    rank.start("x = bytearray(50_000_000)\nwhile True: pass\n")
    rank.sink.wait(lambda: "cpu" in rank.sink.metrics(rank.attempt, kind=protocol.USAGE))
    rank.stop()
    rank.wait()
    usage = rank.sink.metrics(rank.attempt, kind=protocol.USAGE)
    assert usage["memory"][0][1] > 50_000_000 and 0 < usage["cpu"][0][1] < 4


def test_a_program_over_its_memory_is_killed_and_the_cause_says_so(rank: Rank) -> None:
    rank.config["limits"] = {"memory": 64 * 2**20, "cgroup": []}
    rank.config["spec"]["resources"] = {"memory": 64 * 2**20}
    end = rank.run("import time\nx = b'x' * 200_000_000\ntime.sleep(60)\n")
    assert (end["state"], end["cause"]) == ("failed", "oom")
    assert "64 MiB" in end["message"] and "hint: give it more with --memory" in end["message"]


def test_a_missing_command_and_a_missing_interpreter_have_words(
    tmp_path: Path, sink: AgentSink
) -> None:
    end = Rank(tmp_path, sink, spec={"command": ["no-such-program"]}).run()
    assert end["cause"] == "start" and "no-such-program" in end["message"]
    gone = {"environment": {"python": str(tmp_path / "gone")}}
    end = Rank(tmp_path, sink, run="r2", spec=gone).run()
    assert end["cause"] == "environment" and str(tmp_path / "gone") in end["message"]


def test_the_environment_and_arguments_keep_their_characters(rank: Rank) -> None:
    rank.config["spec"]["env"] = {"GREETING": "grüß 😀"}
    rank.config["spec"]["command"] += ["żółw"]
    rank.run("import os, sys; os.write(1, (os.environ['GREETING'] + sys.argv[1]).encode())")
    assert rank.log().decode() == "grüß 😀żółw"


def test_output_files_are_kept_and_links_out_are_not(rank: Rank) -> None:
    rank.run(
        "import os, wherry\n"
        "out = wherry.output_dir\n"
        "(out / 'a').mkdir(); (out / 'a' / 'b.bin').write_bytes(b'123')\n"
        "os.symlink('/etc/hostname', out / 'leak'); os.mkfifo(out / 'pipe')\n"
        "os.symlink('a/b.bin', out / 'inside')\n"
    )
    files = {f["path"]: f for f in rank.sink.payloads(protocol.FILE, rank.attempt)}
    assert set(files) == {"a/b.bin", "inside"}
    digest = hashlib.sha256(b"123").hexdigest()
    assert files["a/b.bin"]["digest"] == digest and rank.sink.blobs[digest] == b"123"
    said = rank.log(protocol.SYSTEM).decode()
    assert "leak is not kept" in said and "pipe is not kept" in said


# --- functions


def call(rank: Rank, payload: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """EXIT and the result of a call."""
    digest = rank.sink.put(cloudpickle.dumps(payload, protocol=5))
    rank.config["spec"] |= {"call": {"payload": digest}, "command": []}
    end = rank.run()
    (result,) = rank.sink.payloads(protocol.RESULT, rank.attempt)
    return end, pickle.loads(rank.sink.blobs[result["digest"]])


def test_a_function_by_name_returns_its_value(every: Rank) -> None:
    (every.work / "mine.py").write_text("def add(a, *, b):\n    return a + b\n")
    end, result = call(every, ("mine:add", (1,), {"b": 2}))
    assert end["state"] == "succeeded" and result == {"ok": True, "value": 3}


def test_a_function_by_value_returns_its_value(rank: Rank) -> None:
    factor = 6
    _, result = call(rank, (lambda x: x * factor, (7,), {}))
    assert result == {"ok": True, "value": 42}


def test_an_exception_comes_back_with_its_traceback(every: Rank) -> None:
    (every.work / "mine.py").write_text("def no(x):\n    raise ValueError(f'no {x}')\n")
    end, result = call(every, ("mine:no", ("way",), {}))
    assert (end["cause"], end["message"], end["exit_code"]) == (
        "exception",
        "ValueError: no way, at mine.py:2",
        1,
    )
    assert "ValueError: no way" in end["last_lines"]
    assert (result["ok"], result["type"], result["message"]) == (False, "ValueError", "no way")
    assert 'mine.py", line 2, in no' in result["traceback"]
    assert "wherry_call" not in result["traceback"]
    assert repr(pickle.loads(result["exception"])) == "ValueError('no way')"


def test_a_result_that_cannot_be_pickled_has_words(rank: Rank) -> None:
    (rank.work / "mine.py").write_text("def gen():\n    return (i for i in ())\n")
    end, result = call(rank, ("mine:gen", (), {}))
    assert end["cause"] == "exception"
    assert "returned a generator, which cannot be pickled" in result["message"]


def test_the_agent_runs_nothing_twice(rank: Rank) -> None:
    rank.run("print('once')")
    before = len(rank.sink.frames(rank.attempt))
    rank.start()
    assert rank.wait() == 0
    assert len(rank.sink.frames(rank.attempt)) == before


def test_the_zip_is_the_same_every_time_and_holds_what_is_added(tmp_path: Path) -> None:
    from wherry.agent import package

    assert package.build_zip() == package.build_zip()
    unpacked = package.unpack(package.build_zip({"extra.txt": b"x"}), tmp_path)
    assert (unpacked.parent / "extra.txt").read_bytes() == b"x"
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == json.dumps(
        [unpacked.parent.name]
    )
