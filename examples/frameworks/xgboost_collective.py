"""
XGBoost's collective: every process trains on its share, their histograms are summed::

    wherry run xgboost_collective.py
    wherry run --workers 2 xgboost_collective.py
"""

import os
from contextlib import nullcontext

import xgboost as xgb
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from xgboost.tracker import RabitTracker

rank, world_size, meeting = 0, 1, nullcontext()
if "DMLC_TRACKER_URI" in os.environ:
    host, port = os.environ["DMLC_TRACKER_URI"], int(os.environ["DMLC_TRACKER_PORT"])
    rank, world_size = int(os.environ["DMLC_TASK_ID"]), int(os.environ["DMLC_NUM_WORKER"])
    if rank == 0:  # the tracker introduces the workers to each other
        tracker = RabitTracker(world_size, host, port, sortby="task")
        tracker.start()
    meeting = xgb.collective.CommunicatorContext(
        dmlc_tracker_uri=host, dmlc_tracker_port=port, dmlc_task_id=str(rank), dmlc_retry=10
    )

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
params = {"objective": "multi:softmax", "num_class": 10, "max_depth": 4}
with meeting:
    share = xgb.DMatrix(X[rank::world_size], y[rank::world_size])
    model = xgb.train(params, share, num_boost_round=30)
    accuracy = (model.predict(xgb.DMatrix(X_test)) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}", flush=True)
