"""What an output is, which labels fit it, and how outputs are named."""

import subprocess
import sys
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import layers

from tfdwd import outputs
from tfdwd.errors import Error

SOURCE = np.random.default_rng(0)


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (_softmax(SOURCE.normal(size=(5, 4))), "probabilities"),
        (_softmax(SOURCE.normal(size=(2, 3, 5, 4))), "probabilities"),
        (_softmax(SOURCE.normal(size=(2, 4))).astype(np.float16), "probabilities"),
        (np.array([[0.5, 0.5], [np.nan, 1]]), "probabilities"),
        (np.full((2, 2), np.nan), "values"),
        (SOURCE.normal(size=(5, 4)), "values"),
        (SOURCE.uniform(size=(5, 1)), "values"),  # one sigmoid
        (np.ones((5, 1)), "values"),
        (SOURCE.uniform(size=(5, 4)), "values"),  # many sigmoids
        (SOURCE.uniform(size=(2, 3, 3, 3)), "values"),  # an image
        (np.array([[1.5, -0.5]]), "values"),
        (np.ones(5), "values"),
        (np.zeros((0, 3)), "values"),
    ],
)
def test_kinds_are_found(values: np.ndarray, kind: str) -> None:
    assert outputs.kind_of(values) == kind


def test_the_user_may_say_otherwise() -> None:
    values = [_softmax(SOURCE.normal(size=(5, 4))), SOURCE.normal(size=(5, 4))]
    names = ["scores", "boxes"]
    assert outputs.kinds(values, names) == ["probabilities", "values"]
    assert outputs.kinds(values, names, "values") == ["values", "values"]
    assert outputs.kinds(values, names, {"boxes": "logits"}) == ["probabilities", "logits"]
    with pytest.raises(Error, match="expected one of probabilities, logits, values for 'scores'"):
        outputs.kinds(values, names, "softmax")
    with pytest.raises(
        Error, match=r"outputs: expected names of the outputs \['scores', 'boxes'\], got"
    ):
        outputs.kinds(values, names, {"box": "values"})
    with pytest.raises(Error, match="'one' cannot be logits, whose last axis"):
        outputs.kinds([np.ones((5, 1))], ["one"], "logits")


def test_what_is_given_by_output() -> None:
    assert outputs.by_output("a", ["x", "y"], "loss") == ["a", "a"]
    assert outputs.by_output(["a", "b"], ["x", "y"], "loss") == ["a", "b"]
    with pytest.raises(Error, match=r"loss: expected one for each of the outputs .*, got 1"):
        outputs.by_output(["a"], ["x", "y"], "loss")


def test_outputs_are_named_by_key_or_layer() -> None:
    x = keras.Input((4,))
    one, two = layers.Dense(2, name="one")(x), layers.Dense(3, name="two")(x)
    halves = keras.ops.split(x, 2, axis=-1)
    assert outputs.names_of(keras.Model(x, one)) == ["one"]
    assert outputs.names_of(keras.Model(x, [two, one])) == ["two", "one"]
    assert outputs.names_of(keras.Model(x, {"z": one, "b": two})) == ["b", "z"]
    assert outputs.names_of(keras.Model(x, {"z": one})) == ["z"]
    assert outputs.names_of(keras.Model(x, {"z": [one, two], "a": x})) == ["a", "z/0", "z/1"]
    first, second = outputs.names_of(keras.Model(x, halves))
    assert second == f"{first}_1"
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="last")])
    assert outputs.names_of(model) == ["last"]


CLASSES: dict[str, tuple[Any, tuple[int | None, ...]]] = {
    "numbers": ([2, 0], (3,)),
    "a column": ([[2], [0]], (3,)),
    "whole floats": ([2.0, 0.0], (3,)),
    "bfloat16": (np.array([2, 0], ml_dtypes.bfloat16), (3,)),
    "one-hot": (np.eye(3)[[2, 0]], (3,)),
    "booleans": (np.eye(3, dtype=bool)[[2, 0]], (3,)),
    "soft": (np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]), (3,)),
    "dense": (np.array([2, 0])[:, None, None] * np.ones((2, 4, 5), int), (4, 5, 3)),
    "dense, an axis": (np.array([2, 0])[:, None, None, None] * np.ones((2, 4, 5, 1)), (4, 5, 3)),
    "dense, one-hot": (np.eye(3)[np.array([2, 0])[:, None, None] * np.ones((2, 4, 5), int)],
                       (None, None, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_labels_of_classes(case: str) -> None:
    labels, shape = CLASSES[case]
    found = outputs.class_numbers(np.asarray(labels), shape)
    assert found.dtype == np.int64
    expected = np.array([2, 0]).reshape(2, *(1,) * (found.ndim - 1)) * np.ones_like(found)
    np.testing.assert_array_equal(found, expected)
    kept = outputs.class_labels(np.asarray(labels), shape)
    distributions = "one-hot" in case or case in ("booleans", "soft")
    assert kept.ndim == len(shape) + distributions
    if distributions:
        np.testing.assert_allclose(kept, np.asarray(labels, np.float32))


WRONG: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "too large": ([0, 3], (3,), r"labels: expected class numbers of 0..2, got 3 in image 11$"),
    "negative": ([0, 1, -1], (3,), "got -1 in image 12"),
    "from one": ([1, 3, 2, 3], (3,), r"got 3 in image 11 \(and in 1 more images\); the labels seem "
                 "to count from 1"),
    "NaN": ([0, np.nan], (3,), "got nan in image 11"),
    "infinity": ([0, np.inf], (3,), "got inf in image 11"),
    "a fraction": ([0.5, 1], (3,), "got 0.5 in image 10"),
    "text": (["cat", "dog"], (3,), "got dtype <U3, such as .*'cat'.* in image 10"),
    "objects": (np.array([None, 3], object), (3,), "got dtype object, such as None in image 10"),
    "complex": ([1j], (3,), "expected numbers, got dtype complex128"),
    "one number": (3, (3,), "expected an array"),
    "one-hot of five": (np.eye(5), (3,), r"so \(images\) or \(images, 3\), got \(images, 5\)"),
    "many axes": (np.zeros((2, 4, 4)), (3,), r"got \(images, 4, 4\)"),
    "no distribution": ([[0, 1, 0], [1, 1, 0]], (3,), r"got \[1 1 0\] in image 11"),
    "NaN in one-hot": ([[0, 1, 0], [np.nan, 1, 0]], (3,), r"got \[nan +1. +0.\] in image 11"),
    "a dense one": (np.arange(8).reshape(2, 2, 2), (2, 2, 7), r"got 7 in image 11 at \(1, 1\)"),
    "dense, other size": (np.zeros((2, 3, 2)), (2, 2, 7), r"so \(images, 2, 2\) or"),
    "dense rows": (np.full((2, 2, 2, 7), 0.5), (2, 2, 7), r"in image 10 at \(0, 0\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_labels_that_are_no_class(case: str) -> None:
    labels, shape, message = WRONG[case]
    with pytest.raises(Error, match=message):
        outputs.class_labels(np.asarray(labels), shape, first=10)


def test_labels_that_are_numbers() -> None:
    found = outputs.value_labels(np.array([[1, 2]], np.uint8))
    assert found.dtype == np.float32 and found.tolist() == [[1, 2]]
    with pytest.raises(Error, match=r"boxes: expected finite .* got nan in image 5 at \(1,\)"):
        outputs.value_labels(np.array([[1, 2], [3, np.nan]]), first=4, name="boxes")
    with pytest.raises(Error, match=r"expected finite float32 numbers, got 1e.300 in image 0"):
        outputs.value_labels(np.array([1e300]))
    with pytest.raises(Error, match=r"expected numbers of 0..1, got 2.0 in image 1"):
        outputs.value_labels(np.array([0.0, 2.0]), low=0, high=1)


def test_a_board_without_tensorflow_can_import_it() -> None:
    code = "import sys, tfdwd.outputs; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
