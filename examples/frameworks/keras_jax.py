"""
Keras 3 ``fit`` with JAX underneath, on one process or on many::

    wherry run keras_jax.py
    wherry run --workers 2 keras_jax.py
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax

if "JAX_NUM_PROCESSES" in os.environ:  # before Keras asks for the devices
    jax.distributed.initialize(
        num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
        process_id=int(os.environ["JAX_PROCESS_ID"]),
    )

import keras
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

rank, world_size = jax.process_index(), jax.process_count()
keras.utils.set_random_seed(0)
keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
even = len(X) - len(X) % (64 * world_size)  # all processes make the same number of steps
X, y = X[rank:even:world_size], y[rank:even:world_size]

model = keras.Sequential(
    [keras.Input((64,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
model.fit(X, y, batch_size=64 // world_size, epochs=15, verbose=0)

even = len(X_test) - len(X_test) % (40 * world_size)
X_test, y_test = X_test[:even], y_test[:even]
_, accuracy = model.evaluate(X_test, y_test, batch_size=40, verbose=0)
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
