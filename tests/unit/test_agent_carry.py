"""Where no folder survives: checkpoints are sent as soon as they are complete, and come back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agent_rank import Rank, interpreters, until
from wherry.agent import protocol
from wherry.agent.checkpoint import MANIFEST
from wherry.testing.sink import AgentSink

SAVE = """
import os, time, wherry
def save(step, text):
    with wherry.checkpoint(step) as made:
        (made / "deep").mkdir()
        (made / "deep" / "state").write_text(text)
def wait(name):
    while not os.path.exists(name): time.sleep(0.01)
"""


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


@pytest.fixture
def make(tmp_path: Path, sink: AgentSink) -> Iterator[Callable[..., Rank]]:
    """One attempt after the other, each on a machine of its own."""
    made: list[Rank] = []

    def new(**over: Any) -> Rank:
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        run = {"run": f"r{len(made)}{os.getpid()}", "checkpoints_shared": False, "grace": 20.0}
        made.append(Rank(tmp_path, sink, **{**run, **over}))
        return made[-1]

    yield new
    for rank in made:
        rank.kill()


def names(sink: AgentSink) -> list[str]:
    return [sent["name"] for sent in sink.checkpoints]


@pytest.mark.parametrize("python", interpreters())
def test_a_checkpoint_is_sent_while_the_program_runs_and_comes_back(
    python: str, make: Callable[..., Rank], sink: AgentSink
) -> None:
    first = make(python=python).start(SAVE + "save(3, 'three'); wait('go')\n")
    sink.wait(lambda: names(sink) == ["step-3"])
    [sent] = sink.checkpoints
    assert [file["path"] for file in sent["files"]] == ["deep/state", MANIFEST]
    assert (sent["step"], sent["shard"], sent["shards"]) == (3, None, 1)
    first.kill()
    second = make(python=python)
    end = second.run(
        "import wherry; found = wherry.latest_checkpoint()\n"
        "print(found.name, (found / 'deep' / 'state').read_text())\n"
    )
    assert (end["state"], second.log()) == ("succeeded", b"step-3 three\n")
    told = sink.payloads(protocol.EVENT, second.attempt)
    assert told == [{"kind": "restored", "message": "checkpoint step-3 is back"}]
    assert names(sink) == ["step-3"]  # what came back is not sent again


def test_one_that_is_made_in_the_grace_counts(make: Callable[..., Rank], sink: AgentSink) -> None:
    rank = make().start(
        SAVE
        + "print('on', flush=True)\nwhile not wherry.stopping(): time.sleep(0.01)\nsave(7, 'x')\n"
    )
    sink.wait(lambda: b"on" in rank.log())
    assert rank.process is not None
    rank.process.terminate()  # nobody was told: the machine goes
    assert rank.wait() == 143
    end = sink.wait_exit(rank.attempt)
    assert (end["state"], end["cause"]) == ("stopped", "preempted")
    assert names(sink) == ["step-7"]


def test_one_that_the_program_removes_while_it_is_sent_is_sent_whole(
    make: Callable[..., Rank], sink: AgentSink, tmp_path: Path
) -> None:
    rank = make().start(
        SAVE + "print('on', flush=True); wait('go'); save(1, 'one'); wait('on')\n"
        "with wherry.checkpoint(2, keep=1) as made: (made / 'x').touch()\n"
        "open('removed', 'w').close(); wait('end')\n"
    )
    sink.wait(lambda: b"on" in rank.log())
    sink.mode = "refuse"
    (rank.work / "go").touch()
    until(lambda: list((tmp_path / "checkpoints").glob(".wherry-sending-*/deep")))
    (rank.work / "on").touch()
    until((rank.work / "removed").exists)
    sink.mode = "ok"
    sink.wait(lambda: names(sink) == ["step-1", "step-2"])
    (rank.work / "end").touch()
    assert rank.wait() == 0
    assert [path.name for path in (tmp_path / "checkpoints").glob("*")].count("step-1") == 0


def test_one_that_was_changed_afterwards_is_not_sent(
    make: Callable[..., Rank], sink: AgentSink
) -> None:
    rank = make()
    rank.run(
        SAVE + "save(1, 'one')\n"
        "(wherry.checkpoint_dir / 'step-1' / 'deep' / 'state').write_text('two')\n"
    )
    assert names(sink) == []
    assert b"checkpoint step-1 is not kept: it was changed" in rank.log(protocol.SYSTEM)


def test_a_control_plane_that_is_away_loses_no_checkpoint(
    make: Callable[..., Rank], sink: AgentSink
) -> None:
    rank = make().start(SAVE + "print('on', flush=True)\nwait('go'); save(1, 'one')\n")
    sink.wait(lambda: b"on" in rank.log())
    sink.mode = "refuse"
    (rank.work / "go").touch()
    before = sink.requests
    sink.wait(lambda: sink.requests > before + 5)
    sink.mode = "ok"
    assert rank.wait() == 0
    assert names(sink) == ["step-1"]


def test_own_files_are_sent_at_the_end_and_only_what_changed(
    make: Callable[..., Rank], sink: AgentSink
) -> None:
    make().run(
        SAVE + "save(1, 'one')\n"
        "for name in ('a', 'b'): (wherry.checkpoint_dir / name).write_text(name)\n"
    )
    assert names(sink) == ["step-1", ""]
    own = {file["path"]: file for file in sink.checkpoints[-1]["files"]}
    assert sorted(own) == ["a", "b"]
    again = make()
    again.run(
        "import wherry; folder = wherry.checkpoint_dir\n"
        "print((folder / 'a').read_text(), int((folder / 'a').stat().st_mtime))\n"
        "(folder / 'b').unlink(); (folder / 'c').touch()\n"
    )
    assert again.log() == b"a %d\n" % int(own["a"]["modified"])
    last = sink.checkpoints[-1]
    assert ([file["path"] for file in last["files"]], last["gone"]) == (["c"], ["b"])


def test_the_ranks_of_a_machine_send_and_fetch_once(
    make: Callable[..., Rank], sink: AgentSink
) -> None:
    script = SAVE + (
        "if wherry.rank() == 0:\n"
        "    save(1, 'one'); (wherry.checkpoint_dir / 'a').touch()\n"
        "print(sorted(p.name for p in wherry.checkpoint_dir.iterdir() if p.name[0] != '.'))\n"
    )
    both = [make(run=f"gang{os.getpid()}", world_size=2, rank=n) for n in (0, 1)]
    for rank in both:
        rank.start(script)
    assert [rank.wait() for rank in both] == [0, 0]
    assert sorted(names(sink)) == ["", "step-1"]


def test_the_members_of_a_pool_have_each_a_folder(
    make: Callable[..., Rank], sink: AgentSink
) -> None:
    pool = {"spec": {"group": "pool"}, "world_size": 2, "rank": 1}
    rank = make(**pool)
    rank.run("import wherry; print(wherry.checkpoint_dir)\n")
    assert rank.log().strip().endswith(b"checkpoints/rank-1")
