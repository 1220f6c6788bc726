"""What a user gives for an option: its type and range, with one clear error.

Imports nothing heavy, so that `benchmarking` runs on a board without TensorFlow.
"""

import math
import numbers
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdwd.errors import Error

if TYPE_CHECKING:
    import keras


def whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number within a range, both ends included.

    Raises:
      tfdwd.Error: something else; names the option.

    Example:
      >>> whole("threads", np.int64(4), 1)
      4
    """
    right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        range_text = f"of at least {low}" if high is None else f"of {low}..{high}"
        raise Error(f"{name}: expected a whole number {range_text}, got {value!r}")
    return int(value)


def trainable(model: "keras.Model") -> None:
    """Refuses a model without weights that can be trained.

    Args:
      model: of Keras or tf_keras, built.

    Raises:
      tfdwd.Error: names the model.
    """
    if not model.trainable_weights:
        raise Error(
            f"model {model.name!r}: expected weights that can be trained, got none; set trainable "
            "to True"
        )


def number(name: str, value: Any) -> None:
    """Refuses what is no finite number of at least 0.

    Raises:
      tfdwd.Error: names the option.
    """
    right = isinstance(value, int | float | np.integer | np.floating)
    if not right or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise Error(f"{name}: expected a finite number of 0 or more, got {value!r}")


def positive(name: str, value: Any) -> None:
    """Checks that an option is a finite number above 0.

    Raises:
      tfdwd.Error: it is not; the message starts with ``name``.
    """
    number(name, value)
    if not value:
        raise Error(f"{name}: expected more than 0, got {value}")


def switches(**values: Any) -> None:
    """Refuses what is neither True nor False: "false" and NaN would count as true.

    Raises:
      tfdwd.Error: names the option.
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise Error(f"{name}: expected True or False, got {value!r}")


def choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuses what is none of some words.

    Raises:
      tfdwd.Error: names the option.
    """
    if not isinstance(value, str) or value not in known:
        raise Error(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def patterns(name: str, value: Any) -> list[str]:
    """Names or patterns, given as one text, a list of texts, or None.

    Raises:
      tfdwd.Error: something else; names the option.

    Example:
      >>> patterns("include", "conv*")
      ['conv*']
    """
    found = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(found, list | tuple | set | frozenset) or not all(
        isinstance(pattern, str) for pattern in found
    ):
        raise Error(f"{name}: expected a name or pattern, or a list of them, got {value!r}")
    return list(found)


def path(name: str, value: Any) -> Path:
    """A path, given as text or as an `os.PathLike` of text.

    Raises:
      tfdwd.Error: something else, no text at all, or text that no path can hold; names the option.

    Example:
      >>> path("folder", "models").name
      'models'
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text:
        raise Error(f"{name}: expected a path, as text or a pathlib.Path, got {value!r}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise Error(f"{name}: expected a path that this system can hold, got {value!r}") from error
    if "\0" in text:
        raise Error(f"{name}: expected a path, got one with a null character: {value!r}")
    return Path(text)
