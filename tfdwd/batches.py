"""Turns every kind of data that users hold into batches for one model."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

    from tfdwd import lite

_KINDS = (
    "an array, a tuple (inputs, labels), a dict or list of arrays for a model of several inputs, "
    "a tf.data.Dataset, or an iterable of batches of those kinds"
)


def batches(
    data: Any, model: "keras.Model | lite.Model", batch_size: int = 32, with_labels: bool = False
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
        - any iterable of batches, each one of the first three kinds.
      model: its inputs say which shapes are expected: a Keras model with ``inputs`` (Sequential or
        Functional), or an opened .tflite model.
      batch_size: rows of every batch but the last, at least 1.
      with_labels: whether the labels are wanted.

    Yields:
      (inputs, labels): a list of arrays (rows, ...) in the order of ``model.inputs``; labels
      (rows, ...), a dict or list of such as they were given, or None unless `with_labels`.

    Raises:
      tfdwd.Error: the model has no ``inputs``; the data is empty, or holds no labels though they
        are wanted; a batch has another shape than the model's inputs, inputs of different lengths,
        a missing input, no numbers, NaN or infinity.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
      >>> [inputs[0].shape for inputs, _ in batches(np.zeros((5, 8, 8, 3)), model, batch_size=4)]
      [(4, 8, 8, 3), (1, 8, 8, 3)]
    """
    if batch_size < 1:
        raise Error(f"expected a batch_size of at least 1, got {batch_size}")
    if not getattr(model, "inputs", None):
        raise Error(
            "expected a Sequential or Functional model, got one without inputs of its own: it is "
            "subclassed or not built; make it keras.Model(x, model(x)) with x = keras.Input(...)"
        )
    pieces: list[list[np.ndarray]] = []
    rows_held = rows_seen = 0
    keys: list[Any] | None = None
    for number, element in enumerate(_elements(data, model)):
        inputs, labels = _arrays(element, model, with_labels, f"batch {number}")
        if keys is None:
            keys = list(labels)
        elif keys != list(labels):
            raise Error(f"batch {number}: expected labels {keys} as in batch 0, got {list(labels)}")
        arrays = [*inputs, *labels.values()]
        start = 0
        while start < len(arrays[0]):
            stop = min(start + batch_size - rows_held, len(arrays[0]))
            piece = [array[start:stop] for array in arrays]
            _check_finite(piece, model, f"batch {number}", start)
            pieces.append(piece)
            rows_held += stop - start
            rows_seen += stop - start
            start = stop
            if rows_held == batch_size:
                yield _joined(pieces, keys)
                pieces, rows_held = [], 0
    if pieces and keys is not None:
        yield _joined(pieces, keys)
    if not rows_seen:
        raise Error("the data is empty; a generator can be gone through only once: make it anew")


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
    return peek((inputs for inputs, _ in batches(data, model, min(count, 64))), count)[0]


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


def _elements(data: Any, model: "keras.Model | lite.Model") -> Iterable[Any]:
    """The batches as the user holds them: all the data as one, or what an iterable gives."""
    whole = (
        isinstance(data, (tuple, Mapping))
        or hasattr(data, "__array__")
        or (isinstance(data, list) and _is_list_of_inputs(data, model))
    )
    if whole:
        return [data]
    if hasattr(data, "as_numpy_iterator"):
        return data.as_numpy_iterator()
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return data
    raise Error(f"expected {_KINDS}; got {type(data).__name__}")


def _is_list_of_inputs(data: list[Any], model: "keras.Model | lite.Model") -> bool:
    """A list of arrays is the inputs of a model of several, but batches for a model of one."""
    return len(model.inputs) > 1 and all(hasattr(item, "__array__") for item in data)


def _arrays(
    element: Any, model: "keras.Model | lite.Model", with_labels: bool, where: str
) -> tuple[list[np.ndarray], dict[Any, np.ndarray]]:
    """One batch of the user's as checked arrays: the inputs, and the labels if wanted, by key."""
    parts = element if isinstance(element, tuple) else (element,)
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
    if not found or not all(hasattr(item, "__array__") for item in found.values()):
        raise Error(
            f"{where}: no array of labels; give the data as (inputs, labels), where labels are an "
            "array, or a dict or list of arrays for a model of several outputs"
        )
    return {key: np.asarray(item) for key, item in found.items()}


def _inputs(inputs: Any, model: "keras.Model | lite.Model", where: str) -> list[np.ndarray]:
    """The inputs of one batch as numeric arrays in the order of ``model.inputs``."""
    names = [tensor.name for tensor in model.inputs]
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        if missing:
            raise Error(f"{where}: expected the inputs {names}, got {list(inputs)}: {missing} lack")
        inputs = [inputs[name] for name in names]
    elif not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    if len(inputs) != len(names):
        raise Error(
            f"{where}: expected {len(names)} inputs {names}, got {len(inputs)}; "
            "several inputs are a list or a dict, a tuple is (inputs, labels)"
        )
    for name, item in zip(names, inputs, strict=True):
        if not hasattr(item, "__array__"):
            raise Error(f"{where}, input {name!r}: expected an array, got {type(item).__name__}")
    arrays = [np.asarray(item) for item in inputs]
    for name, array in zip(names, arrays, strict=True):
        # Of NumPy's kinds b, i, u and f are numbers; ml_dtypes' bfloat16 says V.
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise Error(f"{where}, input {name!r}: expected numbers, got dtype {array.dtype}")
    return arrays


def _check_shape(tensor: Any, array: np.ndarray, where: str) -> None:
    """Compares all axes but the first, the batch; an axis of None takes any size."""
    expected = tuple(tensor.shape[1:])
    if _fits(array.shape[1:], expected) and array.ndim:
        return
    hint = ""
    if expected[-1:] == (1,) and _fits(array.shape[1:], expected[:-1]):
        hint = "; the channel axis is missing: give data[..., None]"
    elif _fits(array.shape, expected):
        hint = "; the batch axis is missing: batch the data, or give data[None]"
    wanted = ", ".join("any" if size is None else str(size) for size in ("rows", *expected))
    raise Error(
        f"{where}, input {tensor.name!r}: expected shape ({wanted}), got {array.shape}{hint}"
    )


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(
        size in (None, got) for size, got in zip(expected, shape, strict=True)
    )


def _check_finite(
    piece: list[np.ndarray], model: "keras.Model | lite.Model", where: str, start: int
) -> None:
    for tensor, array in zip(model.inputs, piece, strict=False):  # Labels are not looked at.
        if array.dtype.kind in "biu":
            continue
        bad_rows = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
        if len(bad_rows):
            raise Error(
                f"{where}, input {tensor.name!r}: NaN or infinity in row {start + bad_rows[0]}; "
                "clean the data first"
            )


def _joined(pieces: list[list[np.ndarray]], keys: list[Any]) -> tuple[list[np.ndarray], Any]:
    """Pieces of a batch as one; the last columns are the labels of these keys."""
    columns = zip(*pieces, strict=True)
    arrays = [column[0] if len(column) == 1 else np.concatenate(column) for column in columns]
    inputs, labels = arrays[: len(arrays) - len(keys)], arrays[len(arrays) - len(keys) :]
    if keys in ([], [None]):
        return inputs, labels[0] if keys else None
    by_place = keys == list(range(len(keys)))
    return inputs, labels if by_place else dict(zip(keys, labels, strict=True))
