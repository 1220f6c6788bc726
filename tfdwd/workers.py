"""Several processes that work as one, each on its part of the data: the only file that knows how.

A process is a *worker*, with one device; several GPUs of one machine are several workers
(CUDA_VISIBLE_DEVICES gives each its own). They find each other by TensorFlow's usual environment
variable, here that of the first of two:

    TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
                "task": {"type": "worker", "index": 0}}'

Each worker has variables of its own, and only sums are shared: weights that start equal stay equal
where equal gradients are applied. Keras 3's `fit` cannot train the variables that
MultiWorkerMirroredStrategy mirrors (keras issue 20585).
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfdwd.errors import Error, one_line

_strategy: Any = None  # of a process that has joined others; it can do so once


def join() -> None:
    """Connects this process to the others that TF_CONFIG names; returns when all are there.

    Call it first: TensorFlow must not have run anything yet. Afterwards `tfdwd.finetune` trains
    together with the others; `tfdwd.decompose` and `tfdwd.plan` calibrate on the images of all.

    Raises:
      tfdwd.Error: TF_CONFIG is missing or wrong, or TensorFlow was used before.

    Example:
      >>> join()  # doctest: +SKIP
      >>> index(), count()  # doctest: +SKIP
      (0, 2)
    """
    global _strategy
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        named = config["cluster"]["worker"]
        kind, own = config["task"]["type"], config["task"]["index"]
        fine = (
            kind == "worker"
            and isinstance(named, list)
            and all(re.fullmatch(r".+:\d+", address) for address in named)
            and isinstance(own, int)
            and 0 <= own < len(named)
        )
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise Error(
            'TF_CONFIG: expected JSON such as {"cluster": {"worker": ["host:port", "host:port"]}, '
            f'"task": {{"type": "worker", "index": 0}}}}, got {os.environ.get("TF_CONFIG")!r}'
        )
    import tensorflow as tf

    try:
        _strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise Error("expected to join the other workers before TensorFlow runs anything") from error
    except (tf.errors.OpError, ValueError) as error:
        raise Error(f"TF_CONFIG: cannot join {', '.join(named)}: {one_line(error)}") from error
    logging.info("worker %d of %d", index(), count())


def count() -> int:
    """How many workers there are: 1 where none were joined."""
    return 1 if _strategy is None else _strategy.num_replicas_in_sync


def index() -> int:
    """This worker's number, from 0."""
    return 0 if _strategy is None else _strategy.cluster_resolver.task_id


def replicas() -> int:
    """How many copies of a model the code that calls this trains at once.

    The workers, inside of `step`; the devices, under tf.distribute.MirroredStrategy.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def add_up(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sums arrays over all workers, which must all call this with the same shapes and dtypes.

    Args:
      arrays: floating-point or integer arrays.

    Returns:
      The sums, the same to the last bit on every worker; the arrays where there is one worker.

    Raises:
      tfdwd.Error: a worker was lost.
    """
    if count() == 1:
        return list(arrays)
    import tensorflow as tf

    @tf.function(autograph=False)
    def summed(tensors: list[Any]) -> Any:
        return _strategy.run(_sum, (tensors,))

    # TensorFlow sums tensors of one dtype; this one holds the others, whole numbers to 2**53.
    given = [tf.constant(array, tf.float64) for array in arrays]
    with losses_named():
        totals = summed(given)
    return [total.numpy().astype(array.dtype) for total, array in zip(totals, arrays, strict=True)]


def of_first(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The first worker's arrays, on all workers. Each gives arrays of the same shapes."""
    return add_up([array if index() == 0 else np.zeros_like(array) for array in arrays])


def wait() -> None:
    """Returns once all workers have called it.

    Raises:
      tfdwd.Error: a worker was lost.
    """
    add_up([np.zeros(1)])


def check_same(what: str, number: int) -> None:
    """Refuses a number that is not the same on all workers.

    Raises:
      tfdwd.Error: it is not; names ``what``.
    """
    [all_numbers] = add_up([np.eye(count(), dtype=np.int64)[index()] * number])
    if (all_numbers != number).any():
        raise Error(
            f"expected the same {what} on all workers, got {all_numbers.tolist()}; give each the "
            "same options, as much data, and a folder that all of them share"
        )


def shared_out(batch: Any) -> Any:
    """A batch of arrays as the devices of a strategy take it: each its part.

    Args:
      batch: arrays (rows, ...) in any structure. Where there are fewer rows than devices, some are
        taken twice.

    Returns:
      The batch itself where there is one device, or TensorFlow is not the backend.
    """
    if replicas() == 1:
        return batch
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()

    def shared(array: Any) -> Any:
        rows = np.resize(np.arange(len(array)), max(len(array), replicas()))
        parts = np.array_split(array[rows], replicas())
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.convert_to_tensor(parts[context.replica_id_in_sync_group])
        )

    return tf.nest.map_structure(shared, batch)


def step(learner: Any) -> Callable[[Any, Any], Any]:
    """One step of training with all workers: (inputs, labels) of one's own batch -> the loss.

    Each worker has a batch of the same size; the gradient is that of the loss's mean over all.
    ``learner.compute_loss`` must give its own mean over `replicas`.
    """
    import tensorflow as tf

    def gradients(x: Any, y: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            loss = learner.compute_loss(x=x, y=y, y_pred=learner(x, training=True))
            scaled = learner.optimizer.scale_loss(loss)  # which it takes back
        found = tape.gradient(
            scaled, learner.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return _sum([loss, *found])

    @tf.function(autograph=False, reduce_retracing=True)
    def together(x: Any, y: Any) -> Any:
        loss, *found = _strategy.run(gradients, (x, y))
        # Outside of the strategy, where the optimizer does not add the gradients up again.
        learner.optimizer.apply(found, learner.trainable_variables)
        return loss

    return together


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """Makes one clear error of what TensorFlow raises when a worker is gone."""
    if count() == 1:
        yield
        return
    import tensorflow as tf

    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
            tf.errors.DeadlineExceededError, tf.errors.InternalError) as error:  # fmt: skip
        raise Error(
            f"worker {index()} of {count()} lost the connection to another worker, which may have "
            "been killed; start all of them again (training goes on from its checkpoint with "
            "resume)"
        ) from error


def _sum(tensors: list[Any]) -> Any:
    import tensorflow as tf

    # A copy has a device; an argument of a tf.function has none, and would be refused.
    tensors = [tf.identity(tensor) for tensor in tensors]
    return tf.distribute.get_replica_context().all_reduce("SUM", tensors)
