# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "scikit-learn", "xgboost-cpu>=3"]
# ///
"""
Recognise handwritten digits with boosted trees, on one worker or on many::

    wherry run --workers 2 examples/digits_xgboost.py --rounds 60

Every worker trains on its own share of the images; XGBoost's collective sums their histograms, so
that all of them grow the same trees.
"""

import argparse
import os
import warnings
from contextlib import nullcontext

import xgboost as xgb
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from xgboost.tracker import RabitTracker

import wherry

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=60)
rounds = parser.parse_args().rounds
rank, world_size = wherry.rank(), wherry.world_size()

warnings.filterwarnings("ignore", module="xgboost")  # who is early tries again: no need to say
meeting = nullcontext()  # alone, there is nobody to meet
if world_size > 1:
    host, port = os.environ["DMLC_TRACKER_URI"], int(os.environ["DMLC_TRACKER_PORT"])
    if rank == 0:  # the tracker introduces the workers to each other
        tracker = RabitTracker(world_size, host, port, sortby="task")
        tracker.start()
    address = {"dmlc_tracker_uri": host, "dmlc_tracker_port": port, "dmlc_retry": 10}
    meeting = xgb.collective.CommunicatorContext(**address, dmlc_task_id=str(rank))

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)


class Progress(xgb.callback.TrainingCallback):
    def after_iteration(self, model, epoch, evals_log):
        accuracy = 1 - evals_log["test"]["merror"][-1]
        wherry.report(step=epoch + 1, accuracy=accuracy)
        if rank == 0 and epoch % 10 == 9:
            print(f"round {epoch + 1}: accuracy={accuracy:.3f}", flush=True)


params = {"objective": "multi:softmax", "num_class": 10, "max_depth": 4, "eval_metric": "merror"}
with meeting:
    share = xgb.DMatrix(X[rank::world_size], y[rank::world_size])
    test = [(xgb.DMatrix(X_test, y_test), "test")]
    model = xgb.train(params, share, rounds, evals=test, callbacks=[Progress()], verbose_eval=False)

if rank == 0:
    model.save_model(wherry.output_dir / "digits.ubj")
