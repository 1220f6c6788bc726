"""Runs models, and the calls of a graph, as at inference, on any backend."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfdwd.batches import pack
from tfdwd.differences import as_array
from tfdwd.errors import Error, one_line
from tfdwd.graph import Call, functional, is_nested, trace
from tfdwd.inference import at_inference, may_draw, names_for_tensorflow
from tfdwd.shapes import in_batches


def run_call(call: Call, operation: Any, values: Mapping[int, Any]) -> dict[int, Any]:
    """Runs ``operation`` (the call's own, or what replaces it) as at inference.

    Returns:
      {tensor number: value}.
    """
    results = at_inference(operation, *call.fill(dict(values)))
    return dict(zip(call.outputs, results, strict=True))


def inference(model: Any) -> Callable[[Any], Any]:
    """The model as a function that is at inference throughout, whatever its layers' defaults say.

    ``model(x, training=False)`` leaves a user's dropout active whose ``call`` asks for training
    (Monte Carlo dropout); here it passes its input, as in calibration, so that two runs are equal.

    Args:
      model: a Functional or built Sequential model; stays as it is. One whose graph Keras 3 does
        not know (of tf_keras, or with a ``call`` of its own) is called with ``training=False``.

    Returns:
      A function from the model's inputs, in the structure in which it takes them, to its outputs
      in theirs; it may be called inside a tf.function.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
      >>> inference(model)(np.ones((2, 4), np.float32)).shape
      TensorShape([2, 4])
    """
    if not is_nested(model):
        return lambda inputs: model(inputs, training=False)
    traced, function = trace(model), functional(model)

    def run(inputs: Any) -> Any:
        if isinstance(inputs, Mapping) and not isinstance(function._inputs_struct, Mapping):
            inputs = [inputs[spec.name] for spec in function.inputs]  # as Functional.call does
        values = {
            n: keras.ops.convert_to_tensor(x, traced.specs[n].dtype)
            for n, x in zip(traced.inputs, keras.tree.flatten(inputs), strict=True)
        }
        for call in traced.calls:
            values.update(run_call(call, call.operation, values))
        outputs = [values[n] for n in traced.outputs]
        return keras.tree.pack_sequence_as(function._outputs_struct, outputs)

    return run


def predictor(model: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """`inference` on arrays, compiled, by whichever backend.

    Args:
      model: a model of Keras 3 or of tf_keras.

    Returns:
      A function from one array (images, ...) for each input, in the order of ``model.inputs``, to
      a flat list of the outputs.

    Example:
      >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5)])
      >>> predictor(model)([np.ones((2, 4))])[0].shape
      (2, 4)
    """
    compiled = model  # which keeps what was compiled for the next time
    if isinstance(model, keras.Model) and may_draw(model):
        compiled = _AtInference(model)

    layers = [model] if isinstance(model, keras.Model) else []  # names of tf_keras are fine

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with names_for_tensorflow(layers):
            given = compiled.predict_on_batch(pack(model, list(inputs)))
        arrays = map(np.asarray, keras.tree.flatten(given))
        # Under a strategy of several devices each has run all the images.
        rows = len(inputs[0])
        return [array[:rows] if array.ndim and len(array) > rows else array for array in arrays]

    return run


def outputs_of(model: Any, images: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
    """What a Keras model gives at inference, as a flat list; see `tfdwd.shapes.in_batches`.

    Args:
      model: a model of Keras 3 or tf_keras.
      images: one array (images, ...) for each input.
      batch: images that it runs at once.

    Raises:
      tfdwd.Error: TensorFlow cannot run it.
    """
    called = inference(model)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        try:
            result = called(pack(model, arrays))
        except Exception as error:  # layers raise what they like
            raise Error(f"model {model.name!r} cannot run: {_reason(model, error)}") from error
        return [as_array(output) for output in keras.tree.flatten(result)]

    return in_batches(run, images, batch)


def _reason(model: Any, error: Exception) -> str:
    layers = model._flatten_layers(include_self=False)
    first = [x.name for x in layers if getattr(x, "data_format", "") == "channels_first"]
    if first:
        return f"layer {first[0]!r} is channels_first, which TensorFlow does not run on this CPU"
    return one_line(error)


class _AtInference(keras.Model):
    """A model of which Keras can compile `inference`."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name="at_inference")
        self.model, self.run, self.built = model, inference(model), True

    def call(self, inputs: Any) -> Any:
        return self.run(inputs)
