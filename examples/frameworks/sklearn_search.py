"""
scikit-learn's grid search, unchanged but for the name of the back end, on one process or on many::

    python sklearn_search.py
    python sklearn_search.py --workers 2
"""

import argparse

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

import wherry.joblib  # noqa: F401, registers the back end

parser = argparse.ArgumentParser()
parser.add_argument("--workers", type=int, default=1)
workers = parser.parse_args().workers

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x / 16, y, random_state=0)
search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.01, 0.1]}, cv=3)
with joblib.parallel_config("wherry", n_jobs=workers):
    search.fit(x, y)
print(f"best: {search.best_params_}")
print(f"accuracy={search.score(x_test, y_test):.4f}")
