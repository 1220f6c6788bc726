"""Turns every kind of data that users hold into batches for one model."""

import numbers
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

    from tfdwd import lite

# Images of a calibration where the data does not know its length: twice what is plenty.
CALIBRATION_IMAGES = 2048
# Where all images are wanted, data of unknown length that gives more counts as endless.
_ENDLESS = 100_000
_EMPTY = 1000  # batches in a row without a row, after which no more is expected
_KINDS = (
    "an array, a tuple (inputs, labels), a dict or list of arrays for a model of several inputs, "
    "a tf.data.Dataset, or an iterable of batches of those kinds"
)


def batches(
    data: Any,
    model: "keras.Model | lite.Model",
    batch_size: int = 32,
    with_labels: bool = False,
    *,
    images: int | None = None,
) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
    """Streams data as checked batches of one size, whatever form it came in.

    Nothing is held but the batch given out and the user's batches that it is cut from. Arrays keep
    their own dtype (uint8 images stay uint8): the model casts them when it takes them. Do not write
    to them: they may be views of the data.

    Args:
      data: one of

        - an array (images, ...);
        - a tuple (inputs, labels) or (inputs, labels, weights), as in Keras; weights are ignored;
        - a dict of arrays by input name, or a list of arrays in the order of ``model.inputs``;
        - a tf.data.Dataset, batched, of inputs or such tuples;
        - any iterable of batches, each one of the first three kinds; what has a length and can be
          indexed (``keras.utils.PyDataset``) is read by index, once.
      model: its inputs say which shapes are expected: a Keras model with ``inputs`` (Sequential or
        Functional), or an opened .tflite model.
      batch_size: rows of every batch but the last, at least 1. Where a model takes images of any
        size, a batch also ends before an image of another size.
      with_labels: whether the labels are wanted.
      images: how many of the first rows to give; no more of the data is read. If None, all of them:
        an endless tf.data.Dataset is refused at once, other data of unknown length (a generator)
        after 100,000 rows.

    Yields:
      (inputs, labels): a list of arrays (rows, ...) in the order of ``model.inputs``; labels
      (rows, ...), or None unless `with_labels`.

    Raises:
      tfdwd.Error: the model has no ``inputs``; the data is empty or endless, cannot be read, or
        holds no labels though they are wanted; a batch has another shape than the model's inputs,
        inputs of different lengths, a missing input, no numbers, or values that are not finite in
        the dtype that the model takes.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
      >>> [inputs[0].shape for inputs, _ in batches(np.zeros((5, 8, 8, 3)), model, batch_size=4)]
      [(4, 8, 8, 3), (1, 8, 8, 3)]
    """
    _check_count("batch_size", batch_size)
    if images is not None:
        _check_count("images", images)
    if not getattr(model, "inputs", None):
        raise Error(
            "expected a Sequential or Functional model, got one without inputs of its own: it is "
            "subclassed or not built; make it keras.Model(x, model(x)) with x = keras.Input(...)"
        )
    pieces: list[list[np.ndarray]] = []
    rows_held = rows_seen = 0
    elements, length = _opened(data, model, endless=images is not None)
    for number, element in enumerate(_read(elements)):
        where = f"batch {number}"
        arrays = _arrays(element, model, with_labels, where)
        if pieces and [a.shape[1:] for a in arrays] != [a.shape[1:] for a in pieces[0]]:
            yield _joined(pieces, with_labels)
            pieces, rows_held = [], 0
        start, rows = 0, len(arrays[0])
        if images is not None:
            rows = min(rows, images - rows_seen)
        while start < rows:
            stop = min(start + batch_size - rows_held, rows)
            piece = [array[start:stop] for array in arrays]
            _check_values(piece, model, where, start)
            pieces.append(piece)
            rows_held += stop - start
            rows_seen += stop - start
            start = stop
            if rows_held == batch_size:
                yield _joined(pieces, with_labels)
                pieces, rows_held = [], 0
        if rows_seen == images:
            break
        _check_end(number, rows_seen, length=length, images=images)
    if pieces:
        yield _joined(pieces, with_labels)
    if not rows_seen:
        raise Error("the data is empty. A generator can be read only once; pass a new one.")


def calibration_batches(
    data: Any, model: "keras.Model | lite.Model", batch_size: int = 32, images: int | None = None
) -> Iterator[tuple[list[np.ndarray], None]]:
    """`batches` for a calibration, which keeps what it reads in memory or on disk.

    Args:
      data, model, batch_size: as for `batches`.
      images: how many of the first images to take. If None, all that an array has, or other data
        that knows its length; of a generator the first 2,048, with a warning if they were reached.

    Yields:
      (inputs, None): as `batches` does.

    Raises:
      tfdwd.Error: as `batches`.
    """
    most, taken = images, 0
    if images is None and not _is_whole(data, model) and _length(data) is None:
        _refuse_endless(data)
        most = CALIBRATION_IMAGES
    for inputs, _ in batches(data, model, batch_size, images=most):
        taken += len(inputs[0])
        yield inputs, None
    if images is None and taken == most:
        logging.warning(
            "the data does not know its length: its first %d images were taken; pass images= to "
            "take another number",
            taken,
        )


def pack(model: "keras.Model", inputs: list[Any]) -> Any:
    """Arranges inputs the way that calling a Keras model expects them.

    Args:
      model: a Sequential or Functional model.
      inputs: arrays or tensors in the order of ``model.inputs``.

    Returns:
      What ``model(...)`` takes: one tensor, or the model's own list or dict of them.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
      >>> model(pack(model, [np.zeros((1, 2))])).shape
      TensorShape([1, 1])
    """
    import keras

    if isinstance(model, keras.Sequential):
        return inputs[0]
    return keras.tree.pack_sequence_as(model.input, inputs)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise Error(f"expected {name} of at least 1, a whole number, got {value!r}")


# ---------------------------------------------------------------------- reading


def _opened(
    data: Any, model: "keras.Model | lite.Model", endless: bool
) -> tuple[Iterable[Any], int | None]:
    """The batches as the user holds them, and how many they are where the data knows.

    Args:
      data, model: as for `batches`.
      endless: whether the data need not end.
    """
    if _is_whole(data, model):
        return [data], 1
    if not endless:
        _refuse_endless(data)
    length = _length(data)
    if hasattr(data, "as_numpy_iterator"):
        try:
            return data.as_numpy_iterator(), length
        except Exception as error:  # data sets in a data set, such as those of window()
            raise Error(
                f"expected a tf.data.Dataset of arrays, got one that cannot be read: "
                f"{_first_line(error)}"
            ) from error
    is_text = isinstance(data, (str, bytes, os.PathLike))
    if hasattr(data, "__getitem__") and not is_text:
        if length is None or isinstance(data, list):
            return data, length
        # By index: the iterators of `ImageDataGenerator.flow` have a length, but never end.
        return (data[index] for index in range(length)), length
    if isinstance(data, Iterable) and not is_text:
        return data, length
    hint = "; load the file first, such as with np.load" if is_text else ""
    if callable(data):
        hint = "; call it, and pass what it gives"
    raise Error(f"expected {_KINDS}; got {type(data).__name__}{hint}")


def _is_whole(data: Any, model: "keras.Model | lite.Model") -> bool:
    """Whether it is all the data at once, not an iterable of batches."""
    if isinstance(data, list):  # the inputs of a model of several, but batches for a model of one
        return len(model.inputs) > 1 and all(hasattr(item, "__array__") for item in data)
    return isinstance(data, (tuple, Mapping)) or hasattr(data, "__array__") or _is_tensor(data)


def _is_tensor(item: Any) -> bool:
    """Whether it is one of TensorFlow's kinds of tensors that are no arrays: ragged or sparse."""
    return type(item).__name__.startswith(("RaggedTensor", "SparseTensor"))


def _refuse_endless(data: Any) -> None:
    if hasattr(data, "as_numpy_iterator") and int(data.cardinality()) == -1:  # tf.data's INFINITE
        raise Error(
            "expected data that ends, got an endless tf.data.Dataset (repeat()); leave repeat() "
            "out, or pass data.take(n) or images=n"
        )


def _length(data: Any) -> int | None:
    """How many batches the data says it has; None for a generator or a filtered tf.data."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _read(elements: Iterable[Any]) -> Iterator[Any]:
    """What an iterable gives; whatever it raises becomes one kind of error."""
    number = 0
    try:
        for element in elements:
            yield element
            number += 1
    except Error:
        raise
    except Exception as error:  # TensorFlow alone has some forty, a user's own code has any
        raise Error(f"batch {number}: the data cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """What happened, out of an error; TensorFlow adds where in its graph, in many lines."""
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", str(error)).strip()
    text = re.sub(r"^Error in user-defined function \S+ \S+ \S+ transformation.*?: \S+ ", "", text)
    first = text.partition("\n")[0].strip()
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _check_end(number: int, rows: int, *, length: int | None, images: int | None) -> None:
    """Refuses data that seems to have no end, after a batch and so many rows in all.

    Args:
      number: of the batch, from 0.
      rows: in this batch and those before it.
      length: how many batches the data says it has; None if it does not know.
      images: how many rows are wanted; None if all.
    """
    if number - rows > _EMPTY:
        raise Error(f"expected images, got {rows} in {number + 1} batches; the others are empty")
    if images is not None:
        return
    way_out = "it may be endless; pass images=, the number of images to take from it"
    if length is None and rows >= _ENDLESS:
        raise Error(f"the data has no known length, and gave {rows:,} rows: {way_out}")
    if length is not None and number >= length:
        raise Error(f"the data says it has {length} batches, but gives more: {way_out}")


# ---------------------------------------------------------------------- checking


def _arrays(
    element: Any, model: "keras.Model | lite.Model", with_labels: bool, where: str
) -> list[np.ndarray]:
    """One batch of the user's as checked arrays: the inputs, then the labels if wanted."""
    parts = element if isinstance(element, tuple) and not _is_tensor(element) else (element,)
    if len(parts) not in (1, 2, 3):
        raise Error(f"{where}: expected (inputs, labels), got a tuple of {len(parts)}")
    arrays = _inputs(parts[0], model, where)
    for tensor, array in zip(model.inputs, arrays, strict=True):
        _check_shape(tensor, array, where)
    if with_labels:
        if len(parts) == 1 or not hasattr(parts[1], "__array__"):
            raise Error(f"{where}: no array of labels; give the data as (inputs, labels)")
        arrays.append(np.asarray(parts[1]))
    lengths = [len(array) if array.ndim else 0 for array in arrays]
    if len(set(lengths)) > 1:
        names = [tensor.name for tensor in model.inputs] + ["labels"] * with_labels
        counts = ", ".join(f"{name}: {n}" for name, n in zip(names, lengths, strict=True))
        raise Error(f"{where}: expected the same number of rows in all, got {counts}")
    return arrays


def _inputs(inputs: Any, model: "keras.Model | lite.Model", where: str) -> list[np.ndarray]:
    """The inputs of one batch as numeric arrays in the order of ``model.inputs``."""
    names = [tensor.name for tensor in model.inputs]
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        if missing:
            raise Error(
                f"{where}: missing inputs {missing}; expected {names}, got {list(inputs)}"
                + _advice_for_dict(inputs, model)
            )
        inputs = [inputs[name] for name in names]
    elif not isinstance(inputs, (list, tuple)) or _is_tensor(inputs):
        inputs = [inputs]
    if len(inputs) != len(names):
        raise Error(
            f"{where}: expected {len(names)} inputs {names}, got {len(inputs)}; several inputs are "
            "a list or a dict, a tuple is (inputs, labels), images of one batch are one array "
            "(np.stack)"
        )
    return [
        _numbers(item, f"{where}, input {name!r}") for name, item in zip(names, inputs, strict=True)
    ]


def _advice_for_dict(inputs: Mapping[Any, Any], model: "keras.Model | lite.Model") -> str:
    """How to get the images out of the dicts of TensorFlow Datasets and the like."""
    if len(model.inputs) > 1:
        return "; name the arrays as the model's inputs"
    shape = tuple(model.inputs[0].shape[1:])
    shapes = {key: tuple(getattr(value, "shape", ())) for key, value in inputs.items()}
    fitting = [key for key in inputs if _fits(shapes[key][1:], shape)]
    key = (fitting or list(inputs) or ["image"])[0]
    return (
        f"; take the images out: data[{key!r}], or data.map(lambda batch: batch[{key!r}]) of a "
        "tf.data.Dataset (with labels a tuple (images, labels))"
    )


def _numbers(item: Any, what: str) -> np.ndarray:
    """An array or tensor as an array of numbers."""
    if not hasattr(item, "__array__"):
        advice = "np.asarray makes one, np.stack makes one of several"
        if _is_tensor(item):
            advice = "resize or crop ragged images to one size; tf.sparse.to_dense for sparse ones"
        elif hasattr(item, "__array_interface__"):  # Pillow's
            advice = "give batches, such as np.stack of images that were resized to one size"
        raise Error(f"{what}: expected an array, got {type(item).__name__}; {advice}")
    try:
        array = np.asarray(item)
    except Exception as error:  # a symbolic tensor; one of PyTorch's on a GPU, or with a gradient
        raise Error(
            f"{what}: expected an array, got {type(item).__name__}, of which NumPy cannot make "
            f"one: {_first_line(error)}"
        ) from error
    # Of NumPy's kinds b, i, u and f are numbers; ml_dtypes' bfloat16 says V.
    if array.dtype.kind in "biuf" or array.dtype.name == "bfloat16":
        return array
    advice = ""
    if array.dtype.kind in "OSU":
        text = array.size and isinstance(array.flat[0], (str, bytes))
        advice = (
            "; that is text: load and decode the files first"
            if text
            else "; images of several sizes? Resize or crop them to one size, then np.stack"
        )
    raise Error(f"{what}: expected numbers, got dtype {array.dtype}{advice}")


def _check_shape(tensor: Any, array: np.ndarray, where: str) -> None:
    """Compares all axes but the first, the batch; an axis of None takes any size but 0."""
    expected, shape = tuple(tensor.shape[1:]), array.shape
    if _fits(shape[1:], expected) and array.ndim:
        return
    hint = ""
    if expected[-1:] == (1,) and _fits(shape[1:], expected[:-1]):
        hint = "; the channel axis is missing: give data[..., None]"
    elif _fits(shape, expected):
        hint = (
            "; the batch axis is missing: batch the data (np.stack for a list of images, "
            ".batch(32) for tf.data), or give data[None] for one image"
        )
    elif len(shape) == 4 and _fits((*shape[2:], shape[1]), expected):
        hint = "; the channels come first: give data.transpose(0, 2, 3, 1)"
    elif len(shape) == 4 and len(expected) == 3 and shape[-1] == expected[-1]:
        hint = "; resize or crop the images"
    wanted = ", ".join("any" if size is None else str(size) for size in ("rows", *expected))
    raise Error(f"{where}, input {tensor.name!r}: expected shape ({wanted}), got {shape}{hint}")


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        got and size in (None, got) for size, got in zip(expected, shape, strict=True)
    )


def _check_values(
    piece: list[np.ndarray], model: "keras.Model | lite.Model", where: str, start: int
) -> None:
    """Refuses values that are not finite, or not the same, in the dtype that the model takes."""
    for tensor, array in zip(model.inputs, piece, strict=False):  # Labels are not looked at.
        dtype = _dtype(tensor)
        to_whole, is_whole = (kind in "biu" for kind in (dtype.kind, array.dtype.kind))
        beyond_none = not to_whole and dtype != np.float16  # whole numbers have no such infinity
        if is_whole and (beyond_none or np.can_cast(array.dtype, dtype)):
            continue
        with np.errstate(all="ignore"):
            cast = array.astype(dtype, copy=False)
            fine = cast == array if to_whole else np.isfinite(cast)
        if fine.all():
            continue
        at, place = f"{where}, input {tensor.name!r}: ", np.argwhere(~fine)[0]
        row, value = start + place[0], float(array[tuple(place)])
        if not np.isfinite(value):
            raise Error(f"{at}NaN or infinity in row {row}; clean the data first")
        if to_whole:
            raise Error(f"{at}expected numbers that {dtype} holds, got {value} in row {row}")
        raise Error(
            f"{at}{value:g} in row {row} is too large for {dtype}, which the model takes; scale "
            "the data"
        )


def _dtype(tensor: Any) -> np.dtype:
    """The dtype in which an input takes its values."""
    if getattr(tensor, "scale", 0):  # an integer of a .tflite file that stands for real values
        return np.dtype(np.float32)
    try:
        return np.dtype(tensor.dtype)
    except TypeError:  # bfloat16, whose range is that of float32; a dtype of tf_keras
        return np.dtype(np.float32)


def _joined(
    pieces: list[list[np.ndarray]], with_labels: bool
) -> tuple[list[np.ndarray], np.ndarray | None]:
    columns = zip(*pieces, strict=True)
    arrays = [column[0] if len(column) == 1 else np.concatenate(column) for column in columns]
    return (arrays[:-1], arrays[-1]) if with_labels else (arrays, None)
