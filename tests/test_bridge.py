import keras
import numpy as np
import pytest

import tfdwd
from tfdwd import bridge
from tfdwd.batches import pack
from tfdwd.errors import Error

tf_keras = pytest.importorskip("tf_keras")


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype(np.float32)


def sequential():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((12, 12, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="taps"),
            layers.SeparableConv2D(5, 3),
            layers.Conv2DTranspose(3, 3, strides=2, use_bias=False),
            layers.Conv2D(6, 3, groups=3, name="grouped"),
            layers.Flatten(),
            layers.Dense(4, activation="softmax"),
        ]
    )


def functional():
    """Nested models: one Sequential used twice, one Functional, one that gives the output."""
    layers = tf_keras.layers
    shared = tf_keras.Sequential(
        [layers.InputLayer((8, 8, 3)), layers.Conv2D(3, 3, padding="same")]
    )
    part = tf_keras.Input((8, 8, 3))
    inner = tf_keras.Model(part, layers.DepthwiseConv2D(3)(part), name="inner")
    head = tf_keras.Sequential([layers.InputLayer((6, 6, 3)), layers.GlobalMaxPooling2D()])
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Concatenate()([shared(image), shared(layers.ReLU()(image))])
    return tf_keras.Model(image, head(inner(layers.Conv2D(3, 1)(x))))


def ends_in_functional():
    image, part = tf_keras.Input((8, 8, 3)), tf_keras.Input((8, 8, 3))
    inner = tf_keras.Model(part, tf_keras.layers.Conv2D(3, 3)(part))
    return tf_keras.Model(image, inner(tf_keras.layers.ReLU()(image)))


@pytest.mark.parametrize("make", [sequential, functional, ends_in_functional])
def test_a_tf_keras_model_becomes_a_keras_3_model_with_the_same_outputs(make):
    tf_keras.utils.set_random_seed(0)
    model = make()
    x = images(*model.input_shape[1:])
    converted = bridge.to_keras3(model)
    assert isinstance(converted, keras.Model)
    expected = model(x).numpy()
    found = converted(pack(converted, [x]))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    # The layers are Keras' own, so that the model loads anywhere.
    for layer in converted._flatten_layers(include_self=False):
        assert type(layer).__module__.startswith("keras.")


def test_several_inputs_and_outputs_keep_their_names():
    first, second = tf_keras.Input((4,), name="b"), tf_keras.Input((4,), name="a")
    outputs = {"o": tf_keras.layers.Dense(2)(first), "p": tf_keras.layers.Dense(1)(second)}
    model = tf_keras.Model({"b": first, "a": second}, outputs)
    given = {"b": images(4), "a": images(4, seed=1)}
    found = bridge.to_keras3(model)(given)
    for name, expected in model(given).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_decompose_takes_a_tf_keras_model_and_leaves_it_as_it_was():
    model = sequential()
    before = [array.copy() for array in model.get_weights()]
    student = tfdwd.decompose(model, rank={"conv": 4})
    x = images(12, 12, 3)
    np.testing.assert_allclose(student(x), model(x), atol=1e-4)
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_keras_3_model_passes_through(classifier):
    assert bridge.to_keras3(classifier) is classifier


@pytest.mark.parametrize(
    "thing", [3, "model.keras", keras.layers.Dense, np.zeros(3), tf_keras.layers.Dense(2)]
)
def test_what_is_no_model_is_an_error(thing):
    with pytest.raises(Error, match=r"expected a Keras model, got .*keras\.models\.load_model"):
        bridge.to_keras3(thing)


def test_a_model_that_keras_3_cannot_load_is_an_error_that_says_so():
    image = tf_keras.Input((8, 8, 3))
    model = tf_keras.Model(image, image + 1, name="sum")
    with pytest.raises(Error, match=r"'sum': .* failed: Unknown layer: 'TFOpLambda'"):
        bridge.to_keras3(model)
