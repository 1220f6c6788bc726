"""What the outputs of a network are, found on data, and which labels fit them.

Pure NumPy, so that a board without TensorFlow can import it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd.errors import Error
from tfdwd.names import unique
from tfdwd.shapes import fits

if TYPE_CHECKING:
    import keras

PROBABILITIES = "probabilities"  # rows along the last axis that sum to 1
LOGITS = "logits"  # probabilities before their softmax; never found, only said by the user
VALUES = "values"  # all else: sigmoids, regression, images, boxes
KINDS = (PROBABILITIES, LOGITS, VALUES)

_BELOW, _OFF = 0.01, 0.01  # how far probabilities may be below 0, and their sums from 1
_WHOLE_LABELS = "class numbers (images, ...) or distributions (images, ..., classes)"


def kind_of(values: np.ndarray) -> str:
    """Finds what an output is on what it gave for some images.

    Args:
      values: (images, ...). Rows that hold NaN or infinity are not judged.

    Returns:
      "probabilities" where the last axis has at least 2 elements, none is below -0.01 and all rows
      along it sum to 1 within 0.01, dense maps (images, h, w, classes) included; else "values".

    Example:
      >>> kind_of(np.array([[0.25, 0.75], [1.0, 0.0]])), kind_of(np.array([[0.5], [1.0]]))
      ('probabilities', 'values')
    """
    if values.ndim < 2 or values.shape[-1] < 2:
        return VALUES
    with np.errstate(over="ignore"):
        rows = values.reshape(-1, values.shape[-1]).astype(np.float32)
    rows = rows[np.isfinite(rows).all(1)]
    if not len(rows) or rows.min() < -_BELOW or (np.abs(rows.sum(1) - 1) > _OFF).any():
        return VALUES
    return PROBABILITIES


def kinds(
    values: Sequence[np.ndarray], names: Sequence[str], said: str | Mapping[str, str] | None = None
) -> list[str]:
    """The kind of each output: what the user says of it, else what is found.

    Args:
      values: what each output gave for some images, (images, ...).
      names: of the outputs.
      said: one of `KINDS` for all outputs, or one for some of them by name.

    Returns:
      For each output one of `KINDS`.

    Raises:
      tfdwd.Error: an unknown kind or output; an output said to be probabilities or logits that has
        fewer than 2 classes.

    Example:
      >>> kinds([np.zeros((2, 3)), np.zeros((2, 4))], ["scores", "boxes"], {"scores": "logits"})
      ['logits', 'values']
    """
    found = []
    for name, array, own in zip(names, values, by_output(said, names, "outputs"), strict=True):
        if own is not None and own not in KINDS:
            raise Error(f"outputs: expected one of {', '.join(KINDS)} for {name!r}, got {own!r}")
        if own in (PROBABILITIES, LOGITS) and (array.ndim < 2 or array.shape[-1] < 2):
            raise Error(
                f"outputs: {name!r} cannot be {own}, whose last axis holds at least 2 classes: it "
                f"is {array.shape}; say {VALUES!r}"
            )
        found.append(kind_of(array) if own is None else own)
    return found


def without_logits(values: np.ndarray, kind: str) -> np.ndarray:
    """Logits as the probabilities that they stand for; values of other kinds as they are.

    Args:
      values: of an output, (images, ...).
      kind: of the output, one of `KINDS`.

    Example:
      >>> without_logits(np.zeros((1, 2)), "logits"), without_logits(np.zeros((1, 2)), "values")
      (array([[0.5, 0.5]]), array([[0., 0.]]))
    """
    if kind != LOGITS:
        return values
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def by_output(given: Any, names: Sequence[str], option: str) -> list[Any]:
    """What a user gave for each output, in the order of the outputs.

    Args:
      given: a dict by output name, which may leave outputs out; a list in the order of the outputs;
        or one thing for all outputs.
      names: of the outputs.
      option: that it was given as, for the error.

    Returns:
      For each output what was given for it, else None.

    Raises:
      tfdwd.Error: a name that is no output, or a list of another length.

    Example:
      >>> by_output({"boxes": "mse"}, ["boxes", "scores"], "loss")
      ['mse', None]
    """
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise Error(f"{option}: expected names of the outputs {list(names)}, got {unknown}")
        return [given.get(name) for name in names]
    if isinstance(given, list | tuple):
        if len(given) != len(names):
            raise Error(
                f"{option}: expected one for each of the outputs {list(names)}, got {len(given)}"
            )
        return list(given)
    return [given] * len(names)


def names_of(model: "keras.Model") -> list[str]:
    """Names of a Keras model's outputs, in the order of ``model.outputs``; no two are equal.

    Args:
      model: a Sequential or Functional model, of Keras 3 or of tf_keras.

    Returns:
      The keys where the outputs are a dict ("head/boxes" where dicts are nested), else the names of
      the layers that they come from.

    Example:
      >>> import keras
      >>> x = keras.Input((4,))
      >>> names_of(keras.Model(x, {"b": keras.layers.Dense(2)(x), "a": x}))
      ['a', 'b']
    """
    import keras

    # What a Sequential model calls its output is that of its first call.
    struct = model.outputs if isinstance(model, keras.Sequential) else model.output
    found: list[str] = []
    for path, tensor in keras.tree.flatten_with_path(struct):
        by_key = isinstance(struct, Mapping) or len(path) > 1
        # The first field of the history has another name in tf_keras.
        found.append("/".join(map(str, path)) if by_key else tensor._keras_history[0].name)
    return unique(found)


# ---------------------------------------------------------------------- labels


def class_labels(
    labels: np.ndarray, shape: Sequence[int | None], *, first: int = 0, name: str = "labels"
) -> np.ndarray:
    """Checks that labels are classes of an output.

    Args:
      labels: class numbers (images, ...) or (images, ..., 1), or distributions such as one-hot rows
        (images, ..., classes). Whole numbers may be floats; booleans are 0 and 1.
      shape: of the output for one image, (..., classes); None where an axis may have any size.
      first: number of the first image in the data, for the error.
      name: of the labels, for the error.

    Returns:
      Class numbers (images, ...) int64, or distributions (images, ..., classes) float32: these have
      as many axes as the output.

    Raises:
      tfdwd.Error: text or objects; another number of axes or other sizes; a number that is NaN, no
        whole number, negative or no class; a row that is no distribution. Names label and image.

    Example:
      >>> class_labels(np.array([[2.0], [0.0]]), (3,))
      array([2, 0])
    """
    labels = _numeric(labels, first, name)
    classes, places = shape[-1], tuple(shape[:-1])
    if labels.ndim == len(shape) + 1 and labels.shape[-1] == 1 != classes:
        labels = labels[..., 0]
    sizes = labels.shape[1:]
    if labels.ndim == len(shape) + 1 and fits(sizes, tuple(shape)):
        return _distributions(labels, first, name)
    if labels.ndim != len(shape) or not fits(sizes, places):
        raise Error(
            f"{name}: expected {_WHOLE_LABELS} for an output of shape {_text(tuple(shape))}, so "
            f"{_text(places)} or {_text(tuple(shape))}, got {_text(sizes)}"
        )
    wrong = labels < 0
    if labels.dtype.kind == "f":
        wrong |= ~np.isfinite(labels) | (labels != np.floor(labels))
    if classes is not None:
        wrong |= labels >= classes
    if wrong.any():
        hint = ""
        if classes is not None and labels.size and _are_from_one(labels, classes):
            hint = "; the labels seem to count from 1: subtract 1"
        top = "" if classes is None else f" of 0..{classes - 1}"
        raise Error(
            f"{name}: expected class numbers{top}, got {_first(labels, wrong, first)}{hint}"
        )
    return labels.astype(np.int64)


def class_numbers(
    labels: np.ndarray, shape: Sequence[int | None], *, first: int = 0, name: str = "labels"
) -> np.ndarray:
    """As `class_labels`, but always class numbers: of a distribution its largest, the first of two.

    Returns:
      (images, ...) int64.

    Raises:
      tfdwd.Error: as `class_labels`.

    Example:
      >>> class_numbers(np.array([[0, 1, 0], [1, 0, 0]]), (3,))
      array([1, 0])
    """
    found = class_labels(labels, shape, first=first, name=name)
    return found.argmax(-1) if found.ndim == len(shape) + 1 else found


def value_labels(
    labels: np.ndarray,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    first: int = 0,
    name: str = "labels",
) -> np.ndarray:
    """Checks that labels are finite numbers, from `low` to `high` where these are given.

    Args:
      labels: (images, ...).
      low, high: least and largest value, such as 0 and 1 for sigmoids.
      first: number of the first image in the data, for the error.
      name: of the labels, for the error.

    Returns:
      The labels, float32.

    Raises:
      tfdwd.Error: text, objects, NaN, infinity (in float32 too) or a number out of range. Names
        label and image.

    Example:
      >>> value_labels(np.array([[True], [False]]), low=0, high=1).ravel()
      array([1., 0.], dtype=float32)
    """
    given = _numeric(labels, first, name)
    with np.errstate(over="ignore"):
        labels = given.astype(np.float32)
    wrong = np.asarray(~np.isfinite(labels))
    if wrong.any():
        raise Error(f"{name}: expected finite float32 numbers, got {_first(given, wrong, first)}")
    wrong = np.asarray((labels < low) | (labels > high))
    if wrong.any():
        raise Error(
            f"{name}: expected numbers of {low:g}..{high:g}, got {_first(given, wrong, first)}"
        )
    return labels


def _numeric(labels: Any, first: int, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype.kind in "biu" or (labels.dtype.kind == "f" and labels.dtype.itemsize >= 4):
        fine = labels
    elif labels.dtype.kind == "f" or labels.dtype.name == "bfloat16":
        fine = labels.astype(np.float32)
    elif not labels.size:
        raise Error(f"{name}: expected numbers, got dtype {labels.dtype}")
    else:
        place = f"image {first}" if labels.ndim else "all"
        raise Error(
            f"{name}: expected numbers, got dtype {labels.dtype}, such as {labels.flat[0]!r} in "
            f"{place}; number the classes from 0, or give one array of numbers"
        )
    if not fine.ndim:
        raise Error(f"{name}: expected an array (images, ...), got one number")
    return fine


def _distributions(labels: np.ndarray, first: int, name: str) -> np.ndarray:
    rows = labels.astype(np.float32)
    off = ~np.all(np.isfinite(rows) & (rows >= 0), axis=-1)
    off = np.asarray(off | (np.abs(np.where(off[..., None], 0, rows).sum(-1) - 1) > _OFF))
    if off.any():
        index = tuple(np.argwhere(off)[0])
        row = np.array2string(labels[index], threshold=8, precision=4)
        raise Error(
            f"{name}: expected distributions, rows of 0..1 that sum to 1 such as one-hot, got "
            f"{row} in {_place(index, first)}{_others(off)}"
        )
    return rows


def _are_from_one(labels: np.ndarray, classes: int) -> bool:
    finite = labels[np.isfinite(labels)]
    return bool(finite.size and finite.min() == 1 and finite.max() == classes)


def _first(labels: np.ndarray, wrong: np.ndarray, first: int) -> str:
    index = tuple(np.argwhere(wrong)[0])
    return f"{labels[index]} in {_place(index, first)}{_others(wrong)}"


def _place(index: tuple[Any, ...], first: int) -> str:
    place = f" at {tuple(int(i) for i in index[1:])}" if len(index) > 1 else ""
    return f"image {first + int(index[0])}{place}"


def _others(wrong: np.ndarray) -> str:
    images = int(wrong.reshape(len(wrong), -1).any(1).sum()) - 1
    return f" (and in {images} more images)" if images else ""


def _text(sizes: tuple[int | None, ...]) -> str:
    return f"({', '.join(['images', *('any' if s is None else str(s) for s in sizes)])})"
