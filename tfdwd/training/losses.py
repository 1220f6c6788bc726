"""How an output is compared with a teacher's, or with labels. A loss is an object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np

from tfdwd import outputs, workers
from tfdwd.errors import Error, one_line
from tfdwd.likeness import unit_of
from tfdwd.shapes import fits

_SMALL = 1e-7  # under which a probability is cut off before its logarithm
_TEMPERATURE = 2.0  # see `softened`


class Loss(Protocol):
    """Compares one output of the student, float32 tensors of a batch, by a mean over the batch."""

    def __call__(self, wanted: Any, found: Any) -> Any: ...


class LabelLoss(Loss, Protocol):
    """A loss against labels."""

    def check(self, labels: np.ndarray, shape: Sequence[int | None], first: int, name: str) -> Any:
        """The labels as the loss takes them.

        Args:
          labels: (images, ...).
          shape: of the output for one image.
          first: number of the first image.
          name: of the labels, for the error.

        Raises:
          tfdwd.Error: they do not fit; names the label and its image.
        """


@dataclass(frozen=True)
class TeacherEntropy:
    """Cross-entropy against a teacher's answers, both as `softened` makes them.

    Multiplied by the square of the temperature, so that gradients stay as large as those of other
    losses (Hinton et al., section 2).
    """

    logits: bool = False

    def __call__(self, wanted: Any, found: Any) -> Any:
        temperature = _temperature(found)
        scores = (found if self.logits else _logarithms(found)) / temperature
        return temperature**2 * _cross_entropy(softened(wanted, self.logits), scores, logits=True)


def softened(answers: Any, logits: bool) -> Any:
    """Probabilities of a classifier with its logits divided by a temperature of 2.

    Images that a teacher was trained on have answers so sure of one class that they say little of
    the others. Answers for each pixel stay as they are: there it brought nothing.

    Args:
      answers: probabilities or logits (images, classes), or of maps (images, ..., classes).
      logits: which of the two.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", arXiv 1503.02531,
    section 2; benchmarks/recipe.py measures what it brings.
    """
    temperature = _temperature(answers)
    if not logits and temperature == 1:
        return answers
    return keras.ops.softmax((answers if logits else _logarithms(answers)) / temperature)


def _temperature(answers: Any) -> float:
    return _TEMPERATURE if len(answers.shape) == 2 else 1.0


@dataclass(frozen=True)
class SquaredError:
    """Squared error in units of the teacher's variance: 1 where all that is known is the mean.

    Attributes:
      deviation: square root of the teacher's variance, in the unit of the output.
    """

    deviation: float

    def __call__(self, wanted: Any, found: Any) -> Any:
        return keras.ops.mean(keras.ops.square((found - wanted) / self.deviation))


@dataclass(frozen=True)
class LabelEntropy:
    """Cross-entropy against class numbers or distributions.

    Attributes:
      logits: whether the output is logits instead of probabilities.
      smoothing: part of each label that is shared out over all classes.
    """

    logits: bool = False
    smoothing: float = 0.0

    def __call__(self, wanted: Any, found: Any) -> Any:
        classes = found.shape[-1]
        if len(wanted.shape) < len(found.shape):
            wanted = keras.ops.one_hot(keras.ops.cast(wanted, "int32"), classes)
        wanted = keras.ops.cast(wanted, "float32") * (1 - self.smoothing) + self.smoothing / classes
        return _cross_entropy(wanted, found, self.logits)

    def check(self, labels: np.ndarray, shape: Sequence[int | None], first: int, name: str) -> Any:
        return outputs.class_labels(labels, shape, first=first, name=name)


class GivenLoss:
    """A Keras loss, or a function (y_true, y_pred), as Keras itself would take it.

    Args:
      given: the loss or its name.
      option: that it was given as, for the error.

    Raises:
      tfdwd.Error: no such loss.
    """

    def __init__(self, given: Any, option: str) -> None:
        self.option = option
        try:
            self.loss = keras.losses.get(given)
        except (ValueError, TypeError) as error:
            raise Error(
                f"{option}: expected the name of a Keras loss such as 'mean_squared_error', a "
                f"keras.losses.Loss or a function (y_true, y_pred), got {given!r}"
            ) from error
        function = getattr(self.loss, "fn", self.loss)  # of a loss that wraps a function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.module = str(getattr(function, "__module__", ""))
        self.scaled = isinstance(self.loss, keras.losses.Loss) and self.loss.reduction in (
            "mean", "sum_over_batch_size", "mean_with_sample_weight",
        )  # fmt: skip
        if not isinstance(self.loss, keras.losses.Loss):
            self.loss = _OfFunction(self.loss)

    @property
    def is_elementwise(self) -> bool:
        """Whether labels must have the shape of the output; else Keras would broadcast them."""
        return self.module.startswith("keras.") and self.name != "ctc"

    @property
    def is_of_classes(self) -> bool:
        """Whether it compares with classes."""
        return self.name in ("categorical_crossentropy", "sparse_categorical_crossentropy")

    def __call__(self, wanted: Any, found: Any) -> Any:
        try:
            loss = keras.ops.mean(self.loss(wanted, found))
        except Exception as error:  # a user's function may raise anything
            own = self.module.startswith("keras.")
            way_out = "" if own else "; compute with keras.ops, since the step is compiled"
            raise Error(
                f"{self.option}: it failed on labels of {tuple(wanted.shape)} and outputs of "
                f"{tuple(found.shape)}: {one_line(error)[:300]}{way_out}"
            ) from error
        # Keras has divided such a mean by the devices of a strategy already.
        return loss * workers.replicas() if self.scaled else loss

    def check(self, labels: np.ndarray, shape: Sequence[int | None], first: int, name: str) -> Any:
        if self.is_of_classes:
            return self._classes(labels, shape, first, name)
        if self.is_elementwise and not _same_places(np.shape(labels)[1:], tuple(shape)):
            raise Error(
                f"{name}: {self.name} expects them in the shape of the output, (images, "
                f"{', '.join('any' if size is None else str(size) for size in shape)}), got "
                f"{np.shape(labels)}"
            )
        top = 1.0 if self.name.startswith("binary_") else np.inf
        bottom = 0.0 if self.name.startswith("binary_") else -np.inf
        return outputs.value_labels(labels, low=bottom, high=top, first=first, name=name)

    def _classes(
        self, labels: np.ndarray, shape: Sequence[int | None], first: int, name: str
    ) -> np.ndarray:
        ignored: Any = getattr(self.loss, "ignore_class", None)
        left_out = np.zeros(np.shape(labels), bool) if ignored is None else labels == ignored
        known = np.where(left_out, 0, labels) if left_out.any() else labels
        found = outputs.class_labels(known, shape, first=first, name=name)
        numbers = found.ndim < len(shape) + 1
        if numbers != self.name.startswith("sparse"):
            raise Error(
                f"{name}: {self.name} expects "
                + ("class numbers" if not numbers else "one-hot rows or other distributions")
                + f", got {labels.dtype} of shape {labels.shape}; take "
                + ("categorical_crossentropy" if not numbers else "sparse_categorical_crossentropy")
            )
        return np.where(left_out.reshape(found.shape), ignored, found) if left_out.any() else found


def _same_places(sizes: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether labels fit an output, where a last axis of 1 may be there or not."""
    sizes = sizes[:-1] if sizes[-1:] == (1,) else sizes
    shape = shape[:-1] if shape[-1:] == (1,) else shape
    return fits(sizes, shape)


class _OfFunction(keras.losses.Loss):
    """Calls a function with y_true in the rank of y_pred where they differ by an axis of 1."""

    def __init__(self, function: Any) -> None:
        super().__init__(name="given", reduction="none")
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        axes, own = len(y_pred.shape), len(y_true.shape)
        if own == axes + 1 and y_true.shape[-1] == 1:
            y_true = keras.ops.squeeze(y_true, -1)
        elif own + 1 == axes and y_pred.shape[-1] == 1:
            y_true = keras.ops.expand_dims(y_true, -1)
        return self.function(y_true, y_pred)


def _cross_entropy(wanted: Any, found: Any, logits: bool) -> Any:
    logs = keras.ops.log_softmax(found) if logits else _logarithms(found)
    return -keras.ops.mean(keras.ops.sum(wanted * logs, axis=-1))


def _logarithms(probabilities: Any) -> Any:
    return keras.ops.log(keras.ops.maximum(probabilities, _SMALL))


def against_teacher(kind: str, deviation: float) -> Loss:
    """The loss of one output against a teacher's.

    Args:
      kind: of the output, one of `tfdwd.outputs.KINDS`.
      deviation: from `deviations`.
    """
    if kind == outputs.VALUES:
        return SquaredError(deviation)
    return TeacherEntropy(logits=kind == outputs.LOGITS)


def against_labels(given: Any, kind: str, smoothing: float, name: str) -> LabelLoss:
    """The loss of one output against labels.

    Args:
      given: what the user chose for it, or None.
      kind: of the output.
      smoothing: of the default loss.
      name: of the output, for the error.

    Raises:
      tfdwd.Error: there is no default for the kind.
    """
    if given is not None:
        return GivenLoss(given, f"loss of {name!r}")
    if kind == outputs.VALUES:
        raise Error(
            f"output {name!r} holds no probabilities: expected loss=, such as "
            "'mean_squared_error' or 'binary_crossentropy', outputs='logits' for a classifier "
            "without a softmax, or a teacher"
        )
    return LabelEntropy(kind == outputs.LOGITS, smoothing)


def deviations(values: Sequence[np.ndarray]) -> list[float]:
    """Standard deviation of each output of a teacher, over all workers.

    The mean that is subtracted is that of each feature, which is an index of the last axis. Of a
    constant output it is the root mean square instead, and 1 if that is 0.

    Args:
      values: of each output for some images, (images, ...), finite.

    Example:
      >>> deviations([np.array([[1.0, 20.0], [3.0, 20.0]]), np.zeros((2, 1))])
      [0.7071067811865476, 1.0]
    """
    rows = [
        array.reshape(len(array), -1) if array.ndim < 3 else array.reshape(-1, array.shape[-1])
        for array in (array.astype(np.float64) for array in values)
    ]
    counts = [np.array(float(len(array))) for array in rows]
    sums = workers.add_up([*counts, *(array.sum(0) for array in rows)])
    counts, means = sums[: len(rows)], sums[len(rows) :]
    means = [total / count for total, count in zip(means, counts, strict=True)]
    squares = workers.add_up(
        [np.square(array - mean).sum(0) for array, mean in zip(rows, means, strict=True)]
    )
    found = []
    for mean, square, count in zip(means, squares, counts, strict=True):
        variance = float(np.mean(square / count))
        power = variance + float(np.mean(np.square(mean)))
        deviation = float(np.sqrt(unit_of(variance, power)))
        found.append(deviation if np.float32(deviation) > 0 else 1.0)
    return found
