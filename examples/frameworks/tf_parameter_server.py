"""
TensorFlow parameter servers: a chief hands out steps, workers do them, servers hold the variables,
an evaluator watches the checkpoints. All of them run this file; TF_CONFIG says who is who::

    wherry run tf_parameter_server.py
    wherry run tf_parameter_server.yaml
"""

import os

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

STEPS, folder = 600, os.environ.get("WHERRY_CHECKPOINT_DIR", "checkpoints")
cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
role = cluster.task_type or "chief"
if role in ("worker", "ps"):  # they serve until the run ends
    tf.distribute.Server(cluster.cluster_spec(), role, cluster.task_id, protocol="grpc").join()

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split((X / 16).astype("float32"), y, random_state=0, stratify=y)
alone = role == "evaluator" or not cluster.cluster_spec().jobs
strategy = tf.distribute.get_strategy() if alone else tf.distribute.ParameterServerStrategy(cluster)
with strategy.scope():
    w, done = tf.Variable(tf.zeros([64, 10])), tf.Variable(0)
saved = tf.train.Checkpoint(w=w, done=done)
manager = tf.train.CheckpointManager(saved, folder, max_to_keep=2)


def accuracy():
    return ((X_test @ w.numpy()).argmax(1) == y_test).mean()


@tf.function
def step():
    chosen = tf.random.uniform([64], maxval=len(X), dtype=tf.int32)
    with tf.GradientTape() as tape:
        scores, labels = tf.gather(X, chosen) @ w, tf.gather(y, chosen)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores))
    w.assign_sub(0.3 * tape.gradient(loss, w))


if role == "evaluator":
    for path in tf.train.checkpoints_iterator(folder, timeout=300):
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
        alone or coordinator.join()
        done.assign_add(100)
        manager.save(int(done))
    print(f"chief: accuracy={accuracy():.3f}", flush=True)
