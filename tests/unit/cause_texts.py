"""Last lines of failed programs, as their frameworks print them, and what they are taken for."""
# ruff: noqa: E501

from __future__ import annotations

TRACE = """\
Traceback (most recent call last):
  File "/job/train.py", line 12, in <module>
    main()
  File "/env/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83, in wrapper
    return func(*args, **kwargs)
"""


def raised(text: str) -> str:
    return TRACE + text


NATIVE = "terminate called after throwing an instance of 'c10::DistBackendError'\n  what():  "

#: name → (exit status, output, cause, in the message, in the hint)
TEXTS: dict[str, tuple[int, str, str, str, str]] = {
    # --- Python
    "exception": (1, raised("ValueError: bad batch"), "exception", "ValueError: bad batch, at train.py:12", ""),
    "no message": (1, raised("KeyboardInterrupt"), "exception", "KeyboardInterrupt, at", ""),
    "chained": (1, raised("KeyError: 'a'") + "\nDuring handling of the above exception, another exception occurred:\n\n" + raised("ValueError: b"), "exception", "ValueError: b", ""),
    "syntax": (1, '  File "/job/train.py", line 3\n    def f(\n         ^\nSyntaxError: \'(\' was never closed', "exception", "SyntaxError: '(' was never closed, at train.py:3", ""),
    "coloured": (1, '\x1b[35mTraceback (most recent call last):\x1b[0m\n  File \x1b[35m"/job/t.py"\x1b[0m, line 1, in <module>\n\x1b[1mValueError\x1b[0m: \x1b[35mred\x1b[0m'.replace("\x1b[35mTraceback (most recent call last):\x1b[0m", "Traceback (most recent call last):"), "exception", "ValueError: red, at t.py:1", ""),
    "ignored": (1, raised("ValueError: first") + "\nException ignored in: <function A.__del__ at 0x7f>\n" + raised("AttributeError: later"), "exception", "ValueError: first", ""),
    "group": (1, '  + Exception Group Traceback (most recent call last):\n  |   File "/job/t.py", line 1, in <module>\n  | ExceptionGroup: several (2 sub-exceptions)\n  +-+---------------- 1 ----------------', "exception", "ExceptionGroup: several", ""),
    "spawned": (1, raised("torch.multiprocessing.spawn.ProcessRaisedException: ") + "\n-- Process 1 terminated with the following error:\n" + raised("ValueError: inner"), "exception", "ValueError: inner", ""),
    "another status": (3, raised("ValueError: logged"), "exit", "exited with status 3; the last exception that it printed: ValueError: logged", ""),
    "module": (1, raised("ModuleNotFoundError: No module named 'sklearn.svm'"), "exception", "No module named 'sklearn.svm'", "--with scikit-learn"),
    "module by its name": (1, raised("ModuleNotFoundError: No module named 'einops'"), "exception", "einops", "--with einops"),
    "library": (1, raised("ImportError: libGL.so.1: cannot open shared object file: No such file or directory"), "exception", "libGL.so.1", "library of the system"),
    "file": (1, raised("FileNotFoundError: [Errno 2] No such file or directory: 'x.csv'"), "exception", "x.csv", "working folder"),
    "permission": (1, raised("PermissionError: [Errno 13] Permission denied: '/data/x'"), "exception", "/data/x", "output_dir"),
    "disk": (1, raised("OSError: [Errno 28] No space left on device"), "exception", "No space left", "wherry prune"),
    "variable": (1, 'Traceback (most recent call last):\n  File "/job/t.py", line 1, in <module>\n  File "<frozen os>", line 679, in __getitem__\nKeyError: \'API_KEY\'', "exception", "KeyError: 'API_KEY', at t.py:1", "--env API_KEY=VALUE"),
    # --- memory
    "memory": (1, raised("MemoryError"), "oom", "MemoryError", "--memory"),
    "numpy": (1, raised("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 74.5 GiB for an array"), "oom", "Unable to allocate", "--memory"),
    "cuda": (1, raised("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has"), "oom", "CUDA out of memory", "batch"),
    "torch on the cpu": (1, raised("RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."), "oom", "DefaultCPUAllocator", "--memory"),
    "bad_alloc": (-6, "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc", "oom", "bad_alloc", "--memory"),
    "jax": (1, raised("jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."), "oom", "RESOURCE_EXHAUSTED", "batch"),
    "loader": (1, raised("RuntimeError: DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory. Please try to raise your shared memory limit."), "oom", "Bus error", "num_workers=0"),
    # --- signals
    "segmentation": (-11, 'Fatal Python error: Segmentation fault\n\nThread 0x00007f (most recent call first):\n  File "/job/other.py", line 1 in wait\n\nCurrent thread 0x00007f3 (most recent call first):\n  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at\n  File "/job/t1.py", line 16 in load\n', "signal", "killed by SIGSEGV, a segmentation fault: native code touched memory that is not its own; in load, t1.py:16", ""),
    "abort": (-6, "terminate called after throwing an instance of 'std::runtime_error'\n  what():  no such device", "signal", "killed by SIGABRT: no such device", ""),
    "killed": (-9, raised("ValueError: logged before"), "signal", "killed by SIGKILL", "--memory"),
    "killed in a shell": (137, "", "exit", "exited with status 137: a program that it started was killed by SIGKILL", "--memory"),
    # --- gloo, as torch 2.13 prints it
    "gloo: killed": (1, raised("RuntimeError: [/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:39832: Connection reset by peer. This is typically caused by a remote worker hanging. GLHF!"), "peer", "RuntimeError: Read error [127.0.0.1]:39832: Connection reset by peer, at train.py:12", "consequence"),
    "gloo: closed": (1, "[rank0]: " + raised("RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:10895").replace("\n", "\n[rank0]: "), "peer", "Connection closed by peer", "consequence"),
    "gloo: time-out": (1, raised("RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete"), "collective", "gloo: another rank did not answer within 5 s", "same calls"),
    "monitored barrier": (1, raised("RuntimeError: [Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 3000 ms\n Original exception: "), "collective", "ranks 1, 3 did not reach the barrier within 3 s", ""),
    "full mesh": (1, raised("RuntimeError: Gloo connectFullMesh failed with [../gloo/transport/tcp/pair.cc:144] no error"), "rendezvous", "connectFullMesh", ""),
    # --- torch's stores
    "store: clients": (1, raised("torch.distributed.DistStoreError: Timed out after 1801 seconds waiting for clients. 1/3 clients joined."), "rendezvous", "1 of 3 ranks had joined after 1801 s", "every rank"),
    "store: nobody": (1, raised("torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to (10.0.0.1, 29500)."), "rendezvous", "missing: rank 0; it did not listen at 10.0.0.1:29500", ""),
    "store: keys": (1, raised("torch.distributed.DistStoreError: wait timeout after 5000ms, keys: /default_pg/0//cpu//0/0"), "rendezvous", "others were not there after 5 s", ""),
    "store: gone": (1, raised("torch.distributed.DistNetworkError: Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"), "peer", "Connection was likely closed", ""),
    "store: reset": (1, raised("RuntimeError: Connection reset by peer\nException raised from recvBytes at ../torch/csrc/distributed/c10d/Utils.hpp:670"), "peer", "reset by peer", ""),
    "store: elastic": (1, raised("torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError"), "rendezvous", "RendezvousTimeoutError", ""),
    # --- NCCL
    "nccl: watchdog": (-6, NATIVE + "[PG 3 Rank 5] Process group watchdog thread terminated with exception: [Rank 5] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9141, OpType=_ALLGATHER_BASE, NumelIn=19008, NumelOut=152064, Timeout(ms)=600000) ran for 600020 milliseconds before timing out.\nException raised from checkTimeout", "collective", "NCCL: _ALLGATHER_BASE did not end within 600.02 s", "same calls"),
    "nccl: aborted": (1, raised("torch.distributed.DistBackendError: NCCL communicator was aborted on rank 1."), "peer", "aborted on rank 1", ""),
    "nccl: remote": (1, raised("torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error, NCCL version 2.20.5\nncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."), "peer", "remote process exited", ""),
    "nccl: system": (1, raised("torch.distributed.DistBackendError: NCCL error in: ../ProcessGroupNCCL.cpp:1331, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.1\nncclSystemError: System call (e.g. socket, malloc) or external library call failed"), "collective", "unhandled system error", "NCCL_DEBUG"),
    "nccl: id": (1, raised("torch.distributed.DistBackendError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but store->get('0') got error: Socket Timeout"), "rendezvous", "missing: rank 0", ""),
    # --- TensorFlow
    "tf: unavailable": (1, raised("tensorflow.python.framework.errors_impl.UnavailableError: {{function_node __wrapped__CollectiveReduceV2}} Collective ops is aborted by: failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Connection refused"), "peer", "UnavailableError", ""),
    "tf: reset": (1, raised("tensorflow.python.framework.errors_impl.UnavailableError: Connection reset by peer\nAdditional GRPC error information from remote target /job:worker/replica:0/task:1:"), "peer", "Connection reset by peer", ""),
    "tf: deadline": (1, raised("tensorflow.python.framework.errors_impl.DeadlineExceededError: Collective ops is aborted by: Deadline Exceeded"), "collective", "Deadline Exceeded", ""),
    "tf: crashed": (1, raised("tensorflow.python.framework.errors_impl.UnavailableError: Graph execution error:\n\nDetected at node CollectiveReduceV2 defined at (most recent call last):\nCollective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped sending heartbeats):\n/job:worker/replica:0/task:1\nThe tasks have crashed. Check the task logs for an earlier error"), "peer", "rank 1 was lost: the coordination service says so, at train.py:12", ""),
    "tf: heartbeat": (1, raised("tensorflow.python.framework.errors_impl.AbortedError: Collective ops is aborted by: Task /job:worker/replica:0/task:2 heartbeat timeout. This indicates that the remote task has failed"), "peer", "rank 2 was lost", ""),
    # --- JAX
    "jax: barrier": (1, raised("jax.errors.JaxRuntimeError: DEADLINE_EXCEEDED: Barrier timed out. Id: PjRT_Client_Connect::0. This usually happens because a task triggered the barrier too early or too slowly. # of tasks that reached the barrier: 1/3. The first task at the barrier: /job:jax_worker/replica:0/task:0. Some timed out task names:\n/job:jax_worker/replica:0/task:1\n/job:jax_worker/replica:0/task:2"), "rendezvous", "1 of 3 ranks arrived; missing: ranks 1, 2", ""),
    "jax: coordinator": (1, raised("jaxlib.xla_extension.XlaRuntimeError: DEADLINE_EXCEEDED: Deadline Exceeded\nAdditional GRPC error information from remote target unknown_target_for_coordination_leader while calling /tensorflow.CoordinationService/RegisterTask:"), "rendezvous", "did not see all ranks", ""),
    "jax: died": (-6, "E0929 17:42:48.594192 1044529 coordination_service_agent.cc:332] Polled an error from coordination service (this can be an error from this or another task).\nF0929 17:42:48.594200 1044529 client.h:77] Terminating process because the JAX distributed service detected fatal errors. This most likely indicates that another task died; absl::Status: UNAVAILABLE: Failed to send RPC to coordination service.", "peer", "another rank was lost", "consequence"),
    "jax: crashed": (-6, "F1124 14:03:16.769251   32721 client.h:80] Terminating process because the JAX distributed service detected fatal errors. This most likely indicates that another task died; absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed. Check the task logs for an earlier error\n*** Check failure stack trace: ***\nFatal Python error: Aborted", "peer", "ranks 1, 3 were lost", "consequence"),
    "jax: register": (-6, "F1124 14:03:18.639975   31723 client.h:80] Terminating process because the JAX distributed service detected fatal errors. This most likely indicates that another task died; absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/RegisterTask\n*** Check failure stack trace: ***", "rendezvous", "did not see all ranks in time", ""),
    "jax: heartbeat": (-6, "2024-10-09 15:47:38.568412: F external/xla/xla/pjrt/distributed/client.h:80] Terminating process because the JAX distributed service detected fatal errors: UNAVAILABLE: Task /job:jax_worker/replica:0/task:1 heartbeat timeout.", "peer", "rank 1 was lost", ""),
    # --- XGBoost, MPI
    "xgboost: peer": (1, raised("xgboost.core.XGBoostError: [12:58:58] /workspace/src/collective/result.cc:78: \n- [allreduce.cc:28|12:58:58]: Allreduce failed.\n- [socket.h:89|12:58:58]: Connection reset by peer"), "peer", "XGBoost: Connection reset by peer, at train.py:12", ""),
    "xgboost: poll": (1, raised("xgboost.core.XGBoostError: [23:55:55] /work/rabit/include/rabit/internal/socket.h:170: Poll timeout"), "collective", "Poll timeout", ""),
    "xgboost: tracker": (1, raised("xgboost.core.XGBoostError: [12:58:58] /workspace/src/collective/result.cc:78: \n- [comm.cc:99|12:58:58]: Failed to bootstrap the communication group.\n- [socket.h:89|12:58:58]: Failed to connect to 10.0.0.1:42"), "rendezvous", "tracker", ""),
    "mpi: abort": (7, "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\nwith errorcode 7.", "exit", "rank 1 of MPI called MPI_Abort with status 7", ""),
    "mpi: signal": (139, "mpirun noticed that process rank 2 with PID 0 on node host exited on signal 11 (Segmentation fault).", "exit", "rank 2 of MPI was killed by signal 11 on host", ""),
    "mpi: status": (3, "mpirun detected that one or more processes exited with non-zero status, thus causing\nthe job to be terminated. The first process to do so was:\n\n  Process name: [[21410,1],2]\n  Exit code:    3", "exit", "rank 2 of MPI exited with status 3", ""),
    "mpi: python": (3, raised("ValueError: of a rank") + "\nPrimary job  terminated normally, but 1 process returned\na non-zero exit code.", "exception", "ValueError: of a rank", ""),
    "mpi: daemon": (1, "ORTE has lost communication with a remote daemon.\n\n  HNP daemon   : [[64112,0],0] on node a", "peer", "ORTE has lost communication", ""),
    # --- programs
    "pip": (1, "ERROR: No matching distribution found for torhc==2.0", "exit", "no distribution torhc==2.0", "name and version"),
    "uv": (1, "  × No solution found when resolving dependencies:\n", "exit", "contradict", ""),
    "shell": (127, "bash: line 1: trian: command not found", "exit", "the program trian is not there", ""),
    "no file": (2, "/env/bin/python: can't open file '/job/x.py': [Errno 2] No such file or directory", "exit", "there is no file /job/x.py", ""),
}  # fmt: skip
