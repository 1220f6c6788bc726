"""Keras 3 and tf_keras (Keras 2): the only file that knows both."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import h5py
import keras

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
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__]
    if not any(kind.startswith("tf_keras.") and kind.endswith(".Model") for kind in kinds):
        raise Error(f"expected a Keras model, got {kinds[0]}; load it with keras.models.load_model")
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
