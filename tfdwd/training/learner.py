"""One step of training, on Keras 3 with any backend or on tf_keras.

A learner is a model of the kit in use that trains the student by an objective.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from tfdwd import bridge, workers
from tfdwd.training import features
from tfdwd.training.objective import Objective
from tfdwd.training.options import Options


class KerasLearner(keras.Model):
    """A Keras 3 model that is the student, with the objective for its loss.

    Args:
      student, run, objective: as for `learner_of`.
      half: the policy that steps compute in, None for that of the student.
    """

    def __init__(
        self, student: Any, run: features.Runner, objective: Objective, half: str | None = None
    ) -> None:
        super().__init__()
        self.student, self.run, self.objective, self.half = student, run, objective, half
        self.built = True  # as the student is

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.run(inputs, training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        # The gradients of the replicas are added up.
        return self.objective(x, y, y_pred) / workers.replicas()


def learner_of(
    student: Any,
    run: features.Runner,
    objective: Objective,
    optimizer: Any,
    mixed_precision: bool = False,
) -> Any:
    """A compiled and built model of the student's kit that trains it with ``train_on_batch``.

    Args:
      student: the model.
      run: gives its outputs and the features of the objective.
      objective: the loss of a batch.
      optimizer: of the student's kit.
      mixed_precision: steps compute in half precision, all layers but those of the outputs; what is
        measured does not. Not of tf_keras.
    """
    if bridge.kit(student) is not keras:
        from tfdwd.training.tf_keras_learner import TfKerasLearner

        learner: Any = TfKerasLearner(student, run, objective)
    elif mixed_precision:
        on_gpu = any(name.startswith("gpu") for name in keras.distribution.list_devices())
        half = "mixed_float16" if on_gpu else "mixed_bfloat16"
        learner = KerasLearner(student, run, objective, half)
        if half == "mixed_float16":  # small gradients would be 0
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    else:
        learner = KerasLearner(student, run, objective)
    learner.compile(optimizer=optimizer)
    learner.optimizer.build(learner.trainable_variables)  # which may hold the one that was given
    return learner


def step_of(learner: Any) -> Callable[[Any, Any], float]:
    """One step of training: (inputs, labels) -> the loss before it, over all workers."""
    half = learner.half if isinstance(learner, KerasLearner) else None
    together = workers.step(learner) if workers.count() > 1 else None

    def step(inputs: Any, labels: Any) -> float:
        if together is not None:
            return float(together(inputs, labels))
        if isinstance(learner, keras.Model):  # tf_keras does it itself
            inputs, labels = workers.shared_out((inputs, labels))
        learner.train_on_batch(inputs, labels)
        return float(learner.get_metrics_result()["loss"])

    if half is None:
        return step

    def half_step(inputs: Any, labels: Any) -> float:
        with _computing_in(half, learner.student):  # any step may be traced
            return step(inputs, labels)

    return half_step


def rate_of(student: Any, options: Options, steps: int) -> Any:
    """The learning rate, of the student's kit: rises linearly, then falls along a cosine.

    Args:
      student: the model.
      options: the highest rate, and how long it rises.
      steps: in all.
    """
    kit, rising = bridge.kit(student), options.warmup
    return kit.optimizers.schedules.CosineDecay(
        0.0 if rising else options.learning_rate,
        max(1, round(steps * (1 - rising))),
        warmup_target=options.learning_rate if rising else None,
        warmup_steps=round(steps * rising),
    )


def optimizer_of(student: Any, options: Options, rate: Any) -> Any:
    """An optimizer of the student's kit; kernels, and no other weights, decay."""
    kit = bridge.kit(student)
    averaging = {
        "use_ema": options.ema is not None,
        "ema_momentum": 0.99 if options.ema is None else options.ema,
    }
    if options.optimizer == "adamw":
        made = kit.optimizers.AdamW(rate, weight_decay=options.weight_decay, **averaging)
    else:
        decay = options.weight_decay or None
        made = kit.optimizers.SGD(
            rate, momentum=0.9, nesterov=True, weight_decay=decay, **averaging
        )
    made.exclude_from_weight_decay(
        var_list=[v for v in student.trainable_variables if not _is_kernel(v)]
    )
    return made


def _is_kernel(variable: Any) -> bool:
    """By its own name: "kernel", in tf_keras "layer/depthwise_kernel:0"."""
    return str(variable.name).rpartition("/")[2].partition(":")[0].endswith("kernel")


@contextlib.contextmanager
def averaged(learner: Any, ema: float | None) -> Iterator[None]:
    """Within, the student has its averaged weights, if there is an average."""
    if ema is None:
        yield
        return
    variables = learner.trainable_variables
    own = [_copy(variable) for variable in variables]
    learner.optimizer.finalize_variable_values(variables)
    for variable in variables:  # JAX lets it share a buffer with the average, and gives that away
        variable.assign(_copy(variable))
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


def _copy(variable: Any) -> Any:
    return np.array(keras.ops.convert_to_numpy(variable))


@contextlib.contextmanager
def batch_norms_with(model: Any, attribute: str, value: bool) -> Iterator[None]:
    """Within, this attribute of all batch norms has this value."""
    kind = bridge.kit(model).layers.BatchNormalization
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, kind)]
    before = [getattr(layer, attribute) for layer in norms]
    try:
        for layer in norms:
            setattr(layer, attribute, value)
        yield
    finally:
        for layer, own in zip(norms, before, strict=True):
            setattr(layer, attribute, own)


@contextlib.contextmanager
def _computing_in(policy: str, model: keras.Model) -> Iterator[None]:
    """Within, all layers but those of the outputs have this policy."""
    last = {id(_last_layer(tensor)) for tensor in model.outputs}
    layers = [layer for layer in model._flatten_layers() if id(layer) not in last]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.dtype_policy = own


def _last_layer(tensor: Any) -> Any:
    """The layer that an output comes from, inside of a nested model, too."""
    operation, _, place = tensor._keras_history
    while isinstance(operation, keras.Model) and getattr(operation, "outputs", None):
        operation, _, place = operation.outputs[place]._keras_history
    return operation
