# /// script
# requires-python = "==3.11.*"
# dependencies = ["tensorflow-cpu==2.15.1", "scikit-learn"]
# ///
"""
Keras 2 ``fit`` under ``MultiWorkerMirroredStrategy``, on one process or on many::

    wherry run keras_multiworker.py
    wherry run --workers 2 keras_multiworker.py
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # it reads TF_CONFIG
rank = strategy.cluster_resolver.task_id or 0
world_size = strategy.num_replicas_in_sync
tf.keras.utils.set_random_seed(0)

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    (X / 16).astype("float32"), y, test_size=0.2, random_state=0, stratify=y
)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((X, y)).shuffle(2000, seed=0)
data = data.batch(64, drop_remainder=True).with_options(options)

with strategy.scope():
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Dense(64, "relu", input_shape=(64,)),
            tf.keras.layers.Dense(10),
        ]
    )
    model.compile(
        tf.keras.optimizers.Adam(0.003),
        tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
model.fit(data, epochs=15, verbose=0)

accuracy = (model(X_test).numpy().argmax(1) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}", flush=True)
