"""Sizes and batches: what the model, the user and the data say of them."""

import keras
import numpy as np
import pytest
from keras import layers

from tfdwd import shapes
from tfdwd.errors import Error


def model_of(*declared):
    inputs = [keras.Input(shape, name=name) for name, shape in zip("ab", declared, strict=False)]
    outputs = [layers.Activation("relu")(x) for x in inputs]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name="net")


OPEN, FIXED, ROW = (None, None, 3), (8, 6, 3), (5,)


@pytest.mark.parametrize(
    ("declared", "said", "images", "expected"),
    [
        ([FIXED], None, None, [(8, 6, 3)]),
        ([FIXED], (8, 6, 3), None, [(8, 6, 3)]),
        ([OPEN], [4, np.int64(7), 3], None, [(4, 7, 3)]),
        ([OPEN], [(4, 7, 3)], None, [(4, 7, 3)]),
        ([OPEN], {"a": (4, 7, 3)}, None, [(4, 7, 3)]),
        ([OPEN], None, [(2, 9, 9, 3)], [(9, 9, 3)]),
        ([OPEN], (9, 9, 3), [(2, 9, 9, 3)], [(9, 9, 3)]),
        ([(4, None, 3)], None, [(2, 4, 9, 3)], [(4, 9, 3)]),
        ([OPEN, ROW], {"a": (4, 7, 3)}, None, [(4, 7, 3), (5,)]),
        ([OPEN, ROW], [(4, 7, 3), (5,)], None, [(4, 7, 3), (5,)]),
        ([OPEN, OPEN], {"b": (4, 4, 3)}, [(2, 9, 9, 3), (2, 4, 4, 3)], [(9, 9, 3), (4, 4, 3)]),
        ([()], None, [(2,)], [()]),
    ],
    ids=str,
)
def test_sizes(declared, said, images, expected):
    arrays = None if images is None else [np.zeros(shape) for shape in images]
    assert shapes.of_inputs(model_of(*declared), said, arrays) == expected


@pytest.mark.parametrize(
    ("declared", "said", "images", "message"),
    [
        ([OPEN], None, None, r"input 'a' of model 'net' leaves sizes open, \(any, any, 3\): pass "
         r"data, or .* input_shape=\(224, 224, 3\)"),
        ([FIXED, OPEN], None, None, r"'b' .* such as input_shape=\{'b': \(224, 224, 3\)\}"),
        ([OPEN, OPEN], {"a": (4, 4, 3)}, None, "'b' of model 'net' leaves sizes open"),
        ([FIXED], (8, 8, 3), None, r"expected \(8, 6, 3\) for input 'a', got \(8, 8, 3\)"),
        ([OPEN], (4, 4, 1), None, r"expected \(any, any, 3\) for input 'a', got \(4, 4, 1\)"),
        ([OPEN], (1, 4, 4, 3), None, "got .*; leave the batch axis out"),
        ([OPEN], (4, 4, 3), [(2, 9, 9, 3)], r"says \(4, 4, 3\), but the data is \(9, 9, 3\)"),
        ([OPEN], {"x": (4, 4, 3)}, None, r"names of the inputs \['a'\], got \['x'\]"),
        ([OPEN, OPEN], (4, 4, 3), None, r"one shape for each of the inputs \['a', 'b'\]"),
        ([OPEN], (4, None, 3), None, r"one shape for each .*got \(4, None, 3\)"),
        ([OPEN], {"a": (4.0, 4, 3)}, None, r"whole numbers from 1, .* got \(4.0, 4, 3\)"),
        ([OPEN], {"a": (0, 4, 3)}, None, r"whole numbers from 1"),
        ([OPEN], "4x4x3", None, "got '4x4x3'"),
        ([OPEN], 4, None, "got 4"),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_nobody_tells_or_that_contradict(declared, said, images, message):
    arrays = None if images is None else [np.zeros(shape) for shape in images]
    with pytest.raises(Error, match=message):
        shapes.of_inputs(model_of(*declared), said, arrays)


def test_the_batch_that_a_model_has():
    assert shapes.own_batch(model_of(FIXED).inputs) is None
    fixed = keras.Sequential([keras.Input(batch_shape=(8, 4)), layers.Dense(2)])
    assert shapes.own_batch(fixed.inputs) == 8


def test_batches_of_one_size_whatever_the_count():
    seen = []

    def run(arrays):
        seen.append([array.tolist() for array in arrays])
        return [arrays[0] + arrays[1], np.sum(arrays[0]), np.arange(len(seen))]

    images = [np.arange(5), 10 * np.arange(5)]
    added, total, ragged = shapes.in_batches(run, images, 2)
    assert seen[2] == [[4, 4], [40, 40]]  # filled up with the last image
    assert added.tolist() == [0, 11, 22, 33, 44]
    assert total.tolist() == [1, 5, 8]
    assert ragged.tolist() == [0, 0, 1, 0, 1, 2]
