"""The Fisher metric against gradients taken image by image."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdwd
from tfdwd import graph
from tfdwd.calibration import fisher_metrics, loss_metric, with_identity

SOURCE = np.random.default_rng(0)


def linear_network(activation=None):
    """A convolution whose response the output sums up with known weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2)),
            layers.Conv2D(4, 3, name="conv"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation=activation),
        ]
    )
    return model, model.get_layer("conv"), model.layers[-1].get_weights()[0]


def raw_metric_of(model, conv, data, **options):
    traced = graph.trace(model)
    return fisher_metrics(traced, [[data]], len(data), [conv], traced.specs, **options)[id(conv)]


def metric_of(*arguments, **options):
    return with_identity(raw_metric_of(*arguments, **options))


def test_only_directions_that_reach_the_output_count_more_than_the_identity():
    model, conv, weights = linear_network()
    metric = metric_of(model, conv, SOURCE.normal(size=(64, 5, 5, 2)).astype(np.float32))
    gradient = metric - np.eye(4)
    silent = np.linalg.svd(weights.T)[2][3]  # what the dense layer does not read
    np.testing.assert_allclose(gradient @ silent, 0, atol=1e-5)
    np.testing.assert_allclose(np.trace(gradient), 4, rtol=1e-6)


def test_labels_are_drawn_from_the_prediction():
    # With probabilities p the likelihood's gradient at the logits has the second moment
    # diag(p) - p p^T; for a constant input it is known, and 16 x 40 draws come near it.
    model, conv, weights = linear_network("softmax")
    data = np.broadcast_to(SOURCE.normal(size=(1, 5, 5, 2)), (512, 5, 5, 2)).astype(np.float32)
    p = np.asarray(model(data[:1]))[0].astype(np.float64)
    expected = weights @ (np.diag(p) - np.outer(p, p)) @ weights.T
    found = metric_of(model, conv, data) - np.eye(4)
    np.testing.assert_allclose(found, expected * 4 / np.trace(expected), atol=0.35)
    assert np.abs(found).max() > 1


def test_half_of_it_times_an_error_is_the_divergence_that_the_error_causes():
    model, conv, _ = linear_network("softmax")
    data = SOURCE.normal(size=(512, 5, 5, 2)).astype(np.float32)
    metric = raw_metric_of(model, conv, data)
    shift = 0.05 * np.array([1.0, -1, 0.5, 2])  # the same at all positions of all images
    before = np.asarray(model(data), np.float64)
    conv.bias.assign_add(shift)
    after = np.asarray(model(data), np.float64)
    divergence = np.mean(np.sum(before * np.log(before / after), axis=1))
    # The metric adds up 9 positions as if their errors were independent; here they are equal and
    # add up 9 times as strongly. 128 draws of labels: a few per cent either way.
    assert divergence == pytest.approx(9 * 0.5 * shift @ metric @ shift, rel=0.25)


def test_a_seed_gives_the_same_metric_and_another_one_another():
    model, conv, _ = linear_network()
    data = SOURCE.normal(size=(32, 5, 5, 2)).astype(np.float32)
    first, again, other = (metric_of(model, conv, data, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


@pytest.mark.parametrize(("images", "used"), [(10, 3), (64, 16), (4096, 128)])
def test_a_quarter_of_the_images_is_used_and_no_more_than_128(images, used):
    counted = []

    @keras.saving.register_keras_serializable("tests")
    class Counter(layers.Layer):
        def call(self, x):
            tf.py_function(lambda t: counted.append(len(t)), [x], [])
            return x

    inputs = keras.Input((4, 4, 2))
    conv = layers.Conv2D(2, 3)
    model = keras.Model(inputs, layers.Flatten()(conv(Counter()(inputs))))
    metric_of(model, conv, np.ones((images, 4, 4, 2), np.float32))
    assert sum(counted) == used + min(used, 8)  # what the outputs are is found on the first 8


def test_a_response_that_no_output_reads_gets_the_identity():
    inputs = keras.Input((4, 4, 2))
    conv = layers.Conv2D(2, 3)
    stopped = layers.Lambda(tf.stop_gradient)(conv(inputs))
    model = keras.Model(inputs, layers.Flatten()(stopped))
    found = metric_of(model, conv, np.ones((8, 4, 4, 2), np.float32))
    np.testing.assert_array_equal(found, np.eye(2))


def softmax_as_an_operation(logits):
    return keras.ops.softmax(logits)


def softmax_times_one(logits):
    return layers.Softmax()(logits) * 1.0


@pytest.mark.parametrize("softmax", [softmax_as_an_operation, softmax_times_one])
def test_probabilities_are_found_on_the_data(softmax):
    """However they are made, the metric is that of a Dense layer with a softmax."""
    model, conv, _ = linear_network("softmax")
    plain, other, _ = linear_network()
    twin = keras.Model(plain.inputs[0], softmax(plain.outputs[0]))
    other.set_weights(conv.get_weights())
    twin.layers[3].set_weights(model.layers[-1].get_weights())
    data = SOURCE.normal(size=(64, 5, 5, 2)).astype(np.float32)
    # Seeds depend on the number of the output's tensor: other labels are drawn.
    expected, found = raw_metric_of(model, conv, data), raw_metric_of(twin, other, data)
    np.testing.assert_allclose(np.trace(found), np.trace(expected), rtol=0.5)
    logits = raw_metric_of(plain, other, data)
    assert np.trace(logits) > 3 * np.trace(expected)


@keras.saving.register_keras_serializable("tests")
class Suppressed(layers.Layer):
    """Boxes, as at the end of a detector: an operation without a gradient."""

    def call(self, x):
        boxes, scores = tf.reshape(x[..., :4], (-1, 64, 1, 4)), tf.reduce_mean(x, -1)
        return tf.image.combined_non_max_suppression(
            boxes, tf.reshape(scores, (-1, 64, 1)), 5, 5, pad_per_class=True
        )[0]

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, 5, 4))


def deaf_network(kind):
    conv = {"padding": "same", "activation": "relu"}
    x = image = keras.Input((8, 8, 8))
    x = layers.Conv2D(8, 3, name="before", **conv)(x)
    if kind == "boxes":
        return keras.Model(image, Suppressed()(x))
    if kind == "area":
        x = layers.Conv2D(8, 3, name="behind", **conv)(layers.Resizing(5, 5, "area")(x))
        return keras.Model(image, x)
    x = keras.ops.round(x) if kind == "round" else keras.ops.argmax(x, axis=-1)
    return keras.Model(image, x)


@pytest.mark.parametrize("kind", ["boxes", "area", "round", "argmax"])
def test_layers_that_no_gradient_reaches_get_the_identity_and_the_report_says_so(kind):
    model = deaf_network(kind)
    data = SOURCE.normal(size=(32, 8, 8, 8)).astype(np.float32)
    _, report = tfdwd.decompose(model, data, return_report=True)
    metrics = {layer.name: layer.metric for layer in report.layers}
    assert metrics.pop("before") == "identity"
    assert set(metrics.values()) <= {"fisher"}
    assert str(report).endswith("fitted alike: before")


def test_without_a_gradient_a_plan_loses_half_a_nat_with_a_whole_response():
    covariance = np.diag([1.0, 3.0])
    metric = loss_metric(np.zeros((2, 2)), covariance)
    assert 0.5 * np.trace(metric @ covariance) == pytest.approx(0.5)
    square = np.diag([1.0, 0.0])
    assert loss_metric(square, covariance) is square


@pytest.mark.parametrize("seed", [2**31, 3_000_000_000, 2**64])
def test_huge_seeds(seed):
    model, conv, _ = linear_network()
    data = SOURCE.normal(size=(16, 5, 5, 2)).astype(np.float32)
    assert np.trace(raw_metric_of(model, conv, data, seed=seed)) > 0
    tfdwd.decompose(model, data, include="conv", seed=seed)
