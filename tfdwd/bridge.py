"""Keras 3 and tf_keras (Keras 2): the only file that knows both."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

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
            with contextlib.redirect_stdout(None):
                model.save(path, save_format="h5", include_optimizer=False)
            return keras.models.load_model(path, compile=False)
        except Exception as error:  # either Keras raises whatever its serialisation raises
            reason = str(error).strip().partition("\n")[0]
            raise Error(
                f"tf_keras model {model.name!r}: expected one that Keras 3 can load from HDF5, "
                f"which failed: {reason}; build it with keras {keras.__version__} instead"
            ) from error
