"""Evaluates a Keras model or a .tflite file: metrics of its outputs on data."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd import checks, metrics, outputs, reporting, shapes
from tfdwd.batches import batches
from tfdwd.errors import Error
from tfdwd.records import Positive, Record

if TYPE_CHECKING:
    import keras

    from tfdwd import lite

Metric = str | Callable[[Any, Any], Any]  # a keras.metrics.Metric can be called, too

_SHARES = ("top1", "top5", "accuracy", "mean_iou")  # 0..1
_SHOWN = {"top1": "top-1", "top5": "top-5", "mean_iou": "mean IoU", "psnr": "PSNR"}


@dataclass(frozen=True)
class Score(Record):
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
        super().__post_init__()
        if not np.isfinite(self.value):
            raise Error(f"metric {self.metric!r}: expected a finite number, got {self.value}")
        if self.metric in _SHARES and not 0 <= self.value <= 1:
            raise Error(f"metric {self.metric!r}: expected 0..1, got {self.value}")

    @property
    def title(self) -> str:
        """The metric's name as people write it."""
        return _SHOWN.get(self.metric, self.metric)

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
    count: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        keys = [(score.output, score.metric) for score in self.scores]
        if not keys or len(set(keys)) < len(keys):
            raise Error(f"expected scores, each metric once for each output, got {self!r}")
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
                (score.output or "together", score.title, score.shown(),
                 score.about)
                for score in self.scores
            ]  # fmt: skip
            return [(["output", "metric", "value", ""], rows), f"{self.count} images"]
        texts = [
            f"{score.title} {score.shown()}" + (f" ({score.about})" if score.about else "")
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
    images: int | None = None,
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
        - "accuracy": share of sigmoids, 0..1, that are on the right side of 0.5, with labels of
          0 and 1; of outputs that are whole numbers the share of equal ones.
        - "psnr": peak signal-to-noise ratio of each image in dB, at most 200; mean of the images.
        - "mse": mean squared error; labels of the output's shape.
        - "agreement", with `reference`: share of equal classes where the reference gives
          probabilities, of equal values where it gives whole numbers; for all else 1 - squared
          error / variance of the reference (R2), with a mean of its own for each channel. The
          record says which.
        - a keras.metrics.Metric; its state is as before afterwards.
        - a function (y_true, y_pred) of a batch of NumPy arrays that gives a number for the batch,
          or an array (images, ...); the mean over all images is taken.

        For a model of several outputs a dict by output name chooses metrics for some of them. A
        name is taken for each output, and a keras.metrics.Metric or function that is in no dict
        takes them together: y_pred is a dict by output name then, and y_true the labels as given.
        By default, from the first batch: with a reference "agreement"; for classes "top1" and
        "top5", "mean_iou" where they are of pixels; "accuracy" or "mean_iou" for sigmoids with
        labels of 0 and 1; "psnr" for labels (images, height, width, channels) in the
        range of images; "accuracy" for whole numbers; else "mse".
      reference: another model or path, such as the original, whose outputs take the place of the
        labels; class metrics then compare with its highest output.
      peak: white minus black, for "psnr". By default the highest value of the labels' type where
        that is uint8 or uint16; else 1 if no label is above 1.5, and 255.
      batch_size: images that Keras runs at once. A model or file of a fixed batch runs at that.
      images: how many of the first images to use, of data without an end above all; by default all.

    Returns:
      The values, with what each depends on, and the number of images.

    Raises:
      tfdwd.Error: the data is wrong, labels do not fit the outputs or the metric, outputs hold NaN,
        a metric fails or gives no finite number, or the file is no .tflite model.

    Example:
      >>> print(evaluate("resnet8.tflite", (x_test, y_test)))
      top-1 0.8801, top-5 0.9941, 1017 images
    """
    if peak is not None:
        checks.number("peak", peak)
        if not peak > 0:
            raise Error(f"peak: expected a number above 0, got {peak}")
    if metric is not None:
        for some in (list(metric.values()) or [[]]) if isinstance(metric, Mapping) else [metric]:
            _listed(some)
    network = _opened(model)
    other = None if reference is None else _opened(reference)
    chosen: list[_Measured] = []
    count = 0
    with contextlib.ExitStack() as stack:
        stream = batches(data, network.source, batch_size, other is None, images=images)
        for inputs, labels in reporting.progress(stream, "evaluating"):
            found = _outputs_for(network, inputs, count)
            truth = labels
            if other is not None:
                known = _outputs_for(other, _in_order_of(other, network, inputs), count)
                truth = _matched(known, found)
            compared = _Truth(truth, tuple(found), other is not None)
            if not chosen:
                chosen = _chosen(metric, compared, found, peak)
                stack.enter_context(_anew(chosen))
            for measured in chosen:
                measured.add(compared, found, count)
            count += len(inputs[0])
        scores = [score for measured in chosen for score in measured.scores()]
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
    from tfdwd import execution

    predict = execution.predictor(model)
    own = shapes.own_batch(getattr(model, "inputs", None) or [])

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        return list(map(_real, predict(inputs)))

    def named(inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        found = run(inputs) if own is None else shapes.in_batches(run, inputs, own)
        return dict(zip(outputs.names_of(model), found, strict=True))

    return _Network(model, named)


def _of_file(model: "lite.Model") -> _Network:
    own = (model.inputs[0].sizes[0] if model.inputs and model.inputs[0].sizes else None) or 1

    def run(inputs: list[np.ndarray]) -> list[np.ndarray]:
        sizes = [array.shape for array in inputs]
        if sizes != [tensor.shape for tensor in model.inputs]:
            model.resize(sizes)
        return list(map(_real, model.run(inputs)))

    def named(inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        found = shapes.in_batches(run, inputs, own)
        return {tensor.name: array for tensor, array in zip(model.outputs, found, strict=True)}

    return _Network(_Sizes(model), named)


class _Sizes:
    """The inputs of a file as `batches` looks at them, with None for a size that is open."""

    def __init__(self, model: "lite.Model") -> None:
        self.inputs = [_Input(x.name, x.sizes, x.dtype, x.scale) for x in model.inputs]


@dataclass(frozen=True)
class _Input:
    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype
    scale: float


def _real(values: Any) -> np.ndarray:
    """An output as NumPy knows it: floats as float32, whole numbers as they are."""
    array = np.asarray(values)
    return array if array.dtype.kind in "biu" else array.astype(np.float32)


def _outputs_for(network: _Network, inputs: list[np.ndarray], first: int) -> dict[str, np.ndarray]:
    """The outputs for some images, the first of which has this number; refuses NaN."""
    try:
        found = network.run(inputs)
    except Error:
        raise
    except Exception as error:  # a network may fail in any way, such as at sizes that do not fit
        sizes = ", ".join(str(array.shape) for array in inputs)
        reason = str(error).strip().partition("\n")[0]
        raise Error(
            f"the model cannot run on images of {sizes}: {type(error).__name__}: {reason}"
        ) from error
    for name, array in found.items():
        if array.shape[:1] != (len(inputs[0]),):
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
    names = shapes.input_names(network.source)
    wanted = shapes.input_names(other.source)
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
                f"reference: expected a model of the outputs {list(found)}, got one of "
                f"{list(truth)}"
            )
        truth = dict(zip(found, truth.values(), strict=True))
    for name, array in found.items():
        if truth[name].shape != array.shape:
            raise Error(
                f"reference: expected output {name!r} to be {array.shape}, got {truth[name].shape}"
            )
    return truth


# ---------------------------------------------------------------------- choosing


@dataclass(frozen=True)
class _Measured:
    """A metric of one output, or of all together if `output` is None."""

    name: str
    meter: metrics.Meter
    output: str | None
    own: bool  # whether it is one of `metrics.NAMES`

    def add(self, truth: "_Truth", found: dict[str, np.ndarray], first: int) -> None:
        if self.output is None:
            self.meter.add(truth.whole, found, first)
        else:
            labels = truth.of(self.output)
            if truth.by_reference and self.own:
                labels = metrics.decisions(self.name, labels)
            self.meter.add(labels, found[self.output], first)

    def scores(self) -> Iterator[Score]:
        value, about = self.meter.result()
        output = self.output or ""
        if not isinstance(value, Mapping):
            value = {self.name: value}
        for name, item in value.items():
            yield Score(str(name), _number(item, str(name)), output, about)


@dataclass(frozen=True)
class _Truth:
    """What outputs are compared with: labels as they were given, or a reference's outputs."""

    whole: Any
    names: tuple[str, ...]  # of the outputs
    by_reference: bool

    def by_name(self) -> dict[str, np.ndarray]:
        """Those of each output that has any."""
        whole = self.whole
        if isinstance(whole, np.ndarray):
            if len(self.names) > 1:
                raise Error(
                    f"expected labels of the outputs {list(self.names)} as a dict by name or a "
                    f"list, got one array {whole.shape}"
                )
            whole = [whole]
        given = outputs.by_output(whole, self.names, "labels")
        return {name: one for name, one in zip(self.names, given, strict=True) if one is not None}

    def of(self, output: str) -> np.ndarray:
        """Those of one output."""
        labels = self.by_name()
        if output not in labels:
            raise Error(f"expected labels of the output {output!r}, got those of {list(labels)}")
        return labels[output]


def _chosen(
    metric: Any, truth: _Truth, found: dict[str, np.ndarray], peak: float | None
) -> list[_Measured]:
    """What is to be measured, decided on the first batch."""
    wanted: list[tuple[Any, str | None]] = []
    if isinstance(metric, Mapping):
        for name, some in metric.items():
            if name not in found:
                raise Error(f"metric: expected names of the outputs {list(found)}, got {name!r}")
            wanted += [(one, name) for one in _listed(some)]
    elif metric is None and truth.by_reference:
        wanted = [("agreement", name) for name in found]
    elif metric is None:
        for name, labels in truth.by_name().items():
            wanted += [(one, name) for one in metrics.default(labels, found[name], peak)]
    else:
        for one in _listed(metric):
            for_each = isinstance(one, str) or len(found) == 1
            wanted += [(one, name) for name in found] if for_each else [(one, None)]
    chosen = [
        _Measured(one, _named(one, truth, name, peak), name, own=True)
        if isinstance(one, str) and name is not None
        else _Measured(metrics.name_of(one), metrics.of_user(one), name, own=False)
        for one, name in wanted
    ]
    keys = [(measured.name, measured.output) for measured in chosen]
    for name, output in keys:
        if keys.count((name, output)) > 1:
            raise Error(f"metric: expected different names for each output, got {name!r} twice")
    if peak is not None and not any(
        measured.own and measured.name == "psnr" for measured in chosen
    ):
        raise Error("peak: expected metric='psnr', got other metrics")
    return chosen


def _named(name: str, truth: _Truth, output: str, peak: float | None) -> metrics.Meter:
    if name != "agreement":
        return metrics.named(name, output, peak)
    if not truth.by_reference:
        raise Error("metric 'agreement': expected the model to compare with; pass reference=")
    return metrics.agreement(truth.of(output), output)


def _listed(metric: Any) -> list[Any]:
    found = list(metric) if isinstance(metric, (list, tuple)) else [metric]
    for one in found or [None]:
        known = one in metrics.NAMES if isinstance(one, str) else callable(one)
        if not known or isinstance(one, type):
            raise Error(
                f"metric: expected {', '.join(map(repr, metrics.NAMES))}, a keras.metrics.Metric, "
                f"a function (y_true, y_pred), or a dict of these by output name; got {one!r}"
            )
    return found


def _number(value: Any, name: str) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise Error(
            f"metric {name!r}: expected one number, got {array.dtype} {array.shape}; average it"
        )
    return float(array.reshape(()))


@contextlib.contextmanager
def _anew(chosen: list[_Measured]) -> Iterator[None]:
    """Starts Keras metrics anew, and gives them their states back at the end."""
    kept = [measured.meter for measured in chosen if isinstance(measured.meter, metrics.Kept)]
    if len({id(meter.metric) for meter in kept}) < len(kept):
        raise Error("metric: expected a keras.metrics.Metric of its own for each output")
    with contextlib.ExitStack() as stack:
        for meter in kept:
            stack.enter_context(meter.anew())
        yield
