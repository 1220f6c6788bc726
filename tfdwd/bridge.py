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
            _drop_groups(path)
            return keras.models.load_model(path, compile=False)
        except Exception as error:  # either Keras raises whatever its serialisation raises
            reason = str(error).strip().partition("\n")[0]
            raise Error(
                f"tf_keras model {model.name!r}: expected one that Keras 3 can load from HDF5, "
                f"which failed: {reason}; build it with keras {keras.__version__} instead"
            ) from error


def _drop_groups(path: Path) -> None:
    """Takes the argument away that Keras 2 gives all convolutions and Keras 3 not to these."""

    def drop(config: Any) -> Any:
        if isinstance(config, list):
            return [drop(item) for item in config]
        if not isinstance(config, dict):
            return config
        config = {key: drop(value) for key, value in config.items()}
        kind = config.get("class_name", "")
        if kind.startswith(("DepthwiseConv", "SeparableConv")) or kind.endswith("Transpose"):
            config["config"].pop("groups", None)
        return config

    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(drop(json.loads(file.attrs["model_config"])))
