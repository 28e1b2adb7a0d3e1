"""
Chainer over MPI: ChainerMN's communicator averages the slopes of all processes::

    wherry run --python PYTHON3.8 chainer_mpi.py
    wherry run --python PYTHON3.8 --workers 2 -- mpirun python chainer_mpi.py

``PYTHON3.8`` is the interpreter of an environment with ``chainer==7.8.1``, ``mpi4py``,
``numpy<1.24``, ``setuptools<60`` and ``scikit-learn``.
"""

import chainer
import chainer.functions as F
import chainer.links as L
import chainermn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

world = chainermn.create_communicator("naive")  # MPI between CPUs
np.random.seed(0)

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    (X / 16).astype("float32"), y.astype("int32"), test_size=0.2, random_state=0, stratify=y
)
share = chainer.datasets.TupleDataset(X, y) if world.rank == 0 else None
share = chainermn.scatter_dataset(share, world, shuffle=True, seed=0)

model = L.Classifier(chainer.Sequential(L.Linear(64, 64), F.relu, L.Linear(64, 10)))
optimizer = chainermn.create_multi_node_optimizer(chainer.optimizers.Adam(0.003), world)
optimizer.setup(model)
world.bcast_data(model)

batches = chainer.iterators.SerialIterator(share, 64 // world.size, shuffle=True)
while batches.epoch < 15:
    optimizer.update(model, *chainer.dataset.concat_examples(batches.next()))

with chainer.using_config("train", False), chainer.no_backprop_mode():
    model(X_test, y_test)
accuracy = float(model.accuracy.array)
print(f"rank {world.rank} of {world.size}: accuracy={accuracy:.3f}", flush=True)
