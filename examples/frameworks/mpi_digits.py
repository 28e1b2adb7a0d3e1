"""
An MPI program: every process trains on its share, ``Allreduce`` averages the slopes::

    wherry run mpi_digits.py
    wherry run --workers 2 -- mpirun python mpi_digits.py
"""

import numpy as np
from mpi4py import MPI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

world = MPI.COMM_WORLD
rank, world_size = world.Get_rank(), world.Get_size()

X, y = load_digits(return_X_y=True)
X = np.hstack([X / 16, np.ones((len(X), 1))])
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
X, wanted = X[rank::world_size], np.eye(10)[y[rank::world_size]]

weights, slope = np.zeros((65, 10)), np.empty((65, 10))
for _ in range(300):
    scores = np.exp(X @ weights)
    mine = X.T @ (scores / scores.sum(1, keepdims=True) - wanted)
    world.Allreduce(mine, slope)  # the sum over all processes
    weights -= 0.0005 * slope

accuracy = ((X_test @ weights).argmax(1) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
