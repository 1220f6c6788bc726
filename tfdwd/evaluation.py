"""Accuracy of a classifier, as a Keras model or as a .tflite file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd import reporting
from tfdwd.batches import batches, pack
from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

    from tfdwd import lite


@dataclass(frozen=True)
class Evaluation(reporting.Report):
    """Accuracy on labelled data. Prints as one line.

    Attributes:
      top1: share of the images whose label got the highest output, 0..1.
      top5: share of the images whose label is among the five highest outputs, 0..1.
      count: number of images.
    """

    top1: float
    top5: float
    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.top1 <= self.top5 <= 1 or self.count < 1:
            raise Error(f"expected 0 <= top1 <= top5 <= 1 and a count of at least 1, got {self!r}")

    def _parts(self) -> reporting.Parts:
        return [f"top-1 {self.top1:.4f}, top-5 {self.top5:.4f}, {self.count} images"]


def evaluate(
    model: "keras.Model | str | os.PathLike[str]", data: Any, *, batch_size: int = 64
) -> Evaluation:
    """Counts how often a classifier is right.

    Args:
      model: a Keras model of one output (batch, classes), or the path of such a .tflite file, which
        runs image by image.
      data: labelled data, of any kind that `tfdwd.batches.batches` takes, such as (images, labels).
        Labels are class numbers, (batch,) or (batch, 1), or one-hot, (batch, classes).
      batch_size: images that Keras runs at once.

    Returns:
      Top-1, top-5 and the number of images. Of equal outputs the first class counts as the higher.

    Raises:
      tfdwd.Error: the data is wrong, labels do not fit the outputs, the outputs are not (batch,
        classes) or hold NaN, or the file is no .tflite model.

    Example:
      >>> print(evaluate("resnet8.tflite", (x_test, y_test)))
      top-1 0.8801, top-5 0.9941, 1017 images
    """
    if isinstance(model, (str, os.PathLike)):
        from tfdwd import lite  # a machine that only trains has no LiteRT

        model = lite.Model(model)
        run = _runner_of_file(model)
    else:
        run = _runner_of_keras(model)
    count = top1 = top5 = 0
    for inputs, labels in reporting.progress(batches(data, model, batch_size, True), "evaluating"):
        assert labels is not None
        scores = run(inputs)
        if np.isnan(scores).any():
            raise Error(f"the model gave NaN for an image among {count}..{count + len(scores) - 1}")
        classes = _class_numbers(labels, scores.shape[1])
        ranked = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        right = ranked == classes[:, None]
        top1 += int(right[:, 0].sum())
        top5 += int(right.sum())
        count += len(scores)
    return Evaluation(top1 / count, top5 / count, count)


def _runner_of_keras(model: "keras.Model") -> Callable[[list[np.ndarray]], np.ndarray]:
    import keras

    _check_outputs([tuple(tensor.shape) for tensor in model.outputs])

    def run(inputs: list[np.ndarray]) -> np.ndarray:
        [scores] = keras.tree.flatten(model.predict_on_batch(pack(model, inputs)))
        return np.asarray(scores, np.float32)

    return run


def _runner_of_file(model: "lite.Model") -> Callable[[list[np.ndarray]], np.ndarray]:
    _check_outputs([tensor.shape for tensor in model.outputs])

    def run(inputs: list[np.ndarray]) -> np.ndarray:
        rows = range(len(inputs[0]))
        return np.concatenate([model.run([x[row : row + 1] for x in inputs])[0] for row in rows])

    return run


def _check_outputs(shapes: list[tuple[int | None, ...]]) -> None:
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise Error(f"expected a classifier of one output (batch, classes), got outputs {shapes}")


def _class_numbers(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels of any of the three kinds as class numbers (batch,), checked to be in range."""
    if labels.ndim == 2 and labels.shape[1] == classes and classes > 1:
        return labels.argmax(axis=1)
    if labels.ndim not in (1, 2) or labels.size != len(labels) or labels.dtype.kind not in "iu":
        raise Error(
            f"expected labels of whole numbers (batch,) or one-hot (batch, {classes}), got "
            f"{labels.dtype} {labels.shape}"
        )
    numbers = labels.reshape(-1)
    if numbers.min() < 0 or numbers.max() >= classes:
        raise Error(
            f"expected labels of 0..{classes - 1}, got {numbers.min()}..{numbers.max()}: "
            "the data is not of the classes that the model tells apart"
        )
    return numbers
