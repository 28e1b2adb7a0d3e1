"""
LightGBM's own data-parallel learning, on one process or on many::

    wherry run lightgbm_distributed.py
    wherry run --workers 2 lightgbm_distributed.py
"""

import os

import lightgbm as lgb
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

rank, world_size = (
    int(os.environ.get("WHERRY_RANK", 0)),
    int(os.environ.get("WHERRY_WORLD_SIZE", 1)),
)
X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)

params = {"objective": "multiclass", "num_class": 10, "verbose": -1, "num_threads": 1}
if world_size > 1:
    machines = os.environ["WHERRY_PEERS"]
    params |= {
        "tree_learner": "data",
        "pre_partition": True,
        "num_machines": world_size,
        "machines": machines,
        "local_listen_port": int(machines.split(",")[rank].rpartition(":")[2]),
    }
share = lgb.Dataset(X[rank::world_size], y[rank::world_size])
model = lgb.train(params, share, num_boost_round=40)

accuracy = (model.predict(X_test).argmax(1) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
