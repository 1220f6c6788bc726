"""Models of Keras 3 and of tf_keras (Keras 2), and files of either."""

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from tfdwd import files
from tfdwd.errors import Error, one_line


def to_keras3(model: Any) -> keras.Model:
    """Turns a tf_keras model into a Keras 3 model; a Keras 3 model passes through.

    Args:
      model: a model of either. A tf_keras one is rebuilt of Keras 3's layers, and both are run on
        random inputs and compared, layer by layer.

    Raises:
      tfdwd.Error: no model, or a tf_keras one with layers that Keras 3 does not have or that
        compute something else there; the message names the first.
    """
    if isinstance(model, keras.Model):
        return model
    if not is_tf_keras(model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise Error(f"expected a Keras model, got {kind}; load it with keras.models.load_model")
    from tfdwd import from_keras2  # and tf_keras, which takes seconds

    return from_keras2.convert(model)


def load(path: str | os.PathLike[str]) -> keras.Model:
    """Loads a Keras model, uncompiled.

    Args:
      path: a .keras or .h5 file of Keras 3 or of Keras 2. What Keras 2 wrote is loaded by tf_keras
        and then goes through `to_keras3`.

    Raises:
      tfdwd.Error: no such file, another kind of file, or a model that cannot be loaded or carried
        over.

    Example:
      >>> folder = tempfile.TemporaryDirectory()
      >>> path = f"{folder.name}/dense.keras"
      >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(path)
      >>> load(path).count_params()
      10
    """
    file = Path(path)
    if os.path.isdir(file):
        raise Error(
            f"{file} is a folder, not a .keras or .h5 file: SavedModel folders hold no layers; "
            "save the model with model.save('model.keras')"
        )
    files.check_input(file)
    if file.suffix not in (".keras", ".h5", ".hdf5"):
        raise Error(
            f"expected a .keras or .h5 file, got {file}; save the model with "
            "model.save('model.keras')"
        )
    try:
        version = _written_by(file)
        if int(version.partition(".")[0]) >= 3:
            return keras.models.load_model(file, compile=False)
        import tf_keras

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf_keras calls HDF5 a legacy format
            model = tf_keras.models.load_model(file, compile=False)
    except Error:
        raise
    except Exception as error:  # Keras raises whatever its readers of zip, HDF5 and JSON raise
        reason = one_line(error)
        raise Error(f"{file} is no Keras model that can be loaded here: {reason}") from error
    return to_keras3(model)


def _written_by(file: Path) -> str:
    """The version of Keras that wrote a file."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return json.loads(archive.read("metadata.json"))["keras_version"]
    with h5py.File(file) as content:  # also in .keras files of old
        if "model_config" not in content.attrs:
            raise Error(
                f"{file} holds weights without a model: save the whole model with "
                "model.save('model.keras')"
            )
        version = content.attrs.get("keras_version", "2")
        return version.decode() if isinstance(version, bytes) else version


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
