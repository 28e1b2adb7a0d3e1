"""
JAX over several processes: one array of images across all of them, one compiled step for all::

    wherry run jax_distributed.py
    wherry run --workers 2 jax_distributed.py
    wherry run --workers 2 -- mpirun python jax_distributed.py
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

if "OMPI_COMM_WORLD_RANK" in os.environ:  # under mpirun JAX finds everything by itself
    jax.distributed.initialize()
elif "JAX_NUM_PROCESSES" in os.environ:  # it reads JAX_COORDINATOR_ADDRESS by itself
    jax.distributed.initialize(
        num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
        process_id=int(os.environ["JAX_PROCESS_ID"]),
    )
rank, world_size = jax.process_index(), jax.process_count()

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
mine = np.arange(rank, len(X) - len(X) % world_size, world_size)  # every process has its share
sharded = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
images = jax.make_array_from_process_local_data(sharded, X[mine].astype(np.float32))
labels = jax.make_array_from_process_local_data(sharded, y[mine])


def loss(weights, images, labels):
    chances = jax.nn.log_softmax(images @ weights["w"] + weights["b"])
    return -jnp.take_along_axis(chances, labels[:, None], axis=1).mean()


@jax.jit
def step(weights, images, labels):
    slopes = jax.grad(loss)(weights, images, labels)  # a mean over the images of all processes
    return jax.tree.map(lambda weight, slope: weight - 0.5 * slope, weights, slopes)


weights = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
for _ in range(300):
    weights = step(weights, images, labels)

weights = jax.tree.map(np.asarray, weights)
accuracy = ((X_test @ weights["w"] + weights["b"]).argmax(1) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
