"""Records: frozen dataclasses that check their own fields and go to JSON and back.

A field's annotation says which values are right, ranges too: ``rank: Count``. It is checked when a
record is made, by hand or from JSON that somebody edited. Imports nothing heavy.
"""

import dataclasses
import difflib
import functools
import json
import math
import numbers
import sys
import typing
from typing import Annotated, Any, TypeVar

import msgspec

from tfdwd.errors import Error

# What a field may be annotated with, beside bool, str, int, float, None, other records, and tuples
# and dicts of these. Plain floats from JSON are finite, too.
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]  # finite
PositiveAmount = Annotated[float, msgspec.Meta(gt=0, le=sys.float_info.max)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Kind = TypeVar("Kind")


class Record:
    """Base of a frozen dataclass that checks its fields and goes to JSON and back.

    A record that has rules of its own calls this `__post_init__` first in its own.

    Raises:
      tfdwd.Error: a field is of another type or out of its range; the message has its path.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Stack(Record):
      ...     name: str
      ...     ranks: tuple[Count, ...] = ()
      >>> Stack.from_json('{"name": "conv", "ranks": [1, 2]}')
      Stack(name='conv', ranks=(1, 2))
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, hint in _hints(kind).items():
            value = converted(hint, getattr(self, name), f"{kind.__name__}.{name}")
            # A list becomes the tuple that the annotation promises, so that equal records are.
            object.__setattr__(self, name, value)

    def to_json(self) -> str:
        """The record as indented JSON; `from_json` reads it back.

        Raises:
          tfdwd.Error: a number is not finite, which JSON cannot say.
        """
        return dumps(dataclasses.asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls: type[Kind], text: str) -> Kind:
        """Reads what `to_json` wrote, here or in an earlier version, edited or not.

        Args:
          text: JSON. Fields that have a default may be missing; unknown ones may not be there.

        Raises:
          tfdwd.Error: the text is no JSON, or says something else; the message has the path of
            the wrong field.
        """
        try:
            return typing.cast(Kind, converted(cls, loads(text), ""))
        except Error as error:
            raise Error(f"expected the JSON of a {cls.__name__}: {error}") from error


def dumps(value: Any) -> str:
    """Writes JSON with a newline at the end.

    Raises:
      tfdwd.Error: a number is not finite.

    Example:
      >>> dumps({"kib": 3})
      '{\\n  "kib": 3\\n}\\n'
    """
    try:
        return json.dumps(value, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise Error(f"cannot be written as JSON: {error}") from error


def loads(text: str) -> Any:
    """Reads JSON strictly: no NaN, no infinities, no number too large, no key twice.

    Raises:
      tfdwd.Error: the text is something else.

    Example:
      >>> loads('{"kib": 3}')
      {'kib': 3}
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_finite,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise Error("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise Error(f"it is no JSON: {error}") from error
    except ValueError as error:  # ours, or a whole number of thousands of digits
        raise Error(str(error)) from error


def converted(hint: Any, value: Any, path: str) -> Any:
    """A value of JSON, or of Python, as the type that an annotation names.

    Args:
      hint: the annotation.
      value: what came.
      path: of the value, for errors.

    Raises:
      tfdwd.Error: the value is no such thing; the message starts with the path of the wrong part.

    Example:
      >>> converted(tuple[Count, ...], [1, 2], "ranks")
      (1, 2)
      >>> converted(dict[str, Count], {"conv": -1}, "ranks")
      Traceback (most recent call last):
      tfdwd.errors.Error: ranks['conv']: expected int >= 0, got -1
    """
    arguments = typing.get_args(hint)
    if type(None) in arguments and value is not None:
        [option] = [kind for kind in arguments if kind is not type(None)]
        return converted(option, value, path)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _made(hint, value, path)
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        return {
            converted(arguments[0], key, path): converted(arguments[1], item, f"{path}[{key!r}]")
            for key, item in value.items()
        }
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(each) != len(value):
            raise Error(f"{path}: expected {len(each)} values, got {len(value)}")
        return tuple(
            converted(item_hint, item, f"{path}[{number}]")
            for number, (item_hint, item) in enumerate(zip(each, value, strict=True))
        )
    kind: Any = type(value)
    if isinstance(value, numbers.Real) and kind not in (bool, int, float):  # NumPy's
        value = int(value) if isinstance(value, numbers.Integral) else float(value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        message = str(error).replace("`", "").replace("Expected", "expected")
        got = "" if ", got" in message else f", got {value!r:.80}"
        raise Error(f"{path}: {message}{got}" if path else f"{message}{got}") from error
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        message = f"expected text that UTF-8 can hold, got {value!r:.80}"
        raise Error(f"{path}: {message}" if path else message) from error


def _made(kind: Any, value: dict[str, Any], path: str) -> Any:
    """A record from the values of its fields."""
    hints, begin = _hints(kind), f"{path}." if path else ""
    for key in value:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, 1)
            raise Error(
                f"{begin}{key}: no such field; "
                + (f"did you mean {close[0]!r}?" if close else f"there are {', '.join(hints)}")
            )
    for field in dataclasses.fields(kind):
        has_default = {field.default, field.default_factory} != {dataclasses.MISSING}
        if field.name not in value and not has_default:
            raise Error(f"{begin}{field.name}: this field is missing")
    fields = {name: converted(hints[name], item, begin + name) for name, item in value.items()}
    try:
        return kind(**fields)
    except Error as error:
        raise Error(f"{path}: {error}" if path else str(error)) from error


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Error(f"expected each key once, got {twice!r} twice")
    return found


def _finite(text: str) -> float:
    """The numbers that JSON allows; Python reads more."""
    number = float(text)
    if not math.isfinite(number):
        raise Error(f"expected finite numbers, got {text:.40}")
    return number
