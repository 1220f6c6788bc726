"""Comparing results of layers."""

import keras
import numpy as np
import pytest

import tfdwd
from tfdwd import differences


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scalars_of_every_precision_are_arrays(dtype):
    scalar = keras.ops.cast(1.5, dtype)
    assert differences.as_array(scalar).shape == () and float(differences.as_array(scalar)) == 1.5
    assert differences.equal([scalar], [scalar])
    assert not differences.equal([scalar], [2 * scalar])


def test_a_network_with_a_scalar_in_bfloat16_is_decomposed():
    image = keras.Input((6, 6, 8), dtype="bfloat16")
    x = keras.layers.Conv2D(8, 3, dtype="bfloat16")(image)
    model = keras.Model(image, {"mean": keras.ops.mean(x), "map": x})
    student = tfdwd.decompose(model, rank=1)
    found = student(np.ones((2, 6, 6, 8)))
    assert found["mean"].shape == () and found["map"].shape == (2, 4, 4, 8)
