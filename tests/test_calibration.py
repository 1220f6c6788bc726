"""What a sweep collects, against features extracted by running whole networks; its queues."""

import collections
import contextlib
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import CONVS, HIDING, NETWORKS, convolutions, inputs_of, network, randomised
from keras import layers

import tfdwd
from tfdwd import calibration, factorize, graph, rebuild
from tfdwd.calibration._rows import patches_at
from tfdwd.errors import Error

IMAGES = 6
IN_MEMORY = "tfdwd.calibration._spool._IN_MEMORY"

# Every position of every image, so that brute force can do the same.
ALL = calibration.Settings(min_rows=10**9)


def exact(conv, collected=None):
    kernel = rebuild.kernel_of(conv)
    return factorize.svd(kernel, min(kernel.shape[1:])), bias_of(conv)


def bad(conv, collected=None):
    """A stack far from the convolution, so that the student's features are its own."""
    return factorize.svd(rebuild.kernel_of(conv), 1), -bias_of(conv)


def bias_of(conv):
    return np.zeros(conv.filters) if conv.bias is None else np.asarray(conv.bias, np.float64)


def swept(traced, batches, convs, solve, settings=ALL, **options):
    """{id(convolution): moments}, {id(convolution): expansion}."""
    found, expansions = {}, {}
    for level in calibration.levels(
        traced, batches, convs, expansions, settings=settings, **options
    ):
        for collected in level:
            conv = collected.conv
            found[id(conv)] = collected.moments
            expansions[id(conv)] = rebuild.expand(conv, *solve(conv, collected))
    return found, expansions


def sweep(model, solve, data=None, **options):
    """As `swept`, over two batches of images."""
    arrays = keras.tree.flatten(inputs_of(model, IMAGES) if data is None else data)
    halves = [[array[:4] for array in arrays], [array[4:] for array in arrays]]
    return swept(graph.trace(model), halves, convolutions(model), solve, **options)


def values_of(model, inputs):
    """Every tensor of a network: {tensor number: array}, run layer by layer."""
    traced = graph.trace(model)
    values = dict(zip(traced.inputs, map(tf.constant, keras.tree.flatten(inputs)), strict=True))
    for call in traced.calls:
        args, kwargs = call.fill(values)
        values.update(
            zip(call.outputs, keras.tree.flatten(call.operation(*args, **kwargs)), strict=True)
        )
    return traced, values


def rows_of(conv, x):
    """im2col by a convolution with unit kernels, (rows, c * q) channel-major."""
    x = tf.cast(x, tf.float32)
    (height, width), c = conv.kernel_size, x.shape[-1]
    units = np.eye(c * height * width, dtype=np.float32).reshape(c, height, width, -1)
    patches = keras.ops.conv(
        x, units.transpose(1, 2, 0, 3), conv.strides, conv.padding, dilation_rate=conv.dilation_rate
    )
    return np.asarray(patches, np.float64).reshape(-1, c * height * width)


def response_of(conv, x):
    kernel = rebuild.kernel_of(conv)
    return rows_of(conv, x) @ kernel.reshape(-1, kernel.shape[2]) + bias_of(conv)


def calls_of(traced, operation):
    return [call for call in traced.calls if call.operation is operation]


def assert_covariances(found, x, y, tolerance=1e-4):
    """Within float32's rounding over some hundred rows; of the scale of each moment."""
    assert found.count == len(x)
    both = np.cov(np.hstack([x, y]), rowvar=False, bias=True)
    d = x.shape[1]
    for part, expected in (
        (found.mean_x, x.mean(axis=0)),
        (found.mean_y, y.mean(axis=0)),
        (found.xx, both[:d, :d]),
        (found.xy, both[:d, d:]),
        (found.yy, both[d:, d:]),
    ):
        np.testing.assert_allclose(part, expected, atol=tolerance * max(1, np.abs(expected).max()))


# ---------------------------------------------------------------------- Moments


def make_moments(x, y, shift=0.0):
    found = calibration.Moments.empty(np.full(x.shape[1], shift), np.full(y.shape[1], shift))
    for start in range(0, len(x), 30):
        found.add_rows(
            x[start : start + 30].astype(np.float32), y[start : start + 30].astype(np.float32)
        )
    return found


@pytest.mark.parametrize("mean", [0, 1000])
def test_moments_are_numpys_covariances(mean):
    source = np.random.default_rng(0)
    x = source.normal(mean, 1, (100, 7)).astype(np.float32)
    y = ((x - mean) @ source.normal(size=(7, 3)) + mean).astype(np.float32)
    # With the shift near the mean, rounding is that of numbers near 1, not near 1e6.
    assert_covariances(make_moments(x, y, mean), x.astype(float), y.astype(float))


def test_moments_add_up_whatever_their_shifts():
    source = np.random.default_rng(1)
    x, y = source.normal(3, 1, (90, 5)), source.normal(-2, 1, (90, 4))
    halves = make_moments(x[:40], y[:40], 3.0) + make_moments(x[40:], y[40:], -1.0)
    assert_covariances(halves, x, y, 1e-5)
    assert_covariances(make_moments(x, y, 2.0), x, y, 1e-5)


def test_changed_responses_are_as_if_they_had_come_so():
    source = np.random.default_rng(2)
    x, y = (source.normal(2, 1, (50, n)).astype(np.float32) for n in (5, 3))
    change = source.normal(size=(50, 3)).astype(np.float32)
    before = make_moments(x, y, 1.5)
    found = before.with_responses_changed(
        [(x[:20], y[:20], change[:20]), (x[20:], y[20:], change[20:])]
    )
    assert_covariances(before, x.astype(float), y.astype(float), 1e-5)
    assert_covariances(found, x.astype(float), (y + change).astype(float), 1e-5)


# ---------------------------------------------------------------------- rows


@pytest.mark.parametrize("case", CONVS)
def test_patches_times_the_kernel_is_the_convolution_there(case):
    model = CONVS[case].model()
    conv = model.get_layer("conv")
    x = inputs_of(model)
    out = np.asarray(conv.convolution_op(tf.constant(x), conv.kernel))
    source = np.random.default_rng(0)
    at = np.stack([source.integers(size, size=(4, 11)) for size in out.shape[1:3]], axis=-1)
    at[:, 0], at[:, 1] = 0, (out.shape[1] - 1, out.shape[2] - 1)
    height, width = out.shape[1:3]
    flat = (np.arange(4)[:, None] * height + at[..., 0]) * width + at[..., 1]
    rows = patches_at(
        conv, tf.constant(x), tf.constant(flat.ravel(), tf.int32), (height, width)
    ).numpy()
    found = rows @ rebuild.kernel_of(conv).reshape(rows.shape[1], -1)
    expected = np.concatenate([image[p[:, 0], p[:, 1]] for image, p in zip(out, at, strict=True)])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("case", CONVS)
def test_moments_of_one_convolution(case):
    model = CONVS[case].model()
    conv = model.get_layer("conv")
    data = inputs_of(model, IMAGES)
    found, _ = sweep(model, exact, data)
    x = rows_of(conv, data)
    assert_covariances(found[id(conv)], x, response_of(conv, data))


# ---------------------------------------------------------------------- networks


def measured_calls(name, traced, operation):
    """Of a layer that feeds itself only the first use can be measured in time."""
    calls = calls_of(traced, operation)
    return calls[:1] if name == "recurrent" else calls


@pytest.mark.parametrize("name", [*NETWORKS, *HIDING])
def test_the_moments_of_networks_whose_student_is_exact(name):
    """Then the student's inputs are the original's, and no shortcut has lost anything."""
    model = network(name)
    found, expansions = sweep(model, exact)
    assert set(found) == set(expansions) == {id(conv) for conv in convolutions(model)}
    traced, values = values_of(model, inputs_of(model, IMAGES))
    tolerance = 2e-2 if name == "mixed precision" else 1e-3
    for conv in convolutions(model):
        inputs = [values[call.inputs[0]] for call in measured_calls(name, traced, conv)]
        x = np.concatenate([rows_of(conv, x) for x in inputs])
        y = np.concatenate([response_of(conv, x) for x in inputs])
        assert_covariances(found[id(conv)], x, y, tolerance)


@pytest.mark.parametrize("name", [*NETWORKS, *HIDING])
def test_x_is_what_the_student_that_comes_out_gives_the_layer(name):
    model = network(name)
    data = inputs_of(model, IMAGES)
    found, expansions = sweep(model, bad, data)
    student = rebuild.rebuild(model, expansions)
    traced, values = values_of(student, data)
    tolerance = 2e-2 if name == "mixed precision" else 1e-3
    for conv in convolutions(model):
        first = expansions[id(conv)].layers[0]
        inputs = [values[call.inputs[0]] for call in measured_calls(name, traced, first)]
        x = np.concatenate([rows_of(conv, x) for x in inputs])
        assert found[id(conv)].count == len(x)
        scale = max(1, np.abs(np.cov(x, rowvar=False)).max())
        np.testing.assert_allclose(found[id(conv)].mean_x, x.mean(axis=0), atol=tolerance * scale)
        np.testing.assert_allclose(
            found[id(conv)].xx, np.cov(x, rowvar=False, bias=True), atol=tolerance * scale
        )


@pytest.mark.parametrize("name", ["sequential", "residual", "siamese", "nested twice", "branches"])
def test_across_layers_false_measures_the_original_alone(name):
    model = network(name)
    found, _ = sweep(model, bad, across_layers=False)
    traced, values = values_of(model, inputs_of(model, IMAGES))
    for conv in convolutions(model):
        inputs = [values[call.inputs[0]] for call in calls_of(traced, conv)]
        x = np.concatenate([rows_of(conv, x) for x in inputs])
        y = np.concatenate([response_of(conv, x) for x in inputs])
        assert_covariances(found[id(conv)], x, y, 1e-3)


def gentle_inverse(gain):
    return gain / (gain**2 + 1e-2 * np.mean(gain**2))


def gain_and_offset(norm):
    mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    gain = np.asarray(norm.gamma) / np.sqrt(variance + norm.epsilon)
    return gain, np.asarray(norm.beta) - gain * mean


def test_a_residual_branch_is_to_mend_what_the_shortcut_lost():
    model = network("residual")
    data = inputs_of(model, IMAGES)
    found, expansions = sweep(model, bad, data)
    student = rebuild.rebuild(model, expansions)
    last = model.get_layer("b_2")
    gain, _ = gain_and_offset(model.get_layer("b_bn2"))
    block = [keras.Model(m.input, m.get_layer("a_out").output)(data) for m in (model, student)]
    lost = np.asarray(block[0] - block[1], np.float64).reshape(-1, 6)
    before = keras.Model(model.input, last.input)(data)
    expected = response_of(last, before) + lost * gentle_inverse(gain)
    fed = keras.Model(student.input, student.get_layer("b_2_depthwise").input)(data)
    assert_covariances(found[id(last)], rows_of(last, fed), expected, 1e-3)
    # The first block's shortcut is the image, which nobody has changed.
    first = model.get_layer("a_2")
    y = response_of(first, keras.Model(model.input, first.input)(data))
    np.testing.assert_allclose(found[id(first)].mean_y, y.mean(axis=0), atol=1e-3)


def test_a_shortcut_that_is_a_replaced_convolution_too():
    model = network("projected")
    data = inputs_of(model, IMAGES)
    found, expansions = sweep(model, bad, data)
    student = rebuild.rebuild(model, expansions)
    last = model.get_layer("branch_2")
    side = [keras.Model(m.input, m.get_layer("shortcut").output)(data) for m in (model, student)]
    lost = np.asarray(side[0] - side[1], np.float64).reshape(-1, 8)
    y = response_of(last, keras.Model(model.input, last.input)(data)) + lost / 1.01
    np.testing.assert_allclose(found[id(last)].mean_y, y.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(found[id(last)].yy, np.cov(y, rowvar=False, bias=True), atol=1e-2)


# ---------------------------------------------------------------------- freedom below a ReLU


def rectified_of(model, name):
    """(what `rectified` gives, x, y, the fitted responses) of one layer of an exact student."""
    found = {}

    def solve(conv, collected):
        if conv.name == name:
            found["can"] = collected.can_rectify
            if collected.can_rectify:
                found["moments"] = collected.rectified(*bad(conv))
        return exact(conv)

    sweep(model, solve, keep_rows=True)
    conv = model.get_layer(name)
    traced, values = values_of(model, inputs_of(model, IMAGES))
    [call] = calls_of(traced, conv)
    x = rows_of(conv, values[call.inputs[0]])
    stack, bias = bad(conv)
    fitted = x @ stack.kernel().reshape(x.shape[1], -1) + bias
    return found, x, response_of(conv, values[call.inputs[0]]), fitted


def freed(y, fitted, gain, offset, low, high):
    """Response wanted, element by element, as the docstring of `rectified` says."""
    wanted = y.copy()
    for row, column in np.ndindex(*y.shape):
        factor = gain[column]
        before = y[row, column] * factor + offset[column]
        moved = fitted[row, column] * factor + offset[column]
        if before <= low:
            wanted[row, column] += (min(moved, low) - before) * gentle_inverse(gain)[column]
        elif before >= high:
            wanted[row, column] += (max(moved, high) - before) * gentle_inverse(gain)[column]
    return wanted


def test_below_a_relu_the_students_own_answer_is_as_good():
    model = network("functional")  # conv, batch norm with gains of either sign, relu6
    found, x, y, fitted = rectified_of(model, "conv1")
    norm = model.layers[model.layers.index(model.get_layer("conv1")) + 1]
    gain, offset = gain_and_offset(norm)
    assert gain.min() < 0 < gain.max()
    assert_covariances(found["moments"], x, freed(y, fitted, gain, offset, 0, 6), 2e-3)


def conv_then(*after):
    x = image = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(x)
    for layer in after:
        x = layer(x)
    return randomised(keras.Model(image, x))


def test_a_fused_relu_frees_too():
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(6, 3, activation="relu", name="conv")]
    )
    found, x, y, fitted = rectified_of(randomised(model), "conv")
    assert_covariances(
        found["moments"], x, freed(y, fitted, np.ones(6), np.zeros(6), 0, np.inf), 2e-3
    )


@pytest.mark.parametrize(
    "after",
    [
        [],
        [layers.Activation("swish")],
        [layers.ReLU(negative_slope=0.1)],
        [layers.ReLU(threshold=1.0)],
        [layers.MaxPooling2D(), layers.ReLU()],
        [lambda x: layers.Concatenate()([x, layers.ReLU()(x)])],
        [lambda x: x + 0.7, layers.ReLU()],  # what is flat below 0 is read off batch norms alone
    ],
    ids=["nothing", "swish", "leaky", "threshold", "pooled", "read twice", "a constant"],
)
def test_without_a_flat_part_right_behind_nothing_is_free(after):
    found, *_ = rectified_of(conv_then(*after), "conv")
    assert not found["can"]


def test_a_batch_norm_over_another_axis_is_left_alone():
    model = conv_then(layers.BatchNormalization(axis=1), layers.ReLU())
    found, _ = sweep(model, exact)
    assert len(found) == 1


# ---------------------------------------------------------------------- data


def with_infinite_response():
    model = network("functional")
    conv = model.get_layer("conv1")
    conv.kernel.assign(conv.kernel * np.inf)
    return model


def test_an_infinite_response_names_its_layer():
    with pytest.raises(Error, match=r"layer 'conv1': expected finite numbers, .* response"):
        sweep(with_infinite_response(), exact)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e30])
def test_moments_whose_squares_float32_does_not_hold(scale):
    source = np.random.default_rng(0)
    x, y, change = (source.normal(size=(50, n)).astype(np.float32) for n in (6, 4, 4))
    x, y, change = (array * np.float32(scale) for array in (x, y, change))
    found = calibration.Moments.empty(x[:9].mean(axis=0), y[:9].mean(axis=0))
    found.add_rows(x[:30], y[:30])
    found.add_rows(x[30:], y[30:])
    changed = found.with_responses_changed([(x[20:], y[20:], change[20:])])
    wide_x, wide_y = x.astype(float), y.astype(float)
    for got, rows in ((found, wide_y), (changed, wide_y + np.pad(change[20:], ((20, 0), (0, 0))))):
        covariance = np.cov(np.hstack([wide_x, rows]).T, bias=True)
        # float32 rounds the rows less their means; below its smallest normal number more so.
        tolerance = {"rtol": 0, "atol": (1e-5 if scale > 1e-38 else 1e-4) * scale**2}
        np.testing.assert_allclose(got.xx, covariance[:6, :6], **tolerance)
        np.testing.assert_allclose(got.xy, covariance[:6, 6:], **tolerance)
        np.testing.assert_allclose(got.yy, covariance[6:, 6:], **tolerance)


def test_a_failing_sweep_closes_its_files(monkeypatch):
    opened = []
    make = calibration.Spool.__init__

    def watched(spool, stack):
        make(spool, stack)
        opened.append(spool)

    monkeypatch.setattr(calibration.Spool, "__init__", watched)
    monkeypatch.setattr(IN_MEMORY, 0)
    with pytest.raises(Error):
        sweep(with_infinite_response(), exact)
    files = [spool._file for spool in opened if spool._file is not None]
    assert files
    assert all(file.closed for file in files)


def test_an_infinite_input_names_the_layer_that_gets_it():
    model = conv_then(layers.Lambda(lambda x: x / 0.0), layers.Conv2D(4, 3, name="second"))
    with pytest.raises(Error, match=r"layer 'second': .* its input has NaN, infinity"):
        sweep(model, exact)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite_names_its_batch(value):
    model = network("sequential")
    data = inputs_of(model, 20)
    data[13, 2, 2, 1] = value
    with pytest.raises(Error, match="batch 1, input 'image': NaN or infinity in row 3"):
        tfdwd.decompose(model, iter([data[:10], data[10:]]))


def test_no_data_at_all():
    model = network("sequential")
    with pytest.raises(Error, match="the data is empty"):
        tfdwd.decompose(model, iter(()))
    with pytest.raises(Error, match="expected at least one image"):
        swept(graph.trace(model), [], convolutions(model), exact)


def test_batches_are_read_once():
    model = network("functional")
    reads = 0

    def batches():
        nonlocal reads
        for _ in range(3):
            reads += 1
            yield [inputs_of(model, 2)]

    found, _ = swept(graph.trace(model), batches(), convolutions(model), exact)
    assert reads == 3 and len(found) == 3


def test_positions_follow_the_seed():
    few = calibration.Settings(min_rows=60, rows_per_unknown=1)
    model = network("sequential")
    first, again, other = (sweep(model, exact, seed=seed, settings=few)[0] for seed in (3, 3, 4))
    for key, found in first.items():
        np.testing.assert_array_equal(found.sum_xx, again[key].sum_xx)
        np.testing.assert_array_equal(found.sum_y, again[key].sum_y)
    key = id(model.get_layer("one"))
    assert first[key].count == IMAGES * 10  # 60 rows over 6 images
    assert np.abs(first[key].sum_xx - other[key].sum_xx).max() > 0.1


def test_rows_are_about_as_many_as_stated():
    settings = calibration.Settings(min_rows=30)
    model = network("sequential")
    found, _ = sweep(model, exact, settings=settings)
    one, two = (found[id(model.get_layer(name))].count for name in ("one", "two"))
    assert one == IMAGES * -(-settings.rows_per_unknown * 27 // IMAGES) or one == IMAGES * 64
    assert two == IMAGES * 16  # 54 unknowns would need more than there are: all


def test_the_frontier_goes_to_disk_when_it_is_large(monkeypatch):
    model = network("residual")
    small, _ = sweep(model, bad)
    on_disk = []
    close = calibration.Spool.close

    def watched(spool):
        on_disk.append(spool._file is not None)
        close(spool)

    monkeypatch.setattr(calibration.Spool, "close", watched)
    monkeypatch.setattr(IN_MEMORY, 1000)
    large, _ = sweep(model, bad)
    assert any(on_disk)
    for key, found in small.items():
        np.testing.assert_allclose(large[key].sum_xx, found.sum_xx, rtol=1e-6)
        np.testing.assert_allclose(large[key].sum_xy, found.sum_xy, rtol=1e-6)


COUNTED = collections.Counter()


@keras.saving.register_keras_serializable("tests")
class Counting(layers.Layer):
    """Counts the images that pass."""

    def call(self, x):
        def count(value):
            COUNTED[self.name] += len(value)
            return value

        passed = tf.numpy_function(count, [x], x.dtype)
        passed.set_shape(x.shape)
        return passed


def test_each_layer_runs_once_per_image_in_each_network():
    x = image = keras.Input((8, 8, 3))
    for index in range(4):
        x = Counting(name=f"before_{index}")(x)
        x = layers.Conv2D(4, 3, padding="same", name=f"conv{index}")(x)
    model = randomised(keras.Model(image, Counting(name="behind")(x)))
    COUNTED.clear()
    sweep(model, bad)
    # Before the first replaced layer both networks are the same one; behind the last nobody looks.
    assert COUNTED == {"before_0": IMAGES} | {f"before_{i}": 2 * IMAGES for i in (1, 2, 3)}


def test_images_of_two_sizes_are_refused():
    model = keras.Sequential([keras.Input((None, None, 4)), layers.Conv2D(4, 3)])
    batches = [[np.ones((2, size, size, 4), np.float32)] for size in (8, 9)]
    with pytest.raises(Error, match=r"one size, got \(8, 8, 4\) first and \(9, 9, 4\) in batch 1"):
        swept(graph.trace(model), batches, convolutions(model), exact)


# ---------------------------------------------------------------------- numbers at the edge


def branch(kernel="glorot_uniform", outputs=4):
    """A residual branch; the second convolution's kernel is as given."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(image)
    x = layers.Conv2D(4, 3, padding="same", kernel_initializer=kernel, name="second")(x)
    x = layers.ReLU()(layers.Add()([image, x]))
    return keras.Model(image, layers.Dense(outputs)(layers.GlobalAveragePooling2D()(x)))


EDGE_IMAGES = np.random.default_rng(0).normal(size=(40, 6, 6, 4)).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [{}, {"stack": "auto"}, {"method": "gsvd"}, {"method": "channel"}, {"data": None}],
    ids=str,
)
def test_a_kernel_of_zeros(options):
    model = branch("zeros")
    student, report = tfdwd.decompose(
        model, **{"data": EDGE_IMAGES, "return_report": True, **options}
    )
    second = report.layers[1]
    assert second.replaced and not second.error and not second.irreducible
    np.testing.assert_allclose(student(EDGE_IMAGES), model(EDGE_IMAGES), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_images_of_any_scale_are_fitted_alike(scale):
    errors = []
    for factor in (1.0, scale):
        model = branch()
        images = EDGE_IMAGES * np.float32(factor)
        student, report = tfdwd.decompose(model, images, return_report=True)
        assert all(np.isfinite(weight).all() for weight in student.get_weights())
        errors.append([(layer.error, layer.irreducible) for layer in report.layers])
    # The Fisher metric's squares leave float32 at 1e25, so the second fits are not quite the same.
    np.testing.assert_allclose(errors[1], errors[0], atol=0.05)


@pytest.mark.parametrize("images", [0 * EDGE_IMAGES, 0 * EDGE_IMAGES + 3, EDGE_IMAGES[:1]])
def test_images_that_say_little(images):
    model = branch()
    student, report = tfdwd.decompose(model, images, return_report=True, stack="auto")
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    assert all(-1e-6 <= layer.error <= 1 + 1e-6 for layer in report.layers)
    if np.ptp(images) == 0:  # then the biases can make up for all; zeros meet the padding exactly
        np.testing.assert_allclose(student(images), model(images), atol=0.05)


@pytest.mark.parametrize("data", [None, EDGE_IMAGES], ids=["no data", "data"])
def test_a_kernel_with_nan_is_named(data):
    model = branch()
    first = model.get_layer("second")
    first.kernel.assign(np.where(np.arange(4) == 2, np.nan, first.kernel.numpy()))
    with pytest.raises(Error, match="layer 'second': expected finite"):
        tfdwd.decompose(model, data)


def test_a_spool_does_not_fill_the_disk(monkeypatch):
    """Before the disk is full, or where it cannot be written to at all."""
    monkeypatch.setattr(IN_MEMORY, 3000)
    usage = SimpleNamespace(total=100 * 2**30, free=2**30 + 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with contextlib.ExitStack() as stack:
        queue = calibration.Spool(stack)
        for _ in range(5):  # three in memory, two on disk
            queue.append([np.ones(1000, np.uint8)])
        usage.free = 2**30 + 500
        with pytest.raises(Error, match=r"temporary files in .*1\.0 GiB free; use fewer images"):
            queue.append([np.ones(1000, np.uint8)])
        usage.free = 2**40
        monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "wb", 0))
        other = calibration.Spool(stack)
        with pytest.raises(Error, match="No space left on device; use fewer images"):
            other.append([np.ones(4000, np.uint8)])
        assert [len(array) for [array] in queue] == [1000] * 5 and not len(other)
