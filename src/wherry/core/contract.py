"""
The worker contract as a table: which variable says what, and who reads it.

The reference page is written from it and tests hold ``agent.variables`` to it. Here is no code: the
agent cannot import this, and need not.
"""

from __future__ import annotations

from msgspec import Struct

#: Where variables are set.
ALWAYS = "always"
SEVERAL = "several ranks"
PS_LITE = "a job with the role scheduler"
TORCHRUN = "several ranks, or torchrun"
MPIRUN = "mpirun"
CORES = "several ranks, or cpu"


class Variable(Struct, frozen=True):
    """One row."""

    name: str
    meaning: str
    readers: str
    where: str


def _rows(where: str, readers: str, **meanings: str) -> list[Variable]:
    return [Variable(name, text, readers, where) for name, text in meanings.items()]


CONTRACT: tuple[Variable, ...] = (
    *_rows(
        ALWAYS,
        "your program, in any language; `import wherry`",
        WHERRY_RANK="this process: 0 to `WHERRY_WORLD_SIZE` - 1; under a launcher, this worker",
        WHERRY_WORLD_SIZE="how many ranks there are",
        WHERRY_LOCAL_RANK="the same within its worker",
        WHERRY_WORKERS="how many workers there are",
        WHERRY_ROLE="this rank's role; `worker` in a job without roles",
        WHERRY_ROLE_RANK="its number within the role, from 0",
        WHERRY_LAUNCHER="`torchrun` or `mpi` where the command is one, else empty",
        WHERRY_MASTER_ADDR="rank 0's address",
        WHERRY_MASTER_PORT="a port that was free there",
        WHERRY_PEERS="`host:port` of every rank, comma-separated, by rank; LightGBM's `machines`",
        WHERRY_RUN_ID="the run",
        WHERRY_RUN_NAME="its name",
        WHERRY_ATTEMPT="the attempt's number, from 1",
        WHERRY_OUTPUT_DIR="folder whose files are kept",
        WHERRY_CHECKPOINT_DIR="folder that survives attempts",
        WHERRY_PARAMS="the parameters as a JSON object",
        WHERRY_STOPPING="file that is there once the program has to end",
        WHERRY_REPORT="file that reports are appended to",
        WHERRY_PROTOCOL="version of that file's format",
        WHERRY_MARK="how the agent finds what a program leaves behind",
    ),
    *_rows(
        SEVERAL,
        "PyTorch: `init_process_group()`, `env://`; Accelerate, Lightning, DeepSpeed",
        RANK="this process",
        WORLD_SIZE="how many processes there are",
        LOCAL_RANK="the same within its worker",
        LOCAL_WORLD_SIZE="how many processes a worker has",
        MASTER_ADDR="rank 0's address",
        MASTER_PORT="a port that was free there",
    ),
    *_rows(
        TORCHRUN,
        "`torchrun`, for options that it was not given",
        PET_NPROC_PER_NODE="processes a worker: what `--processes` says",
        PET_NNODES="how many workers there are",
        PET_NODE_RANK="this worker",
        PET_MASTER_ADDR="rank 0's address",
        PET_MASTER_PORT="a port that was free there",
        PET_LOCAL_ADDR="this rank's own address",
        PET_RDZV_ID="run and attempt: groups of different attempts never mix",
        PET_STANDALONE="`1` with one worker: torchrun chooses a port by itself",
    ),
    *_rows(
        SEVERAL,
        "TensorFlow: `TFConfigClusterResolver` in every strategy and `tf.estimator`",
        TF_CONFIG="JSON: every rank's `host:port` by role, without evaluators; this rank's role "
        "and number. Without roles all are workers",
    ),
    *_rows(
        SEVERAL,
        "JAX: `jax.distributed.initialize()` reads it by itself",
        JAX_COORDINATOR_ADDRESS="rank 0's address and a port",
    ),
    *_rows(
        SEVERAL,
        "your script, for `jax.distributed.initialize(num_processes=..., process_id=...)`",
        JAX_NUM_PROCESSES="how many processes there are",
        JAX_PROCESS_ID="this process",
    ),
    *_rows(
        SEVERAL,
        "your script, for XGBoost's `RabitTracker` (on rank 0) and `CommunicatorContext`",
        DMLC_TRACKER_URI="rank 0's address",
        DMLC_TRACKER_PORT="a port that was free there",
        DMLC_TASK_ID="this process",
    ),
    *_rows(
        SEVERAL,
        "XGBoost by your script; MXNet by itself",
        DMLC_ROLE="`worker`; `scheduler`, `server` or `worker` in a job with the role scheduler",
        DMLC_NUM_WORKER="how many workers there are",
    ),
    *_rows(
        PS_LITE,
        "MXNet: `kv.create('dist_sync')` and its like",
        DMLC_PS_ROOT_URI="the scheduler's address",
        DMLC_PS_ROOT_PORT="a port that was free there",
        DMLC_NUM_SERVER="how many servers there are",
        DMLC_NODE_HOST="this rank's own address",
    ),
    *_rows(
        MPIRUN,
        "Open MPI's `mpirun`: `OMPI_` up to version 4, `PRTE_` from 5 on",
        OMPI_MCA_orte_default_hostfile="the host file: every machine with its slots",
        PRTE_MCA_prte_default_hostfile="the same",
        OMPI_MCA_hwloc_base_binding_policy="`none`: two runs must not share the first cores",
        PRTE_MCA_hwloc_default_binding_policy="the same",
        OMPI_MCA_btl_vader_single_copy_mechanism="`none`: containers forbid it",
        OMPI_MCA_mpi_yield_when_idle="where a machine has more processes than cores",
        OMPI_MCA_plm="`rsh`, where there is another machine",
        OMPI_MCA_plm_rsh_agent="`wherry-rsh`, in ssh's place, where there is another machine",
        PRTE_MCA_plm="`ssh`, where there is another machine",
        PRTE_MCA_plm_ssh_agent="`wherry-rsh`, where there is another machine",
        PRTE_MCA_prte_leave_session_attached="where there is another machine",
        PRTE_ALLOW_RUN_AS_ROOT="where the run is root's",
        PRTE_ALLOW_RUN_AS_ROOT_CONFIRM="where the run is root's",
        OMPI_ALLOW_RUN_AS_ROOT="where the run is root's",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="where the run is root's",
        WHERRY_MPI="the folder with the host file, for `wherry-rsh`",
    ),
    *_rows(
        CORES,
        "NumPy, SciPy, PyTorch, TensorFlow and most native code",
        OMP_NUM_THREADS="cores of this process",
        OPENBLAS_NUM_THREADS="the same",
        MKL_NUM_THREADS="the same",
        NUMEXPR_NUM_THREADS="the same",
        TF_NUM_INTRAOP_THREADS="the same",
    ),
)
