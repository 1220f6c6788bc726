"""Whole networks run as at inference, whatever their layers' defaults say."""

import keras
import numpy as np
import pytest
from cases import HIDING, NETWORKS, difference, inputs_of, network, outputs_of, randomised
from keras import layers

import tfdwd
from tfdwd import execution, inference


@keras.saving.register_keras_serializable("tests")
class AlwaysDropout(layers.Dropout):
    """Monte Carlo dropout, as it is often written."""

    def call(self, inputs):
        return super().call(inputs, training=True)


@keras.saving.register_keras_serializable("tests")
class Noisy(layers.Layer):
    """Active by its own default."""

    def call(self, x, training=True):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


@keras.saving.register_keras_serializable("tests")
class HoldsNoise(layers.Layer):
    """No training of its own, but layers inside that are active by default."""

    def __init__(self, **options):
        super().__init__(**options)
        self.turn = layers.RandomFlip()

    def call(self, x):
        return self.turn(x)


@keras.saving.register_keras_serializable("tests")
class NeverOff(layers.Layer):
    """Calls what is random inside with a mode of its own; cannot be opened."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv = layers.Conv2D(8, 3, padding="same", name="inside")
        self.turn, self.noise = layers.RandomFlip(), layers.GaussianNoise(1.0)
        self.drops = [layers.SpatialDropout2D(0.5), AlwaysDropout(0.5)]

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        x = self.noise(inputs=self.turn(self.conv(x), training=True), training=True)
        return self.drops[1](self.drops[0](x, training=True))


def with_inside(middle, **call):
    keras.utils.set_random_seed(1)
    x = image = keras.Input((16, 16, 4))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(x)
    x = middle(x, **call)
    x = layers.Conv2D(8, 3, padding="same", name="b")(x)
    return randomised(keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))


ACTIVE = {
    "RandomTranslation": (lambda: layers.RandomTranslation(0.4, 0.4), {}),
    "RandomContrast": (lambda: layers.RandomContrast(0.5), {}),
    "own default": (Noisy, {}),
    "layers inside": (HoldsNoise, {}),
    "explicit": (lambda: layers.Dropout(0.5), {"training": True}),
    "Monte Carlo": (lambda: AlwaysDropout(0.5), {}),
    "never off": (NeverOff, {}),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_nothing_is_active_in_calibration(name):
    make, call = ACTIVE[name]
    model = with_inside(make(), **call)
    data = np.random.default_rng(0).normal(size=(48, 16, 16, 4)).astype(np.float32)
    student, report = tfdwd.decompose(
        model, data, rank={"a": 8, "b": 8}, method="sequential", return_report=True
    )
    assert all(layer.error < 1e-3 for layer in report.layers if layer.replaced)
    found, expected = (np.asarray(execution.inference(m)(data)) for m in (student, model))
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())
    student, again = (tfdwd.decompose(model, data) for _ in range(2))
    for a, b in zip(student.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_student_keeps_what_the_user_wants_active():
    model = with_inside(AlwaysDropout(0.5))
    student = tfdwd.decompose(model)
    x = np.ones((4, 16, 16, 4), np.float32)
    assert np.abs(student(x) - student(x)).max() > 0
    np.testing.assert_array_equal(*(execution.inference(student)(x) for _ in range(2)))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["Monte Carlo", "never off"])
def test_evaluation_draws_nothing(name, wrapped):
    model = with_inside(ACTIVE[name][0]())
    if wrapped:
        x = keras.Input((16, 16, 4))
        model = keras.Model(x, model(x))
    images = np.random.default_rng(0).normal(size=(5, 16, 16, 4)).astype(np.float32)
    exact = np.asarray(execution.inference(model)(images))
    assert tfdwd.evaluate(model, (images, exact), metric="mse")["mse"] < 1e-10
    assert tfdwd.evaluate(model, images, reference=model)["agreement"] == pytest.approx(1)


class WithOwnCall(keras.Model):
    """A Functional model that computes something else than its graph."""

    def call(self, inputs, training=None):
        return super().call(inputs, training=training) + 1


def test_a_model_with_a_call_of_its_own_is_called():
    x = keras.Input((4,))
    model = WithOwnCall(x, layers.Dropout(0.5)(x))
    ones = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(execution.inference(model)(ones), 2 * ones)
    np.testing.assert_array_equal(execution.predictor(model)([ones])[0], 2 * ones)


@pytest.mark.parametrize("name", [*NETWORKS, *HIDING])
def test_inference_is_the_model_at_inference(name):
    model = network(name)
    inputs = inputs_of(model)
    found = execution.inference(model)(inputs)
    keras.tree.assert_same_structure(found, model(inputs, training=False))
    flat = [np.asarray(keras.ops.cast(y, "float32")) for y in keras.tree.flatten(found)]
    tolerance = 2e-2 if name == "mixed precision" else 1e-5
    assert difference(flat, outputs_of(model, inputs)) < tolerance


def test_names_that_tensorflow_does_not_take_are_given_back():
    conv, inner = layers.Conv2D(4, 3, name="conv[0]"), layers.Dense(2, name="fine")
    with inference.names_for_tensorflow([conv, inner, object()]):
        assert (conv.name, inner.name) == ("xconv_0_", "fine")
    assert conv.name == "conv[0]"


def test_activations_of_stacks_have_names_that_tensorflow_takes():
    parts = [
        layers.Conv2D(6, 3, activation=layers.ReLU(6.0, name=name), name=f"conv {name}")
        for name in ("relu[0]", "a.relu:1")
    ]
    model = randomised(keras.Sequential([keras.Input((8, 8, 6)), *parts]))
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 6)).astype(np.float32)
    student = tfdwd.decompose(model, images)
    activations = [getattr(layer, "activation", None) for layer in student.layers]
    names = [x.name for x in activations if isinstance(x, layers.ReLU)]
    assert names == ["relu[0]", "a.relu:1"]
