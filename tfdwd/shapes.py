"""At which sizes, and how many images at once, a network runs.

Imports nothing heavy, so that a board without TensorFlow can import it.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras

# One shape without the batch axis; or one for each input, in their order or by name.
InputShape = Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def input_names(model: Any) -> list[str]:
    """Names of a network's inputs, in the order of ``model.inputs``.

    Args:
      model: of Keras or tf_keras, or what has inputs of a name, such as a `tfdwd.lite.Model`.

    Returns:
      The keys where the model takes a dict, else the names of the inputs.

    Example:
      >>> import keras
      >>> x = keras.Input((4,), name="x")
      >>> input_names(keras.Model([x], keras.layers.Dense(2)(x)))
      ['x']
    """
    struct = getattr(model, "input", None)
    keys = {id(x): str(key) for key, x in struct.items()} if isinstance(struct, Mapping) else {}
    return [keys.get(id(tensor), tensor.name) for tensor in model.inputs]


def of_inputs(
    model: "keras.Model",
    input_shape: InputShape | None = None,
    images: Sequence[np.ndarray] | None = None,
) -> list[tuple[int, ...]]:
    """The shape of each input, without the batch axis, where the model may leave sizes open.

    Args:
      model: a Sequential or Functional model.
      input_shape: what the user says: one shape, such as (224, 224, 3), for a model of one input;
        or one for each input, as a list in the order of ``model.inputs`` or as a dict by name,
        which may leave inputs of fixed sizes out.
      images: one array (images, ...) for each input, as `tfdwd.batches.first` gives them.

    Returns:
      One shape for each input, in the order of ``model.inputs``.

    Raises:
      tfdwd.Error: neither model, user nor images tell a size; or two of them contradict.

    Example:
      >>> import keras
      >>> model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(4, 3)])
      >>> of_inputs(model, (96, 128, 3)), of_inputs(model, images=[np.zeros((2, 64, 64, 3))])
      ([(96, 128, 3)], [(64, 64, 3)])
    """
    said = _said(model, input_shape)
    found = []
    for index, (tensor, own) in enumerate(zip(model.inputs, said, strict=True)):
        name, declared = tensor.name, tuple(tensor.shape[1:])
        if own is not None and not fits(own, declared):
            hint = "; leave the batch axis out" if fits(own[1:], declared) else ""
            raise Error(
                f"input_shape: expected {_text(declared)} for input {name!r}, got {_text(own)}"
                f"{hint}"
            )
        shown = None if images is None else images[index].shape[1:]
        if shown is not None and own is not None and shown != own:
            raise Error(
                f"input {name!r}: input_shape says {_text(own)}, but the data is {_text(shown)}; "
                "omit input_shape or pass data of that shape"
            )
        shape = own or shown or declared
        if any(size is None for size in shape):
            example = tuple(size or 224 for size in shape)
            way = repr(example if len(said) == 1 else {name: example})
            raise Error(
                f"input {name!r} of model {model.name!r} leaves sizes open, {_text(declared)}: "
                f"pass data, or the sizes to run at, such as input_shape={way}"
            )
        found.append(shape)
    return found


def own_batch(inputs: Iterable[Any]) -> int | None:
    """How many images a model takes at once, from ``batch_shape=``; None if any number.

    Args:
      inputs: the model's, symbolic tensors.

    Example:
      >>> import keras
      >>> own_batch([keras.Input(batch_shape=(8, 4))])
      8
    """
    return next((x.shape[0] for x in inputs if x.shape and x.shape[0] is not None), None)


def images_at_once(model: "keras.Model") -> int:
    """How many images to run at once: the model's own batch, else what fits in memory.

    Example:
      >>> import keras
      >>> images_at_once(keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Flatten()]))
      13
    """
    sizes = [[size or 224 for size in tensor.shape[1:]] for tensor in model.inputs]
    numbers = sum(math.prod(size) for size in sizes)
    return own_batch(model.inputs) or max(8, min(128, 2**21 // max(numbers, 1)))


def in_batches(
    run: Callable[[list[np.ndarray]], Sequence[Any]], inputs: Sequence[np.ndarray], size: int
) -> list[np.ndarray]:
    """Runs images so many at once; the last batch is filled up, and what is beyond is cut off.

    Args:
      run: takes one array (size, ...) for each input and gives the outputs.
      inputs: one array (images, ...) for each input, at least one image.
      size: images at once, at least 1.

    Returns:
      For each output (images, ...). Of an output that is not (size, ...), such as a scalar, what
      each batch gave: (batches, ...), or flat where these differ in their shapes.

    Example:
      >>> [doubled] = in_batches(lambda arrays: [2 * arrays[0]], [np.arange(5)], 2)
      >>> doubled
      array([0, 2, 4, 6, 8])
    """
    count = len(inputs[0])
    given: list[list[np.ndarray]] = []
    for start in range(0, count, size):
        # Beyond the end the last image again: a value that the network can digest.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        given.append([np.asarray(output) for output in run([array[rows] for array in inputs])])
    return [_joined(pieces, size, count) for pieces in zip(*given, strict=True)]


def _joined(pieces: Sequence[np.ndarray], size: int, count: int) -> np.ndarray:
    if all(piece.shape[:1] == (size,) for piece in pieces):
        return np.concatenate(pieces)[:count]
    if len({piece.shape for piece in pieces}) == 1:
        return np.stack(pieces)
    return np.concatenate([piece.ravel() for piece in pieces])


def _said(model: "keras.Model", input_shape: Any) -> list[tuple[int, ...] | None]:
    """What the user says of each input; None where nothing."""
    names = input_names(model)
    if input_shape is None:
        return [None] * len(names)
    if isinstance(input_shape, Mapping):
        if unknown := [name for name in input_shape if name not in names]:
            raise Error(f"input_shape: expected names of the inputs {names}, got {unknown}")
        given = [input_shape.get(name) for name in names]
    elif _is_shape(input_shape) and len(names) == 1:
        given = [input_shape]
    elif isinstance(input_shape, list | tuple) and len(input_shape) == len(names):
        given = list(input_shape)
    else:
        raise Error(
            f"input_shape: expected one shape for each of the inputs {names}, as a list or a dict "
            f"by name, got {input_shape!r}"
        )
    for shape in given:
        if shape is not None and not _is_shape(shape):
            raise Error(
                "input_shape: expected a shape of whole numbers from 1, such as (224, 224, 3), got "
                f"{shape!r}"
            )
    return [None if shape is None else tuple(map(int, shape)) for shape in given]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(size, numbers.Integral) and not isinstance(size, bool) and int(size) > 0
        for size in value
    )


def fits(shape: Sequence[int], declared: Sequence[int | None]) -> bool:
    """Whether sizes are those that are declared, where None is any.

    Example:
      >>> fits((2, 3), (None, 3)), fits((2, 3), (None, 4)), fits((2, 3), (None,))
      (True, False, False)
    """
    return len(shape) == len(declared) and all(
        size in (None, got) for size, got in zip(declared, shape, strict=True)
    )


def _text(shape: Sequence[int | None]) -> str:
    """A shape as it is read: open sizes are "any"."""
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
