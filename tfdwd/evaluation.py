"""What a network's outputs are worth, as a Keras model or as a .tflite file."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfdwd import outputs, reporting
from tfdwd.batches import batches, pack
from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

    from tfdwd import lite

Model = "keras.Model | str | os.PathLike[str]"
Metric = str | Callable[[Any, Any], Any]  # a keras.metrics.Metric can be called, too

NAMES = ("top1", "top5", "accuracy", "mean_iou", "psnr", "mse", "agreement")
_SHARES = ("top1", "top5", "accuracy", "mean_iou")  # 0..1
_CLASSES = ("top1", "top5", "mean_iou")  # whose labels are class numbers
_SHOWN = {"top1": "top-1", "top5": "top-5", "mean_iou": "mean IoU", "psnr": "PSNR"}
_VOID = 255  # label of a pixel that counts for no class, as in Pascal VOC and Cityscapes
_PSNR_LIMIT = 200.0  # dB; images without any error have no PSNR at all


@dataclass(frozen=True)
class Score:
    """One metric of one output.

    Attributes:
      metric: "top1", "psnr" and so on, or the name of the Keras metric or function.
      value: a finite number.
      output: the output's name; empty if the metric took the outputs together.
      about: what the value depends on, such as "peak 255"; empty where there is nothing to say.
    """

    metric: str
    value: float
    output: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.value):
            raise Error(f"metric {self.metric!r}: expected a finite number, got {self.value}")
        if self.metric in _SHARES and not 0 <= self.value <= 1:
            raise Error(f"metric {self.metric!r}: expected 0..1, got {self.value}")

    def shown(self) -> str:
        """The value with its unit."""
        if self.metric == "psnr":
            return f"{self.value:.2f} dB"
        share = self.metric in _SHARES or self.metric == "agreement"
        return f"{self.value:.4f}" if share else f"{self.value:.6g}"


@dataclass(frozen=True)
class Evaluation(reporting.Report):
    """What was measured on the data. Prints as one line, or as a table for several outputs.

    ``evaluation["psnr"]`` is the value of a metric that one output has, ``evaluation["mask",
    "mean_iou"]`` that of one output among several.

    Attributes:
      scores: one for each metric and output, in their order.
      count: number of images.
    """

    scores: tuple[Score, ...]
    count: int

    def __post_init__(self) -> None:
        keys = [(score.output, score.metric) for score in self.scores]
        if self.count < 1 or not keys or len(set(keys)) < len(keys):
            raise Error(
                f"expected a count of at least 1 and each metric once for each output, got {self!r}"
            )
        values = {key: score.value for key, score in zip(keys, self.scores, strict=True)}
        for output, metric in keys:
            if metric == "top1" and values[output, "top1"] > values.get((output, "top5"), 1):
                raise Error(f"expected top1 <= top5, got {self!r}")

    def __getitem__(self, key: str | tuple[str, str]) -> float:
        output, metric = (None, key) if isinstance(key, str) else key
        found = [
            score.value
            for score in self.scores
            if score.metric == metric and output in (None, score.output)
        ]
        if len(found) != 1:
            held = ", ".join(str((score.output, score.metric)) for score in self.scores)
            raise Error(f"expected a metric, or (output, metric), of {held}; got {key!r}")
        return found[0]

    @property
    def top1(self) -> float:
        """Share of the images whose label got the highest output, 0..1."""
        return self["top1"]

    @property
    def top5(self) -> float:
        """Share of the images whose label is among the five highest outputs, 0..1."""
        return self["top5"]

    def _parts(self) -> reporting.Parts:
        if len({score.output for score in self.scores}) > 1:
            rows = [
                (score.output or "together", _SHOWN.get(score.metric, score.metric), score.shown(),
                 score.about)
                for score in self.scores
            ]  # fmt: skip
            return [(["output", "metric", "value", ""], rows), f"{self.count} images"]
        texts = [
            f"{_SHOWN.get(score.metric, score.metric)} {score.shown()}"
            + (f" ({score.about})" if score.about else "")
            for score in self.scores
        ]
        return [", ".join([*texts, f"{self.count} images"])]


def evaluate(
    model: "keras.Model | str | os.PathLike[str]",
    data: Any,
    *,
    metric: Metric | Sequence[Metric] | Mapping[str, Metric | Sequence[Metric]] | None = None,
    reference: "keras.Model | str | os.PathLike[str] | None" = None,
    peak: float | None = None,
    batch_size: int = 64,
) -> Evaluation:
    """Measures how well a network of any task does its work, against labels or another network.

    Args:
      model: a Keras model, or the path of a .tflite file, whose outputs are taken as real values.
      data: (inputs, labels) of any kind that `tfdwd.batches.batches` takes; with `reference` the
        inputs alone are enough. Labels of several outputs are a dict by output name, which may
        leave outputs out, or a list in their order.
      metric: one or several of

        - "top1", "top5": share of the labels that got the highest output, or one of the five
          highest; of equal outputs the first class counts as the higher. Labels are class numbers
          (images, ...) or (images, ..., 1), or one-hot (images, ..., classes).
        - "mean_iou": intersection over union of each class over all pixels of the data, mean of
          the classes that occur in labels or outputs. Labels as above; a pixel of the label 255
          counts for no class. An output of one channel, 0..1, tells two classes apart at 0.5.
        - "accuracy": share of sigmoids, 0..1, that are on the right side of 0.5; labels of 0 and 1.
        - "psnr": peak signal-to-noise ratio of each image in dB, at most 200, mean of the images.
        - "mse": mean squared error; labels of the output's shape.
        - "agreement", with `reference`: share of equal classes where the reference gives
          probabilities; for all else 1 - squared error / variance of the reference (R2), with a
          mean of its own for each channel. The record says which.
        - a keras.metrics.Metric; its state is as before afterwards.
        - a function (y_true, y_pred) of a batch of NumPy arrays that gives a number for the batch,
          or an array (images, ...); the mean over all images is taken.

        For a model of several outputs a dict by output name chooses metrics for some of them. A
        name is taken for each output, and a keras.metrics.Metric or function that is in no dict
        takes them together: y_pred is a dict by output name then, and y_true the labels as given.
        By default, from the first batch: with a reference "agreement"; for classes "top1" and
        "top5", "mean_iou" where they are of pixels; "accuracy" or "mean_iou" for sigmoids with
        labels of 0 and 1; "psnr" for labels (images, height, width, channels); else "mse".
      reference: another model or path, such as the original, whose outputs take the place of the
        labels; class metrics then compare with its highest output.
      peak: highest value of the images, for "psnr". By default 1 if no label is above 1.5, 255 if
        none is above 255, 65535 for uint16.
      batch_size: images that Keras runs at once. A model or file of a fixed batch runs at that.

    Returns:
      The values, with what each depends on, and the number of images.

    Raises:
      tfdwd.Error: the data is wrong, labels do not fit the outputs or the metric, outputs hold NaN,
        a metric fails or gives no finite number, or the file is no .tflite model.

    Example:
      >>> print(evaluate("resnet8.tflite", (x_test, y_test)))
      top-1 0.8801, top-5 0.9941, 1017 images
    """
    network = _opened(model)
    other = None if reference is None else _opened(reference)
    found_metrics: list[_Measured] = []
    count = 0
    with contextlib.ExitStack() as stack:
        stream = batches(data, network.source, batch_size, other is None)
        for inputs, labels in reporting.progress(stream, "evaluating"):
            found = _checked(network, inputs, count)
            truth = labels
            if other is not None:
                truth = _checked(other, _in_order_of(other, network, inputs), count)
                truth = _matched(truth, found)
            if not found_metrics:
                if peak is not None and not 0 < peak < np.inf:
                    raise Error(f"peak: expected a number above 0, got {peak}")
                found_metrics = _chosen(metric, truth, found, other is not None, peak)
                stack.enter_context(_states_kept(found_metrics))
            for measured in found_metrics:
                measured.add(truth, found, count)
            count += len(inputs[0])
        scores = [score for measured in found_metrics for score in measured.scores()]
    return Evaluation(tuple(scores), count)


# ---------------------------------------------------------------------- networks


@dataclass(frozen=True)
class _Network:
    """What `batches` asks for its inputs, and a function that runs them: {output name: array}."""

    source: Any
    run: Callable[[list[np.ndarray]], dict[str, np.ndarray]]


def _opened(model: Any) -> _Network:
    if isinstance(model, (str, os.PathLike)):
        from tfdwd import lite  # a machine that only trains has no LiteRT

        return _of_file(lite.Model(model))
    if not hasattr(model, "predict_on_batch"):  # Keras 3's or tf_keras'; neither is imported here
        raise Error(
            f"expected a Keras model or the path of a .tflite file, got {type(model).__name__}"
        )
    return _of_keras(model)


def _of_keras(model: "keras.Model") -> _Network:
    def run(inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        import keras

        found = keras.tree.flatten(model.predict_on_batch(pack(model, inputs)))
        return dict(zip(outputs.names_of(model), map(_real, found), strict=True))

    batch = model.inputs[0].shape[0] if getattr(model, "inputs", None) else None
    return _Network(model, run if batch is None else _in_chunks(run, batch))


def _of_file(model: "lite.Model") -> _Network:
    def run(inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        shapes = [array.shape for array in inputs]
        if shapes != [tensor.shape for tensor in model.inputs]:
            model.resize(shapes)
        found = map(_real, model.run(inputs))
        return {tensor.name: array for tensor, array in zip(model.outputs, found, strict=True)}

    batch = model.inputs[0].sizes[0] if model.inputs and model.inputs[0].sizes else None
    return _Network(_Sizes(model), _in_chunks(run, batch or 1))


class _Sizes:
    """The inputs of a file as `batches` looks at them, with None for a size that is open."""

    def __init__(self, model: "lite.Model") -> None:
        self.inputs = [_Input(tensor.name, tensor.sizes) for tensor in model.inputs]


@dataclass(frozen=True)
class _Input:
    name: str
    shape: tuple[int | None, ...]


def _real(values: Any) -> np.ndarray:
    """An output as NumPy knows it: floats as float32, whole numbers as they are."""
    array = np.asarray(values)
    return array if array.dtype.kind in "biu" else array.astype(np.float32)


def _in_chunks(
    run: Callable[[list[np.ndarray]], dict[str, np.ndarray]], rows: int
) -> Callable[[list[np.ndarray]], dict[str, np.ndarray]]:
    """Runs any number of images so many at a time; the last image fills the last chunk up."""

    def whole(inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        count = len(inputs[0])
        chunks = []
        for start in range(0, count, rows):
            chosen = np.minimum(np.arange(start, start + rows), count - 1)
            chunks.append(run([array[chosen] for array in inputs]))
            for name, array in chunks[-1].items():
                if array.shape[:1] != (rows,):
                    raise Error(
                        f"output {name!r}: expected one row for each of {rows} images, got "
                        f"{array.shape}"
                    )
        return {name: np.concatenate([each[name] for each in chunks])[:count] for name in chunks[0]}

    return whole


def _checked(network: _Network, inputs: list[np.ndarray], first: int) -> dict[str, np.ndarray]:
    """The outputs for some images, the first of which has this number; refuses NaN."""
    found = network.run(inputs)
    for name, array in found.items():
        if len(array) != len(inputs[0]):
            raise Error(
                f"output {name!r}: expected one row for each of {len(inputs[0])} images, got "
                f"{array.shape}"
            )
        wrong = np.isnan(array.reshape(len(array), -1)).any(1) if array.dtype.kind == "f" else []
        if np.any(wrong):
            raise Error(
                f"the model gave NaN in output {name!r} for image {first + np.argmax(wrong)}"
            )
    return found


def _in_order_of(other: _Network, network: _Network, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The inputs for the other network: by name where the names are the same, else by place."""
    names = [tensor.name for tensor in network.source.inputs]
    wanted = [tensor.name for tensor in other.source.inputs]
    if len(names) != len(wanted):
        raise Error(f"reference: expected a model of the inputs {names}, got one of {wanted}")
    arrays = dict(zip(names, inputs, strict=True))
    ordered = [arrays[name] for name in wanted] if set(names) == set(wanted) else inputs
    # The same check as for the model's own data: shapes, with a clear error.
    [(ordered, _)] = batches(
        (ordered if len(ordered) > 1 else ordered[0],), other.source, len(ordered[0])
    )
    return ordered


def _matched(truth: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The reference's outputs under the model's names: by name where these are the same."""
    if set(truth) != set(found):
        if len(truth) != len(found):
            raise Error(
                f"reference: expected a model of the outputs {list(found)}, got one of {list(truth)}"
            )
        truth = dict(zip(found, truth.values(), strict=True))
    for name, array in found.items():
        if truth[name].shape != array.shape:
            raise Error(
                f"reference: expected output {name!r} to be {array.shape}, got {truth[name].shape}"
            )
    return truth


# ---------------------------------------------------------------------- choosing


class _Meter(Protocol):
    """Adds up one metric over batches; `result` gives its value and what it depends on."""

    def add(self, truth: Any, found: Any, first: int) -> None: ...

    def result(self) -> tuple[Any, str]: ...


@dataclass(frozen=True)
class _Measured:
    """A metric of one output, or of all together if `output` is None."""

    name: str
    meter: _Meter
    output: str | None
    names: tuple[str, ...]  # of all outputs

    def add(self, truth: Any, found: dict[str, np.ndarray], first: int) -> None:
        if self.output is None:
            self.meter.add(truth, found, first)
            return
        own = _truth_of(truth, self.names)[self.output]
        self.meter.add(own, found[self.output], first)

    def scores(self) -> Iterator[Score]:
        value, about = self.meter.result()
        output = self.output or ""
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield Score(str(key), _number(item, self.name), output, about)
        else:
            yield Score(self.name, _number(value, self.name), output, about)


def _chosen(
    metric: Any, truth: Any, found: dict[str, np.ndarray], by_reference: bool, peak: float | None
) -> list[_Measured]:
    """What is to be measured, decided on the first batch."""
    names = tuple(found)
    chosen: list[_Measured] = []

    def choose(one: Any, output: str | None) -> None:
        given = {} if output is None else _truth_of(truth, names)
        if output is not None and output not in given:
            raise Error(f"expected labels of the output {output!r}, got those of {list(given)}")
        if one is None:
            for name in _default(given[output], found[output], output):
                choose(name, output)
        elif isinstance(one, str):
            meter = _named(one, given[output], by_reference, peak, output)
            chosen.append(_Measured(one, meter, output, names))
        else:
            chosen.append(_Measured(_name_of(one), _own_meter(one), output, names))

    if metric is None and by_reference:
        metric = "agreement"
    if isinstance(metric, Mapping):
        for name, some in metric.items():
            if name not in names:
                raise Error(f"metric: expected names of the outputs {list(names)}, got {name!r}")
            for one in _listed(some):
                choose(one, name)
    else:
        for one in _listed(metric):
            for_each = one is None or isinstance(one, str) or len(names) == 1
            # By default, what has labels is measured.
            some = list(_truth_of(truth, names)) if one is None else list(names)
            for name in some if for_each else [None]:
                choose(one, name)
    return chosen


def _listed(metric: Any) -> list[Any]:
    found = list(metric) if isinstance(metric, (list, tuple)) else [metric]
    if not found:
        raise Error("metric: expected at least one, got an empty list")
    for one in found:
        if isinstance(one, type) or not (one is None or isinstance(one, str) or callable(one)):
            raise Error(
                f"metric: expected {', '.join(NAMES)}, a keras.metrics.Metric, a function, or a "
                f"dict of these by output name; got {one!r}"
            )
    return found


def _truth_of(truth: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The labels by output name."""
    if isinstance(truth, np.ndarray):
        if len(names) > 1:
            raise Error(
                f"expected labels of the outputs {list(names)} as a dict by name or a list, got one "
                f"array {truth.shape}"
            )
        truth = [truth]
    given = outputs.by_output(truth, names, "labels")
    return {name: one for name, one in zip(names, given, strict=True) if one is not None}


def _default(truth: np.ndarray, found: np.ndarray, output: str) -> list[str]:
    """What is measured of an output where the user does not say: the output and its labels tell."""
    if found.ndim > 1 and found.shape[-1] > 1:
        numbers = truth.ndim < found.ndim or truth.shape != found.shape
        if numbers or outputs.kind_of(truth.astype(np.float32)) == outputs.PROBABILITIES:
            return ["top1", "top5"] if found.ndim == 2 else ["mean_iou"]
    if _is_binary(truth) and found.min() >= 0 and found.max() <= 1:
        return ["mean_iou"] if found.ndim > 3 and found.shape[-1] == 1 else ["accuracy"]
    return ["psnr"] if found.ndim == 4 else ["mse"]


def _is_binary(values: np.ndarray) -> bool:
    return values.dtype.kind in "biuf" and bool(((values == 0) | (values == 1)).all())


def _named(
    name: str, truth: np.ndarray, by_reference: bool, peak: float | None, output: str
) -> _Meter:
    if name not in NAMES:
        raise Error(f"metric: expected one of {', '.join(NAMES)}, got {name!r}")
    if name == "agreement":
        if not by_reference:
            raise Error("metric 'agreement': expected the model to compare with, pass reference=")
        if outputs.kind_of(truth) != outputs.PROBABILITIES:
            return _Fit(output)
        return _Mean(_top(1, output, by_reference), "share of equal classes")
    made: dict[str, Callable[[], _Meter]] = {
        "top1": lambda: _Mean(_top(1, output, by_reference)),
        "top5": lambda: _Mean(_top(5, output, by_reference)),
        "accuracy": lambda: _Mean(_accuracy(output, by_reference)),
        "mean_iou": lambda: _MeanIoU(output, by_reference),
        "psnr": lambda: _Psnr(output, peak),
        "mse": lambda: _Mean(_squared_error(output)),
    }
    return made[name]()


def _own_meter(metric: Any) -> _Meter:
    return _Kept(metric) if hasattr(metric, "update_state") else _Mean(_of_user(metric))


def _name_of(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", "metric"))


def _number(value: Any, name: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Error(
            f"metric {name!r}: expected one number, got {array.dtype} {array.shape}; average it"
        )
    return float(array.reshape(()))


# ---------------------------------------------------------------------- meters

_Compare = Callable[[Any, Any, int], np.ndarray]  # (labels, outputs, first image) -> (images, ...)


class _Mean:
    """The mean over all images of what a comparison gives for each."""

    def __init__(self, compare: _Compare, about: str = "") -> None:
        self.compare, self.about = compare, about
        self.total, self.weight = 0.0, 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        values = self.compare(truth, found, first)
        self.total += float(values.sum(dtype=np.float64))
        self.weight += values.size

    def result(self) -> tuple[float, str]:
        if not self.weight:
            raise Error("there is nothing to take the mean of: the outputs are empty")
        return self.total / self.weight, self.about


def _top(places: int, output: str, by_reference: bool) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        _check_classes(found, output, f"top{places}")
        numbers = _class_numbers(truth, found, first, output, by_reference)
        own = np.take_along_axis(found, numbers[..., None], -1)
        before = np.arange(found.shape[-1]) < numbers[..., None]
        # Of equal outputs the first class is the higher.
        higher = ((found > own) | ((found == own) & before)).sum(-1)
        return higher < places

    return compare


def _check_classes(found: np.ndarray, output: str, name: str) -> None:
    if found.ndim < 2 or found.shape[-1] < 2:
        raise Error(
            f"metric {name!r}: expected outputs (images, ..., classes) of at least 2 classes, got "
            f"{found.shape} in {output!r}; for a sigmoid take 'accuracy'"
        )


def _class_numbers(
    truth: np.ndarray, found: np.ndarray, first: int, output: str, by_reference: bool
) -> np.ndarray:
    if by_reference:
        return np.asarray(truth.argmax(-1))
    return outputs.class_numbers(truth, found.shape[1:], first=first, name=_labels_of(output))


def _labels_of(output: str) -> str:
    return f"labels of {output!r}"


def _accuracy(output: str, by_reference: bool) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        if found.size and not -0.01 <= found.min() <= found.max() <= 1.01:
            raise Error(
                f"metric 'accuracy': expected outputs of 0..1, got {found.min():g}..{found.max():g} "
                f"in {output!r}; end it with a sigmoid, or take 'top1' for classes"
            )
        wanted = _values(truth, found, first, output)
        if not by_reference and not _is_binary(wanted):
            raise Error(f"metric 'accuracy': expected labels of 0 and 1 for {output!r}, got others")
        return np.asarray((wanted > 0.5) == (found > 0.5))

    return compare


def _squared_error(output: str) -> _Compare:
    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        return np.square(found.astype(np.float64) - _values(truth, found, first, output))

    return compare


def _values(truth: Any, found: np.ndarray, first: int, output: str) -> np.ndarray:
    """Labels as float32 of the output's shape; a last axis of 1 may be missing on either side."""
    values = outputs.value_labels(truth, first=first, name=_labels_of(output))
    plain = [
        array.shape[:-1] if array.shape[-1:] == (1,) else array.shape for array in (values, found)
    ]
    if values.shape != found.shape and plain[0] != plain[1]:
        raise Error(
            f"{_labels_of(output)}: expected the output's shape {found.shape}, got {values.shape}"
        )
    return values.reshape(found.shape)


class _MeanIoU:
    """Over the confusion matrix of all pixels."""

    def __init__(self, output: str, by_reference: bool) -> None:
        self.output, self.by_reference = output, by_reference
        self.matrix = np.zeros((0, 0), np.int64)
        self.void = 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        if found.shape[-1] == 1:
            if found.size and not -0.01 <= found.min() <= found.max() <= 1.01:
                raise Error(
                    f"metric 'mean_iou': expected one channel of 0..1, got {found.min():g}.."
                    f"{found.max():g} in {self.output!r}; end it with a sigmoid or a softmax"
                )
            found = np.concatenate([1 - found, found], -1)
            if self.by_reference:
                truth = np.concatenate([1 - truth, truth], -1)
        _check_classes(found, self.output, "mean_iou")
        classes = found.shape[-1]
        truth = np.asarray(truth)
        void = np.zeros((), bool)
        if not self.by_reference and truth.dtype.kind in "uif" and classes <= _VOID:
            void = truth == _VOID
            truth = np.where(void, np.zeros((), truth.dtype), truth)
        numbers = _class_numbers(truth, found, first, self.output, self.by_reference)
        counted = ~np.broadcast_to(
            void.reshape(numbers.shape) if void.any() else False, numbers.shape
        )
        self.void += int((~counted).sum())
        pairs = numbers[counted] * classes + found.argmax(-1)[counted]
        matrix = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self.matrix = matrix if not self.matrix.size else self.matrix + matrix

    def result(self) -> tuple[float, str]:
        inside = np.diag(self.matrix)
        labelled = self.matrix.sum(1)
        union = labelled + self.matrix.sum(0) - inside
        if self.void and np.count_nonzero(labelled) < 2:
            raise Error(
                f"{_labels_of(self.output)}: got 255, which marks pixels of no class, and at most one "
                "class beside it; expected class numbers, such as mask // 255"
            )
        present = union > 0
        if not present.any():
            raise Error("there is nothing to take the mean of: the outputs are empty")
        void = 100 * self.void / (self.void + labelled.sum())
        about = f"{present.sum()} classes" + (f", {void:.1f} % void" if self.void else "")
        return float((inside[present] / union[present]).mean()), about


class _Psnr:
    """The mean over the images; the peak is known when all labels were seen."""

    def __init__(self, output: str, peak: float | None) -> None:
        self.output, self.peak = output, peak
        self.errors: list[np.ndarray] = []  # mean squared, of each image
        self.low, self.high, self.type_limit = np.inf, -np.inf, 0

    def add(self, truth: Any, found: Any, first: int) -> None:
        values = _values(truth, found, first, self.output)
        difference = found.astype(np.float64) - values
        self.errors.append(np.square(difference).reshape(len(found), -1).mean(1))
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        if np.asarray(truth).dtype.kind == "u":
            self.type_limit = max(self.type_limit, int(np.iinfo(truth.dtype).max))

    def result(self) -> tuple[float, str]:
        peak = self.peak or self._found_peak()
        with np.errstate(divide="ignore"):
            values = 10 * np.log10(peak**2 / np.concatenate(self.errors))
        return float(np.minimum(values, _PSNR_LIMIT).mean()), f"peak {peak:g}"

    def _found_peak(self) -> float:
        limits = (255, 65535) if self.type_limit else (1.5, 255)
        if self.type_limit:
            limits = tuple(limit for limit in limits if limit == self.type_limit)
        if self.low < 0 or not limits or self.high > limits[-1]:
            raise Error(
                f"metric 'psnr': expected images of 0..1 or 0..255, got {self.low:g}..{self.high:g} "
                f"for {self.output!r}; pass peak=, the difference between white and black"
            )
        return next(1.0 if limit == 1.5 else float(limit) for limit in limits if self.high <= limit)


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
        if power <= 0:
            raise Error(
                f"metric 'agreement': the reference's output {self.output!r} is the same for all "
                "images, so errors have no unit; compare it with metric='mse'"
            )
        return 1 - self.error / power, "1 - squared error / variance of the reference"


def _of_user(function: Callable[[Any, Any], Any]) -> _Compare:
    """A user's function as a comparison: a number for a batch counts for each of its images."""

    def compare(truth: Any, found: Any, first: int) -> np.ndarray:
        rows = len(next(iter(found.values())) if isinstance(found, dict) else found)
        with _failures_named(function):
            values = np.asarray(function(truth, found))
        if values.dtype.kind not in "biuf" or (values.ndim and len(values) != rows):
            raise Error(
                f"metric {_name_of(function)!r}: expected a number or an array (images, ...) for "
                f"{rows} images, got {values.dtype} {values.shape}"
            )
        return values if values.ndim else np.full(rows, values)

    return compare


class _Kept:
    """A keras.metrics.Metric."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def add(self, truth: Any, found: Any, first: int) -> None:
        with _failures_named(self.metric):
            self.metric.update_state(truth, found)

    def result(self) -> tuple[Any, str]:
        with _failures_named(self.metric):
            return self.metric.result(), ""


@contextlib.contextmanager
def _failures_named(metric: Any) -> Iterator[None]:
    try:
        yield
    except Error:
        raise
    except Exception as error:
        raise Error(
            f"metric {_name_of(metric)!r} failed: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _states_kept(found: list[_Measured]) -> Iterator[None]:
    """Starts Keras metrics anew, and gives them their states back at the end."""
    metrics = [each.meter.metric for each in found if isinstance(each.meter, _Kept)]
    if len({id(metric) for metric in metrics}) < len(metrics):
        raise Error("metric: expected a keras.metrics.Metric of its own for each output")
    before = [[np.array(variable) for variable in metric.variables] for metric in metrics]
    for metric in metrics:
        metric.reset_state()
    try:
        yield
    finally:
        for metric, values in zip(metrics, before, strict=True):
            metric.reset_state()
            for variable, value in zip(metric.variables, values, strict=True):
                variable.assign(value)
