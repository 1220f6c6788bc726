"""Metrics that add up over batches. Pure NumPy, for `tfdwd.evaluation`.

A meter takes labels and outputs batch by batch and gives its value at the end, with what that
depends on. The labels of class metrics are class numbers or distributions as
`tfdwd.outputs.class_labels` takes them; those of the others have the output's shape.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from tfdwd import outputs
from tfdwd.errors import Error, one_line

NAMES = ("top1", "top5", "accuracy", "mean_iou", "psnr", "mse", "agreement")
VOID = 255  # label of a pixel that counts for no class, as in Pascal VOC and Cityscapes
_PSNR_LIMIT = 200.0  # dB; images without any error have no PSNR at all
_OFF = 0.01  # how far a sigmoid may be outside of 0..1
_OVER = 1.5  # times the peak that images may reach: networks shoot over white

# (labels, outputs, number of the first image) -> (images, ...)
_Compare = Callable[[Any, Any, int], np.ndarray]


class Meter(Protocol):
    """Adds up one metric; `result` gives its value and what it depends on."""

    def add(self, truth: Any, found: Any, first: int) -> None: ...

    def result(self) -> tuple[Any, str]: ...


def named(name: str, output: str, peak: float | None = None) -> Meter:
    """One of the metrics that have a name, but for "agreement".

    Args:
      name: of `NAMES`.
      output: name of the output, for errors.
      peak: for "psnr"; found on the labels if None.

    Example:
      >>> meter = named("top1", "scores")
      >>> meter.add(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), 0)
      >>> meter.result()
      (0.5, '')
    """
    if name == "mean_iou":
        return _MeanIoU(output)
    if name == "psnr":
        return _Psnr(output, peak)
    compare = {
        "top1": _top(1, output),
        "top5": _top(5, output),
        "accuracy": _accuracy(output),
        "mse": _squared_error(output),
    }
    return _Mean(compare[name])


def agreement(reference: np.ndarray, output: str) -> Meter:
    """How much of a reference's output another network gives, whose labels are that output.

    Args:
      reference: what the reference gave for some images, which decides what is compared.
      output: name of the output, for errors.

    Returns:
      For probabilities the share of equal classes; for signed integers and booleans, such as
      classes that the network itself chooses, the share of equal values; for all else 1 - squared
      error / variance of the reference, with a mean of its own for each channel.
    """
    if reference.dtype.kind in "bi":  # images are of unsigned ones
        return _Mean(lambda truth, found, first: truth == found, "share of equal values")
    if outputs.kind_of(reference) == outputs.PROBABILITIES:
        return _Mean(_top(1, output), "share of equal classes")
    return _Fit(output)


def decisions(name: str, reference: np.ndarray) -> np.ndarray:
    """A reference's output as the labels of a metric: classes, or sides of 0.5, as numbers."""
    if name == "accuracy" or (name == "mean_iou" and reference.shape[-1:] == (1,)):
        return (reference > 0.5).astype(np.int64)
    if name in ("top1", "top5", "mean_iou") and reference.ndim > 1:
        return np.asarray(reference.argmax(-1))
    return reference


def default(truth: np.ndarray, found: np.ndarray, peak: float | None = None) -> list[str]:
    """What is measured where the user does not say: one batch of an output and its labels tell."""
    if truth.dtype.kind not in "biuf":
        return ["top1" if found.ndim > 1 and found.shape[-1] > 1 else "mse"]  # which will refuse it
    if found.dtype.kind in "bi" and truth.dtype.kind in "biu":
        return ["accuracy"]
    if found.ndim > 1 and found.shape[-1] > 1:
        if truth.shape != found.shape or outputs.kind_of(truth) == outputs.PROBABILITIES:
            return ["top1", "top5"] if found.ndim == 2 else ["mean_iou"]
    if found.ndim == 4 and found.shape[-1] > 1:
        return [_of_maps(truth, peak)]
    if _is_binary(truth) and found.min() >= 0 and found.max() <= 1:
        return ["mean_iou"] if found.ndim == 4 else ["accuracy"]
    return [_of_maps(truth, peak)] if found.ndim == 4 else ["mse"]


def _of_maps(truth: np.ndarray, peak: float | None) -> str:
    """What is measured of (images, h, w, channels): they are images, or maps of anything."""
    image = truth.dtype.kind == "u" or 0 <= truth.min() <= truth.max() <= 255 * _OVER
    return "psnr" if peak or image else "mse"


def of_user(metric: Any) -> Meter:
    """A keras.metrics.Metric, or a function (labels, outputs) that gives a number or an array."""
    return Kept(metric) if hasattr(metric, "update_state") else _Mean(_of_function(metric))


def name_of(metric: Any) -> str:
    """What a user's metric calls itself."""
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__))


# ---------------------------------------------------------------------- means over images


class _Mean:
    """The mean of what a comparison gives, over all that it gives."""

    def __init__(self, compare: _Compare, about: str = "") -> None:
        self.compare, self.about = compare, about
        self.total, self.count = 0.0, 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        values = self.compare(truth, found, first)
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    def result(self) -> tuple[float, str]:
        return self.total / self.count if self.count else np.nan, self.about


def _top(places: int, output: str) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        numbers = _class_numbers(truth, found, first, f"top{places}", output)[..., None]
        own = np.take_along_axis(found, numbers, -1)
        # Of equal outputs the first class is the higher.
        before = np.arange(found.shape[-1]) < numbers
        return np.asarray(((found > own) | ((found == own) & before)).sum(-1) < places)

    return compare


def _accuracy(output: str) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        if found.dtype.kind in "biu":
            return np.asarray(found == _values(truth, found, first, output))
        _check_sigmoid(found, "accuracy", output)
        wanted = _values(truth, found, first, output)
        if not _is_binary(wanted):
            raise Error(f"metric 'accuracy': expected labels of 0 and 1 for {output!r}, got others")
        return np.asarray((wanted > 0.5) == (found > 0.5))

    return compare


def _squared_error(output: str) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        return np.asarray(np.square(found - _values(truth, found, first, output), dtype=np.float64))

    return compare


def _of_function(function: Callable[[Any, Any], Any]) -> _Compare:
    """A number that a function gives for a batch counts for each of its images."""

    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        rows = len(next(iter(found.values())) if isinstance(found, dict) else found)
        with _failures_named(function):
            values = np.asarray(function(truth, found))
        if values.dtype.kind not in "biuf" or (values.ndim and len(values) != rows):
            raise Error(
                f"metric {name_of(function)!r}: expected a number or an array (images, ...) for "
                f"{rows} images, got {values.dtype} {values.shape}"
            )
        # Each image counts the same, whatever an image's part of the array is.
        return values.reshape(rows, -1).mean(1) if values.ndim else np.full(rows, values)

    return compare


# ---------------------------------------------------------------------- meters of their own


class _MeanIoU:
    """Over the confusion matrix of all pixels."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.matrix: np.ndarray | None = None  # labels, outputs
        self.void = 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        if found.shape[-1] == 1:
            _check_sigmoid(found, "mean_iou", self.output)
            found = np.concatenate([1 - found, found], -1)
        classes = found.shape[-1]
        truth = np.asarray(truth)
        if truth.ndim == found.ndim and truth.shape[-1] == 1:
            truth = truth[..., 0]
        counted: Any = np.ones(truth.shape, bool)
        if truth.ndim < found.ndim and truth.dtype.kind in "uif" and classes <= VOID:
            counted = truth != VOID
            truth = np.where(counted, truth, np.zeros((), truth.dtype))
        numbers = _class_numbers(truth, found, first, "mean_iou", self.output)
        counted = counted.reshape(*numbers.shape, -1).all(-1)  # those of one-hot labels are alike
        pairs = numbers[counted] * classes + found.argmax(-1)[counted]
        matrix = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self.matrix = matrix if self.matrix is None else self.matrix + matrix
        self.void += int((~counted).sum())

    def result(self) -> tuple[float, str]:
        assert self.matrix is not None
        inside, labelled = np.diag(self.matrix), self.matrix.sum(1)
        union = labelled + self.matrix.sum(0) - inside
        if self.void and np.count_nonzero(labelled) < 2:
            raise Error(
                f"labels of {self.output!r}: got 255, which marks pixels of no class, and at most "
                "one class beside it; expected class numbers, such as mask // 255"
            )
        present = union > 0
        void = 100 * self.void / (self.void + labelled.sum()) if self.void else 0
        about = f"{present.sum()} classes" + (f", {void:.1f} % void" if self.void else "")
        return float((inside[present] / union[present]).mean()), about


class _Psnr:
    """The mean over the images; the peak is known when all labels were seen."""

    def __init__(self, output: str, peak: float | None) -> None:
        self.output, self.peak = output, peak
        self.errors: list[np.ndarray] = []  # mean squared, of each image
        self.low, self.high, self.limit = 0.0, 0.0, 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        values = _values(truth, found, first, self.output)
        difference = found.astype(np.float64) - values
        self.errors.append(np.square(difference).reshape(len(found), -1).mean(1))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if np.asarray(truth).dtype.kind == "u":
            self.limit = int(np.iinfo(truth.dtype).max)

    def result(self) -> tuple[float, str]:
        peak = self.peak or self._found_peak()
        with np.errstate(divide="ignore"):
            values = 10 * np.log10(peak**2 / np.concatenate(self.errors))
        return float(np.minimum(values, _PSNR_LIMIT).mean()), f"peak {peak:g}"

    def _found_peak(self) -> float:
        if self.limit:
            return float(self.limit)
        peak = 1.0 if self.high <= _OVER else 255.0
        if self.high > _OVER * peak or self.low < (1 - _OVER) * peak:
            raise Error(
                f"metric 'psnr': expected images of 0..1 or 0..255, got {self.low:g}.."
                f"{self.high:g} for {self.output!r}; pass peak=, white minus black"
            )
        return peak


class _Fit:
    """1 - squared error / variance of the reference, each channel about its own mean."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.error, self.count = 0.0, 0
        self.shift: Any = None  # of each channel: sums about it keep their digits
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, truth: Any, found: Any, first: int) -> None:
        channels = truth.shape[-1] if truth.ndim > 1 else 1
        wanted = truth.astype(np.float64).reshape(-1, channels)
        self.error += float(np.square(found.reshape(wanted.shape) - wanted).sum())
        if self.shift is None:
            self.shift = wanted.mean(0)
        self.total += (wanted - self.shift).sum(0)
        self.squares += np.square(wanted - self.shift).sum(0)
        self.count += len(wanted)

    def result(self) -> tuple[float, str]:
        power = float((self.squares - np.square(self.total) / self.count).sum())
        if power <= 0 and not self.error:
            return 1.0, "equal everywhere"
        if power <= 0:
            raise Error(
                f"metric 'agreement': the reference's output {self.output!r} is the same for all "
                "images, so errors have no unit; take metric='mse'"
            )
        return 1 - self.error / power, "1 - squared error / variance of the reference"


class Kept:
    """A keras.metrics.Metric, which keeps the batches in a state of its own."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def add(self, truth: Any, found: Any, first: int) -> None:
        with _failures_named(self.metric):
            self.metric.update_state(truth, found)

    def result(self) -> tuple[Any, str]:
        with _failures_named(self.metric):
            return self.metric.result(), ""

    @contextlib.contextmanager
    def anew(self) -> Iterator[None]:
        """Starts the metric anew, and gives it its variables back at the end."""
        before = [np.array(variable) for variable in self.metric.variables]
        self.metric.reset_state()
        try:
            yield
        finally:
            self.metric.reset_state()
            for variable, value in zip(self.metric.variables, before, strict=True):
                variable.assign(value)


@contextlib.contextmanager
def _failures_named(metric: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise Error(f"metric {name_of(metric)!r}: {reason}") from error


# ---------------------------------------------------------------------- checks


def _class_numbers(truth: Any, found: Any, first: int, name: str, output: str) -> np.ndarray:
    if found.ndim < 2 or found.shape[-1] < 2:
        raise Error(
            f"metric {name!r}: expected outputs (images, ..., classes) of at least 2 classes, got "
            f"{found.shape} in {output!r}; for sigmoids take 'accuracy', for values 'mse'"
        )
    return outputs.class_numbers(truth, found.shape[1:], first=first, name=f"labels of {output!r}")


def _check_sigmoid(found: np.ndarray, name: str, output: str) -> None:
    if found.size and (found.min() < -_OFF or found.max() > 1 + _OFF):
        raise Error(
            f"metric {name!r}: expected sigmoids of 0..1 in {output!r}, got {found.min():g}.."
            f"{found.max():g}; end it with a sigmoid, or take another metric"
        )


def _values(truth: Any, found: np.ndarray, first: int, output: str) -> np.ndarray:
    """Labels as float32 of the output's shape; a last axis of 1 may be missing on either side."""
    values = outputs.value_labels(truth, first=first, name=f"labels of {output!r}")
    if _without_one(values.shape) != _without_one(found.shape):
        raise Error(
            f"labels of {output!r}: expected the output's shape {found.shape}, got {values.shape}"
        )
    return values.reshape(found.shape)


def _without_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:-1] if len(shape) > 1 and shape[-1] == 1 else shape


def _is_binary(values: np.ndarray) -> bool:
    return values.dtype.kind in "biuf" and bool(((values == 0) | (values == 1)).all())
