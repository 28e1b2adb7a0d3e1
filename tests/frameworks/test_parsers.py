"""The worker contract, read by each framework's own parser."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.frameworks.environments import Built
from wherry.agent.ranks import Ports
from wherry.agent.variables import PORTS, rank_variables

pytestmark = [pytest.mark.frameworks, pytest.mark.timeout(300)]
Environment = Callable[[str], Built]


def layout(world: int, *, roles: Any = (), **over: Any) -> list[dict[str, str]]:
    """The variables of every rank of a run on this machine, with ports that are free."""
    held = [Ports(PORTS) for _ in range(world)]
    peers = [
        {"rank": r, "address": "127.0.0.1", "ports": ports.numbers} for r, ports in enumerate(held)
    ]
    config = {"run": "abc", "attempt": 1, "incarnation": 1, "world_size": world, "processes": 1}
    config |= {"roles": roles, "launcher": "", "spec": {}, **over}
    for ports in held:
        ports.release()
    return [rank_variables({**config, "rank": r}, peers) for r in range(world)]


def start(python: Built, script: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(python.python), "-c", script], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, **variables},
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    """What it printed; it must succeed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def test_tensorflows_resolver_reads_every_role(environment: Environment) -> None:
    roles = [["chief", 0], ["worker", 0], ["worker", 1], ["ps", 0], ["evaluator", 0]]
    found = layout(5, roles=roles)
    script = """
import json, os, sys
import tensorflow as tf
for text in json.loads(os.environ["ALL"]):
    os.environ["TF_CONFIG"] = text
    r = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    own = None if r.task_type == "evaluator" else r.master(r.task_type, r.task_id, "grpc")
    print(json.dumps([r.cluster_spec().as_dict(), r.task_type, r.task_id, own]))
"""
    configs = json.dumps([e["TF_CONFIG"] for e in found])
    lines = said(start(environment("tensorflow"), script, {"ALL": configs})).splitlines()
    peers = found[0]["WHERRY_PEERS"].split(",")
    cluster = {"chief": peers[:1], "worker": peers[1:3], "ps": peers[3:4]}
    expected = [[cluster, *role, f"grpc://{p}"] for role, p in zip(roles, peers, strict=True)]
    expected[-1][-1] = None
    assert [json.loads(line) for line in lines] == expected


def test_torchs_env_rendezvous_brings_all_ranks_together(environment: Environment) -> None:
    script = """
import torch.distributed as dist
store, rank, world = next(dist.rendezvous("env://"))
store.set(f"rank {rank}", "here")
store.wait([f"rank {r}" for r in range(world)])
store.add("seen", 1)
while rank == 0 and store.add("seen", 0) < world: pass
print(rank, world)
"""
    python = environment("main")
    ranks = [start(python, script, variables) for variables in layout(2)]
    assert [said(rank).split() for rank in ranks] == [["0", "2"], ["1", "2"]]


def test_torchrun_takes_what_it_was_not_told_from_the_variables(environment: Environment) -> None:
    script = """
import json, os
from torch.distributed.run import config_from_args, parse_args
def show(*options):
    config = config_from_args(parse_args([*options, "train.py"]))[0]
    return [config.min_nodes, config.max_nodes, config.nproc_per_node, config.rdzv_backend,
            config.rdzv_endpoint, config.rdzv_configs.get("rank"), config.run_id, config.local_addr]
print(json.dumps([show(), show("--nproc-per-node", "3")]))
"""
    found = layout(2, launcher="torchrun", spec={"processes": 4})[1]
    bare, told = json.loads(said(start(environment("main"), script, found)))
    endpoint = f"127.0.0.1:{found['PET_MASTER_PORT']}"
    assert bare == [2, 2, 4, "static", endpoint, 1, "abc-1", "127.0.0.1"]
    assert told == [2, 2, 3, *bare[3:]]


def test_jax_reads_the_address_by_itself_and_the_rest_from_the_script(
    environment: Environment,
) -> None:
    script = """
import os, jax
try:
    jax.distributed.initialize()
except ValueError as error:
    print(error)
jax.distributed.initialize(num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
                           process_id=int(os.environ["JAX_PROCESS_ID"]))
print(jax.process_index(), jax.process_count(), len(jax.devices()))
"""
    python = environment("main")
    ranks = [start(python, script, variables) for variables in layout(2)]
    for number, rank in enumerate(ranks):
        without, withal = said(rank).splitlines()[-2:]
        # When this fails, JAX has learned it: the guide and the examples can be shorter.
        assert without == "Number of processes must be defined."
        assert withal == f"{number} 2 2"


def test_xgboosts_tracker_and_collective_meet(environment: Environment) -> None:
    script = """
import os, numpy, xgboost as xgb
from xgboost.tracker import RabitTracker
env = {name: os.environ[name] for name in os.environ if name.startswith("DMLC_")}
world, rank = int(env["DMLC_NUM_WORKER"]), int(env["DMLC_TASK_ID"])
address = {"dmlc_tracker_uri": env["DMLC_TRACKER_URI"],
           "dmlc_tracker_port": int(env["DMLC_TRACKER_PORT"])}
if rank == 0:
    tracker = RabitTracker(world, *address.values(), sortby="task")
    tracker.start()
with xgb.collective.CommunicatorContext(**address, dmlc_task_id=str(rank), dmlc_retry=10):
    total = xgb.collective.allreduce(numpy.array([rank + 1]), xgb.collective.Op.SUM)
    print(xgb.collective.get_rank(), xgb.collective.get_world_size(), total[0])
"""
    python = environment("main")
    ranks = [start(python, script, variables) for variables in layout(2)]
    assert [said(rank).split()[-3:] for rank in ranks] == [["0", "2", "3"], ["1", "2", "3"]]


def test_lightgbm_takes_the_peers_as_its_machines(environment: Environment) -> None:
    script = """
import os, numpy as np, lightgbm as lgb
machines, rank = os.environ["WHERRY_PEERS"], int(os.environ["WHERRY_RANK"])
port = int(machines.split(",")[rank].rpartition(":")[2])
params = {"tree_learner": "data", "num_machines": 2, "machines": machines, "verbose": -1,
          "local_listen_port": port, "pre_partition": True, "min_data_in_leaf": 1}
X = np.arange(200.0).reshape(-1, 1)[rank::2]
model = lgb.train(params, lgb.Dataset(X, (X[:, 0] > 100).astype(float)), 5)
print(",".join(f"{p:.9f}" for p in model.predict(np.arange(200.0).reshape(-1, 1))))
"""
    python = environment("main")
    ranks = [start(python, script, variables) for variables in layout(2)]
    assert len({said(rank).split()[-1] for rank in ranks}) == 1, "they have grown different trees"


def test_mxnets_scheduler_server_and_workers_find_each_other(environment: Environment) -> None:
    script = """
import numpy; numpy.bool = bool
import mxnet as mx
store = mx.kv.create("dist_sync")
store.init("w", mx.nd.zeros(1))
store.push("w", mx.nd.ones(1))
out = mx.nd.zeros(1)
store.pull("w", out)
print(store.rank, store.num_workers, out.asscalar())
"""
    roles = [["scheduler", 0], ["server", 0], ["worker", 0], ["worker", 1]]
    python = environment("mxnet")
    ranks = [start(python, script, variables) for variables in layout(4, roles=roles)]
    workers = sorted(said(rank).split() for rank in ranks[2:])
    assert workers == [["0", "2", "2.0"], ["1", "2", "2.0"]]
    assert [said(rank) for rank in ranks[:2]] == ["", ""], "they serve, and end with the workers"
