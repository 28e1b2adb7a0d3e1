"""Ranks that meet, and code that is fetched."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.agent_rank import Rank
from wherry.agent import protocol
from wherry.core.bundle import Entry, LeftOut, Manifest
from wherry.testing.sink import AgentSink

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def sink() -> Iterator[AgentSink]:
    with AgentSink() as made:
        yield made


def ranks(tmp: Path, sink: AgentSink, count: int, **over: Any) -> list[Rank]:
    words = {"world_size": count, **over}
    return [Rank(tmp, sink, rank=number, **words) for number in range(count)]


def environment(rank: Rank) -> dict[str, str]:
    found: dict[str, str] = json.loads(rank.log())
    return found


def test_ranks_get_each_others_addresses_and_their_own_numbers(
    tmp_path: Path, sink: AgentSink
) -> None:
    group = ranks(tmp_path, sink, 4, processes=2, threads=3)
    for rank in group:
        rank.start(SHOW)
    assert [rank.wait() for rank in group] == [0] * 4
    found = [environment(rank) for rank in group]
    assert [e["RANK"] for e in found] == ["0", "1", "2", "3"]
    assert [e["LOCAL_RANK"] for e in found] == ["0", "1", "0", "1"]
    for name in ("MASTER_ADDR", "MASTER_PORT", "WHERRY_PEERS", "DMLC_TRACKER_PORT"):
        assert len({e[name] for e in found}) == 1, name
    first = found[0]
    assert first["MASTER_ADDR"] == "127.0.0.1" and len(first["WHERRY_PEERS"].split(",")) == 4
    ports = {first["MASTER_PORT"], first["DMLC_TRACKER_PORT"]}
    ports |= {peer.split(":")[1] for peer in first["WHERRY_PEERS"].split(",")}
    assert len(ports) == 6
    expected = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "WHERRY_WORKERS": "2"}
    expected |= {"OMP_NUM_THREADS": "3", "DMLC_NUM_WORKER": "4", "DMLC_TASK_ID": "0"}
    assert expected.items() <= first.items()


def test_the_ports_are_free_when_the_program_starts(tmp_path: Path, sink: AgentSink) -> None:
    group = ranks(tmp_path, sink, 2)
    for rank in group:
        rank.start(
            "import os, socket\n"
            "if os.environ['RANK'] == '0':\n"
            "    for name in ('MASTER_PORT', 'DMLC_TRACKER_PORT'):\n"
            "        socket.create_server(('127.0.0.1', int(os.environ[name]))).close()\n"
            "    print('bound')\n"
        )
    assert [rank.wait() for rank in group] == [0, 0]
    assert group[0].log() == b"bound\n"


def test_a_lone_rank_has_no_variables_of_a_group(tmp_path: Path, sink: AgentSink) -> None:
    rank = Rank(tmp_path, sink)
    rank.run(SHOW)
    found = environment(rank)
    assert set(protocol.VARIABLES) <= set(found)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "DMLC_ROLE", "OMP_NUM_THREADS"} & set(found)


def test_a_users_thread_count_stays(tmp_path: Path, sink: AgentSink) -> None:
    group = ranks(tmp_path, sink, 2)
    for rank in group:
        rank.config["spec"]["env"] = {"OMP_NUM_THREADS": "7"}
        rank.start(SHOW)
    assert [rank.wait() for rank in group] == [0, 0]
    assert environment(group[0])["OMP_NUM_THREADS"] == "7"


def test_a_barrier_that_is_not_met_names_who_is_missing(tmp_path: Path, sink: AgentSink) -> None:
    end = Rank(tmp_path, sink, rank=1, world_size=3, barrier_timeout=0.3).run("open('ran', 'w')")
    assert (end["state"], end["cause"]) == ("failed", "barrier")
    message, _, hint = end["message"].partition("\nhint: ")
    assert message == "ranks 0,2 did not arrive within 0.3 s"
    assert re.match(r"why: wherry logs \S+ --rank 0 --stream system; ", hint)
    assert not (tmp_path / "work" / "ran").exists()


# --- code in a copy


def bundle(sink: AgentSink, files: dict[str, bytes], *, left_out: Any = ()) -> str:
    """Put a bundle; its digest. A name that ends in * is executable."""
    entries = [
        Entry(
            path=name.rstrip("*"),
            digest=sink.put(data),
            size=len(data),
            executable=name.endswith("*"),
        )
        for name, data in files.items()
    ]
    entries.append(Entry(path="link.py", link="sub/mod.py"))
    manifest = Manifest(entries=tuple(sorted(entries)), left_out=tuple(left_out))
    return sink.put(manifest.encode())


PROJECT = {"sub/mod.py": b"x = 1\n", "sub/same.py": b"x = 1\n", "tool*": b"#!/bin/sh\necho tool\n"}


def test_code_is_copied_with_its_links_and_bits_and_new_files_are_kept(
    tmp_path: Path, sink: AgentSink
) -> None:
    script = (
        b"import os, sub.mod, sub.same, link\n"
        b"print(os.path.islink('link.py'), os.popen('./tool').read().strip(), os.getcwd())\n"
        b"open('new.txt', 'w').write('n'); open('sub/mod.py', 'a').write('#')\n"
    )
    digest = bundle(sink, {**PROJECT, "script.py": script})
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": digest}
    end = rank.run()
    assert end["state"] == "succeeded", rank.log(protocol.STDERR)
    assert rank.log().decode().split() == ["True", "tool", str(tmp_path / rank.attempt / "code")]
    pristine = tmp_path / "cache" / "trees" / digest / "files" / "sub" / "mod.py"
    assert pristine.read_bytes() == b"x = 1\n"


def test_what_the_program_made_or_changed_in_the_copy_is_kept_and_nothing_else(
    tmp_path: Path, sink: AgentSink
) -> None:
    script = (
        b"import os\n"
        b"open('new.txt', 'w').write('n')\n"
        b"open('results.csv', 'w').write('0.97')\n"  # as long as it was
        b"open('sub/mod.py', 'a').write('#')\n"
        b"os.utime('sub/same.py', (1, 1))\n"
        b"os.remove('tool'); os.symlink('new.txt', 'tool')\n"
    )
    digest = bundle(sink, {**PROJECT, "results.csv": b"0.50", "script.py": script})
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": digest}
    end = rank.run()
    assert end["state"] == "succeeded", rank.log(protocol.STDERR)
    kept = [f["path"] for f in sink.payloads(protocol.FILE, rank.attempt)]
    assert kept == ["new.txt", "results.csv", "sub/mod.py"]


def test_ranks_of_a_machine_share_one_copy(tmp_path: Path, sink: AgentSink) -> None:
    digest = bundle(sink, {**PROJECT, "script.py": b"import os; print(os.getcwd())"})
    group = ranks(tmp_path, sink, 3)
    for rank in group:
        rank.config["spec"]["code"] = {"bundle": digest, "workdir": "sub"}
        rank.config["spec"]["command"] = ["python", "../script.py"]
        rank.start()
    assert [rank.wait() for rank in group] == [0] * 3
    assert {rank.log() for rank in group} == {f"{tmp_path}/{group[0].attempt}/code/sub\n".encode()}


@pytest.mark.parametrize("path", ["../out", "/etc/out", "a//b", "a\\b", ""])
def test_an_unsafe_path_in_a_bundle_is_refused(tmp_path: Path, sink: AgentSink, path: str) -> None:
    text = msgspec.json.encode({"entries": [{"path": path, "digest": sink.put(b""), "size": 0}]})
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": sink.put(text)}
    end = rank.run()
    assert end["cause"] == "bundle" and "unsafe path" in end["message"]


def test_a_link_out_of_the_bundle_is_refused(tmp_path: Path, sink: AgentSink) -> None:
    text = msgspec.json.encode({"entries": [{"path": "a/l", "link": "../../x"}]})
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": sink.put(text)}
    assert "link out of its folder" in rank.run()["message"]


def test_a_blob_with_other_bytes_is_refused_and_nothing_is_cached(
    tmp_path: Path, sink: AgentSink
) -> None:
    digest = bundle(sink, {"script.py": b"print(1)"})
    sink.blobs[sink.put(b"print(1)")] = b"print(2)"
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": digest}
    end = rank.run()
    assert end["cause"] == "bundle" and "other bytes" in end["message"]
    assert not (tmp_path / "cache" / "trees" / digest).exists()


def test_a_file_that_was_left_out_is_named_with_the_way_to_send_it(
    tmp_path: Path, sink: AgentSink
) -> None:
    left = [LeftOut(path="data/", why="ignored by .gitignore")]
    digest = bundle(sink, {"script.py": b"open('data/train.csv')\n"}, left_out=left)
    rank = Rank(tmp_path, sink)
    rank.config["spec"]["code"] = {"bundle": digest}
    end = rank.run()
    assert end["cause"] == "exception" and end["exit_code"] == 1
    message, _, hint = end["message"].partition("\nhint: ")
    assert "'data/train.csv' is not in the bundle's copy" in message
    assert "'data' was left out of the bundle: ignored by .gitignore" in message
    assert "!data/train.csv" in hint and ".wherryignore" in hint and "foreground" in hint


def test_held_ports_are_distinct_and_taken() -> None:
    from wherry.agent.ranks import Ports

    held = Ports(3)
    assert len(set(held.numbers)) == 3
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", held.numbers[0]))
    held.release()
