"""Batch norms behind replaced convolutions, re-estimated where that helps."""

import keras
import numpy as np
from keras import layers

from tfdwd import calibration, rebuild


def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(6, 3, name="replaced"),
            layers.BatchNormalization(name="right_behind"),
            layers.ReLU(),
            layers.Conv2D(5, 1, name="kept"),
            layers.BatchNormalization(name="elsewhere"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


IMAGES = [[np.random.default_rng(i).normal(size=(16, 8, 8, 4)).astype("float32")] for i in (0, 1)]


def distance(model, student):
    return sum(float(np.mean(np.square(model(x) - student(x)))) for [x] in IMAGES)


def test_a_drifted_norm_is_refitted_where_that_helps_the_output():
    model = network()
    student = rebuild.rebuild(model, {})
    conv = student.get_layer("kept")
    # As if all before had come out at half the size and off by one: a gain and a bias mend it.
    kernel, bias = conv.get_weights()
    conv.set_weights([kernel * 0.5, bias * 0.5 + 1])
    behind = student.get_layer("right_behind").get_weights()
    before = distance(model, student)
    assert calibration.reestimate_norms(model, student, IMAGES, ["replaced"]) == ["elsewhere"]
    assert distance(model, student) < 1e-6 * before
    for now, then in zip(student.get_layer("right_behind").get_weights(), behind, strict=True):
        np.testing.assert_array_equal(now, then)


def test_norms_stay_as_they_are_where_nothing_is_gained():
    model = network()
    student = rebuild.rebuild(model, {})
    weights = student.get_weights()
    assert calibration.reestimate_norms(model, student, IMAGES, ["replaced"]) == []
    for now, then in zip(student.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)


def test_without_a_replaced_convolution_before_them_norms_are_not_looked_at():
    model = network()
    assert calibration.reestimate_norms(model, rebuild.rebuild(model, {}), IMAGES, []) == []
