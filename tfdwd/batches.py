"""Turns every kind of data that users hold into batches for one model."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from tfdwd import shapes
from tfdwd.checks import whole
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
) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Streams data as checked batches of one size, whatever form it came in.

    Nothing is held but the batch given out and the user's batches that it is cut from. Arrays keep
    their own dtype (uint8 images stay uint8): the model casts them when it takes them. Do not write
    to them: they may be views of the data.

    Args:
      data: one of

        - an array (images, ...);
        - a tuple (inputs, labels) or (inputs, labels, weights), as in Keras; weights are ignored;
          labels are an array, or a dict or list of arrays for a model of several outputs;
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
      (rows, ...), a dict or list of such as they were given, or None unless `with_labels`.

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
    whole("batch_size", batch_size, 1)
    if images is not None:
        whole("images", images, 1)
    if not getattr(model, "inputs", None):
        raise Error(
            "expected a Sequential or Functional model, got one without inputs of its own: it is "
            "subclassed or not built; make it keras.Model(x, model(x)) with x = keras.Input(...)"
        )
    pieces: list[list[np.ndarray]] = []
    rows_held = rows_seen = 0
    keys: list[Any] | None = None
    elements, length = _opened(data, model, endless=images is not None)
    for number, element in enumerate(_read(elements)):
        where = f"batch {number}"
        inputs, labels = _arrays(element, model, with_labels, where)
        if keys is None:
            keys = list(labels)
        elif keys != list(labels):
            raise Error(f"{where}: expected labels {keys} as in batch 0, got {list(labels)}")
        arrays = [*inputs, *labels.values()]
        if pieces and [a.shape[1:] for a in arrays] != [a.shape[1:] for a in pieces[0]]:
            yield _joined(pieces, keys)
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
                yield _joined(pieces, keys)
                pieces, rows_held = [], 0
        if rows_seen == images:
            break
        _check_end(number, rows_seen, length=length, images=images)
    if pieces and keys is not None:
        yield _joined(pieces, keys)
    if not rows_seen:
        raise Error("the data is empty. A generator can be read only once; pass a new one.")


def elements(data: Any, model: "keras.Model | lite.Model") -> Iterator[Any]:
    """Opens data and gives the user's own batches, unchecked; what has no end goes on.

    Raises:
      tfdwd.Error: the data is of no kind that `batches` takes, or reading it fails.

    Example:
      >>> next(elements(iter([(np.zeros((2, 8)), np.ones(2))]), None))[1]
      array([1., 1.])
    """
    return _read(_opened(data, model, endless=True)[0])


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
    if images is None and not is_whole(data, model) and length_of(data) is None:
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


def first(model: "keras.Model | lite.Model", data: Any, count: int) -> list[np.ndarray]:
    """Takes the first images of the data, and reads no more of it than that needs.

    Args:
      model: as for `batches`.
      data: as for `batches`.
      count: how many at most, at least 1.

    Returns:
      One array (images, ...) for each input, in the order of ``model.inputs``.

    Raises:
      tfdwd.Error: as `batches`, or those images are not of one size.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
      >>> first(model, np.zeros((5, 8, 8, 3)), 2)[0].shape
      (2, 8, 8, 3)
    """
    read = batches(data, model, min(count, 64), images=count)
    return peek((inputs for inputs, _ in read), count)[0]


def peek(
    source: Iterable[list[np.ndarray]], count: int
) -> tuple[list[np.ndarray], Iterator[list[np.ndarray]]]:
    """Takes the first images of a stream, which can still be gone through from its start.

    Args:
      source: batches of inputs, each a list of arrays (rows, ...). Read as far as it is needed.
      count: how many images at most, at least 1.

    Returns:
      One array (images, ...) for each input; and all of the stream, those images included.

    Raises:
      tfdwd.Error: those images are not of one size.

    Example:
      >>> images, stream = peek([[np.zeros((2, 8))], [np.ones((2, 8))]], 3)
      >>> images[0].shape, sum(len(batch) for [batch] in stream)
      ((3, 8), 4)
    """
    stream = iter(source)
    read: list[list[np.ndarray]] = []
    rows = 0
    while rows < count and (inputs := next(stream, None)) is not None:
        read.append(inputs)
        rows += len(inputs[0])
    columns = list(zip(*read, strict=True))
    for column in columns:
        sizes = sorted({array.shape[1:] for array in column})
        if len(sizes) > 1:
            raise Error(
                f"expected images of one size, got {sizes[0]} and {sizes[1]}; resize or crop them"
            )
    return [np.concatenate(column)[:count] for column in columns], itertools.chain(read, stream)


# ---------------------------------------------------------------------- reading


def _opened(
    data: Any, model: "keras.Model | lite.Model", endless: bool
) -> tuple[Iterable[Any], int | None]:
    """The batches as the user holds them, and how many they are where the data knows.

    Args:
      data, model: as for `batches`.
      endless: whether the data need not end.
    """
    if is_whole(data, model):
        return [data], 1
    if not endless:
        _refuse_endless(data)
    length = length_of(data)
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


def is_whole(data: Any, model: "keras.Model | lite.Model") -> bool:
    """Whether it is all the data at once, not an iterable of batches.

    Example:
      >>> is_whole(np.zeros((5, 8)), None), is_whole(iter([np.zeros((5, 8))]), None)
      (True, False)
    """
    if isinstance(data, list):  # the inputs of a model of several, but batches for a model of one
        return len(model.inputs) > 1 and all(hasattr(item, "__array__") for item in data)
    return isinstance(data, (tuple, Mapping)) or hasattr(data, "__array__") or _is_tensor(data)


def can_be_read_again(data: Any) -> bool:
    """Whether data begins again when it is read again.

    The iterators of `ImageDataGenerator.flow` do, by index.
    """
    return not hasattr(data, "__next__") or hasattr(data, "__getitem__")


def is_labelled(data: Any, model: "keras.Model | lite.Model") -> bool:
    """Whether data that can be read again holds labels beside its inputs."""
    if not is_whole(data, model):
        data = getattr(data, "element_spec", None) or next(elements(data, model), None)
    return isinstance(data, tuple) and len(data) > 1


def _is_tensor(item: Any) -> bool:
    """Whether it is one of TensorFlow's kinds of tensors that are no arrays: ragged or sparse."""
    return type(item).__name__.startswith(("RaggedTensor", "SparseTensor"))


def _refuse_endless(data: Any) -> None:
    if hasattr(data, "as_numpy_iterator") and int(data.cardinality()) == -1:  # tf.data's INFINITE
        raise Error(
            "expected data that ends, got an endless tf.data.Dataset (repeat()); leave repeat() "
            "out, or pass data.take(n) or images=n"
        )


def length_of(data: Any) -> int | None:
    """How many batches the data says it has; None for a generator or a filtered tf.data."""
    try:
        return len(data)
    except Exception:  # whatever a user's own __len__ raises: reading the data will tell
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
    if first.startswith("Error: "):  # tfdwd's own, raised by a function in a tf.data.Dataset
        return first.removeprefix("Error: ")
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
    way_out = (
        "it may be endless; cut it, such as with data.take(n) or itertools.islice(data, n), or "
        "pass images=n where there is that option"
    )
    if length is None and rows >= _ENDLESS:
        raise Error(f"the data has no known length, and gave {rows:,} rows: {way_out}")
    if length is not None and number >= length:
        raise Error(f"the data says it has {length} batches, but gives more: {way_out}")


# ---------------------------------------------------------------------- checking


def _arrays(
    element: Any, model: "keras.Model | lite.Model", with_labels: bool, where: str
) -> tuple[list[np.ndarray], dict[Any, np.ndarray]]:
    """One batch of the user's as checked arrays: the inputs, and the labels if wanted, by key."""
    parts = element if isinstance(element, tuple) and not _is_tensor(element) else (element,)
    if len(parts) not in (1, 2, 3):
        raise Error(f"{where}: expected (inputs, labels), got a tuple of {len(parts)}")
    inputs = _inputs(parts[0], model, where)
    for tensor, array in zip(model.inputs, inputs, strict=True):
        _check_shape(tensor, array, where)
    labels = _labels(parts[1] if len(parts) > 1 else None, where) if with_labels else {}
    names = [tensor.name for tensor in model.inputs]
    names += ["labels" if key is None else f"labels {key!r}" for key in labels]
    lengths = [len(array) if array.ndim else 0 for array in (*inputs, *labels.values())]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{name}: {n}" for name, n in zip(names, lengths, strict=True))
        raise Error(f"{where}: expected the same number of rows in all, got {counts}")
    return inputs, labels


def _labels(given: Any, where: str) -> dict[Any, np.ndarray]:
    """Labels by name where they are a dict, by place where they are a list, else by None."""
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, (list, tuple)):
        found = dict(enumerate(given))
    else:
        found = {None: given}
    given_arrays = [item for item in found.values() if hasattr(item, "__array__")]
    arrays = {}
    if found and len(given_arrays) == len(found):
        arrays = {key: _array(item, f"{where}, labels") for key, item in found.items()}
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise Error(
            f"{where}: no array of labels; give the data as (inputs, labels), where labels are an "
            "array, or a dict or list of arrays for a model of several outputs"
        )
    return arrays


def _inputs(inputs: Any, model: "keras.Model | lite.Model", where: str) -> list[np.ndarray]:
    """The inputs of one batch as numeric arrays in the order of ``model.inputs``."""
    names = shapes.input_names(model)
    if isinstance(inputs, Mapping):
        tensors = [tensor.name for tensor in model.inputs]
        names = tensors if all(name in inputs for name in tensors) else names
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
    array = _array(item, what)
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


def _array(item: Any, what: str) -> np.ndarray:
    """What has ``__array__`` as an array, of a dtype that TensorFlow knows where NumPy has one."""
    try:
        array = np.asarray(item)
        if array.dtype == np.longdouble:
            return array.astype(np.float64)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    except Exception as error:  # a symbolic tensor; one of PyTorch's on a GPU, or with a gradient
        raise Error(
            f"{what}: expected an array, got {type(item).__name__}, of which NumPy cannot make "
            f"one: {_first_line(error)}"
        ) from error


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


def _joined(pieces: list[list[np.ndarray]], keys: list[Any]) -> tuple[list[np.ndarray], Any]:
    """Pieces of a batch as one; the last columns are the labels of these keys."""
    columns = zip(*pieces, strict=True)
    arrays = [column[0] if len(column) == 1 else np.concatenate(column) for column in columns]
    inputs, labels = arrays[: len(arrays) - len(keys)], arrays[len(arrays) - len(keys) :]
    if keys in ([], [None]):
        return inputs, labels[0] if keys else None
    by_place = keys == list(range(len(keys)))
    return inputs, labels if by_place else dict(zip(keys, labels, strict=True))
