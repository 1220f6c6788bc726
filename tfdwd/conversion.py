"""Keras to .tflite, verified: the file that is written was run and compared with Keras."""

import collections
import functools
import keyword
import os
import re
import warnings
from collections.abc import Iterator, Sequence
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
QUANTIZATIONS = ("none", "float16", "dynamic", "int8", "int16x8")
_IMAGES = 64  # that are compared with Keras
_RANGE_IMAGES = 256  # at most, from which the ranges of the activations are taken
_LEAST_RANGE_IMAGES = 32
_NOISE_IMAGES = 16  # on which the layers are compared
_BATCH = 16
_SQNR_LIMIT = 200.0  # dB; an exact output has no noise at all


@dataclass(frozen=True)
class OutputAgreement:
    """How well one output of a .tflite file agrees with the Keras model.

    Attributes:
      name: of the output.
      largest_difference: the largest absolute difference over the largest absolute value of the
        Keras output.
      sqnr_db: power of the Keras output over that of the difference, in dB, at most 200.
      top1_agreement: share of the images whose largest output is the same one, 0..1; None where the
        output is not (batch, classes).
    """

    name: str
    largest_difference: float
    sqnr_db: float
    top1_agreement: float | None


@dataclass(frozen=True)
class LayerNoise:
    """What quantising costs at one layer.

    Attributes:
      name: of the Keras layer, or of what the .tflite file calls it where it knows of none.
      sqnr_db: power of the float file's tensor over that of the difference to the quantised one's.
      added: noise over signal here, less that of the noisiest input; what the layer itself adds.
    """

    name: str
    sqnr_db: float
    added: float


@dataclass(frozen=True)
class ExportReport(reporting.Report):
    """What was written, and how well it agrees with the Keras model. Prints as a table.

    Attributes:
      path: of the .tflite file.
      bytes: its size.
      quantize: how it was quantised, or "none".
      operators: how many of each operator it holds, by LiteRT's name.
      needed_runtime: the oldest TensorFlow Lite that has all of them.
      checked_with: the version of LiteRT that it was opened and run with.
      images: how many images were compared; 0 without data.
      outputs: the agreement of each output; empty without data.
      layers: for "int8" and "int16x8" what each layer costs, the costliest first.
    """

    path: str
    bytes: int
    quantize: str
    operators: dict[str, int]
    needed_runtime: str
    checked_with: str
    images: int
    outputs: tuple[OutputAgreement, ...]
    layers: tuple[LayerNoise, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.images == 0) != (not self.outputs):
            raise Error(f"{self.images} images compared, but {len(self.outputs)} outputs")

    def _parts(self) -> reporting.Parts:
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        parts: list[Any] = [
            f"{self.path}: {self.bytes / 1024:.1f} KiB, quantised: {self.quantize}, needs "
            f"TensorFlow Lite {self.needed_runtime or '(unknown)'}",
            f"operators: {counts}",
        ]
        if not self.images:
            return [*parts, "not compared with Keras: no data was given"]
        rows = [
            (
                output.name,
                f"{output.largest_difference:.1e}",
                f"{output.sqnr_db:.1f}",
                "-" if output.top1_agreement is None else f"{output.top1_agreement:.3f}",
            )
            for output in self.outputs
        ]
        headers = ["output", "largest difference / scale", "SQNR in dB", "top-1 agreement"]
        parts += [
            f"against Keras on {self.images} images, LiteRT {self.checked_with}:",
            (headers, rows),
        ]
        if self.layers:
            costliest = [
                (layer.name, f"{layer.sqnr_db:.1f}", f"{layer.added:.1e}")
                for layer in self.layers[:5]
            ]
            headers = ["quantising costs most at", "SQNR in dB", "noise that it adds"]
            parts.append((headers, costliest))
        return parts


def export(
    model: "keras.Model",
    path: str | os.PathLike[str],
    *,
    quantize: str = "none",
    float_io: bool = False,
    data: Any = None,
) -> ExportReport:
    """Writes a Keras model as a .tflite file for a batch of 1, and checks it.

    The names of the signature and the order of the inputs and outputs are the Keras model's (the
    keys where it takes or gives a dict); only an input name that is no Python identifier changes,
    ``"image-1"`` to ``"image_1"``. The file holds only built-in operators.

    Args:
      model: a Sequential or Functional Keras 3 model of fixed input sizes; not changed. Or, for
        "int8", one of `tfdwd.quantize_aware` that was trained: its ranges are kept, and data only
        serves to compare.
      path: where to write, ending in .tflite; the folder must exist. Written whole or not at all.
      quantize: "none" (float32), "float16" (weights), "dynamic" (int8 weights, float
        activations), "int8" (weights and activations) or "int16x8" (int8 weights, int16
        activations).
      float_io: whether an "int8" or "int16x8" file takes and gives float32 all the same.
      data: real inputs, of any kind that `tfdwd.batches.batches` takes. The ranges of "int8" and
        "int16x8" come from the first 256 images, at least 32; 64 run through Keras and through the
        file. Without data, the file is only opened.

    Returns:
      Size, operators, agreement, and the layers at which quantising costs most.

    Raises:
      tfdwd.Error: the model cannot be converted (the message names the layers), the float32 file
        does not agree with Keras within 1e-3 of the output's scale, the data is wrong or too
        little, or the path is wrong. No file is left behind.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])
      >>> export(model, "/tmp/model.tflite", data=np.ones((2, 8, 8, 3))).operators
      {'CONV_2D': 1}
    """
    path = Path(path)
    if path.suffix != ".tflite":
        raise Error(f"expected a path that ends in .tflite, got {path}")
    if quantize not in QUANTIZATIONS:
        raise Error(f"quantize: expected one of {', '.join(QUANTIZATIONS)}, got {quantize!r}")
    whole = quantize in ("int8", "int16x8")
    if float_io and not whole:
        raise Error(f"float_io: expected quantize 'int8' or 'int16x8', got {quantize!r}")
    aware = _is_aware(model, quantize)
    if not aware:
        check_convertible(model)
    images = (
        None if data is None else _first_images(model, data, _RANGE_IMAGES if whole else _IMAGES)
    )
    if not aware:
        check_enough(images, quantize)
    content = convert(model, quantize, float_io, None if aware else images)
    found = lite.operators(content)
    outputs: tuple[OutputAgreement, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    if images is not None:
        compared = [array[:_IMAGES] for array in images]
        outputs = _compare(model, lite.Model(content), compared, quantize)
        if whole and not aware:  # the float file of an aware model would round, too
            few = [array[:_NOISE_IMAGES] for array in compared]
            layers = _layer_noise(model, convert(model), content, few)
    reporting.write_whole(path, content)
    report = ExportReport(
        path=str(path),
        bytes=len(content),
        quantize=quantize,
        operators=dict(collections.Counter(operator.name for operator in found).most_common()),
        needed_runtime=lite.needed_runtime(content),
        checked_with=lite.runtime_version(),
        images=0 if images is None else len(compared[0]),
        outputs=outputs,
        layers=layers,
    )
    logging.info("wrote %s, %d bytes", path, len(content))
    return report


def _is_aware(model: Any, quantize: str) -> bool:
    """Whether it is a model of `tfdwd.quantize_aware`; one that cannot be exported is refused."""
    from tfdwd import bridge

    if not bridge.is_tf_keras(model):
        return False
    from tfdwd import quantization  # and tensorflow-model-optimization, which takes seconds

    if not quantization.is_aware(model):
        return False
    if quantize != "int8":
        raise Error(
            f"model {model.name!r} was trained for int8: expected quantize='int8', got {quantize!r}"
        )
    quantization.check_trained(model)
    return True


def check_enough(images: Sequence[np.ndarray] | None, quantize: str) -> None:
    """Refuses too few images to take ranges from, where there are to be some.

    Raises:
      tfdwd.Error: how many were expected.
    """
    count = 0 if images is None else len(images[0])
    if quantize in ("int8", "int16x8") and count < _LEAST_RANGE_IMAGES:
        raise Error(
            f"quantize={quantize!r}: expected at least {_LEAST_RANGE_IMAGES} real images to take "
            f"the activations' ranges from, got {count}; pass data=images"
        )


def check_convertible(model: "keras.Model") -> None:
    """Refuses what is no Keras 3 model of inputs of fixed sizes.

    Raises:
      tfdwd.Error: what it is, and what to do.
    """
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


def _first_images(model: "keras.Model", data: Any, count: int) -> list[np.ndarray]:
    """Up to ``count`` images, one array for each input."""
    pieces: list[list[np.ndarray]] = []
    missing = count
    for inputs, _ in batches(data, model, batch_size=_BATCH):
        pieces.append([array[:missing] for array in inputs])
        missing -= len(inputs[0])
        if missing <= 0:
            break
    return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]


def convert(
    model: "keras.Model",
    quantize: str = "none",
    float_io: bool = False,
    images: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Converts through a signature of named inputs and outputs, at a batch of 1.

    The ranges of "int8" and "int16x8" come from the images; without them the model has its own.
    """
    import tensorflow as tf

    from tfdwd import rebuild

    inputs, outputs = _input_names(model), _output_names(model)
    if images is not None and quantize in ("int8", "int16x8"):
        model = rebuild.with_global_pools(model)
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
    holder.variables_of_model = [
        variable if isinstance(variable, tf.Variable) else variable.value
        for variable in model.variables
    ]
    function = tf.function(serve).get_concrete_function(**specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize in ("int8", "int16x8"):
        kinds = tf.lite.OpsSet
        kind, dtype = {
            "int8": (kinds.TFLITE_BUILTINS_INT8, tf.int8),
            "int16x8": (
                kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
                tf.int16,
            ),
        }[quantize]
        if images is not None:
            converter.target_spec.supported_ops = [kind]
            converter.representative_dataset = functools.partial(_samples, model, inputs, images)
        if not float_io:
            converter.inference_input_type = converter.inference_output_type = dtype
    logger = tf.get_logger()  # which would tell of temporary folders
    level = logger.level
    logger.setLevel("WARNING")
    try:
        with warnings.catch_warnings():  # the converter uses tf.lite's own, deprecated interpreter
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
            content = converter.convert()
    except Exception as error:  # ConverterError has no public name.
        raise Error(_conversion_message(model, error)) from error
    finally:
        logger.setLevel(level)
    return lite.in_order(content, inputs, outputs)


def _samples(
    model: "keras.Model", names: Sequence[str], images: Sequence[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """One image at a time, by input name, of the model's dtypes."""
    dtypes = [tensor.dtype for tensor in model.inputs]
    for row in reporting.progress(range(len(images[0])), "finding ranges"):
        yield {
            name: array[row : row + 1].astype(dtype)
            for name, array, dtype in zip(names, images, dtypes, strict=True)
        }


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
    model: "keras.Model", file: lite.Model, images: Sequence[np.ndarray], quantize: str
) -> tuple[OutputAgreement, ...]:
    """Runs images through both; see `OutputAgreement`."""
    import tensorflow as tf

    expected: list[list[np.ndarray]] = []
    for first in range(0, len(images[0]), _BATCH):
        result = model(
            pack(model, [array[first : first + _BATCH] for array in images]), training=False
        )
        expected.append([np.asarray(output, np.float64) for output in tf.nest.flatten(result)])
    found = [file.run([a[row : row + 1] for a in images]) for row in range(len(images[0]))]
    references = map(np.concatenate, zip(*expected, strict=True))
    outputs = map(np.concatenate, zip(*found, strict=True))
    return tuple(
        _agreement(*triple, quantize)
        for triple in zip(_output_names(model), references, outputs, strict=True)
    )


def _agreement(
    name: str, reference: np.ndarray, output: np.ndarray, quantize: str
) -> OutputAgreement:
    scale = np.abs(reference).max()
    difference = np.abs(output - reference).max() / (scale or 1.0)
    limit = _LARGEST_DIFFERENCE if quantize == "none" else np.inf
    # Written so that NaN is refused too.
    if not difference <= limit or not np.isfinite(difference):
        raise Error(
            f"output {name!r} of the .tflite file differs from Keras by {difference:.1e} of its "
            f"scale, expected at most {limit:.0e}: the conversion of one of the model's layers is "
            "wrong; nothing was written"
        )
    classes = reference.ndim == 2 and reference.shape[1] > 1
    top1 = float(np.mean(reference.argmax(1) == output.argmax(1))) if classes else None
    return OutputAgreement(name, float(difference), _sqnr_db(_noise(reference, output)), top1)


def _noise(reference: np.ndarray, found: np.ndarray) -> float:
    """Power of the difference over that of the reference."""
    power = float(np.sum(np.square(reference, dtype=np.float64)))
    return float(np.sum(np.square(found - reference, dtype=np.float64))) / (power or 1.0)


def _sqnr_db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 10 ** (-_SQNR_LIMIT / 10))))


def _layer_noise(
    model: "keras.Model", float_file: bytes, quantized: bytes, images: Sequence[np.ndarray]
) -> tuple[LayerNoise, ...]:
    """Compares the tensors that both files have by the same name; see `LayerNoise`."""
    reference, found = (lite.activations(content, images) for content in (float_file, quantized))
    noise = {
        name: _noise(values, found[name])
        for name, values in reference.items()
        if name in found and found[name].shape == values.shape
    }
    layers = []
    outputs = lite.output_tensors(quantized)
    for operator in lite.operators(quantized):
        before = [noise[name] for name in operator.reads if name in noise]
        for name in operator.writes:
            if name in noise:
                added = noise[name] - max(before, default=0.0)
                layers.append(
                    LayerNoise(
                        outputs.get(name) or _writer(model, name), _sqnr_db(noise[name]), added
                    )
                )
    return tuple(sorted(layers, key=lambda layer: -layer.added))


def _writer(model: "keras.Model", name: str) -> str:
    """The layer of weights behind a tensor "net/bn/mul;net/conv/add1" of layers that were fused."""
    scopes = name.split(";")
    found = [_layer_name(model, scope) for scope in scopes]
    known = {layer.name: layer for layer in _all_layers(model)}
    weighted = [n for n in found if n in known and hasattr(known[n], "kernel")]
    named = [n for n in found if n in known]
    return [*weighted, *named, scopes[0]][0]
