"""
Faults are normal: what is acknowledged is kept, what is counted is counted once, nothing is left.

Evidence that does not come from the control plane: every attempt appends to a file of its own.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import World, alive
from tests.small_disk import may_mount
from wherry.core.api import Submit
from wherry.core.job import Code, Environment, JobSpec
from wherry.errors import WherryError
from wherry.sdk.client import new_key
from wherry.testing.waiting import eventually


def spec(world: World, script: str, **fields: object) -> JobSpec:
    """A run of a script in the project folder, without a bundle."""
    return JobSpec(
        command=("python", script),
        code=Code(in_place=str(world.project)),
        environment=Environment(kind="active", python=sys.executable),
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_many_commands_at_once_start_one_server(world: World) -> None:
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda _: world.json("status")["pid"], range(6)))
    assert len(set(seen)) == 1


@pytest.mark.slow
def test_a_second_server_for_the_same_home_says_so_and_leaves(world: World) -> None:
    world.client()
    second = subprocess.run(
        [sys.executable, "-m", "wherry.server", "--home", str(world.home)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=world.environ,
    )
    assert second.returncode == 75 and "another process serves" in second.stderr


@pytest.mark.slow
def test_what_a_crashed_server_left_behind_stops_nobody(world: World) -> None:
    world.client()
    before = world.server()
    world.kill_server()
    (world.home / "server.json").write_text('{"torn": ')
    assert before is not None and world.json("status")["pid"] != before.pid


@pytest.mark.slow
def test_a_restarted_server_keeps_its_port_unless_it_is_taken(world: World) -> None:
    world.client()
    first = world.server()
    assert first is not None
    world.cli("down")
    assert world.json("status")["url"] == first.url
    world.cli("down")
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(first.url.rpartition(":")[2])))
        squatter.listen()
        assert world.json("status")["url"] != first.url


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_with_words(
    make_world: Callable[..., World],
) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        world = make_world(port=str(port))
        done = world.cli("up")
    assert done.returncode == 6
    assert f"port {port} is taken" in done.stderr and "hint:" in done.stderr


@pytest.mark.slow
def test_a_database_of_a_newer_wherry_is_refused_with_words(world: World) -> None:
    import sqlite3

    world.client()
    world.cli("down")
    with sqlite3.connect(world.home / "wherry.db") as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()
    done = world.cli("ps")
    assert done.returncode == 6 and "newer" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_200_runs_survive_a_server_that_is_killed_at_random_moments(world: World) -> None:
    world.write(
        "work.py",
        "import os, pathlib\n"
        "name = os.environ['WHERRY_RUN_ID'] + '-' + os.environ['WHERRY_ATTEMPT']\n"
        "pathlib.Path('ledger').mkdir(exist_ok=True)\n"
        "with open(f'ledger/{name}', 'a') as f: f.write('x')\n"
        "print('done', name)\n",
    )
    world.client()
    ledger: list[str] = []
    work = spec(world, "work.py")

    def submit(_: int) -> None:
        key = new_key()
        while True:
            try:
                ledger.append(world.client().submit(Submit(spec=work), key=key).id)
                return
            except WherryError:
                time.sleep(0.05)

    ready: list[float] = []
    chance = random.Random(3)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(submit, n) for n in range(200)]
        for _ in range(8):
            time.sleep(chance.uniform(0.1, 1.5))
            if world.server():
                world.kill_server()
                began = time.monotonic()
                world.client()
                ready.append(time.monotonic() - began)
        for job in jobs:
            job.result()
    assert len(set(ledger)) == 200
    for run_id in ledger:
        world.until(run_id, "succeeded", within=120)
    runs = world.client().runs(limit=1000)
    assert Counter(run.state.value for run in runs) == {"succeeded": 200}
    written = {path.name: path.read_text() for path in (world.project / "ledger").iterdir()}
    assert set(written) == {f"{run_id}-1" for run_id in ledger}
    assert set(written.values()) == {"x"}
    for run_id in ledger[::20]:
        lines = [line.text for line in world.client().logs(run_id, streams=("stdout",))]
        assert lines == [f"done {run_id}-1"]
    assert max(ready) < 10, ready


def test_a_run_outlives_the_servers_death_and_is_adopted(world: World) -> None:
    world.write(
        "slow.py",
        "import time, pathlib\nprint('one', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('two')\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "slow.py")))
    world.until(run.id, "running")
    world.kill_server()
    world.write("go", "")
    assert world.until(run.id, "succeeded").attempt == 1
    assert [line.text for line in world.client().logs(run.id)] == ["one", "two"]


def test_a_killed_agent_takes_its_program_along_and_the_run_is_lost(world: World) -> None:
    world.write(
        "stubborn.py",
        "import os, time, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "stubborn.py")))
    pid = int(eventually(lambda: read(world.project / "pid")))
    kill_agent(world, run.id, signal.SIGKILL)
    done = world.until(run.id, "lost")
    assert done.verdict is not None and done.verdict.cause == "agent-lost" and done.verdict.hint
    eventually(lambda: not alive(pid))


@pytest.mark.slow
def test_an_agent_frozen_past_its_lease_is_replaced_and_its_late_result_refused(
    make_world: Callable[..., World],
) -> None:
    world = make_world(lease="2", heartbeat="0.2", grace="1")
    world.write(
        "once.py",
        "import os, time, pathlib\n"
        "attempt = os.environ['WHERRY_ATTEMPT']\n"
        "print('attempt', attempt, flush=True)\n"
        "while attempt == '1' and not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "print('end of', attempt, flush=True)\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "once.py", restarts=1)))
    world.until(run.id, "running")
    eventually(lambda: list(world.client().logs(run.id)))
    pid = kill_agent(world, run.id, signal.SIGSTOP)
    done = world.until(run.id, "succeeded")
    world.write("go", "")
    if alive(pid):
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: not alive(pid))
    assert done.attempt == 2
    texts = [line.text for line in world.client().logs(run.id, streams=("stdout",))]
    assert texts.count("end of 2") == 1 and "end of 1" not in texts


@pytest.mark.slow
def test_a_script_that_forks_and_ignores_sigterm_leaves_nothing(world: World) -> None:
    world.write(
        "hydra.py",
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "code = 'import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "time.sleep(600)'\n"
        "for session in (False, True):\n"
        "    child = subprocess.Popen([sys.executable, '-c', code], start_new_session=session)\n"
        "    open('pids', 'a').write(f'{child.pid}\\n')\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    open('pids', 'a').write(f'{os.getpid()}\\n')\n"
        "    time.sleep(600)\n"
        "open('pids', 'a').write(f'{os.getpid()}\\n')\n"
        "time.sleep(600)\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "hydra.py", grace=0.5)))
    pids = eventually(
        lambda: found if len(found := read(world.project / "pids").split()) == 4 else None
    )
    world.client().stop(run.id)
    world.until(run.id, "stopped")
    eventually(lambda: not any(alive(int(pid)) for pid in pids))


@pytest.mark.slow
def test_a_million_lines_arrive_in_order_and_once(world: World) -> None:
    world.write("chatty.py", "for n in range(1_000_000): print(n)\n")
    run = world.client().submit(Submit(spec=spec(world, "chatty.py")))
    world.until(run.id, "succeeded", within=120)
    data = b"".join(world.client().raw_logs(run.id, streams=("stdout",)))
    assert data == b"".join(b"%d\n" % n for n in range(1_000_000))


@pytest.mark.slow
def test_binary_output_is_kept_byte_for_byte(world: World) -> None:
    world.write(
        "binary.py",
        "import sys\nsys.stdout.buffer.write(bytes(range(256)) * 5000 + 'ü'.encode()[:1])\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "binary.py")))
    world.until(run.id, "succeeded")
    data = b"".join(world.client().raw_logs(run.id, streams=("stdout",)))
    assert data == bytes(range(256)) * 5000 + "ü".encode()[:1]


@pytest.mark.slow
def test_a_full_disk_is_told_in_words_and_heals_when_space_returns(
    small_disk: Path, make_world: Callable[..., World]
) -> None:
    world = make_world()
    world.home.symlink_to(small_disk)
    world.write("hello.py", "print('hello')\n")
    first = world.client().submit(Submit(spec=spec(world, "hello.py")))
    world.until(first.id, "succeeded")
    ballast = small_disk / "ballast"
    with ballast.open("wb") as out:
        try:
            while True:
                out.write(b"x" * 65536)
                out.flush()
        except OSError:
            pass
    refused = world.cli("run", "--detach", "hello.py")
    assert refused.returncode != 0 and "space" in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    ballast.unlink()
    again = world.client().submit(Submit(spec=spec(world, "hello.py")))
    world.until(again.id, "succeeded")
    assert world.client().run(first.id).run.state == "succeeded"


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of 24 MB."""
    if not may_mount():
        pytest.skip("this process may not mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", folder], check=True
    )
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_wall_clock_that_jumps_ends_no_lease(make_world: Callable[..., World]) -> None:
    world = make_world(lease="5", heartbeat="0.2")
    world.write(
        "slow.py",
        "import time, pathlib\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n",
    )
    folder = world.project / "jump"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "real, began = time.time, time.monotonic()\n"
        "time.time = lambda: real() + (7200 if os.path.exists('%s') else 0)\n"
        % (world.project / "jumped")
    )
    world.environ["PYTHONPATH"] = str(folder)
    assert world.cli("up").returncode == 0
    run = world.client().submit(Submit(spec=spec(world, "slow.py")))
    world.until(run.id, "running")
    world.write("jumped", "")
    later = time.monotonic() + 1.0
    eventually(lambda: time.monotonic() > later)
    assert world.client().run(run.id).run.state == "running"
    world.write("go", "")
    assert world.until(run.id, "succeeded").attempt == 1


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def kill_agent(world: World, run_id: str, sig: int) -> int:
    """Send rank 0's agent a signal; its pid."""
    lock = world.home / "attempts" / f"{run_id}-1" / "0" / "lock"
    pid = int(eventually(lambda: read(lock).split())[0])
    os.kill(pid, sig)
    return pid


def test_no_token_is_in_any_command_line_environment_or_log(world: World) -> None:
    world.write(
        "slow.py",
        "import time, pathlib\nprint('x', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.01)\n",
    )
    run = world.client().submit(Submit(spec=spec(world, "slow.py")))
    world.until(run.id, "running")
    config = json.loads((world.home / "attempts" / f"{run.id}-1" / "0" / "config.json").read_text())
    secrets = [config["token"].encode(), (world.home / "token").read_bytes()]
    seen = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            try:
                data = (process / name).read_bytes()
            except OSError:
                continue
            seen += 1
            assert not any(secret in data for secret in secrets), process
    assert seen > 4
    logged = (world.home / "server.log").read_bytes()
    assert not any(secret in logged for secret in secrets)
    world.write("go", "")
    world.until(run.id, "succeeded")
