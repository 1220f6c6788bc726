"""Fine-tuning, with or without a teacher and labels. Written on Keras 3, for any backend.

Models of `tfdwd.quantize_aware` are tf_keras models; what is done alike in both is taken from the
kit that the model is of.
"""

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import bridge, evaluation, reporting, workers
from tfdwd.batches import batches, pack
from tfdwd.errors import Error

_OPTIMIZERS = ("adamw", "sgd")
_SMALL = 1e-7  # under which a probability is cut off before its logarithm
_STATE = "state.npz"


def finetune(
    model: keras.Model,
    dataset: Any,
    *,
    epochs: int,
    teacher: keras.Model | None = None,
    labels: float = 0.0,
    features: float = 0.0,
    optimizer: str = "adamw",
    learning_rate: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    mixed_precision: bool = False,
    freeze_batch_norm: bool = False,
    batch_size: int = 64,
    steps_per_epoch: int | None = None,
    validation: Any = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> keras.callbacks.History:
    """Trains a classifier further, in place.

    With a teacher the loss is the cross-entropy against its probabilities; labels are not needed.
    Without one it is that against the labels.

    Several processes, on one machine or many, train together after each called
    `tfdwd.workers.join`: arrays are given whole, other data as each worker's own part
    (`tfdwd.data.training` makes it), batch_size is that of one worker. Batch norms normalise with
    what all of them have, so the result is that of one process with the whole batch. Several
    devices of one process share each batch under the scope of a tf.distribute.MirroredStrategy in
    which the model was loaded; there each batch norm normalises with what its device has.

    Args:
      model: a Functional or Sequential Keras 3 model whose one output is probabilities (batch,
        classes), such as a student, or one of `tfdwd.quantize_aware`. It is trained in place.
      dataset: images, or (images, labels), as arrays: they are shuffled anew in each epoch; or a
        tf.data.Dataset or iterable of batches of such; or a function of the epoch's number, from
        0, that gives one. Labels are class numbers or one-hot.
      epochs: in all, those before a resumption included.
      teacher: gives probabilities of the same classes, such as the original. It is not changed.
      labels: with a teacher, the weight of the cross-entropy against the labels; the teacher's
        weight is 1.
      features: with a teacher, the weight of the squared error of the outputs of layers that have
        the same name and shape in both and are convolutions of different kernels: the ones that
        `tfdwd.decompose` replaced. Each is divided by the power of the teacher's.
      optimizer: "adamw", or "sgd" (momentum 0.9, Nesterov).
      learning_rate: the highest; it rises linearly, then falls to 0 along a cosine.
      warmup: part of all steps in which it rises.
      weight_decay: of kernels only; biases and batch norms are left out.
      label_smoothing: 0..1, of the labels.
      ema: momentum of an exponential moving average of the weights, such as 0.999, that the model
        has at the end.
      mixed_precision: compute in float16 with scaled losses (bfloat16 on a CPU).
      freeze_batch_norm: batch norms stay as they are and normalise with what they have.
      batch_size: for arrays.
      steps_per_epoch: of a function or an iterable of unknown length.
      validation: labelled data as for `tfdwd.evaluate`; its top-1 is taken after each epoch.
      folder: for checkpoints: last.keras and, with validation, best.keras (of a quantise-aware
        model the weights, last.weights.h5). Must exist; the first worker writes, all read.
      resume: go on from the checkpoint in the folder, if there is one, to the same weights as
        without the interruption.
      tensorboard: folder for TensorBoard: loss, val_top1 and learning rate of each epoch.
      seed: of the order of the images, dropout and the like.

    Returns:
      The history: loss, and val_top1 with validation, for each epoch.

    Raises:
      tfdwd.Error: wrong options or data; a loss that is not finite, with the step; what was saved
        in the folder before stays.

    Example:
      >>> history = finetune(student, images, epochs=10, teacher=model)  # doctest: +SKIP
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise Error(f"expected {name} of at least 1, got {value}")
    for name, part in (("warmup", warmup), ("label_smoothing", label_smoothing), ("ema", ema or 0)):
        if not 0 <= part < 1:
            raise Error(f"{name}: expected 0 or more and less than 1, got {part}")
    if optimizer not in _OPTIMIZERS:
        raise Error(f"optimizer: expected one of {', '.join(_OPTIMIZERS)}, got {optimizer!r}")
    if teacher is None and (labels or features):
        raise Error("labels and features weigh against a teacher: pass teacher=model")
    if folder is not None and not Path(folder).is_dir():
        raise Error(f"folder: {folder} does not exist; create it first")
    if resume and folder is None:
        raise Error("resume: expected the folder with the checkpoint, pass folder=")
    if tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise Error("tensorboard: expected the package tensorboard; pip install 'tfdwd[train]'")
    keras.utils.set_random_seed(seed)
    for number, variable in enumerate(model.variables):
        if variable.name == "seed_generator_state":  # of dropout and the like
            variable.assign(np.random.default_rng((seed, number)).integers(0, 2**31, 2))
    with_labels = teacher is None or labels > 0
    if workers.count() > 1 and bridge.kit(model) is not keras:
        raise Error("a quantise-aware model is trained by one worker, got several")
    data, steps = _epochs_of(dataset, model, batch_size, with_labels, seed, steps_per_epoch)
    workers.check_same("steps in all", epochs * steps)
    for network in (model, teacher):
        if network is not None:
            _check_probabilities(network, next(iter(data(0)))[0])
    kit = bridge.kit(model)
    if mixed_precision and kit is not keras:
        raise Error("mixed_precision: a quantise-aware model trains in float32; leave it away")
    schedule = kit.optimizers.schedules.CosineDecay(
        0.0 if warmup else learning_rate,
        max(1, round(epochs * steps * (1 - warmup))),
        warmup_target=learning_rate if warmup else None,
        warmup_steps=round(epochs * steps * warmup),
    )
    pairs = _pairs(model, teacher) if features and teacher is not None else []
    with contextlib.ExitStack() as stack:
        half = stack.enter_context(_half_precision(model)) if mixed_precision else ""
        if freeze_batch_norm:
            stack.enter_context(_batch_norms_with(model, "trainable", False))
        if workers.count() > 1:
            stack.enter_context(_batch_norms_with(model, "synchronized", True))
        learner = _mixed(_Learner, kit.Model)(
            model, teacher, pairs, labels, features, label_smoothing, with_labels
        )
        made = _optimizer(kit, optimizer, schedule, weight_decay, ema)
        if half == "mixed_float16":  # small gradients would be 0
            made = keras.optimizers.LossScaleOptimizer(made)
        learner.compile(optimizer=made)
        base = kit.callbacks.Callback
        checkpoint = _mixed(_Checkpoint, base)(model, learner, validation, folder)
        first = checkpoint.restored() if resume else 0
        workers.check_same("epoch to go on from", first)
        if workers.count() > 1:
            model.set_weights(workers.of_first(model.get_weights()))
        callbacks = [_mixed(_Watch, base)(steps, first, epochs), checkpoint]
        if tensorboard is not None and not workers.index():
            callbacks.append(kit.callbacks.TensorBoard(tensorboard, write_graph=False))
        with workers.losses_named():
            learner.fit(
                workers.whole(lambda: _stream(data, first)),
                shuffle=False,  # they come shuffled
                steps_per_epoch=steps,
                initial_epoch=first,
                epochs=epochs,
                verbose=0,
                callbacks=callbacks,
            )
    return checkpoint.whole_history()


# ---------------------------------------------------------------------- data


def _epochs_of(
    dataset: Any,
    model: keras.Model,
    batch_size: int,
    with_labels: bool,
    seed: int,
    steps: int | None,
) -> tuple[Callable[[int], Iterator[Any]], int]:
    """A function of the epoch that gives its batches, and how many they are."""
    if isinstance(dataset, np.ndarray | tuple | dict):
        rows = len(keras.tree.flatten(dataset)[0])
        [(inputs, labels)] = batches(dataset, model, max(1, rows), with_labels)

        def shuffled(epoch: int) -> Iterator[Any]:
            order = np.random.default_rng((seed, epoch)).permutation(rows)
            # Whole batches only, unless there is not even one: every step is of one shape.
            for number in range(own_steps):
                start = (number * workers.count() + workers.index()) * batch_size
                chosen = order[start : start + batch_size]
                yield (
                    [array[chosen] for array in inputs],
                    None if labels is None else labels[chosen],
                )

        found, own_steps = shuffled, rows // (batch_size * workers.count())
        if workers.count() > 1 and not own_steps:
            raise Error(
                f"dataset: expected at least one batch of {batch_size} for each of "
                f"{workers.count()} workers, got {rows} images"
            )
        own_steps = max(1, own_steps)
    else:
        given = dataset if callable(dataset) else lambda epoch: dataset
        first = next(iter(given(0)), None)
        if first is None:
            raise Error("dataset: expected at least one batch, got none")
        own_size = int(keras.tree.flatten(first)[0].shape[0])

        def streamed(epoch: int) -> Iterator[Any]:
            bound = None if steps is None else steps * own_size  # what repeats has no end
            return batches(given(epoch), model, own_size, with_labels, images=bound)

        found, own_steps = streamed, _length(given(0)) if steps is None else steps
    return found, own_steps if steps is None else steps


def _check_probabilities(model: keras.Model, inputs: list[np.ndarray]) -> None:
    """Refuses a model whose output is something else, such as logits.

    Raises:
      tfdwd.Error: what was expected.
    """
    shapes = [tuple(tensor.shape) for tensor in model.outputs]
    fine = len(shapes) == 1 and len(shapes[0]) == 2
    if fine:
        scores = np.asarray(keras.tree.flatten(model.predict_on_batch(pack(model, inputs)))[0])
        # Written so that NaN passes: the loss tells of it, with the step.
        fine = not (scores.min() < -0.01 or (np.abs(scores.sum(1) - 1) > 0.01).any())
    if not fine:
        raise Error(
            f"model {model.name!r}: expected one output of probabilities (batch, classes), got "
            f"outputs {shapes} that are not; end it with a softmax"
        )


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:  # an unknown or infinite tf.data.Dataset, or a plain iterable
        raise Error(
            "dataset: expected one that knows how many batches it has; pass steps_per_epoch"
        ) from error


def _stream(data: Callable[[int], Iterator[Any]], epoch: int) -> Iterator[Any]:
    """The batches of all epochs from one on, as `fit` takes them."""
    while True:
        for inputs, labels in data(epoch):
            x = inputs[0] if len(inputs) == 1 else tuple(inputs)
            yield (x,) if labels is None else (x, labels)
        epoch += 1


# ---------------------------------------------------------------------- what is learnt


def _mixed(own: type, base: type) -> Any:
    """One of the classes below, as a Model or Callback of the kit in use."""
    return type(own.__name__.strip("_"), (own, base), {})


class _Learner:
    """A model that is a student with what it learns by; the teacher is no part of its weights."""

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None,
        pairs: Sequence[str],
        labels: float,
        features: float,
        smoothing: float,
        with_labels: bool,
    ) -> None:
        super().__init__()
        self.student = _with_features(student, pairs)
        taught = None if teacher is None else _with_features(teacher, pairs)
        # A function hides its variables from Keras, which would train and save them.
        self.teach = None if taught is None else lambda x: taught(x, training=False)
        self.weight_of_labels = (labels if teacher is not None else 1.0) if with_labels else 0.0
        self.weight_of_features, self.smoothing = features, smoothing
        # Keras 3 follows the loss by itself.
        kit = bridge.kit(student)
        self.followed = None if kit is keras else kit.metrics.Mean("loss")

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.student(x, training=training)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        scores, *features = _float32(y_pred)
        logs = keras.ops.log(keras.ops.maximum(scores, _SMALL))
        loss = 0.0
        if self.weight_of_labels:
            classes = scores.shape[-1]
            y = keras.ops.reshape(y, (-1, classes if tuple(y.shape[1:]) == (classes,) else 1))
            if y.shape[-1] != classes:
                y = keras.ops.one_hot(keras.ops.cast(y[:, 0], "int32"), classes)
            y = keras.ops.cast(y, "float32") * (1 - self.smoothing) + self.smoothing / classes
            loss += self.weight_of_labels * _cross_entropy(y, logs)
        if self.teach is not None:
            taught, *wanted = _float32(self.teach(x))
            loss += _cross_entropy(keras.ops.stop_gradient(taught), logs)
            for found, target in zip(features, wanted, strict=True):
                power = keras.ops.mean(keras.ops.square(target)) + _SMALL
                error = keras.ops.mean(keras.ops.square(found - target)) / power
                loss += self.weight_of_features / len(wanted) * error
        if self.followed is not None:
            self.followed.update_state(loss)
        return loss / workers.replicas()  # whose gradients are added up

    def make_train_function(self, force: bool = False) -> Any:
        if workers.count() == 1:
            return super().make_train_function(force)  # type: ignore[misc]
        self.train_function = workers.step(self)
        return self.train_function


def _float32(outputs: Any) -> list[Any]:
    return [keras.ops.cast(output, "float32") for output in keras.tree.flatten(outputs)]


def _cross_entropy(wanted: Any, logs: Any) -> Any:
    return -keras.ops.mean(keras.ops.sum(wanted * logs, axis=-1))


def _with_features(model: keras.Model, names: Sequence[str]) -> keras.Model:
    """The model with a list of outputs: its own, and those of some layers."""
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    outputs = [*model.outputs, *(model.get_layer(name).output for name in names)]
    return bridge.kit(model).Model(inputs, outputs)


def _pairs(student: keras.Model, teacher: keras.Model) -> list[str]:
    """Names of the convolutions that were replaced, outside of nested models."""
    convs = {
        layer.name: layer for layer in teacher.layers if isinstance(layer, keras.layers.Conv2D)
    }
    found = [
        layer.name
        for layer in student.layers
        if isinstance(layer, keras.layers.Conv2D)
        and layer.name in convs
        and layer.kernel_size != convs[layer.name].kernel_size
        and layer.output.shape == convs[layer.name].output.shape
    ]
    if not found:
        raise Error(
            "features: expected a student of the teacher, with convolutions that were replaced and "
            "are not in a nested model (tfdwd.flatten opens those); there are none"
        )
    return found


def _optimizer(
    kit: Any, name: str, schedule: Any, weight_decay: float, ema: float | None
) -> keras.optimizers.Optimizer:
    options = {
        "weight_decay": weight_decay or None,
        "use_ema": ema is not None,
        "ema_momentum": 0.99 if ema is None else ema,
    }
    if name == "adamw":
        made = kit.optimizers.AdamW(schedule, **{**options, "weight_decay": weight_decay})
    else:
        made = kit.optimizers.SGD(schedule, momentum=0.9, nesterov=True, **options)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


@contextlib.contextmanager
def _batch_norms_with(model: keras.Model, attribute: str, value: bool) -> Iterator[None]:
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
def _half_precision(model: keras.Model) -> Iterator[str]:
    """All layers but those of the outputs compute in half precision; gives the policy's name."""
    half = "mixed_float16" if keras.distribution.list_devices("gpu") else "mixed_bfloat16"
    last = {id(tensor._keras_history.operation) for tensor in model.outputs}
    layers = [layer for layer in model._flatten_layers() if id(layer) not in last]
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = half
        yield half
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


# ---------------------------------------------------------------------- callbacks


class _Watch:
    """A progress bar, and an end where the loss is not finite."""

    def __init__(self, steps: int, first: int, epochs: int) -> None:
        super().__init__()
        self.steps, self.step = steps, first * steps
        self.bar = reporting.progress((epochs - first) * steps, "fine-tuning")

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.step += 1
        loss = float((logs or {})["loss"])
        self.bar.update()
        self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        if not np.isfinite(loss):
            self.bar.close()
            raise Error(
                f"the loss is {loss} at step {self.step}, in epoch {self.step // self.steps + 1}: "
                "expected a finite one; lower learning_rate, or look for damaged images (what was "
                "saved in folder before is still there)"
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.bar.close()


class _Checkpoint:
    """Validates after each epoch and keeps the last and the best student."""

    model: Any  # the learner, as Keras gives it to a callback
    folder: Any

    def __init__(self, student: keras.Model, learner: Any, validation: Any, folder: Any) -> None:
        super().__init__()
        self.student, self.learner, self.validation = student, learner, validation
        self.folder = None if folder is None else Path(folder)
        self.writes = folder is not None and not workers.index()
        self.found: dict[str, list[float]] = {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        learner = self.model  # which brings the weights up to date under JAX
        self.found.setdefault("loss", []).append(float((logs or {})["loss"]))
        if self.validation is not None:
            top1 = evaluation.evaluate(self.student, self.validation).top1
            best = max(self.found.get("val_top1", [-1.0]))
            self.found.setdefault("val_top1", []).append(top1)
            if logs is not None:
                logs["val_top1"] = top1  # for TensorBoard, which comes after this
            if self.writes and top1 > best:
                _save(self.student, self.folder, "best")
        logging.info("epoch %d: %s", epoch + 1, {k: v[-1] for k, v in self.found.items()})
        if self.writes:
            sheet = io.BytesIO()
            arrays: dict[str, Any] = {
                f"w{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(_state(learner))
            }
            arrays |= {"epoch": np.array(epoch + 1), **self.found}
            np.savez(sheet, **arrays)
            _save(self.student, self.folder, "last")
            reporting.write_whole(self.folder / _STATE, sheet.getvalue())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self.writes:  # an average of the weights is there only now
            _save(self.student, self.folder, "last")

    def restored(self) -> int:
        """Loads the checkpoint, if there is one; returns the epoch to go on with."""
        assert self.folder is not None
        if not (self.folder / _STATE).is_file():
            return 0
        self.learner.optimizer.build(self.learner.trainable_variables)
        variables = _state(self.learner)
        with np.load(self.folder / _STATE) as content:
            arrays = [content[name] for name in content.files if name.startswith("w")]
            shapes = [array.shape for array in arrays]
            if shapes != [tuple(variable.shape) for variable in variables]:
                raise Error(
                    f"{self.folder / _STATE}: expected the checkpoint of this model with the same "
                    "optimizer, got another; name another folder or leave resume away"
                )
            for variable, array in zip(variables, arrays, strict=True):
                variable.assign(array)
            self.found = {
                name: content[name].tolist()
                for name in content.files
                if name in ("loss", "val_top1")
            }
            return int(content["epoch"])

    def whole_history(self) -> keras.callbacks.History:
        history = keras.callbacks.History()
        history.history = dict(self.found)
        history.epoch = list(range(len(self.found.get("loss", []))))
        return history


def _save(student: Any, folder: Path, name: str) -> None:
    if bridge.kit(student) is keras:
        reporting.save_model(student, folder / f"{name}.keras")
    else:  # see tfdwd.quantize_aware: it cannot be loaded from .keras
        student.save_weights(folder / f"{name}.weights.h5")


def _state(learner: Any) -> list[Any]:
    """All that training changes: weights, seeds of dropout, and what the optimizer remembers."""
    return [*learner.student.variables, *learner.optimizer.variables]
