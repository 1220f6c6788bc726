"""Keras to .tflite, verified: the file that is written was run and compared with Keras."""

import collections
import keyword
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from tfdwd import lite, reporting
from tfdwd.batches import batches, pack
from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

# Float32 kernels that sum in another order differ by about 1e-6 of the scale for each layer or so;
# a layer that was converted wrongly differs by far more than this.
_LARGEST_DIFFERENCE = 1e-3
_IMAGES = 64
_BATCH = 16


@dataclass(frozen=True)
class OutputAgreement:
    """How well one output of a .tflite file agrees with the Keras model.

    Attributes:
      name: of the output.
      largest_difference: the largest absolute difference over the largest absolute value of the
        Keras output.
      top1_agreement: share of the images whose largest output is the same one, 0..1; None where the
        output is not (batch, classes).
    """

    name: str
    largest_difference: float
    top1_agreement: float | None


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it agrees with the Keras model. Prints as a table.

    Attributes:
      path: of the .tflite file.
      bytes: its size.
      operators: how many of each operator it holds, by LiteRT's name.
      needed_runtime: the oldest TensorFlow Lite that has all of them.
      checked_with: the version of LiteRT that it was opened and run with.
      images: how many images were compared; 0 without data.
      outputs: the agreement of each output; empty without data.
    """

    path: str
    bytes: int
    operators: dict[str, int]
    needed_runtime: str
    checked_with: str
    images: int
    outputs: tuple[OutputAgreement, ...]

    def __post_init__(self) -> None:
        if (self.images == 0) != (not self.outputs):
            raise Error(f"{self.images} images compared, but {len(self.outputs)} outputs")

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        lines = [
            f"{self.path}: {self.bytes / 1024:.1f} KiB, needs TensorFlow Lite "
            f"{self.needed_runtime or '(unknown)'}",
            f"operators: {counts}",
        ]
        if not self.images:
            return "\n".join([*lines, "not compared with Keras: no data was given"])
        rows = [
            (
                output.name,
                f"{output.largest_difference:.1e}",
                "-" if output.top1_agreement is None else f"{output.top1_agreement:.3f}",
            )
            for output in self.outputs
        ]
        return "\n".join(
            [
                *lines,
                f"against Keras on {self.images} images, LiteRT {self.checked_with}:",
                reporting.table(["output", "largest difference / scale", "top-1 agreement"], rows),
            ]
        )

    def to_json(self) -> str:
        """Writes the report as JSON; `tfdwd.reporting.from_json` reads it back."""
        return reporting.to_json(self)


def export(model: "keras.Model", path: str | os.PathLike[str], *, data: Any = None) -> ExportReport:
    """Writes a Keras model as a float32 .tflite file for a batch of 1, and checks it.

    The names of the signature and the order of the inputs and outputs are the Keras model's (the
    keys where it takes or gives a dict); only an input name that is no Python identifier changes,
    ``"image-1"`` to ``"image_1"``. The file holds only built-in operators.

    Args:
      model: a Sequential or Functional Keras 3 model of fixed input sizes; not changed.
      path: where to write, ending in .tflite; the folder must exist. Written whole or not at all.
      data: real inputs, of any kind that `tfdwd.batches.batches` takes. Up to 64 images run through
        Keras and through the file. Without data, the file is only opened.

    Returns:
      Size, operators and agreement.

    Raises:
      tfdwd.Error: the model cannot be converted (the message names the layers), the file does not
        agree with Keras within 1e-3 of the output's scale, the data is wrong, or the path is. No
        file is left behind.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
      >>> export(model, "/tmp/model.tflite", data=np.ones((2, 8, 8, 3))).operators
      {'CONV_2D': 1}
    """
    path = Path(path)
    if path.suffix != ".tflite":
        raise Error(f"expected a path that ends in .tflite, got {path}")
    _check_convertible(model)
    content = _convert(model)
    found = lite.operators(content)
    images, outputs = _compare(model, lite.Model(content), data) if data is not None else (0, ())
    reporting.write_whole(path, content)
    report = ExportReport(
        path=str(path),
        bytes=len(content),
        operators=dict(collections.Counter(operator.name for operator in found).most_common()),
        needed_runtime=lite.needed_runtime(content),
        checked_with=lite.runtime_version(),
        images=images,
        outputs=outputs,
    )
    logging.info("wrote %s, %d bytes", path, len(content))
    return report


def _check_convertible(model: "keras.Model") -> None:
    import keras

    if not isinstance(model, keras.Model):
        raise Error(
            f"expected a Keras 3 model, got {type(model).__module__}.{type(model).__name__}"
        )
    if not getattr(model, "inputs", None):
        raise Error(
            f"model {model.name!r} has no inputs of its own: it is subclassed or was not built; "
            "make it Functional, keras.Model(x, model(x)) with x = keras.Input(...)"
        )
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            raise Error(
                f"input {tensor.name!r} of model {model.name!r} has the shape {tensor.shape}: fix "
                "its size, fixed = keras.models.clone_model(model, input_tensors=keras.Input((224, "
                "224, 3))), then fixed.set_weights(model.get_weights())"
            )


def _convert(model: "keras.Model") -> bytes:
    """Converts through a signature of named inputs and outputs, at a batch of 1."""
    import tensorflow as tf

    inputs, outputs = _input_names(model), _output_names(model)
    specs = {
        name: tf.TensorSpec((1, *tensor.shape[1:]), tensor.dtype, name=name)
        for name, tensor in zip(inputs, model.inputs, strict=True)
    }

    def serve(**tensors: Any) -> dict[str, Any]:
        result = model(pack(model, [tensors[name] for name in inputs]), training=False)
        return dict(zip(outputs, tf.nest.flatten(result), strict=True))

    # TFLiteConverter.from_keras_model knows Keras 2 alone. A Keras 3 model in the place of `holder`
    # would leave its weights in the file as variables; plain tf.Variables become constants.
    holder = tf.Module()
    holder.variables_of_model = [variable.value for variable in model.variables]
    function = tf.function(serve).get_concrete_function(**specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    try:
        content = converter.convert()
    except Exception as error:  # ConverterError has no public name.
        raise Error(_conversion_message(model, error)) from error
    return lite.in_order(content, inputs, outputs)


def _input_names(model: "keras.Model") -> list[str]:
    """The names of the inputs, as Python identifiers: TensorFlow makes arguments of them."""
    names = []
    for tensor in model.inputs:
        name = re.sub(r"\W", "_", tensor.name)
        fine = name.isidentifier() and not keyword.iskeyword(name) and name != "self"
        names.append(name if fine else f"input_{name}")
    return _unique(names)


def _output_names(model: "keras.Model") -> list[str]:
    """The keys of a flat dict of outputs, else the names of the layers that give them."""
    import keras

    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    if isinstance(model.output, dict) and len(model.output) == len(model.outputs):
        return sorted(model.output)
    return _unique(model.output_names)


def _unique(names: list[str]) -> list[str]:
    """Numbers the second and later of equal names."""
    seen: collections.Counter[str] = collections.Counter()
    result = []
    for name in names:
        result.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return result


def _conversion_message(model: "keras.Model", error: Exception) -> str:
    """Out of a ConverterError: the operators that LiteRT lacks, and the layers that need them."""
    lacking = [
        f"{item.operator.name} in layer {_layer_name(model, item.location.call[0].name)!r}"
        for item in getattr(error, "errors", [])
        if item.operator.name and item.location.call
    ]
    if not lacking:
        return f"model {model.name!r} cannot be converted: {str(error).splitlines()[0]}"
    half = any(layer.compute_dtype != "float32" for layer in _all_layers(model))
    way_out = (
        "the model computes in half precision: rebuild it with the dtype policy float32"
        if half
        else "replace those layers by ones made of LiteRT's built-in operators"
    )
    lacking = list(dict.fromkeys(lacking))
    return (
        f"model {model.name!r} needs operators that LiteRT lacks: {', '.join(lacking)}; {way_out}"
    )


def _layer_name(model: "keras.Model", scope: str) -> str:
    """The layer in a scope such as ``"model_1/erf_1/Erf@__inference_serve_53"``.

    TensorFlow adds ``_1`` to a scope that it has seen before, as when the model was built.
    """
    names = {layer.name for layer in _all_layers(model)}
    parts = scope.partition("@")[0].split("/")
    for part in reversed(parts):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in names:
                return name
    return "/".join(parts)


def _all_layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    """The layers of a model and of the models inside it, without those models themselves."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _all_layers(layer)
        else:
            yield layer


def _compare(
    model: "keras.Model", file: lite.Model, data: Any
) -> tuple[int, tuple[OutputAgreement, ...]]:
    """Runs up to 64 images through both; see `OutputAgreement`."""
    import tensorflow as tf

    expected: list[list[np.ndarray]] = []
    found: list[list[np.ndarray]] = []
    images = 0
    for inputs, _ in batches(data, model, batch_size=_BATCH):
        inputs = [array[: _IMAGES - images] for array in inputs]
        result = model(pack(model, inputs), training=False)
        expected.append([np.asarray(output, np.float64) for output in tf.nest.flatten(result)])
        for row in range(len(inputs[0])):
            found.append(file.run([array[row : row + 1] for array in inputs]))
        images += len(inputs[0])
        if images == _IMAGES:
            break
    references = map(np.concatenate, zip(*expected, strict=True))
    outputs = map(np.concatenate, zip(*found, strict=True))
    names = _output_names(model)
    return images, tuple(map(_agreement, names, references, outputs))


def _agreement(name: str, reference: np.ndarray, output: np.ndarray) -> OutputAgreement:
    scale = np.abs(reference).max()
    difference = np.abs(output - reference).max() / (scale or 1.0)
    # Written so that NaN is refused too.
    if not difference <= _LARGEST_DIFFERENCE:
        raise Error(
            f"output {name!r} of the .tflite file differs from Keras by {difference:.1e} of its "
            f"scale, expected at most {_LARGEST_DIFFERENCE:.0e}: the conversion of one of the "
            "model's layers is wrong; nothing was written"
        )
    classes = reference.ndim == 2 and reference.shape[1] > 1
    top1 = float(np.mean(reference.argmax(1) == output.argmax(1))) if classes else None
    return OutputAgreement(name, float(difference), top1)
