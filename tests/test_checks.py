"""Types and ranges of what a user gives for an option."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdwd import checks
from tfdwd.errors import Error

_NO_NUMBERS = (None, "1", b"1", [1], {}, object(), True, np.array(1), complex(1))


def test_whole_numbers_of_every_library() -> None:
    for value in (1, np.int64(1), np.uint8(1)):
        assert checks.whole("rank", value, 1, 1) == 1


@pytest.mark.parametrize("value", [*_NO_NUMBERS, 0, -1, 4, 1.0, 2.5, np.nan, np.inf, 10**30])
def test_all_else_is_no_whole_number(value: Any) -> None:
    with pytest.raises(Error, match=r"^rank: expected a whole number of 1\.\.3, got "):
        checks.whole("rank", value, 1, 3)


@pytest.mark.parametrize("value", [*_NO_NUMBERS, -1, -1e-9, np.nan, np.inf])
def test_no_number(value: Any) -> None:
    with pytest.raises(Error, match=r"^peak: expected a finite number of 0 or more, got "):
        checks.number("peak", value)


def test_numbers() -> None:
    for value in (0, 0.0, 10**30, np.float16(1), np.int8(3)):
        checks.number("peak", value)


@pytest.mark.parametrize("value", [None, 0, 1, "false", np.nan, [], object()])
def test_a_switch_is_on_or_off(value: Any) -> None:
    checks.switches(resume=True, xnnpack=np.False_)
    with pytest.raises(Error, match=r"^resume: expected True or False, got "):
        checks.switches(xnnpack=True, resume=value)


@pytest.mark.parametrize("value", [None, 1, "", "on", ["one"], object(), np.array("one")])
def test_a_choice(value: Any) -> None:
    checks.choice("stack", "one", ("one", "two"))
    with pytest.raises(Error, match=r"^stack: expected one of one, two, got "):
        checks.choice("stack", value, ("one", "two"))


def test_patterns() -> None:
    assert checks.patterns("include", None) == []
    assert checks.patterns("include", "a") == ["a"]
    assert checks.patterns("include", ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize("value", [0, 1, 2.5, b"a", [1], [None], {"a": 1}, np.array(1), object()])
def test_no_patterns(value: Any) -> None:
    with pytest.raises(
        Error, match=r"^include: expected a name or pattern, or a list of them, got"
    ):
        checks.patterns("include", value)


def test_paths() -> None:
    assert checks.path("folder", "a") == checks.path("folder", Path("a")) == Path("a")


@pytest.mark.parametrize("value", [None, 1, 2.5, "", b"a", ["a"], "a\0b", "a\ud800", object()])
def test_no_path(value: Any) -> None:
    with pytest.raises(Error, match=r"^folder: expected a path"):
        checks.path("folder", value)
