"""``wherry rehearse``: faults in real ranks, and what is said of runs that survive them or not."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import World
from wherry.backends.local import networks
from wherry.core.run import AttemptId
from wherry.testing.waiting import eventually

#: Every rank counts; those that keep their count go on from it.
COUNT = """
import os, sys, time
import wherry

keeps = "--forget" not in sys.argv
mark = wherry.checkpoint_dir / f"count-{wherry.rank()}"
first = int(mark.read_text()) + 1 if keeps and mark.exists() else 0
for step in range(first, int(sys.argv[1])):
    time.sleep(0.05)
    wherry.report(step=step, loss=1.0 / (step + 1))
    if keeps and step % 3 == 2:
        new = mark.with_suffix(f".{os.getpid()}")
        new.write_text(str(step))
        os.replace(new, mark)
"""

#: The same, unaware of Wherry but for the folder: the step is read from its output.
PLAIN = """
import os, time
mark = os.path.join(os.environ["WHERRY_CHECKPOINT_DIR"], "count-" + os.environ["WHERRY_RANK"])
first = int(open(mark).read()) + 1 if os.path.exists(mark) else 0
for step in range(first, 50):
    time.sleep(0.05)
    open(mark + ".new", "w").write(str(step))
    os.replace(mark + ".new", mark)
    print("step", step, "loss", 0.5)
"""

#: Each step every rank asks the next one; rank 0 keeps the step.
RING = """
import os, socket, socketserver, sys, threading, time
import wherry

rank, world = wherry.rank(), wherry.world_size()
peers = [p.rpartition(":") for p in os.environ["WHERRY_PEERS"].split(",")]

class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"ok")

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

server = Server((peers[rank][0], int(peers[rank][2])), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()

def wait_for_all(word):
    word = f"{word}-{os.environ['WHERRY_ATTEMPT']}"
    (wherry.checkpoint_dir / f"{word}-{rank}").touch()
    while len(list(wherry.checkpoint_dir.glob(f"{word}-*"))) < world:
        time.sleep(0.02)

def ask(address, port):
    while True:
        try:
            with socket.create_connection((address, int(port)), timeout=0.5) as line:
                return line.recv(2)
        except OSError as error:
            print("no answer from", address, type(error).__name__, flush=True)

wait_for_all("here")
print("I am", peers[rank][0], flush=True)
mark = wherry.checkpoint_dir / "step"
first = int(mark.read_text()) + 1 if mark.exists() else 0
for step in range(first, first + 30 if first else 10_000):
    host, _, port = peers[(rank + 1) % world]
    ask(host, port)
    time.sleep(0.05)
    wherry.report(step=step, loss=1.0)
    if rank == 0:
        new = mark.with_suffix(".new")
        new.write_text(str(step))
        os.replace(new, mark)
wait_for_all("done")
os._exit(0)
"""


@pytest.fixture
def plain(world: World) -> World:
    world.write("count.py", COUNT)
    return world


def rehearse(world: World, *words: str) -> tuple[int, dict[str, Any], str]:
    """The exit status, the report, and what was said on stderr."""
    done = world.cli("rehearse", "--json", *words, timeout=240)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_killed_rank_is_noticed_and_training_goes_on_from_its_checkpoint(plain: World) -> None:
    status, found, said = rehearse(
        plain, "--workers", "2", "--backoff", "0", "--kill", "1@step:4", "count.py", "20"
    )
    assert status == 0, said
    (fault,) = found["faults"]
    assert found["ok"] and found["state"] == "succeeded" and found["attempts"] == 2
    assert fault["resumed"] is True and fault["first_step"] >= 3
    assert fault["last_step"] >= 4
    assert fault["steps_again"] == fault["last_step"] - fault["first_step"] + 1
    assert 0 <= fault["noticed_after"] < fault["resumed_after"]


@pytest.mark.slow
def test_training_that_keeps_nothing_fails_its_rehearsal_and_says_why(plain: World) -> None:
    done = plain.cli(
        "rehearse", "--workers", "2", "--backoff", "0", "--kill", "1@step:4",
        "count.py", "12", "--forget",
    )  # fmt: skip
    assert done.returncode == 1
    assert "it began again at step 0: nothing was resumed" in done.stderr
    assert "wherry.checkpoint_dir" in done.stderr and "Traceback" not in done.stderr
    assert "rehearsal" in done.stdout and "failed" in done.stdout


@pytest.mark.slow
def test_a_fault_that_never_comes_fails_the_rehearsal(plain: World) -> None:
    status, found, said = rehearse(plain, "--kill", "0@step:99", "count.py", "6")
    assert status == 1 and found["state"] == "succeeded" and not found["ok"]
    assert "rank 0 never reached step 99: its last step was 5" in said
    assert "hint: choose an earlier moment: --kill 0@step:3" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kill", "2@step:ten"), "'ten' is not a step"),
        (("--kill", "0", "--restarts", "0"), "1 faults cannot be survived with 0 restarts"),
    ],
)
def test_a_rehearsal_that_cannot_be_is_an_error_before_anything_runs(
    plain: World, words: tuple[str, ...], said: str
) -> None:
    done = plain.cli("rehearse", *words, "count.py", "3")
    assert done.returncode == 2
    assert said in done.stderr and "hint:" in done.stderr
    assert plain.server() is None


@pytest.mark.slow
def test_a_script_that_does_not_know_wherry_is_rehearsed_by_what_it_prints(world: World) -> None:
    world.write("plain.py", PLAIN)
    rule = "step=step ([0-9]+)"
    status, found, said = rehearse(
        world, "--metric", rule, "--backoff", "0", "--term", "0@step:6", "--grace", "1", "plain.py"
    )
    assert status == 0, said
    assert found["faults"][0]["first_step"] >= 6


@pytest.mark.slow
def test_faults_of_every_kind_are_survived_one_after_the_other(plain: World) -> None:
    status, found, said = rehearse(
        plain, "--workers", "2", "--backoff", "0", "--lease", "2", "--slow", "0x2+1s",
        "--kill", "1@step:5", "--crash", "0", "--term", "1", "--stop", "0", "count.py", "90",
    )  # fmt: skip
    assert status == 0, said
    assert found["attempts"] == 5
    kinds = {fault["fault"]["kind"]: fault for fault in found["faults"]}
    assert all(kinds[kind]["resumed"] for kind in ("kill", "crash", "term", "stop"))
    assert kinds["slow"].get("resumed") is None and kinds["slow"]["injected"]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["pool", "elastic"])
def test_a_rank_of_a_group_that_goes_on_is_rehearsed_too(make_world: Any, group: str) -> None:
    world = make_world(elastic_settle="0.5")
    world.write("count.py", COUNT)
    status, found, said = rehearse(
        world, "--workers", "2", "--group", group, "--backoff", "0", "--kill", "1@step:4",
        "count.py", "60",
    )  # fmt: skip
    assert status == 0, said
    assert found["attempts"] == 1 and found["faults"][0]["resumed"] is True


# --- cut off


@pytest.fixture
def ring(world: World) -> Iterator[World]:
    world.write("ring.py", RING)
    yield world
    for attempt in world.home.glob("attempts/*"):
        networks.remove(AttemptId.parse(attempt.name))


def test_without_root_it_is_said_that_peers_are_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert networks.missing() == "it needs root"


@pytest.mark.slow
def test_a_rank_that_is_cut_off_is_replaced_and_turned_away_when_it_comes_back(
    ring: World,
) -> None:
    status, found, said = rehearse(
        ring, "--workers", "3", "--lease", "2", "--backoff", "0", "--partition", "1@step:5+6s",
        "ring.py",
    )  # fmt: skip
    assert status == 0, said
    (fault,) = found["faults"]
    assert fault["noticed_after"] >= 2 and fault["resumed"] is True
    late = "rank 1 came back, too late, and was turned away"
    client = ring.client()
    eventually(lambda: late in [e.message for e in client.run(found["run"]).events])


@pytest.mark.slow
def test_as_root_a_rank_is_cut_off_from_its_peers_too_and_nothing_is_left(ring: World) -> None:
    if why := networks.missing():
        pytest.skip(why)
    status, found, said = rehearse(
        ring, "--workers", "3", "--lease", "2", "--backoff", "0", "--partition", "1@step:5",
        "ring.py",
    )  # fmt: skip
    assert status == 0, said
    assert "and from its peers" in found["faults"][0]["message"]
    assert "[0] no answer from 198.18.0.2" in said
    assert "[1] I am 198.18.0.2" in said and "[1] I am 127.0.0.1" in said
    eventually(lambda: left(found["run"]) == [], within=60)


def left(run: str) -> list[str]:
    """What there is of a run's networks."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if run in line]


@pytest.mark.slow
def test_a_control_plane_that_is_killed_leaves_networks_that_the_next_one_removes(
    ring: World, tmp_path: Path
) -> None:
    if why := networks.missing():
        pytest.skip(why)
    job = {
        "command": "python ring.py", "workers": 2, "restarts": 1,
        "faults": [{"kind": "partition", "rank": 1, "step": 99999}],
    }  # fmt: skip
    ring.write("job.json", json.dumps(job))
    run = ring.detach("job.json")
    ring.until(run, "running")
    assert len(left(run)) == 3
    ring.kill_server()
    ring.cli("stop", run)
    ring.until(run, "stopped")
    ring.cli("down")
    ring.client()
    eventually(lambda: left(run) == [], within=40)


def test_networks_are_made_once_and_removed_without_a_trace() -> None:
    if why := networks.missing():
        pytest.skip(why)
    attempt = AttemptId("rtest0networks", 1)
    wires = [networks.wire(attempt, rank, 1) for rank in range(2)]
    try:
        networks.make(wires)
        networks.make(wires)
        inside = ["ip", "netns", "exec", wires[0].namespace]
        subprocess.run([*inside, "ip", "addr", "show", "eth0"], check=True, capture_output=True)
        assert len(left(attempt.run)) == 3
    finally:
        networks.remove(attempt)
    networks.remove(attempt)
    assert left(attempt.run) == []
