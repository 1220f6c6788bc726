"""`finetune`: checks what the user gave, puts the parts of a run together and starts it."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import bridge, checks, shapes, workers
from tfdwd.batches import can_be_read_again
from tfdwd.errors import Error
from tfdwd.training import augmentation, checkpoints, learner, loop, task
from tfdwd.training import features as layers
from tfdwd.training.epochs import Batch, Epochs, Reading, open_epochs
from tfdwd.training.options import Options
from tfdwd.training.validation import Validation, joined, of_data, of_images

_EPOCHS, _FEWEST, _MOST = 4200, 3, 300  # the first for one image; see `finetune`
_RATE = 5e-4
_RATE_OF_LOSS, _LOWEST_RATE, _HIGHEST_RATE = 4e-3, 1e-4, 3e-3  # see `finetune`
_TRAINING = 0.9  # part of the time given that the steps may take
_TRIALS = 5  # steps that are timed
_MOST_HELD = 0.5


def finetune(
    model: keras.Model,
    dataset: Any,
    *,
    epochs: int | None = None,
    minutes: float | None = None,
    teacher: keras.Model | None = None,
    loss: Any = None,
    outputs: str | Mapping[str, str] | None = None,
    loss_weights: Mapping[str, float] | Sequence[float] | None = None,
    labels_weight: float = 0.0,
    features: Sequence[str] | str | float | None = "auto",
    features_weight: float | None = None,
    augment: Any = "auto",
    optimizer: str = "adamw",
    learning_rate: float | None = None,
    warmup: float = 0.05,
    weight_decay: float = 1e-4,
    label_smoothing: float = 0.0,
    ema: float | None = None,
    mixed_precision: bool = False,
    freeze_batch_norm: bool = False,
    batch_size: int = 64,
    steps_per_epoch: int | None = None,
    validation: Any = 0.1,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    seed: int = 0,
    labels: float | None = None,
) -> "History":
    """Trains a network of any task further, in place.

    With a teacher no labels are needed: outputs that are probabilities, of images or of each pixel,
    get the cross-entropy against the teacher's, those of images at a temperature of 2 (Hinton et
    al., arXiv 1503.02531); all others the squared error in units of the teacher's variance. Without
    one, outputs are compared with labels: probabilities by the cross-entropy, others by the `loss`
    that is given. The losses of several outputs add up.

    A tenth of images that are given as arrays is held back, and measured before the first step and
    after each epoch. At the end the model has the weights that were best there, those it began with
    among them: where it was measured, it is never worse than before.

    Several processes, on one machine or many, train together after each called
    `tfdwd.workers.join`: arrays are given whole, other data as each worker's own part
    (`tfdwd.data.training` makes it), batch_size is that of one worker. Batch norms normalise with
    what all of them have, so the result is that of one process with the whole batch. Several
    devices of one process share each batch under the scope of a tf.distribute.MirroredStrategy in
    which the model was loaded; there each batch norm normalises with what its device has.

    Args:
      model: a Functional or Sequential Keras 3 model of any inputs and outputs, such as a student,
        or one of `tfdwd.quantize_aware`. It is trained in place. One of a fixed batch is trained in
        batches of that size.
      dataset: images, or (images, labels), as arrays: they are shuffled anew in each epoch; or a
        tf.data.Dataset or iterable of batches of such, read on from epoch to epoch and again from
        its start where it ends; or a function of the epoch's number, from 0, that gives one. Labels
        of an output are class numbers, one-hot or other distributions (images, ..., classes), or
        with `loss` what that takes. Those of several outputs are a dict by output name, which may
        leave outputs out, or a list in their order. They are checked before the first step, or as
        they come where they stream. Weights of images are ignored.
      epochs: in all, those before a resumption included. By default 4,200 divided by the square
        root of the number of images that an epoch trains on, from 3 to 300: 140 for 1,024 images of
        which a tenth is held back, 62 for 5,085.
      minutes: instead, about how long it may take; so many epochs as fit by the time of a few
        steps with their batches and of what is measured, at least one. A resumed run does as many
        as it was to do when it began.
      teacher: a model of the same inputs and outputs, such as the original, in any order if their
        names are the same. It is not changed.
      loss: against labels: a keras.losses.Loss, the name of one, or a function (y_true, y_pred); or
        a dict of those by output name, or a list in the order of the outputs.
      outputs: what an output is, "probabilities", "logits" or "values", or a dict of that by output
        name. By default it is found on the first images; logits cannot be told from other values.
      loss_weights: of the outputs, by name or in their order; 1 by default. Outputs are named by
        their keys where they are a dict, else by the layers that they come from.
      labels_weight: with a teacher, the weight of the losses against the labels; the teacher's
        weight is 1.
      features: with a teacher, what the student learns beside its outputs. "auto": of a classifier
        that is taught by its teacher alone, the last maps, which are pooled or flattened (as Liu et
        al. 2022, arXiv 2201.02620, do it for few images), if both have them and the student's
        squared error is at most 0.4 of their power on the first images: small students have no room
        for them, unless features_weight is given; else nothing.
        "replaced": the outputs of the convolutions that `tfdwd.decompose` replaced. Or names of
        layers, "model/layer" for those of nested models. (A number is the old way to give
        features_weight.)
      features_weight: of the mean of their squared errors, each divided by the power of the
        teacher's; by default 16 for the last maps, else 1.
      augment: how images are changed before they are trained on. "auto" is for arrays of images
        with a teacher: mirrored and shifted by up to an eighth of a side if the teacher's answers
        stand it (see `tfdwd.training.augmentation`), and mixed in pairs, but for the last quarter
        of the epochs, if it is a classifier, no labels are used, and the student is about as far
        from the teacher on mixed images as on others. None leaves them as they are. A
        Keras layer, or a function of a batch of images, is applied to any data of one input
        instead.
      optimizer: "adamw", or "sgd" (momentum 0.9, Nesterov).
      learning_rate: the highest; it rises linearly, then falls to 0 along a cosine. By default,
        with AdamW, a teacher and no labels, 3e-3 where the last maps are learnt; else 0.004 for
        each unit of loss that the student begins with (as `tfdwd.likeness` has it; the mean over
        the outputs, by their weights), from 1e-4 to 3e-3: answers alone would let a high rate undo
        a good start. Else 5e-4.
      warmup: part of all steps in which it rises.
      weight_decay: of kernels only; biases and batch norms are left out, and what regularises the
        model's layers is not used.
      label_smoothing: 0..1, of the labels of the default loss.
      ema: momentum of an exponential moving average of the weights, such as 0.999, that the model
        has at the end, and in validation and what is saved.
      mixed_precision: compute in float16 with scaled losses (bfloat16 on a CPU).
      freeze_batch_norm: batch norms stay as they are and normalise with what they have.
      batch_size: for arrays.
      steps_per_epoch: as many as the data has by default; needed where that is not known.
      validation: what is measured after each epoch. A number is the part of arrays that is held
        back; of other data that can be read again, and of fewer than ten images, the first batches
        are measured, which are trained on, too. With a teacher and no labels loss and agreement are
        those of `tfdwd.likeness`, for answers at that temperature, of images held back also moved
        as those that are trained on, since the student may have been fitted on them as they are;
        else the loss is that of training. With 0 or None, and of a generator, nothing is held back
        or measured, and the last weights stay. Or data that can be read once an epoch: of a
        classifier with labels the top-1, as `tfdwd.evaluate` finds it, else the loss.
      folder: for checkpoints: last.keras and, unless nothing is measured, best.keras (of a
        quantise-aware model the weights, last.weights.h5). Must exist; the first worker writes, all
        read.
      resume: go on from the checkpoint in the folder, if there is one, to the same weights as
        without the interruption. The data must be the same for that: shuffled by the epoch's number
        or not at all.
      tensorboard: folder for TensorBoard: loss, validation and learning rate of each epoch.
      seed: of the order of the images, dropout and the like.
      labels: the old name of labels_weight, until 0.3.0.

    Returns:
      The history: for each epoch loss, and what was measured, val_loss and val_agreement, val_loss
      or val_top1. Its ``before`` and ``after`` are dicts of what was measured of the weights at the
      start and of those that the model has now.

    Raises:
      tfdwd.Error: wrong options, models, data or labels, before the first step where that can be
        known; a loss or weights that are not finite, with the step; data that ends too early. What
        was saved in the folder before stays.

    Example:
      >>> history = finetune(student, images, teacher=model)  # doctest: +SKIP
      >>> history.before["val_agreement"], history.after["val_agreement"]  # doctest: +SKIP
      (0.71, 0.82)
      >>> history = finetune(detector, (images, {"boxes": boxes, "classes": classes}), epochs=10,
      ...                    loss={"boxes": "huber"})  # doctest: +SKIP
    """
    if labels is not None:
        _old_name("labels", "labels_weight")
        labels_weight = labels
    if isinstance(features, int | float):
        _old_name("features", "features_weight")
        features_weight, features = features, "replaced"
    options = Options(
        epochs=epochs,
        minutes=minutes,
        optimizer=optimizer,
        learning_rate=_RATE if learning_rate is None else learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        labels_weight=labels_weight,
        features_weight=features_weight,
        label_smoothing=label_smoothing,
        ema=ema,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
    )
    checks.switches(
        mixed_precision=mixed_precision, freeze_batch_norm=freeze_batch_norm, resume=resume
    )
    wishes = task.Wishes(outputs, loss, loss_weights, features)
    fixed = _check_models(model, teacher, wishes, options)
    if teacher is not None:
        teacher = task.in_order_of(model, teacher)
    kept = _check_folders(folder, resume, tensorboard)
    if bridge.kit(model) is not keras:
        _check_aware(mixed_precision)
    part = _check_validation(validation)
    _check_augment(augment, model)
    state = checkpoints.read(kept) if resume and kept is not None else None
    first = 0 if state is None else state.epoch
    workers.check_same("epoch to go on from", first)
    if epochs is None and state is not None:
        epochs = state.epochs
    reading = Reading(
        model=model,
        batch_size=batch_size,
        fixed=fixed,
        with_labels=teacher is None or labels_weight > 0,
        seed=seed,
        steps=steps_per_epoch,
        held=part or 0.0,
    )
    data = open_epochs(dataset, reading, first if epochs is None else min(first, epochs - 1))
    looked_at, stream = task.first_batches(data)
    learnt = task.task_of(model, teacher, wishes, options=options, first=looked_at, state=state)
    if data.labels is not None:
        learnt.checked(data.labels)
    task.try_losses(learnt, model, looked_at[0])
    if workers.count() > 1:
        model.set_weights(workers.of_first(model.get_weights()))
    if bridge.kit(model) is not keras:
        from tfdwd import quantization  # tf_keras, and TensorFlow, which JAX does without

        # Without ranges what it begins with would be measured unrounded.
        quantization.see_ranges(model, (inputs for inputs, _ in looked_at))
    moves = augmentation.Moves()
    if augment == "auto" and state is not None:
        moves = state.moves
    elif augment == "auto":
        moves = _moves(data, model, teacher, learnt)
    elif augment is not None:
        stream = _changed(augment, stream, seed, first * data.steps)
    taught_alone = teacher is not None and not learnt.needs_labels

    def measured(soft: bool) -> Validation:
        if data.held is not None:
            held = data.held
            if taught_alone:
                held = augmentation.with_moved(held[0], moves, seed), None
        elif first and can_be_read_again(dataset):  # what was measured before the interruption
            held = joined(task.first_batches(open_epochs(dataset, reading, 0))[0])
        else:
            held = joined(looked_at)
        return of_images(
            held, model, teacher, learnt, batch_size=batch_size, fixed=fixed, soft=soft
        )

    validate = None
    if part is None:
        validate = of_data(validation, model, learnt, batch_size=batch_size, fixed=fixed)
    elif part and can_be_read_again(dataset):
        validate = measured(soft=True)
    if learning_rate is None and state is not None:
        options = dataclasses.replace(options, learning_rate=state.rate)
    elif learning_rate is None and optimizer == "adamw" and taught_alone:
        rate = _HIGHEST_RATE if learnt.by_last_maps else _rate(measured(soft=False), learnt)
        options = dataclasses.replace(options, learning_rate=rate)
    runs = layers.runner(model, learnt.paths)
    with contextlib.ExitStack() as stack:
        if freeze_batch_norm:
            stack.enter_context(learner.batch_norms_with(model, "trainable", False))
        if workers.count() > 1:
            stack.enter_context(learner.batch_norms_with(model, "synchronized", True))

        def learner_of(steps: int) -> tuple[Any, Any]:
            rate = learner.rate_of(model, options, steps)
            made = learner.optimizer_of(model, options, rate)
            return learner.learner_of(model, runs, learnt.objective, made, mixed_precision), rate

        if epochs is None and minutes is not None:
            ahead = stream
            if data.augmented is not None and moves != augmentation.Moves():
                ahead = data.augmented(moves.of_epochs(1))
            trial = learner_of(1)[0]
            taken, read = _seconds_a_step(model, trial, learnt, looked_at, ahead)
            stream = itertools.chain(read, stream)
            seconds = data.steps * taken + _seconds_of(validate, trial)
            epochs = max(1, int(60 * minutes * _TRAINING / seconds))
        elif epochs is None:
            images = data.steps * len(looked_at[0][0][0]) * workers.count()
            epochs = round(min(max(_EPOCHS / images**0.5, _FEWEST), _MOST))
        workers.check_same("steps in all", epochs * data.steps)
        logging.info("%d epochs of %d steps", epochs, data.steps)
        _seed(model, seed)
        trained, rate = learner_of(epochs * data.steps)
        if state is not None and kept is not None:
            checkpoints.restore(trained, state, kept)
        run = loop.Run(
            learner=trained,
            task=learnt,
            options=options,
            epochs=epochs,
            steps=data.steps,
            moves=moves,
            validate=validate,
            folder=kept,
            log=loop.log_of(tensorboard, rate, data.steps),
        )
        if data.augmented is not None and moves != augmentation.Moves():
            stream = data.augmented(moves.of_epochs(epochs))
        with workers.losses_named():
            history = run.train(learnt.checked_stream(stream), state)
    return History(history, run.best)


class History(keras.callbacks.History):
    """What came of fine-tuning.

    Attributes:
      history: {name: its value of each epoch}.
      epoch: numbers of the epochs, from 0.
      before, after: {name: value} of what was measured, of the weights at the start and of those
        at the end; empty where nothing was.
    """

    def __init__(self, columns: dict[str, list[float]], best: checkpoints.Best | None) -> None:
        super().__init__()
        self.history, self.epoch = columns, list(range(len(columns["loss"])))
        self.before = {} if best is None else dict(best.before)
        self.after = {} if best is None else dict(best.values)


def _moves(data: Epochs, model: Any, teacher: Any, learnt: task.Task) -> augmentation.Moves:
    """What the images of arrays stand, by the answers of the teacher."""
    if teacher is None or data.sample is None:
        return augmentation.Moves()
    if learnt.needs_labels and not learnt.is_classifier:
        return augmentation.Moves()  # the labels would have to move, too
    taught = None if learnt.needs_labels else model
    return augmentation.chosen(teacher, data.sample, learnt.kinds, taught)


def _rate(measure: Validation, learnt: task.Task) -> float:
    """A learning rate for a student by how far it is from its teacher."""
    loss = measure(None)["val_loss"] / (sum(learnt.objective.weights) or 1.0)
    rate = float(np.clip(_RATE_OF_LOSS * loss, _LOWEST_RATE, _HIGHEST_RATE))
    logging.info("learning rate %.2g, for a loss of %.3g", rate, loss)
    return rate


def _changed(augment: Any, stream: Iterator[Batch], seed: int, first: int) -> Iterator[Batch]:
    """A stream with the user's own augmentation."""
    apply = augmentation.given(augment, seed)
    for step, (inputs, labels) in enumerate(stream, first):
        yield apply(step, inputs), labels


def _seconds_a_step(
    model: Any,
    learning: Any,
    learnt: task.Task,
    looked_at: Sequence[Batch],
    stream: Iterator[Batch],
) -> tuple[float, list[Batch]]:
    """What a step and its batch take, by the slowest worker; the weights are those of before.

    Args:
      model: the student.
      learning: its learner.
      learnt: what it learns.
      looked_at: the first batches of the stream, which take no time to read any more.
      stream: batches as they are trained on.

    Returns:
      The seconds, and the batches that were taken from the stream.
    """
    before = checkpoints.values_of(model.variables)
    step = learner.step_of(learning)
    read = [*itertools.islice(stream, len(looked_at))]

    def next_step() -> float:
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is not None:  # data that can be read once may end here
            read.append(batch)
        inputs, labels = batch or looked_at[0]
        step(tuple(inputs), learnt.checked(labels))
        return time.perf_counter() - start

    try:
        next_step()  # which compiles
        taken = statistics.median(next_step() for _ in range(_TRIALS))
    finally:
        checkpoints.put(before, model.variables)
    return _of_slowest(taken), read


def _seconds_of(validate: Validation | None, learning: Any) -> float:
    """What it takes to measure after an epoch, by the slowest worker."""
    if validate is None:
        return 0.0
    validate(learning)  # which compiles
    start = time.perf_counter()
    validate(learning)
    return _of_slowest(time.perf_counter() - start)


def _of_slowest(seconds: float) -> float:
    [every] = workers.add_up([np.eye(workers.count())[workers.index()] * seconds])
    return float(every.max())


def _check_validation(validation: Any) -> float | None:
    """The part of the images that is held back; None where validation is data."""
    if validation is None:
        return 0.0
    if not isinstance(validation, int | float | np.number) or isinstance(validation, bool):
        return None
    checks.number("validation", validation)
    if validation > _MOST_HELD:
        raise Error(
            f"validation: expected data, or a part of the images of at most {_MOST_HELD}, got "
            f"{validation}"
        )
    return float(validation)


def _check_augment(augment: Any, model: Any) -> None:
    if augment is None or (isinstance(augment, str) and augment == "auto"):
        return
    if not callable(augment):
        raise Error(
            "augment: expected 'auto', None, a Keras layer or a function of a batch of images, got "
            f"{augment!r}"
        )
    if len(model.inputs) > 1:
        raise Error(
            f"augment: expected a model of one input, got {len(model.inputs)}; change the images "
            "in the data instead, with a function of the epoch's number"
        )


def _old_name(old: str, new: str) -> None:
    warnings.warn(
        f"finetune: {old}= of a number is called {new}= now; the old name will be removed in 0.3.0",
        DeprecationWarning,
        stacklevel=3,
    )


def _check_models(model: Any, teacher: Any, wishes: task.Wishes, options: Options) -> int | None:
    """Checks what can be without data; returns the size of a batch where a model fixes it."""
    for name, network in ("model", model), ("teacher", teacher):
        if network is None and name == "teacher":
            continue
        if not isinstance(network, bridge.kit(network).Model):
            raise Error(f"{name}: expected a Keras model, got {type(network).__name__}")
        if not getattr(network, "inputs", None):
            raise Error(
                f"{name}: expected a Sequential or Functional model that knows its inputs, got "
                f"{type(network).__name__} {network.name!r}; make it keras.Model(x, model(x)) with "
                "x = keras.Input(...)"
            )
    checks.trainable(model)
    by_features = options.features_weight or wishes.features not in (None, "auto")
    if teacher is None and (options.labels_weight or by_features):
        raise Error(
            "labels_weight= and features= are parts of a loss that needs a teacher; pass "
            "teacher=model or omit them"
        )
    if teacher is not None and not options.labels_weight and wishes.loss is not None:
        raise Error("loss= compares outputs with labels: with a teacher, pass labels_weight= too")
    networks = [network for network in (model, teacher) if network is not None]
    if teacher is not None:
        changed = [*model.trainable_variables]
        for layer in model._flatten_layers():  # which move their statistics
            if layer.trainable and isinstance(layer, keras.layers.BatchNormalization):
                changed += layer.variables
        own = {id(variable) for variable in changed}
        if any(id(variable) in own for variable in teacher.variables):
            raise Error(
                "teacher: expected weights of its own, got some that the model trains; pass a copy,"
                " keras.models.clone_model(teacher) with set_weights(teacher.get_weights())"
            )
    fixed = {shapes.own_batch(network.inputs) for network in networks} - {None}
    if len(fixed) > 1:
        raise Error(
            f"teacher: expected the student's fixed batch size, got {sorted(map(str, fixed))}"
        )
    return next(iter(fixed), None)


def _check_folders(folder: Any, resume: bool, tensorboard: Any) -> Path | None:
    """Checks what is written to, before anything is; returns the folder for checkpoints."""
    if resume and folder is None:
        raise Error("resume: expected the folder with the checkpoint, pass folder=")
    if tensorboard is not None:
        tensorboard = checks.path("tensorboard", tensorboard)
        if importlib.util.find_spec("tensorboard") is None:
            raise Error("tensorboard: expected the package tensorboard; pip install 'tfdwd[train]'")
        try:
            tensorboard.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(f"tensorboard: cannot make {tensorboard}: {error.strerror}") from error
        checkpoints.check_folder(tensorboard, "tensorboard")
    if folder is None:
        return None
    folder = checks.path("folder", folder)
    checkpoints.check_folder(folder, "folder")
    return folder


def _check_aware(mixed_precision: bool) -> None:
    """Refuses what a quantise-aware model cannot do."""
    if workers.count() > 1:
        raise Error("a quantise-aware model is trained by one worker, got several")
    if mixed_precision:
        raise Error("mixed_precision: a quantise-aware model trains in float32; omit it")
    if keras.backend.backend() != "tensorflow":
        raise Error("a quantise-aware model is trained by TensorFlow; set KERAS_BACKEND=tensorflow")


def _seed(model: Any, seed: int) -> None:
    keras.utils.set_random_seed(seed)
    for number, variable in enumerate(model.variables):
        if variable.name == "seed_generator_state":  # of dropout and the like
            variable.assign(np.random.default_rng((seed, number)).integers(0, 2**31, 2))
