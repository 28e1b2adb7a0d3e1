"""
MXNet 1.9 with parameter servers, ``dist_sync``: workers push slopes to servers and pull weights::

    wherry run --python PYTHON3.8 mxnet_dist_sync.py
    wherry run --python PYTHON3.8 mxnet_dist_sync.yaml

``PYTHON3.8`` is the interpreter of an environment with ``mxnet==1.9.1``, ``numpy<1.24`` and
``scikit-learn``. The scheduler and the servers never get past the import of mxnet.
"""

import os

import numpy

numpy.bool = bool  # MXNet's last release still uses the old name
import mxnet as mx
from mxnet import autograd, gluon
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

distributed = "DMLC_PS_ROOT_URI" in os.environ
store = mx.kv.create("dist_sync" if distributed else "local")
rank, world_size = store.rank, store.num_workers
mx.random.seed(0)

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X / 16, y, test_size=0.2, random_state=0, stratify=y)
even = len(X) - len(X) % (64 * world_size)  # all workers make the same number of steps
share = gluon.data.ArrayDataset(
    X[rank:even:world_size].astype("float32"), y[rank:even:world_size].astype("float32")
)
batches = gluon.data.DataLoader(share, 64 // world_size, shuffle=True)

net = gluon.nn.HybridSequential()
net.add(gluon.nn.Dense(64, activation="relu", in_units=64), gluon.nn.Dense(10, in_units=64))
net.initialize(mx.init.Xavier())
loss = gluon.loss.SoftmaxCrossEntropyLoss()
trainer = gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.5}, kvstore=store)

for _ in range(15):
    for images, labels in batches:
        with autograd.record():
            error = loss(net(images), labels)
        error.backward()
        trainer.step(64)

guess = net(mx.nd.array(X_test)).argmax(1).asnumpy()
print(f"rank {rank} of {world_size}: accuracy={(guess == y_test).mean():.3f}", flush=True)
