"""The worker contract: every layout of a job, in the words of every framework."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wherry.agent import mpi, protocol, user
from wherry.agent.argv import after_script
from wherry.agent.variables import PORTS, rank_variables, thread_variables
from wherry.core.contract import CONTRACT, MPIRUN
from wherry.core.job import JobSpec
from wherry.core.launch import launcher


def peers(count: int, address: str = "10.0.0.{}") -> list[dict[str, Any]]:
    ports = [[1000 * (port + 1) + rank for port in range(PORTS)] for rank in range(count)]
    return [{"rank": r, "address": address.format(r), "ports": ports[r]} for r in range(count)]


def config(rank: int, world: int, **over: Any) -> dict[str, Any]:
    return {
        "run": "abc", "attempt": 2, "incarnation": 1, "rank": rank, "world_size": world,
        "processes": 1, "spec": {}, "roles": [], "launcher": "", **over,
    }  # fmt: skip


def with_roles(**counts: int) -> list[dict[str, str]]:
    """The variables of every rank of a job with these roles."""
    roles = [[name, i] for name, count in counts.items() for i in range(count)]
    world = len(roles)
    return [rank_variables(config(r, world, roles=roles), peers(world)) for r in range(world)]


def test_tensorflow_gets_every_rank_by_role_but_never_an_evaluator() -> None:
    found = [json.loads(e["TF_CONFIG"]) for e in with_roles(chief=1, worker=2, ps=1, evaluator=1)]
    cluster = {
        "chief": ["10.0.0.0:1000"], "worker": ["10.0.0.1:1001", "10.0.0.2:1002"],
        "ps": ["10.0.0.3:1003"],
    }  # fmt: skip
    assert all(each["cluster"] == cluster for each in found)
    tasks = [(each["task"]["type"], each["task"]["index"]) for each in found]
    expected = [("chief", 0), ("worker", 0), ("worker", 1), ("ps", 0), ("evaluator", 0)]
    assert tasks == expected


def test_without_roles_all_are_tensorflows_workers() -> None:
    found = rank_variables(config(1, 2), peers(2))
    assert json.loads(found["TF_CONFIG"]) == {
        "cluster": {"worker": ["10.0.0.0:1000", "10.0.0.1:1001"]},
        "task": {"type": "worker", "index": 1},
    }
    assert (found["WHERRY_ROLE"], found["WHERRY_ROLE_RANK"]) == ("worker", "1")


def test_each_rank_knows_its_role_and_its_number_in_it() -> None:
    found = with_roles(chief=1, worker=2)
    assert [(e["WHERRY_ROLE"], e["WHERRY_ROLE_RANK"]) for e in found] == [
        ("chief", "0"), ("worker", "0"), ("worker", "1"),
    ]  # fmt: skip


def test_a_scheduler_makes_a_job_one_of_mxnets() -> None:
    found = with_roles(server=2, scheduler=1, worker=3)
    assert [e["DMLC_ROLE"] for e in found] == ["server"] * 2 + ["scheduler"] + ["worker"] * 3
    roots = {f"{e['DMLC_PS_ROOT_URI']}:{e['DMLC_PS_ROOT_PORT']}" for e in found}
    assert roots == {"10.0.0.2:1002"}
    assert {(e["DMLC_NUM_SERVER"], e["DMLC_NUM_WORKER"]) for e in found} == {("2", "3")}
    assert not any("DMLC_TRACKER_URI" in e or "TF_CONFIG" in e for e in found)


def test_a_gang_under_torchrun_keeps_its_numbers() -> None:
    spec = {"processes": 4}
    found = rank_variables(config(1, 2, launcher="torchrun", spec=spec), peers(2))
    expected = {
        "PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "10.0.0.0", "PET_MASTER_PORT": "2000", "PET_RDZV_ID": "abc-2",
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert "PET_RDZV_BACKEND" not in found and "RANK" not in found


def test_members_of_a_pool_are_alone() -> None:
    found = rank_variables(config(1, 2, spec={"group": "pool"}), peers(1))
    assert all(name.startswith("WHERRY_") for name in found)


def test_one_worker_under_torchrun_takes_a_port_of_its_own() -> None:
    spec = {"processes": 2}
    found = rank_variables(config(0, 1, launcher="torchrun", spec=spec), peers(1))
    pet = {name: value for name, value in found.items() if name.startswith("PET_")}
    assert pet == {"PET_NPROC_PER_NODE": "2", "PET_STANDALONE": "1"}


def test_ipv6_addresses_are_in_brackets_where_a_port_follows() -> None:
    found = rank_variables(config(0, 2), peers(2, "fd00::{}"))
    assert found["WHERRY_PEERS"] == "[fd00::0]:1000,[fd00::1]:1001"
    assert found["JAX_COORDINATOR_ADDRESS"] == "[fd00::0]:1000"
    assert found["MASTER_ADDR"] == "fd00::0"


def everything() -> dict[str, str]:
    """Every variable that any layout sets."""
    found: dict[str, str] = {}
    layouts: list[dict[str, Any]] = [{}, {"launcher": "torchrun"}]
    layouts.append({"roles": [["scheduler", 0], ["worker", 0]]})
    for layout in layouts:
        for world in (1, 2):
            if world == 2 or "roles" not in layout:
                found.update(rank_variables(config(0, world, **layout), peers(world)))
    machines = mpi.hosts(peers(2), 4)
    return {**found, **mpi.mpi_variables("f", machines, root=True, cores=1), **thread_variables(2)}


def test_the_table_has_every_variable_once_and_no_other() -> None:
    names = [row.name for row in CONTRACT]
    assert len(set(names)) == len(names)
    assert set(names) == everything().keys() | protocol.VARIABLES.keys()


def test_alone_nothing_of_a_group_is_set() -> None:
    found = rank_variables(config(0, 1), peers(1))
    assert all(name.startswith("WHERRY_") for name in found)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["torchrun", "train.py"], "torchrun"),
        (["/opt/env/bin/torchrun", "--nnodes", "2", "train.py"], "torchrun"),
        (["python", "-m", "torch.distributed.run", "train.py"], "torchrun"),
        (["python3", "-u", "-m", "torch.distributed.run", "train.py"], "torchrun"),
        (["mpirun", "./solver"], "mpi"),
        (["/usr/bin/mpiexec", "-x", "A", "python", "train.py"], "mpi"),
        (["python", "train.py", "-m", "torch.distributed.run"], ""),
        (["python", "-m", "train"], ""),
        (["python"], ""),
        (["bash", "run.sh"], ""),
        ([], ""),
    ],
)
def test_a_launcher_is_known_by_the_command(command: list[str], expected: str) -> None:
    assert launcher(command) == expected


def test_a_launchers_processes_are_no_ranks_of_the_run() -> None:
    assert JobSpec(command=("torchrun", "t.py"), workers=2, processes=4).world_size == 2
    assert JobSpec(command=("python", "t.py"), workers=2, processes=4).world_size == 8


@pytest.mark.parametrize(
    ("launched", "rank", "world"),
    [
        ({}, 1, 2),
        ({"WHERRY_LAUNCHER": "torchrun", "RANK": "5", "WORLD_SIZE": "8"}, 5, 8),
        (
            {"WHERRY_LAUNCHER": "mpi", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"},
            5,
            8,
        ),
        ({"WHERRY_LAUNCHER": "", "OMPI_COMM_WORLD_RANK": "5", "RANK": "7"}, 1, 2),
    ],
)
def test_a_process_of_a_launcher_has_the_launchers_number(
    launched: dict[str, str], rank: int, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WHERRY_RANK": "1", "WHERRY_WORLD_SIZE": "2", **launched}.items():
        monkeypatch.setenv(name, value)
    assert (user.rank(), user.world_size()) == (rank, world)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("torchrun --nproc-per-node 2 train.py --lr 0.1", "--lr 0.1"),
        ("mpirun -x A python -u train.py --lr 0.1", "--lr 0.1"),
        ("python -m torch.distributed.run train.py --lr 0.1", "--lr 0.1"),
        ("mpirun ./solver --lr 0.1", ""),
    ],
)
def test_parameters_are_those_of_the_script_not_of_its_launcher(
    command: str, expected: str
) -> None:
    assert after_script(command.split()) == expected.split()


def test_ranks_of_one_address_are_slots_of_one_host() -> None:
    here, there = peers(2, "10.0.0.1"), peers(1, "10.0.0.2")
    assert mpi.hosts([*here, *there], 3) == [("10.0.0.1", 6, 0), ("10.0.0.2", 3, 2)]


def test_mpi_needs_another_ssh_only_where_there_is_another_machine() -> None:
    one = mpi.mpi_variables("f", mpi.hosts(peers(2, "10.0.0.1"), 1), root=False, cores=2)
    two = mpi.mpi_variables("f", mpi.hosts(peers(2), 1), root=False, cores=2)
    more = {name for name in two if "plm" in name} | {"PRTE_MCA_prte_leave_session_attached"}
    assert two.keys() - one.keys() == more and len(more) == 5
    assert not any("ROOT" in name for name in two)
    assert two.keys() <= {row.name for row in CONTRACT if row.where == MPIRUN}
