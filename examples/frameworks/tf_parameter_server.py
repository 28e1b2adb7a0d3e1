"""
TensorFlow parameter servers: the chief hands out steps, workers do them, the variables live on the
servers, an evaluator watches the checkpoints. Every task runs this file and reads TF_CONFIG::

    wherry run tf_parameter_server.py
    wherry run tf_parameter_server.yaml
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

STEPS, folder = 600, Path(os.environ.get("WHERRY_CHECKPOINT_DIR", "checkpoints"))
cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
role = cluster.task_type or "chief"
if role in ("worker", "ps"):  # they serve until the run ends
    server = tf.distribute.Server(cluster.cluster_spec(), role, cluster.task_id, protocol="grpc")
    server.join()

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    (X / 16).astype("float32"), y, test_size=0.2, random_state=0, stratify=y
)
alone = role == "evaluator" or not cluster.cluster_spec().jobs
strategy = tf.distribute.get_strategy()
if not alone:
    strategy = tf.distribute.experimental.ParameterServerStrategy(cluster)
with strategy.scope():
    w, b, done = tf.Variable(tf.zeros([64, 10])), tf.Variable(tf.zeros([10])), tf.Variable(0)
saved = tf.train.Checkpoint(w=w, b=b, done=done)
manager = tf.train.CheckpointManager(saved, str(folder), max_to_keep=2)


def accuracy():
    return ((X_test @ w.numpy() + b.numpy()).argmax(1) == y_test).mean()


@tf.function
def step():
    chosen = tf.random.uniform([64], maxval=len(X), dtype=tf.int32)
    with tf.GradientTape() as tape:
        scores = tf.gather(X, chosen) @ w + b
        labels = tf.gather(y, chosen)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
    for weight, slope in zip((w, b), tape.gradient(loss, (w, b)), strict=True):
        weight.assign_sub(0.3 * slope)


if role == "evaluator":
    for path in tf.train.checkpoints_iterator(str(folder), timeout=300):
        saved.restore(path).expect_partial()
        print(f"evaluator: step {int(done)}: accuracy={accuracy():.3f}", flush=True)
        if done >= STEPS:
            break
else:
    saved.restore(manager.latest_checkpoint)
    coordinator = None if alone else tf.distribute.coordinator.ClusterCoordinator(strategy)
    while done < STEPS:
        for _ in range(100):
            step() if alone else coordinator.schedule(step)
        if coordinator:
            coordinator.join()
        done.assign_add(100)
        manager.save(int(done))
    print(f"chief: accuracy={accuracy():.3f}", flush=True)
