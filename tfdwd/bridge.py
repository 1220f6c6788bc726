"""Keras 3 and tf_keras (Keras 2): the only file that knows both."""

import json
import operator
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from tfdwd.errors import Error


def to_keras3(model: Any) -> keras.Model:
    """Turns a tf_keras model into a Keras 3 model; a Keras 3 model passes through.

    Args:
      model: a model of either. A tf_keras one is copied through the HDF5 format that both read.

    Raises:
      tfdwd.Error: no model, or a tf_keras one with layers that Keras 3 does not know.
    """
    if isinstance(model, keras.Model):
        return model
    if not is_tf_keras(model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise Error(f"expected a Keras model, got {kind}; load it with keras.models.load_model")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tf_keras calls HDF5 a legacy format
                model.save(path, save_format="h5", include_optimizer=False)
            _translate(path)
            return keras.models.load_model(path, compile=False)
        except Exception as error:  # either Keras raises whatever its serialisation raises
            reason = str(error).strip().partition("\n")[0]
            raise Error(
                f"tf_keras model {model.name!r}: expected one that Keras 3 can load from HDF5, "
                f"which failed: {reason}; build it with keras {keras.__version__} instead"
            ) from error


def _translate(path: Path) -> None:
    """Turns the configuration in an HDF5 file into one that Keras 3 understands."""
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(_translated(config))


def _translated(config: Any) -> Any:
    if isinstance(config, list):
        return [_translated(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: _translated(value) for key, value in config.items()}
    kind, options = config.get("class_name", ""), config.get("config")
    # Keras 2 gives these the arguments of all convolutions.
    if kind.startswith(("DepthwiseConv", "SeparableConv")) or kind.endswith("Transpose"):
        options.pop("groups", None)
    if kind.startswith("SeparableConv"):
        for part in ("initializer", "regularizer", "constraint"):
            options.pop(f"kernel_{part}", None)
    if isinstance(options, dict) and "output_layers" in options:
        # In Keras 2 the first node of a nested model is its own; in Keras 3 it is its first use.
        kinds = {layer["name"]: layer["class_name"] for layer in options["layers"]}
        nested = {name for name, kind in kinds.items() if kind in ("Functional", "Sequential")}
        for layer in options["layers"]:
            layer["inbound_nodes"] = _earlier(layer["inbound_nodes"], nested)
        # Keras 3 does it itself for outputs, but not where the model is Sequential.
        sequential = {name for name in nested if kinds[name] == "Sequential"}
        options["output_layers"] = _earlier(options["output_layers"], sequential)
    return config


def _earlier(nodes: Any, names: set[str]) -> Any:
    """Takes one off the node index in each [name, node index, tensor index, ...] of such a name."""
    if isinstance(nodes, dict):
        return {key: _earlier(value, names) for key, value in nodes.items()}
    if not isinstance(nodes, list):
        return nodes
    if len(nodes) >= 3 and isinstance(nodes[0], str) and nodes[0] in names:
        return [nodes[0], nodes[1] - 1, *_earlier(nodes[2:], names)]
    return [_earlier(node, names) for node in nodes]


def is_tf_keras(model: Any) -> bool:
    """Whether it is a tf_keras model; tf_keras, which takes seconds to load, is not loaded."""
    return any(
        kind.__module__.startswith("tf_keras.") and kind.__name__ == "Model"
        for kind in type(model).__mro__
    )


def kit(model: Any) -> Any:
    """The package that a model is of: keras, or tf_keras."""
    if not is_tf_keras(model):
        return keras
    import tf_keras

    return tf_keras


_MERGES = ("Add", "Subtract", "Multiply")


def is_merge(operation: Any) -> bool:
    """Whether it is what ``x + y``, ``x - y`` or ``x * y`` puts into a Keras 3 graph."""
    return not isinstance(operation, keras.Layer) and type(operation).__name__ in _MERGES


def tf_keras_parts(
    operation: Any, shapes: Sequence[tuple[int | None, ...]], names: set[str]
) -> list[Any]:
    """The tf_keras layers that do, one after the other, what a Keras 3 layer does.

    Activations inside of layers, the two halves of a separable convolution, and the factor and the
    offset of a Rescaling become layers of their own: LiteRT computes them in operators of their
    own. The last part keeps the layer's name.

    Args:
      operation: a Keras 3 layer, or an operation of the graph: a sum, difference or product of two
        tensors, a rectification or an index.
      shapes: of the tensors that it reads, with the batch axis.
      names: taken ones; those of new layers are added.

    Returns:
      Built tf_keras layers with copies of the weights; for an index a function.

    Raises:
      tfdwd.Error: tf_keras has nothing like it.
    """
    import tf_keras

    kind = type(operation).__name__
    if not isinstance(operation, keras.Layer):
        if kind == "GetItem":
            return [operator.getitem]
        if kind == "Relu":
            return [tf_keras.layers.ReLU(name=operation.name)]
        if kind in _MERGES and len(shapes) == 2:
            return [getattr(tf_keras.layers, kind)(name=operation.name)]
        raise Error(
            f"operation {operation.name!r} ({kind}): expected one of {', '.join(_MERGES)} of two "
            "tensors, Relu or GetItem; use a Keras layer instead"
        )
    config = _legacy(operation.get_config())
    if kind == "LeakyReLU":
        config["alpha"] = config.pop("negative_slope")
    weights = operation.get_weights()
    parts: list[tuple[str, dict[str, Any], list[Any]]] = [(kind, config, weights)]
    if kind == "SeparableConv2D":
        parts = _separable(config, weights)
    if kind == "Rescaling" and np.any(config["offset"]):
        name = _free(f"{config['name']}_scale", names)
        parts = [
            (kind, {**config, "offset": 0.0, "name": name}, []),
            (kind, {**config, "scale": 1.0}, []),
        ]
    activation = parts[-1][1].get("activation", "linear")
    if kind != "Activation" and activation != "linear":  # what comes last keeps the name
        parts[-1][1].update(activation="linear", name=_free(f"{operation.name}_linear", names))
        parts.append(("Activation", {"activation": activation, "name": operation.name}, []))
    layers: list[Any] = []
    for part, options, values in parts:
        try:
            if options.get("activation") == "relu6":  # tf_keras knows it as a layer only
                layer = tf_keras.layers.ReLU(6.0, name=options["name"])
            else:
                layer = getattr(tf_keras.layers, part).from_config({**options, "dtype": "float32"})
            if values:
                layer.build(shapes[0] if not layers else layers[-1].compute_output_shape(shapes[0]))
                layer.set_weights(values)
        except Exception as error:  # tf_keras raises whatever a configuration makes it stumble on
            raise Error(
                f"layer {operation.name!r} ({kind}): expected one that tf_keras has too, which "
                f"failed: {str(error).strip().partition(chr(10))[0]}; replace it by layers that "
                "both have"
            ) from error
        layers.append(layer)
    return layers


def _separable(
    config: dict[str, Any], weights: list[Any]
) -> list[tuple[str, dict[str, Any], list[Any]]]:
    """A SeparableConv2D as a depthwise and a pointwise convolution."""

    def some(*keys: str) -> dict[str, Any]:
        return {key: config[key] for key in ("trainable", "data_format", *keys)}

    spatial = some("kernel_size", "strides", "padding", "dilation_rate", "depth_multiplier")
    pointwise = some("filters", "use_bias", "activation", "name")
    name = f"{config['name']}_depthwise"
    return [
        ("DepthwiseConv2D", {**spatial, "use_bias": False, "name": name}, weights[:1]),
        ("Conv2D", {**pointwise, "kernel_size": 1}, weights[1:]),
    ]


def _legacy(config: Any) -> Any:
    """A configuration of Keras 3 as tf_keras reads it: objects without the module they are from."""
    if isinstance(config, dict):
        if "class_name" in config and "config" in config:
            config = {"class_name": config["class_name"], "config": config["config"]}
        # Initializers differ between the two, and the weights are set anyway.
        return {
            key: _legacy(value)
            for key, value in config.items()
            if not key.endswith("_initializer") and key != "quantization_config"
        }
    return [_legacy(item) for item in config] if isinstance(config, list) else config


def _free(name: str, names: set[str]) -> str:
    """The name, longer where it is taken; added to the taken ones."""
    while name in names:
        name += "_"
    names.add(name)
    return name
