"""Keras to .tflite, verified: the file that is written was run and compared with Keras."""

import collections
import contextlib
import functools
import keyword
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from tfdwd import agreement, checks, files, lite, outputs, reporting, shapes
from tfdwd.agreement import LayerNoise, OutputAgreement
from tfdwd.batches import first, pack
from tfdwd.errors import Error, one_line
from tfdwd.names import unique
from tfdwd.records import Count, Positive
from tfdwd.shapes import InputShape

if TYPE_CHECKING:
    import keras

# Float32 kernels that sum in another order differ by about 1e-6 of the scale for each layer or so;
# a layer that was converted wrongly differs by far more than this.
_LARGEST_DIFFERENCE = 1e-3
QUANTIZATIONS = ("none", "float16", "dynamic", "int8", "int16x8")
_WHOLE = ("int8", "int16x8")  # activations too
_IMAGES = 64  # that are compared with Keras
RANGE_IMAGES = 256  # at most, from which the ranges of the activations are taken
_LEAST_RANGE_IMAGES = 32
_NOISE_IMAGES = 16  # on which the layers are compared
_NAMED = 5  # operators that a message names
_LARGEST = 1e38  # activation; the converter dies of a range beyond float32


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
      batch: images that the file takes at once.
    """

    path: str
    bytes: Count
    quantize: str
    operators: dict[str, Positive]
    needed_runtime: str
    checked_with: str
    images: Count
    outputs: tuple[OutputAgreement, ...]
    layers: tuple[LayerNoise, ...] = ()
    batch: Positive = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.images == 0) != (not self.outputs):
            raise Error(f"{self.images} images compared, but {len(self.outputs)} outputs")

    def _parts(self) -> reporting.Parts:
        counts = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        parts: list[Any] = [
            f"{self.path}: {self.bytes / 1024:.1f} KiB, quantised: {self.quantize}, needs "
            f"TensorFlow Lite {self.needed_runtime or '(unknown)'}"
            + (f", takes {self.batch} images at once" if self.batch > 1 else ""),
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
    input_shape: InputShape | None = None,
) -> ExportReport:
    """Writes a Keras model as a .tflite file for a batch of 1, and checks it.

    The names of the signature and the order of the inputs and outputs are the Keras model's (the
    keys where it takes or gives a dict); only an input name that is no Python identifier changes,
    ``"image-1"`` to ``"image_1"``, and letters beyond ASCII become ``_``. The file holds only
    built-in operators.

    Args:
      model: a Sequential or Functional Keras 3 model; not changed. Or, for "int8", one of
        `tfdwd.quantize_aware` that was trained: its ranges are kept, and data only serves to
        compare. Sizes that it leaves open are those of the data, or of ``input_shape``. If its
        batch is fixed to more than one image and it gives something else for one image alone, the
        file takes that batch.
      path: where to write, ending in .tflite; the folder must exist. Written whole or not at all.
      quantize: "none" (float32), "float16" (weights), "dynamic" (int8 weights, float
        activations), "int8" (weights and activations) or "int16x8" (int8 weights, int16
        activations).
      float_io: whether an "int8" or "int16x8" file takes and gives float32 all the same.
      data: real inputs, of any kind that `tfdwd.batches.batches` takes. The ranges of "int8" and
        "int16x8" come from the first 256 images, at least 32; 64 run through Keras and through the
        file. Without data, the file is only opened.
      input_shape: at which sizes the file runs, where the model leaves them open and no data tells:
        one shape without the batch axis, such as (224, 224, 3), or one for each input, as a list or
        as a dict by name.

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
    path = checks.path("path", path)
    files.check_output(path, ".tflite")
    check_quantize(quantize)
    checks.switches(float_io=float_io)
    whole = quantize in _WHOLE
    if float_io and not whole:
        raise Error(f"float_io: expected quantize 'int8' or 'int16x8', got {quantize!r}")
    aware = _is_aware(model, quantize)
    if not aware:
        check_convertible(model)
    images = None if data is None else first(model, data, RANGE_IMAGES if whole else _IMAGES)
    if not aware:
        check_enough(images, quantize)
    sizes = file_shapes(model, input_shape, images)
    inside: dict[str, np.ndarray] = {}  # the tensors of the float file for the first images
    if whole and not aware:  # the float file of an aware model would round, too
        assert images is not None  # check_enough
        inside = checked_activations(model, sizes, images)
    content = convert(model, sizes, quantize, float_io=float_io, images=None if aware else images)
    file, operators = lite.Model(content), lite.operators(content)
    compared = [] if images is None else [array[:_IMAGES] for array in images]
    agreements: tuple[OutputAgreement, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    if compared:
        limit = _LARGEST_DIFFERENCE if quantize == "none" else np.inf
        agreements = agreement.of_outputs(model, file, compared, outputs.names_of(model), limit)
    if inside:
        few = [array[:_NOISE_IMAGES] for array in compared]
        layers = agreement.of_layers(model, inside, content, operators, few)
    files.write_whole(path, content)
    report = ExportReport(
        path=str(path),
        bytes=len(content),
        quantize=quantize,
        operators=dict(collections.Counter(operator.name for operator in operators).most_common()),
        needed_runtime=lite.needed_runtime(content),
        checked_with=lite.runtime_version(),
        images=len(compared[0]) if compared else 0,
        outputs=agreements,
        layers=layers,
        batch=sizes[0][0],
    )
    logging.info("wrote %s, %d bytes", path, len(content))
    return report


def _is_aware(model: Any, quantize: str) -> bool:
    """Whether it is a model of `tfdwd.quantize_aware`; one that cannot be exported is refused."""
    from tfdwd import bridge

    if not bridge.is_tf_keras(model):
        return False
    from tfdwd import quantization  # and tf_keras, which takes seconds

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
    if quantize in _WHOLE and count < _LEAST_RANGE_IMAGES:
        raise Error(
            f"quantize={quantize!r}: expected at least {_LEAST_RANGE_IMAGES} real images to take "
            f"the activations' ranges from, got {count}; pass data=images"
        )


def check_quantize(quantize: str) -> None:
    """Refuses what is none of `QUANTIZATIONS`.

    Raises:
      tfdwd.Error: the names that there are.
    """
    checks.choice("quantize", quantize, QUANTIZATIONS)


def check_backend() -> None:
    """Refuses Keras on anything but TensorFlow.

    Raises:
      tfdwd.Error: on what it is.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise Error(
            f"expected Keras on TensorFlow, got it on {keras.backend.backend()}: save the model, "
            "and load it where KERAS_BACKEND=tensorflow"
        )


def check_convertible(model: "keras.Model") -> None:
    """Refuses what LiteRT cannot have: no graph of Keras 3 on TensorFlow, text, NaN weights.

    Raises:
      tfdwd.Error: what it is, and what to do.
    """
    import keras

    check_backend()
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
        if tensor.dtype == "string":
            raise Error(
                f"input {tensor.name!r} of model {model.name!r} takes text, which LiteRT cannot: "
                "give the part of the network behind it numbers, keras.Model(numbers, outputs)"
            )
    for weight in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(weight.value).astype(np.float64)).all():
            raise Error(f"weight {weight.path!r} of model {model.name!r} holds NaN or infinity")


def file_shapes(
    model: "keras.Model",
    input_shape: InputShape | None = None,
    images: Sequence[np.ndarray] | None = None,
) -> list[tuple[int, ...]]:
    """The shapes of a file's inputs, with the batch.

    The batch is 1, unless the model's own is fixed to more and it gives something else for one
    image alone: then it is the model's own. That is tried on the images, else on random ones.

    Args:
      model: a model that `check_convertible` lets pass.
      input_shape, images: as for `tfdwd.shapes.of_inputs`.

    Raises:
      tfdwd.Error: as `tfdwd.shapes.of_inputs`.
    """
    sizes = shapes.of_inputs(model, input_shape, images)
    batch = shapes.own_batch(model.inputs) or 1
    if batch > 1 and _is_same_alone(model, sizes, images, batch):
        batch = 1
    return [(batch, *size) for size in sizes]


def _is_same_alone(
    model: "keras.Model",
    sizes: Sequence[tuple[int, ...]],
    images: Sequence[np.ndarray] | None,
    batch: int,
) -> bool:
    """Whether the model gives for one image alone what it gives for it in a batch."""
    source = np.random.default_rng(0)
    few = [
        source.random((batch, *size)).astype(tensor.dtype) if images is None else images[i][:batch]
        for i, (size, tensor) in enumerate(zip(sizes, model.inputs, strict=True))
    ]
    from tfdwd.execution import outputs_of

    expected = outputs_of(model, few, batch)
    try:
        alone = outputs_of(model, few, 1)
    except Error:  # an operation needs the whole batch
        return False
    return all(
        a.shape == b.shape and np.allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max(initial=1e-30))
        for a, b in zip(alone, expected, strict=True)
    )


def checked(
    model: "keras.Model",
    sizes: Sequence[tuple[int, ...]],
    quantize: str,
    images: Sequence[np.ndarray],
) -> bytes:
    """As `convert`, after what could kill the converter was refused."""
    if quantize in _WHOLE:
        checked_activations(model, sizes, images)
    return convert(model, sizes, quantize, images=images)


def checked_activations(
    model: "keras.Model", sizes: Sequence[tuple[int, ...]], images: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Refuses what TensorFlow's converter dies of when it takes ranges: loops and infinities.

    The float file is run on all images that ranges are taken from.

    Args:
      model: of Keras.
      sizes: of the file's inputs, with the batch.
      images: one array (images, ...) for each input.

    Returns:
      {tensor name: values (images, ...)} of all tensors inside, for the first few images.

    Raises:
      tfdwd.Error: a loop that collects its results, NaN, infinity or numbers close to it; names the
        layer.
    """
    from tfdwd import rebuild

    model = rebuild.with_finite_pads(model, images)
    function = _traced(model, sizes)
    _check_loops(model, function)
    content = _converted(model, function)
    file = lite.Model(content, keep=True)
    names = {name for operator in lite.operators(content) for name in operator.writes}
    kept: dict[str, np.ndarray] = {}
    for start in range(0, len(images[0]), _NOISE_IMAGES):
        found = file.activations([a[start : start + _NOISE_IMAGES] for a in images], names)
        for name, values in found.items():
            if not np.abs(values).max(initial=0.0) < _LARGEST:  # NaN is refused too
                raise Error(
                    f"layer {agreement.writer(model, name)!r} gives NaN, infinity or numbers "
                    f"beyond {_LARGEST:g} for one of the images {start}.."
                    f"{start + _NOISE_IMAGES - 1}, which cannot be quantised; check the weights "
                    "before it and the scale of the images"
                )
        kept = kept or found
    return kept


def convert(
    model: "keras.Model",
    sizes: Sequence[tuple[int, ...]],
    quantize: str = "none",
    *,
    float_io: bool = False,
    images: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Converts through a signature of named inputs and outputs.

    Args:
      model: a Keras model that `check_convertible` lets pass, or one of `tfdwd.quantize_aware`.
      sizes: of the inputs, with the batch, as `file_shapes` gives them.
      quantize, float_io: as for `export`.
      images: from which the ranges of "int8" and "int16x8" come; without them the model has its
        own. `checked_activations` must let them pass.

    Returns:
      The .tflite model.

    Raises:
      tfdwd.Error: the model cannot be converted (the message names the layers).
    """
    from tfdwd import rebuild

    if images is not None and quantize in _WHOLE:
        model = rebuild.with_global_pools(rebuild.with_finite_pads(model, images))
    function = _traced(model, sizes)
    return _converted(model, function, quantize, float_io, images)


def _converted(
    model: "keras.Model",
    function: Any,
    quantize: str = "none",
    float_io: bool = False,
    images: Sequence[np.ndarray] | None = None,
) -> bytes:
    """As `convert`, once the model was traced."""
    import tensorflow as tf

    names = _input_names(model)
    # TFLiteConverter.from_keras_model knows Keras 2 alone. A Keras 3 model in the place of `holder`
    # would leave its weights in the file as variables; plain tf.Variables become constants.
    holder = tf.Module()
    holder.variables_of_model = variables = [
        variable if isinstance(variable, tf.Variable) else variable.value
        for variable in model.variables
    ]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize in _WHOLE:
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
            converter.representative_dataset = functools.partial(
                _samples, model, names, images, function.inputs[0].shape[0]
            )
        if not float_io:
            converter.inference_input_type = converter.inference_output_type = dtype
    logger = tf.get_logger()  # which would tell of temporary folders
    level = logger.level
    logger.setLevel("WARNING")
    try:
        with warnings.catch_warnings():  # the converter uses tf.lite's own, deprecated interpreter
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
            with _plain_names(variables):
                content = converter.convert()
    except Exception as error:  # ConverterError has no public name.
        raise Error(_conversion_message(model, error)) from error
    finally:
        logger.setLevel(level)
    return lite.in_order(content, names, _output_names(model))


@contextlib.contextmanager
def _plain_names(variables: Sequence[Any]) -> Iterator[None]:
    """Gives variables names that TensorFlow can save, for a while: those of layers may hold spaces.

    The converter saves the model first; where it cannot, it goes on without a signature.
    """
    names = [variable._handle_name for variable in variables]
    try:
        for number, variable in enumerate(variables):
            variable._handle_name = f"variable_{number}:0"
        yield
    finally:
        for variable, name in zip(variables, names, strict=True):
            variable._handle_name = name


def _traced(model: "keras.Model", sizes: Sequence[tuple[int, ...]]) -> Any:
    """The model at inference as a TensorFlow function of named inputs and outputs."""
    import keras
    import tensorflow as tf

    from tfdwd import execution
    from tfdwd.inference import names_for_tensorflow, plain_argmax

    names = _input_names(model)
    given = _output_names(model)
    run = execution.inference(model)

    def serve(**tensors: Any) -> dict[str, Any]:
        result = run(pack(model, [tensors[name] for name in names]))
        return dict(zip(given, keras.tree.flatten(result), strict=True))

    specs = {
        name: tf.TensorSpec(size, tensor.dtype, name=name)
        for name, tensor, size in zip(names, model.inputs, sizes, strict=True)
    }
    layers = [model] if isinstance(model, keras.Model) else []  # names of tf_keras are fine
    try:
        with names_for_tensorflow(layers), plain_argmax():
            return tf.function(serve).get_concrete_function(**specs)
    except Exception as error:  # layers raise what they like of a size that they cannot have
        reason = one_line(error)
        raise Error(f"model {model.name!r} cannot run on inputs of {sizes}: {reason}") from error


def _check_loops(model: "keras.Model", function: Any) -> None:
    """Refuses loops that collect their results: of those TensorFlow's calibrator dies."""
    graph = function.graph.as_graph_def()
    inner = [node for definition in graph.library.function for node in definition.node_def]
    layers: dict[str, None] = {}
    for nodes in (graph.node, inner):  # inside of functions the scopes of the layers are missing
        loops = [node.name for node in nodes if node.op.startswith("TensorList")]
        layers = layers or dict.fromkeys(agreement.layer_name(model, name) for name in loops)
    if layers:
        raise Error(
            "int8 and int16x8: TensorFlow cannot take ranges inside of loops, which are in "
            f"{', '.join(map(repr, layers))}; make a recurrent layer with unroll=True, or export "
            "with quantize='none', 'float16' or 'dynamic'"
        )


def _samples(
    model: "keras.Model", names: Sequence[str], images: Sequence[np.ndarray], batch: int
) -> Iterator[dict[str, np.ndarray]]:
    """One batch at a time, by input name, of the model's dtypes."""
    dtypes = [tensor.dtype for tensor in model.inputs]
    count = len(images[0])
    for start in reporting.progress(range(0, count, batch), "finding ranges"):
        rows = np.minimum(np.arange(start, start + batch), count - 1)  # the last batch is filled up
        yield {
            name: array[rows].astype(dtype)
            for name, array, dtype in zip(names, images, dtypes, strict=True)
        }


def _input_names(model: "keras.Model") -> list[str]:
    """The names of the inputs, as Python identifiers: TensorFlow makes arguments of them."""
    names = []
    for given in shapes.input_names(model):
        name = re.sub(r"\W", "_", given, flags=re.ASCII)
        fine = name.isidentifier() and not keyword.iskeyword(name) and name != "self"
        names.append(name if fine else f"input_{name}")
    return unique(names)


def _output_names(model: "keras.Model") -> list[str]:
    """The names of the outputs, in ASCII."""
    return unique([re.sub(r"[^ -~]", "_", name) for name in outputs.names_of(model)])


def _conversion_message(model: "keras.Model", error: Exception) -> str:
    """Out of a ConverterError: the operators that LiteRT lacks, and the layers that need them."""
    lacking = [
        f"{item.operator.name} in layer {agreement.layer_name(model, item.location.call[0].name)!r}"
        for item in getattr(error, "errors", [])
        if item.operator.name and item.location.call
    ]
    policies = {x.name: getattr(x, "dtype_policy", None) for x in agreement.all_layers(model)}
    whole = [
        f"{name!r} ({policy.name})"
        for name, policy in policies.items()
        if policy is not None and getattr(policy, "quantization_mode", None)
    ]
    if whole:
        return (
            f"model {model.name!r} cannot be converted: Keras has quantised "
            f"{', '.join(whole[:_NAMED])}; pass the model as it was before, with quantize='int8' "
            "or 'dynamic'"
        )
    if not lacking:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"model {model.name!r} cannot be converted: {reason}"
    dtypes = {layer.compute_dtype for layer in agreement.all_layers(model)}
    others = sorted(dtypes & {"float16", "bfloat16", "float64"})
    way_out = (
        f"the model computes in {' and '.join(others)}: rebuild it with the dtype policy float32"
        if others
        else "replace those layers by ones made of LiteRT's built-in operators"
    )
    lacking = list(dict.fromkeys(lacking))
    more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
    return (
        f"model {model.name!r} needs operators that LiteRT lacks: {', '.join(lacking[:_NAMED])}"
        f"{more}; {way_out}"
    )
