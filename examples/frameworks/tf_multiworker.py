"""
TensorFlow ``MultiWorkerMirroredStrategy`` with a custom training loop (Keras 3 has no ``fit`` for
it), on one process or on many::

    wherry run tf_multiworker.py
    wherry run --workers 2 tf_multiworker.py
"""

import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # it reads TF_CONFIG
rank = strategy.cluster_resolver.task_id or 0
world_size = strategy.num_replicas_in_sync

X, y = load_digits(return_X_y=True)
X, X_test, y, y_test = train_test_split(
    (X / 16).astype("float32"), y, test_size=0.2, random_state=0, stratify=y
)
data = tf.data.Dataset.from_tensor_slices((X, y)).shuffle(2000, seed=0)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = data.batch(64, drop_remainder=True).with_options(options)
batches = strategy.experimental_distribute_dataset(data)  # 64 images, over all workers

with strategy.scope():
    w1 = tf.Variable(tf.random.stateless_normal([64, 64], seed=(1, 1), stddev=0.15))
    w2 = tf.Variable(tf.random.stateless_normal([64, 10], seed=(2, 2), stddev=0.15))
    weights = [w1, w2]


def net(images):
    return tf.nn.relu(images @ w1) @ w2


@tf.function
def step(batch):
    def one(images, labels):
        with tf.GradientTape() as tape:
            errors = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, net(images))
            loss = tf.nn.compute_average_loss(errors, global_batch_size=64)
        context = tf.distribute.get_replica_context()
        slopes = context.all_reduce("sum", tape.gradient(loss, weights))
        for weight, slope in zip(weights, slopes, strict=True):
            weight.assign_sub(0.3 * slope)

    strategy.run(one, args=batch)


for _ in range(20):
    for batch in batches:
        step(batch)

accuracy = (net(X_test).numpy().argmax(1) == y_test).mean()
print(f"rank {rank} of {world_size}: accuracy={accuracy:.3f}")
