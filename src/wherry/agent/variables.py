"""
The variables by which a rank finds itself and the others, in the words of every framework.

Called by ``agent.prepare``. Pure. ``core.contract`` has the same as a table, for people and tests.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any

    Peers = list[dict[str, Any]]
    Roles = list[tuple[str, int]]

#: What each of a rank's ports is for. The rank's own: TensorFlow's server, LightGBM's, JAX's
#: coordinator, ps-lite's scheduler, the MPI listener. Then torch's rendezvous, XGBoost's tracker.
OWN, MASTER, TRACKER = range(3)
PORTS = 3

#: An evaluator is no part of TensorFlow's cluster, but has a task all the same.
_OUTSIDE = "evaluator"
#: A job that has this role is one of MXNet's parameter servers.
_SCHEDULER = "scheduler"


def rank_variables(config: dict[str, Any], peers: Peers) -> dict[str, str]:
    """The variables of one rank. Those of a framework only where there are several ranks."""
    roles = _roles(config)
    found = _wherry(config, peers, roles)
    several = config["world_size"] > 1 and config["spec"].get("group") != "pool"
    if several or config.get("launcher") == "torchrun":
        found.update(_torchrun(config, peers, several))
    if several:
        if config.get("launcher") != "torchrun":  # it gives them to the processes that it starts
            found.update(_torch(config, peers))
        found.update(_jax(config, peers))
        if _SCHEDULER in dict(roles):
            found.update(_ps_lite(config, peers, roles))
        else:
            found.update(_tensorflow(config, peers, roles))
            found.update(_xgboost(config, peers))
    return {name: str(value) for name, value in found.items()}


def thread_variables(threads: int) -> dict[str, str]:
    """Thread counts that keep numerical libraries within the cores allotted."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "TF_NUM_INTRAOP")
    found = (
        f"{name}_THREADS" if name.startswith("TF") else f"{name}_NUM_THREADS" for name in names
    )
    return dict.fromkeys(found, str(max(1, int(threads))))


def _roles(config: dict[str, Any]) -> Roles:
    return [(str(role), int(index)) for role, index in config.get("roles") or ()]


def _wherry(config: dict[str, Any], peers: Peers, roles: Roles) -> dict[str, Any]:
    rank, world, local = config["rank"], config["world_size"], config["processes"]
    role, index = roles[rank] if roles else ("worker", rank)
    return {
        "WHERRY_PROTOCOL": "1",
        "WHERRY_RUN_ID": config["run"],
        "WHERRY_RUN_NAME": config["spec"].get("name", ""),
        "WHERRY_ATTEMPT": config["attempt"],
        "WHERRY_RANK": rank,
        "WHERRY_LOCAL_RANK": rank % local,
        "WHERRY_WORLD_SIZE": world,
        "WHERRY_WORKERS": world // local,
        "WHERRY_ROLE": role,
        "WHERRY_ROLE_RANK": index,
        "WHERRY_LAUNCHER": config.get("launcher", ""),
        "WHERRY_MASTER_ADDR": peers[0]["address"],
        "WHERRY_MASTER_PORT": peers[0]["ports"][MASTER],
        "WHERRY_PEERS": ",".join(_own(peer) for peer in peers),
    }


def _torch(config: dict[str, Any], peers: Peers) -> dict[str, Any]:
    """What ``torch.distributed.init_process_group()`` reads: its ``env://``."""
    return {
        "RANK": config["rank"],
        "LOCAL_RANK": config["rank"] % config["processes"],
        "WORLD_SIZE": config["world_size"],
        "LOCAL_WORLD_SIZE": config["processes"],
        "MASTER_ADDR": peers[0]["address"],
        "MASTER_PORT": peers[0]["ports"][MASTER],
    }


def _torchrun(config: dict[str, Any], peers: Peers, several: bool) -> dict[str, Any]:
    """What ``torchrun`` takes for the options that it was not given: each rank is one node."""
    launched = config.get("launcher") == "torchrun"
    processes = config["spec"].get("processes", 1) if launched else 1
    if not several:
        return {"PET_NPROC_PER_NODE": processes, "PET_STANDALONE": 1}
    # Its static rendezvous keeps our numbers, so that rank 0 of the program is where rank 0 of the
    # run is. An elastic group is static, too: in each of its rounds the program starts again.
    return {
        "PET_NPROC_PER_NODE": processes,
        "PET_NNODES": config["world_size"],
        "PET_NODE_RANK": config["rank"],
        "PET_MASTER_ADDR": peers[0]["address"],
        "PET_MASTER_PORT": peers[0]["ports"][MASTER],
        "PET_LOCAL_ADDR": peers[config["rank"]]["address"],
        "PET_RDZV_ID": f"{config['run']}-{config['attempt']}",
    }


def _jax(config: dict[str, Any], peers: Peers) -> dict[str, Any]:
    """JAX reads the first by itself; the script hands the others to ``initialize``."""
    return {
        "JAX_COORDINATOR_ADDRESS": _own(peers[0]),
        "JAX_NUM_PROCESSES": config["world_size"],
        "JAX_PROCESS_ID": config["rank"],
    }


def _tensorflow(config: dict[str, Any], peers: Peers, roles: Roles) -> dict[str, Any]:
    import json

    roles = roles or [("worker", rank) for rank in range(len(peers))]
    cluster: dict[str, list[str]] = {}
    for (role, _), peer in zip(roles, peers):
        if role != _OUTSIDE:
            cluster.setdefault(role, []).append(_own(peer))
    role, index = roles[config["rank"]]
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": role, "index": index}})}


def _xgboost(config: dict[str, Any], peers: Peers) -> dict[str, Any]:
    """XGBoost reads none of these itself: the script hands them to its tracker and collective."""
    return {
        "DMLC_ROLE": "worker",
        "DMLC_TRACKER_URI": peers[0]["address"],
        "DMLC_TRACKER_PORT": peers[0]["ports"][TRACKER],
        "DMLC_TASK_ID": config["rank"],
        "DMLC_NUM_WORKER": config["world_size"],
    }


def _ps_lite(config: dict[str, Any], peers: Peers, roles: Roles) -> dict[str, Any]:
    """What MXNet's parameter servers read."""
    names = [role for role, _ in roles]
    root = peers[names.index(_SCHEDULER)]
    return {
        "DMLC_ROLE": names[config["rank"]],
        "DMLC_PS_ROOT_URI": root["address"],
        "DMLC_PS_ROOT_PORT": root["ports"][OWN],
        "DMLC_NUM_SERVER": names.count("server"),
        "DMLC_NUM_WORKER": names.count("worker"),
        # ps-lite takes the first network that it finds otherwise, which need not reach the others.
        "DMLC_NODE_HOST": peers[config["rank"]]["address"],
    }


def _own(peer: dict[str, Any]) -> str:
    return f"{_host(peer['address'])}:{peer['ports'][OWN]}"


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
