"""The loss of a batch: the student's outputs and features against the teacher's and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfdwd.training import features, losses

_SMALL = 1e-7


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, a sum over the outputs. The teacher is no part of what is trained.

    Attributes:
      teach: runs the teacher, or None.
      of_teacher: for each output the loss against the teacher's, or None.
      of_labels: for each output the loss against its labels, or None.
      weights: of the outputs.
      labels_weight: of the losses against labels.
      features_weight: of the mean error of the features.
    """

    teach: features.Runner | None
    of_teacher: Sequence[losses.Loss | None]
    of_labels: Sequence[losses.LabelLoss | None]
    weights: Sequence[float]
    labels_weight: float
    features_weight: float

    def __call__(self, inputs: Sequence[Any], labels: Sequence[Any], found: Any) -> Any:
        """The loss.

        Args:
          inputs: of the model.
          labels: of those outputs that have a loss against labels, in their order.
          found: the student's outputs and features.
        """
        scores, own_features = _float32(found[0]), _float32(found[1])
        total = 0.0
        if self.teach is not None:
            taught, wanted = map(_taught, self.teach(inputs, False))
            for loss, weight, y, score in zip(
                self.of_teacher, self.weights, taught, scores, strict=True
            ):
                if loss is not None and weight:
                    total += weight * loss(y, score)
            for feature, target in zip(own_features, wanted, strict=True):
                total += self.features_weight / len(wanted) * relative_error(feature, target)
        left = iter(labels)
        for against, weight, score in zip(self.of_labels, self.weights, scores, strict=True):
            if against is not None:
                total += self.labels_weight * weight * against(next(left), score)
        return total


def _float32(tensors: Sequence[Any]) -> list[Any]:
    return [keras.ops.cast(tensor, "float32") for tensor in tensors]


def _taught(tensors: Sequence[Any]) -> list[Any]:
    return [keras.ops.stop_gradient(tensor) for tensor in _float32(tensors)]


def relative_error(found: Any, target: Any) -> Any:
    """Squared error over the target's power, of float32; what is squared is about 1."""
    unit = keras.ops.max(keras.ops.abs(target))
    unit = keras.ops.where(unit > 0, unit, 1.0)
    found, target = found / unit, target / unit
    power = keras.ops.mean(keras.ops.square(target)) + _SMALL
    return keras.ops.mean(keras.ops.square(found - target)) / power
