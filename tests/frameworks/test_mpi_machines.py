"""``mpirun`` over two machines without ssh: real Open MPI, in network namespaces."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.frameworks.two_machines import ADDRESSES, possible, two_machines
from wherry.agent import mpi, remote
from wherry.agent.variables import OWN, rank_variables

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and iproute2"),
]


def on_two_machines(root: Path, *command: str, processes: int) -> tuple[list[int], str]:
    """Run ``mpirun COMMAND`` as a rank on each machine; the exit statuses, and rank 0's output."""
    peers = [
        {"rank": r, "address": a, "ports": [20001, 20002, 20003], "key": os.urandom(32).hex()}
        for r, a in enumerate(ADDRESSES)
    ]
    hosts = mpi.hosts(peers, processes)
    config = {"run": "abc", "attempt": 1, "incarnation": 1, "world_size": 2, "processes": 1}
    started = []
    with two_machines() as machines:
        for rank, inside in enumerate(machines):
            folder = str(root / f"the rank {rank}")
            mpi.write(folder, rank, peers, hosts, own=OWN, script=remote.__file__)
            own = {**config, "rank": rank, "spec": {"processes": processes}, "launcher": "mpi"}
            env = {**os.environ, **rank_variables(own, peers), "MACHINE": f"machine {rank}"}
            env.update(mpi.mpi_variables(folder, hosts, root=True, cores=1))
            env["PATH"] += os.pathsep + folder
            words = mpi.command(["mpirun", *command], rank, remote.__file__)
            started.append(
                subprocess.Popen(
                    [*inside, *words], env=env, text=True, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        try:
            out = started[0].communicate(timeout=60)[0]
            if started[0].returncode:  # the control plane would end the others now
                started[1].terminate()
            started[1].communicate(timeout=60)
        finally:
            for process in started:
                process.kill()
                process.communicate()
    return [process.returncode for process in started], out


def test_each_machine_runs_its_own_processes_in_its_own_environment(
    tmp_path: Path, mpirun: str
) -> None:
    script = 'echo "$OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $MACHINE"'
    statuses, out = on_two_machines(tmp_path, "sh", "-c", script, processes=2)
    assert statuses == [0, 0], out
    assert sorted(line for line in out.splitlines() if " of " in line) == [
        "0 of 4 on machine 0", "1 of 4 on machine 0", "2 of 4 on machine 1", "3 of 4 on machine 1",
    ]  # fmt: skip


C_PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    if (rank == 0) printf("sum %d of %d\n", sum, size);
    MPI_Finalize();
    return 0;
}
"""


def test_messages_go_between_the_machines(tmp_path: Path, mpirun: str) -> None:
    (tmp_path / "sum.c").write_text(C_PROGRAM)
    program = str(tmp_path / "sum")
    subprocess.run(["mpicc", "-o", program, str(tmp_path / "sum.c")], check=True)
    statuses, out = on_two_machines(tmp_path, program, processes=2)
    assert (statuses, out) == ([0, 0], "sum 6 of 4\n")


def test_a_process_that_dies_on_the_other_machine_ends_all(tmp_path: Path, mpirun: str) -> None:
    script = '[ "$OMPI_COMM_WORLD_RANK" = 1 ] && kill -9 $$; exec sleep 600'
    statuses, out = on_two_machines(tmp_path, "sh", "-c", script, processes=1)
    assert statuses[0] == 137, out
    # mpirun hears of it from the process or from the other machine's daemon, whichever is first,
    # and has other words for each.
    assert "exited on signal 9" in out or "the job has been aborted" in out, out
