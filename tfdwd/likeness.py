"""How far a student's outputs are from the original's, measured on images without labels."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from tfdwd import execution, outputs, workers
from tfdwd.shapes import own_batch

_BATCH = 32
_SMALL = 1e-7  # under which a probability is cut off before its logarithm
_CONSTANT = 1e-12  # part of the power under which a variance is rounding


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How close a student comes to its original.

    Attributes:
      loss: of probabilities the Kullback-Leibler divergence from the original's, in nats (of a map,
        the mean over its places); of whole numbers the part that differs; of all else the squared
        error in units of the original's variance. Several outputs add up.
      agreement: part of the images, or places, that are given the original's class or number; of
        all else 1 - that squared error, at least 0. The mean over the outputs.
    """

    loss: float
    agreement: float


class Reference:
    """The original's outputs for some images.

    Args:
      model: the original.
      images: one array (images, ...) for each input, this worker's part of them.
    """

    def __init__(self, model: keras.Model, images: Sequence[np.ndarray]) -> None:
        self._images = images
        self._wanted = _outputs(model, images)
        self._measures = [measure(array) for array in self._wanted]

    def likeness(self, student: keras.Model) -> Likeness:
        """Runs the images through a student."""
        found = _outputs(student, self._images)
        pairs = [against(array) for against, array in zip(self._measures, found, strict=True)]
        count = len(self._images[0])
        [sums, whole] = workers.add_up([count * np.array(pairs), np.array(float(count))])
        losses, agreements = (sums / whole).T
        return Likeness(float(losses.sum()), float(agreements.mean()))


def _outputs(model: keras.Model, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    batch = own_batch(model.inputs) or min(_BATCH, len(images[0]))
    return execution.outputs_of(model, images, batch)  # so few that to compile would take longer


def measure(wanted: np.ndarray) -> Callable[[np.ndarray], tuple[float, float]]:
    """A function from what a student gave for one output to (loss, agreement), as in `Likeness`.

    Args:
      wanted: the original's output, (images, ...).

    Example:
      >>> measure(np.array([0.0, 2.0]))(np.array([0.0, 1.0]))
      (0.5, 0.5)
    """
    if wanted.dtype.kind in "biu":

        def of_numbers(found: np.ndarray) -> tuple[float, float]:
            same = float(np.mean(wanted == found))
            return 1 - same, same

        return of_numbers
    if outputs.kind_of(wanted) == outputs.PROBABILITIES:
        target = np.maximum(wanted.astype(np.float64), 0)
        logs = np.log(np.maximum(target, _SMALL))

        def of_classes(found: np.ndarray) -> tuple[float, float]:
            own = np.log(np.maximum(found.astype(np.float64), _SMALL))
            divergence = float(np.mean(np.sum(target * (logs - own), axis=-1)))
            same = float(np.mean(wanted.argmax(-1) == found.argmax(-1)))
            return _finite(max(divergence, 0.0)), same

        return of_classes
    real = wanted.astype(np.result_type(wanted.dtype, np.float64))
    rows = real.reshape(-1, real.shape[-1]) if real.ndim > 1 else real[:, None]
    variance = float(np.mean(np.abs(rows - rows.mean(axis=0)) ** 2))
    power = float(np.mean(np.abs(rows) ** 2))
    unit = unit_of(variance, power)

    def of_values(found: np.ndarray) -> tuple[float, float]:
        error = _finite(float(np.mean(np.abs(found - real) ** 2)) / unit)
        return error, max(0.0, 1 - error)

    return of_values


def unit_of(variance: float, power: float) -> float:
    """What squared errors of an output are counted in: its variance, of a constant one its power.

    Args:
      variance, power: of the output, in the square of its unit; the variance is part of the power.

    Example:
      >>> unit_of(2.0, 3.0), unit_of(1e-15, 3.0), unit_of(0.0, 0.0)
      (2.0, 3.0, 1.0)
    """
    return variance if variance > _CONSTANT * power else power or 1.0


def _finite(loss: float) -> float:
    return loss if np.isfinite(loss) else 1e9
