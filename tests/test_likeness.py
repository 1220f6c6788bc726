"""How far outputs are from the original's, against the definition written out."""

import keras
import numpy as np
import pytest

from tfdwd.likeness import Reference

IMAGES = np.random.default_rng(0).normal(size=(37, 4)).astype(np.float32)


def network(*outputs):
    """A model of 4 values whose outputs are such functions of them."""
    x = keras.Input((4,))
    return keras.Model(x, [output(x) for output in outputs])


def likeness(wanted, found):
    return Reference(network(*wanted), [IMAGES]).likeness(network(*found))


def test_probabilities():
    found = likeness([keras.ops.softmax], [lambda x: keras.ops.softmax(2 * x)])
    p, q = (np.exp(scale * IMAGES.astype(float)) for scale in (1, 2))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    assert found.loss == pytest.approx(np.mean(np.sum(p * np.log(p / q), 1)), rel=1e-5)
    assert found.agreement == 1.0  # the same order
    turned = likeness([keras.ops.softmax], [lambda x: keras.ops.softmax(-x)])
    assert turned.agreement == np.mean(IMAGES.argmax(1) == IMAGES.argmin(1)) == 0.0


def test_values_are_in_units_of_the_originals_variance():
    found = likeness([lambda x: x], [lambda x: 0.9 * x])
    expected = np.mean((0.1 * IMAGES) ** 2) / np.mean((IMAGES - IMAGES.mean(0)) ** 2)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.agreement == pytest.approx(1 - expected, rel=1e-5)
    assert likeness([lambda x: x], [lambda x: -5 * x]).agreement == 0.0


def test_whole_numbers_and_several_outputs():
    def sign(x):
        return keras.ops.cast(x > 0, "int32")

    def shifted(x):
        return keras.ops.cast(x > 0.5, "int32")

    same = np.mean((IMAGES > 0) == (IMAGES > 0.5))
    found = likeness([sign], [shifted])
    assert found.loss == pytest.approx(1 - same) and found.agreement == pytest.approx(same)
    both = likeness([sign, lambda x: x], [shifted, lambda x: 0.9 * x])
    alone = likeness([lambda x: x], [lambda x: 0.9 * x])
    assert both.loss == pytest.approx(found.loss + alone.loss)
    assert both.agreement == pytest.approx((found.agreement + alone.agreement) / 2)
