# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-cpu==2.15.1", "scikit-learn"]
# ///
"""
``tf.estimator.train_and_evaluate``, as it was written for TensorFlow 1 and 2 up to 2.15::

    wherry run tf_estimator.py
    wherry run tf_estimator.yaml
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

folder = os.environ.get("WHERRY_CHECKPOINT_DIR", "checkpoints")
X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    (X / 16).astype("float32"), y, test_size=0.2, random_state=0, stratify=y
)


def train_input():
    data = tf.data.Dataset.from_tensor_slices(({"pixels": X}, y))
    return data.shuffle(2000).repeat().batch(64)


def test_input():
    return tf.data.Dataset.from_tensor_slices(({"pixels": X_test}, y_test)).batch(64)


estimator = tf.estimator.DNNClassifier(
    hidden_units=[64],
    feature_columns=[tf.feature_column.numeric_column("pixels", shape=(64,))],
    n_classes=10,
    optimizer=lambda: tf.keras.optimizers.legacy.Adam(0.003),
    config=tf.estimator.RunConfig(model_dir=folder, save_checkpoints_steps=200),  # reads TF_CONFIG
)
tf.estimator.train_and_evaluate(
    estimator,
    tf.estimator.TrainSpec(train_input, max_steps=600),
    tf.estimator.EvalSpec(test_input, steps=None, start_delay_secs=1, throttle_secs=1),
)
role = estimator.config.task_type
if role == "evaluator" or not estimator.config.cluster_spec.jobs:
    accuracy = estimator.evaluate(test_input)["accuracy"]
    print(f"{role}: accuracy={accuracy:.3f}", flush=True)
