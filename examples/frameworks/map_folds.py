"""
A plain function over the folds of a cross-validation, on one process or on many::

    python map_folds.py
    python map_folds.py --workers 2
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

import wherry


def score(fold):
    """The accuracy of a forest that was trained without this fold."""
    train, test = fold
    x, y = load_digits(return_X_y=True)
    forest = RandomForestClassifier(n_estimators=50, random_state=0).fit(x[train], y[train])
    return forest.score(x[test], y[test])


parser = argparse.ArgumentParser()
parser.add_argument("--workers", type=int, default=1)
workers = parser.parse_args().workers

x, y = load_digits(return_X_y=True)
folds = StratifiedKFold(4, shuffle=True, random_state=0).split(x, y)
scores = list(wherry.map(score, folds, workers=workers))
print(f"accuracy={sum(scores) / len(scores):.4f}")
