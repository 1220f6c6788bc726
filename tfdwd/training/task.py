"""What is learnt: the kind, losses and weight of each output, found on the first images."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import bridge, checks, outputs, shapes, workers
from tfdwd.errors import Error, one_line
from tfdwd.execution import predictor
from tfdwd.training import checkpoints, features, losses
from tfdwd.training.epochs import Batch, Epochs
from tfdwd.training.objective import Objective, relative_error
from tfdwd.training.options import Options

_IMAGES = 256  # that outputs are looked at on: at least, where there are so many,
_VALUES = 2**22  # but no more once an output gave so many values
_LAST_MAPS_WEIGHT = 16.0  # see `tfdwd.finetune`
# Relative error of the last maps up to which they are learnt. Students that gained by them began
# at 0.03 to 0.36; one that began at 0.58 lost 5 points.
_NEAR = 0.4


@dataclass(frozen=True)
class Wishes:
    """What the user says of outputs, losses and features, as `tfdwd.finetune` takes it."""

    outputs: Any
    loss: Any
    loss_weights: Any
    features: Any


@dataclass(frozen=True)
class Task:
    """What a student learns.

    Attributes:
      names, kinds, deviations: of the outputs; a deviation is the teacher's, 1 without one.
      shapes: of the outputs for one image, None where a size is open.
      objective: the loss of a batch.
      paths: of the layers whose outputs are compared.
      by_last_maps: whether these are the last maps, by "auto".
    """

    names: Sequence[str]
    kinds: Sequence[str]
    deviations: Sequence[float]
    shapes: Sequence[tuple[int | None, ...]]
    objective: Objective
    paths: Sequence[str]
    by_last_maps: bool

    @property
    def needs_labels(self) -> bool:
        """Whether any output is compared with labels."""
        return any(loss is not None for loss in self.objective.of_labels)

    @property
    def is_classifier(self) -> bool:
        """Whether the one output is (images, classes)."""
        if len(self.shapes) != 1 or len(self.shapes[0]) != 1 or self.shapes[0] == (1,):
            return False
        [loss] = self.objective.of_labels
        return self.kinds[0] != outputs.VALUES or getattr(loss, "is_of_classes", False)

    def checked(self, labels: Any, first: int = 0) -> tuple[Any, ...]:
        """Labels of some images as the objective takes them.

        Args:
          labels: an array, or a dict or list of arrays by output; None if none are needed.
          first: number of the first image, for the error.

        Raises:
          tfdwd.Error: they do not fit the outputs; names the label and its image.
        """
        if not self.needs_labels:
            return ()
        found = []
        by_output = _by_output(labels, self.names)
        for name, shape, loss, own in zip(
            self.names, self.shapes, self.objective.of_labels, by_output, strict=True
        ):
            if loss is None:
                continue
            called = "labels" if len(self.names) == 1 else f"labels of {name!r}"
            if own is None:
                raise Error(f"{called}: expected labels in every batch, got a batch without them")
            found.append(loss.check(np.asarray(own), shape, first, called))
        return tuple(found)

    def checked_stream(self, stream: Iterator[Batch]) -> Iterator[tuple[Any, Any]]:
        """(inputs, labels) of each batch as the objective takes them, checked as they come."""
        first = 0
        for inputs, labels in stream:
            yield tuple(inputs), self.checked(labels, first)
            first += len(inputs[0])


def first_batches(epochs: Epochs) -> tuple[list[Batch], Iterator[Batch]]:
    """Some of the first batches, and the stream with them in it.

    Raises:
      tfdwd.Error: there is none.
    """
    found: list[Batch] = []
    while sum(len(inputs[0]) for inputs, _ in found) < _IMAGES and len(found) < epochs.steps:
        batch = next(epochs.stream, None)
        if batch is None:
            break
        found.append(batch)
    if not found:
        raise Error(
            "dataset: the data ended before the epoch to go on with. A generator can be read only "
            "once; pass a new one"
        )
    return found, itertools.chain(found, epochs.stream)


def task_of(
    model: Any,
    teacher: Any,
    wishes: Wishes,
    *,
    options: Options,
    first: Sequence[Batch],
    state: checkpoints.State | None,
) -> Task:
    """Finds what a model is to learn.

    Args:
      model: the student.
      teacher: the teacher, or None.
      wishes, options: the user's.
      first: the first batches of the data.
      state: of the run that goes on; what it found on its first images is used again.

    Raises:
      tfdwd.Error: student, teacher, labels and what the user wishes do not fit together.
    """
    names = outputs.names_of(model)
    if teacher is not None:
        _check_alike(model, teacher)
    kinds, deviations = _found(model, teacher, names, said=wishes.outputs, first=first, state=state)
    logging.info("outputs: %s", ", ".join(f"{n}: {k}" for n, k in zip(names, kinds, strict=True)))
    weights = _weights(wishes.loss_weights, names, model)
    if teacher is not None and state is None and bridge.kit(model) is keras:  # which does not round
        _check_kinds(model, first, names, wishes.outputs, taught=kinds, weights=weights)
    of_teacher: list[losses.Loss | None] = [None] * len(names)
    if teacher is not None:
        of_teacher = [
            losses.against_teacher(kind, deviation) if weight else None
            for kind, deviation, weight in zip(kinds, deviations, weights, strict=True)
        ]
    with_labels = teacher is None or options.labels_weight > 0
    of_labels: list[losses.LabelLoss | None] = [None] * len(names)
    if with_labels:
        of_labels = _label_losses(
            names, kinds, weights, given=wishes.loss, options=options, labels=first[0][1]
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    paths, features_weight = _features(
        model,
        teacher,
        wishes.features,
        options.features_weight,
        first=first,
        state=state,
        of_classes=not with_labels
        and all(kind != outputs.VALUES for kind in kinds)
        and all(len(shape) == 1 for shape in shapes),
    )
    objective = Objective(
        teach=None if teacher is None else features.runner(teacher, paths),
        of_teacher=of_teacher,
        of_labels=of_labels,
        weights=weights,
        labels_weight=1.0 if teacher is None else options.labels_weight,
        features_weight=features_weight,
    )
    return Task(
        names=names,
        kinds=kinds,
        deviations=deviations,
        shapes=shapes,
        objective=objective,
        paths=paths,
        by_last_maps=bool(paths) and wishes.features == "auto",
    )


def _features(
    model: Any,
    teacher: Any,
    wish: Any,
    weight: float | None,
    *,
    first: Sequence[Batch],
    state: checkpoints.State | None,
    of_classes: bool,
) -> tuple[list[str], float]:
    """The layers whose outputs are compared, and the weight of that."""
    if wish is None or weight == 0 or teacher is None:
        return [], 0.0
    if wish == "replaced":
        return features.replaced(model, teacher), 1.0 if weight is None else weight
    if wish != "auto":
        return features.named(model, teacher, wish), 1.0 if weight is None else weight
    paths = features.last_maps(model, teacher) if of_classes else []
    if weight is not None and not paths:
        raise Error(
            "features_weight: expected a classifier that is taught by its teacher alone and has "
            "its last maps; name the layers to compare with features=[...], or pass "
            "features='replaced'"
        )
    if weight is None and state is not None:
        paths = [path for path in paths if path in state.features]
    elif weight is None and paths and not _are_near(model, teacher, paths, first):
        paths = []
    logging.info("features: %s", ", ".join(paths) or "none")
    return paths, _LAST_MAPS_WEIGHT if weight is None else weight


def _are_near(model: Any, teacher: Any, paths: Sequence[str], first: Sequence[Batch]) -> bool:
    """Whether a student's maps are near enough to its teacher's for it to learn them."""
    runs = [features.runner(network, paths) for network in (model, teacher)]
    errors = []
    for inputs, _ in first:
        given = [keras.ops.convert_to_tensor(array) for array in inputs]
        own, theirs = (keras.ops.cast(run(given, False)[1][0], "float32") for run in runs)
        errors.append(float(relative_error(own, theirs)))
    error = float(np.mean(errors))
    logging.info("relative error of %s: %.3g", paths[0], error)
    return bool(workers.of_first([np.array(error <= _NEAR)])[0])


def _found(
    model: Any,
    teacher: Any,
    names: Sequence[str],
    *,
    said: Any,
    first: Sequence[Batch],
    state: checkpoints.State | None,
) -> tuple[Sequence[str], Sequence[float]]:
    """Kinds of the outputs, and deviations of the teacher's."""
    values = _values(model if teacher is None else teacher, first)
    for name, array in zip(names, values, strict=True):
        if not np.isfinite(array).all():
            raise Error(
                f"output {name!r} of the {'model' if teacher is None else 'teacher'} is NaN or "
                "infinite for some of the first images; look for damaged weights or images"
            )
    kinds = outputs.kinds(values, names, said)
    if state is not None and len(state.kinds) == len(names):
        by_user = outputs.by_output(said, names, "outputs")
        kept = zip(by_user, state.kinds, kinds, strict=True)
        return [known if own is None else kind for own, known, kind in kept], state.deviations
    codes = np.array([outputs.KINDS.index(kind) for kind in kinds])
    kinds = [outputs.KINDS[code] for code in workers.of_first([codes])[0]]
    return kinds, [1.0] * len(names) if teacher is None else losses.deviations(values)


def _check_kinds(
    model: Any,
    first: Sequence[Batch],
    names: Sequence[str],
    said: Any,
    *,
    taught: Sequence[str],
    weights: Sequence[float],
) -> None:
    """Refuses a student without the softmax of its teacher, or with one that the teacher lacks."""
    values = _values(model, first)
    own = outputs.kinds(values, names, said)
    for name, kind, theirs, array, weight in zip(names, own, taught, values, weights, strict=True):
        if weight and kind != theirs and np.isfinite(array).all():
            raise Error(
                f"output {name!r}: expected {theirs}, which the teacher gives, got {kind}; end "
                "both with a softmax, or neither; or say what they are with outputs="
            )


def try_losses(task: Task, model: Any, batch: Batch) -> None:
    """Refuses a loss against labels that fails on a batch.

    Raises:
      tfdwd.Error: names the loss and the shapes.
    """
    if not task.needs_labels:
        return
    labels = iter(task.checked(batch[1]))
    for name, loss, output in zip(
        task.names, task.objective.of_labels, _values(model, [batch]), strict=True
    ):
        if loss is None:
            continue
        wanted = next(labels)
        try:
            float(loss(keras.ops.convert_to_tensor(wanted), keras.ops.convert_to_tensor(output)))
        except Error:
            raise
        except Exception as error:  # sizes that only the data shows
            raise Error(
                f"labels of {name!r}: expected some that fit outputs of {output.shape}, got "
                f"{np.shape(wanted)}: {one_line(error)[:300]}"
            ) from error


def in_order_of(model: Any, teacher: Any) -> Any:
    """The teacher with inputs and outputs in the order of the student's, by name.

    Where the names are not the same, or Keras made one of them, they are taken by place. (Of a
    model and its own file, which `tfdwd.evaluate` pairs, all names say what belongs together.)

    Args:
      model: the student.
      teacher: a model of as many inputs and outputs.

    Returns:
      The teacher itself if nothing is out of order, else a model of the same layers and weights.
    """
    changed = False
    found = []
    for names_of, own, tensors in (
        (shapes.input_names, model.inputs, teacher.inputs),
        (outputs.names_of, model.outputs, teacher.outputs),
    ):
        names, theirs = names_of(model), names_of(teacher)
        order = list(range(len(theirs)))
        made = map(_is_made_by_keras, [*names, *theirs], [*own, *tensors])
        if set(names) == set(theirs) and not any(made):
            order = [theirs.index(name) for name in names]
        if order != sorted(order):
            logging.info("of the teacher, by name: %s", ", ".join(names))
            changed = True
        found.append([tensors[place] for place in order])
    return bridge.kit(teacher).Model(*found, name=teacher.name) if changed else teacher


def _is_made_by_keras(name: str, tensor: Any) -> bool:
    """Whether a name says no more than in which order layers were made, such as "dense_1"."""
    kind = type(tensor._keras_history[0]).__name__.lower()
    return re.sub(r"_\d+$", "", name).replace("_", "") in (kind, "kerastensor", "input")


def _check_alike(model: Any, teacher: Any) -> None:
    for what in ("inputs", "outputs"):
        theirs, own = (
            [tuple(tensor.shape[1:]) for tensor in getattr(network, what)]
            for network in (teacher, model)
        )
        if len(theirs) != len(own) or not all(map(_fit, theirs, own)):
            raise Error(
                f"teacher: expected a model with the {what} of the student, {own}, got {theirs}"
            )


def _fit(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    return len(one) == len(other) and all(
        None in (a, b) or a == b for a, b in zip(one, other, strict=True)
    )


def _values(model: Any, first: Iterable[Batch]) -> list[np.ndarray]:
    """What each output gives for the first images, of one size of image."""
    predict = predictor(model)
    found: list[list[np.ndarray]] = []
    sizes = None
    for inputs, _ in first:
        if sizes not in (None, [array.shape[1:] for array in inputs]):
            continue
        sizes = [array.shape[1:] for array in inputs]
        found.append([np.atleast_1d(array) for array in predict(inputs)])  # scalars, too
        if max(sum(each[n].size for each in found) for n in range(len(found[0]))) > _VALUES:
            break
    return [np.concatenate(arrays).astype(np.float32) for arrays in zip(*found, strict=True)]


def _weights(given: Any, names: Sequence[str], model: Any) -> list[float]:
    found = []
    chosen = outputs.by_output(given, names, "loss_weights")
    for name, weight, tensor in zip(names, chosen, model.outputs, strict=True):
        trains = "float" in str(tensor.dtype)
        if weight is None:
            weight = 1.0 if trains else 0.0
            if not trains:
                logging.info("output %r of %s has no gradient and is left out", name, tensor.dtype)
        checks.number(f"loss_weights of {name!r}", weight)
        if weight and not trains:
            raise Error(f"loss_weights: output {name!r} of {tensor.dtype} has no gradient; omit it")
        found.append(float(weight))
    if not any("float" in str(tensor.dtype) for tensor in model.outputs):
        raise Error(
            f"expected an output of real numbers to learn, got {', '.join(map(repr, names))} of "
            "whole numbers or booleans, which have no gradient; train the part of the network "
            "before them, keras.Model(model.input, logits)"
        )
    if not any(found):
        raise Error(f"loss_weights: expected a weight above 0 for one of the outputs {list(names)}")
    return found


def _label_losses(
    names: Sequence[str],
    kinds: Sequence[str],
    weights: Sequence[float],
    *,
    given: Any,
    options: Options,
    labels: Any,
) -> list[losses.LabelLoss | None]:
    found: list[losses.LabelLoss | None] = []
    chosen = outputs.by_output(given, names, "loss")
    labelled = [own is not None for own in _by_output(labels, names)]
    for name, kind, weight, own, known in zip(names, kinds, weights, chosen, labelled, strict=True):
        if own is not None and isinstance(given, dict) and not known:
            raise Error(f"loss: output {name!r} has a loss, but the data holds no labels for it")
        used = known and weight
        found.append(
            losses.against_labels(own, kind, options.label_smoothing, name) if used else None
        )
    if not any(loss is not None for loss in found):
        raise Error(f"labels: expected labels for one of the outputs {list(names)}, got none")
    if options.label_smoothing and not any(isinstance(x, losses.LabelEntropy) for x in found):
        raise Error(
            "label_smoothing= belongs to the default cross-entropy; set the smoothing in the "
            "loss that you pass as loss="
        )
    return found


def _by_output(labels: Any, names: Sequence[str]) -> list[Any]:
    if len(names) > 1 and hasattr(labels, "__array__"):
        raise Error(
            f"labels: expected a dict by output name, or a list, for the outputs {list(names)}; "
            "got one array"
        )
    return outputs.by_output(labels, names, "labels")
