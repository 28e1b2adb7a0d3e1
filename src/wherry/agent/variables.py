"""
The variables by which a rank finds itself and the others.

Called by ``agent.prepare``. Pure.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # what only annotations need would cost a tenth of the start
    from typing import Any


#: What each of a rank's ports is for: the rank's own, torch's rendezvous, XGBoost's tracker.
OWN, MASTER, TRACKER = range(3)
PORTS = 3


def rank_variables(config: dict[str, Any], peers: list[dict[str, Any]]) -> dict[str, str]:
    """The variables of one rank, see ``protocol.VARIABLES``; torch's and DMLC's above one rank."""
    rank, world, local = config["rank"], config["world_size"], config["processes"]
    spec, first = config["spec"], peers[0]
    alone = world == 1 or spec.get("group") == "pool"
    master, ports = str(first["address"]), first["ports"]
    run = {
        "WHERRY_PROTOCOL": "1",
        "WHERRY_RUN_ID": config["run"],
        "WHERRY_RUN_NAME": spec.get("name", ""),
        "WHERRY_ATTEMPT": config["attempt"],
        "WHERRY_RANK": rank,
        "WHERRY_LOCAL_RANK": rank % local,
        "WHERRY_WORLD_SIZE": world,
        "WHERRY_WORKERS": world // local,
        "WHERRY_MASTER_ADDR": master,
        "WHERRY_MASTER_PORT": ports[MASTER],
        "WHERRY_PEERS": ",".join(f"{_host(p['address'])}:{p['ports'][OWN]}" for p in peers),
    }
    together = {
        "RANK": rank,
        "LOCAL_RANK": rank % local,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": local,
        "MASTER_ADDR": master,
        "MASTER_PORT": ports[MASTER],
        # XGBoost reads none of these itself: the script hands them to its tracker and collective.
        "DMLC_ROLE": "worker",
        "DMLC_TRACKER_URI": master,
        "DMLC_TRACKER_PORT": ports[TRACKER],
        "DMLC_TASK_ID": rank,
        "DMLC_NUM_WORKER": world,
    }
    return {name: str(value) for name, value in {**run, **({} if alone else together)}.items()}


def thread_variables(threads: int) -> dict[str, str]:
    """Thread counts that keep numerical libraries within the cores allotted."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(max(1, int(threads))))


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
