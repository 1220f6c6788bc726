import dataclasses
import importlib
import logging
from unittest import mock

import keras
import numpy as np
import pytest
from ai_edge_litert import interpreter
from cases import convolutions, difference, inputs_of, network, outputs_of, randomised
from keras import layers

import tfdwd
from tfdwd import calibration, costs, factorize
from tfdwd.decomposition import DecompositionReport, LayerReport
from tfdwd.errors import Error


def every_kind():
    """One convolution of each kind, by the reason for which it is kept."""
    x = image = keras.Input((12, 12, 8), name="image")
    x = layers.Conv2D(16, 3, padding="same", name="good")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(8, 3, padding="same", name="transposed")(x)
    x = layers.Conv2D(1, 3, padding="same", name="narrow")(x)
    x = layers.Reshape((12, 12))(x)
    x = layers.Conv1D(8, 3, padding="same", name="one_axis")(x)
    return randomised(keras.Model(image, layers.Dense(3)(layers.Flatten()(x)), name="kinds"))


REASONS = {
    "good": "",
    "pointwise": "1x1 already",
    "grouped": "grouped (2 groups)",
    "depthwise": "already depthwise",
    "separable": "already separable",
    "transposed": "a transposed convolution",
    # 8 * 9 * 1 MACs against 8 * (9 + 1), at 144 positions.
    "narrow": "would not get cheaper: 10,368 MACs, 11,520 at rank 1",
    "one_axis": "a Conv1D, not a plain Conv2D",
}


def test_each_convolution_has_its_record_and_each_kept_one_its_reason():
    model = every_kind()
    student, report = tfdwd.decompose(model, return_report=True)
    assert {layer.name: layer.reason for layer in report.layers} == REASONS
    assert [layer.replaced for layer in report.layers] == [not r for r in REASONS.values()]
    assert [x.name for x in convolutions(student)] == ["grouped", "narrow"]


@pytest.mark.parametrize("stack", ["separable", "bottleneck", "auto"])
def test_macs_and_parameters_of_the_report_are_hand_arithmetic_and_what_costs_counts(stack):
    model = every_kind()
    student, report = tfdwd.decompose(
        model, inputs_of(model, 8), rank=2, stack=stack, return_report=True
    )
    good = report.layers[0]
    assert good.macs_before == 144 * 8 * 9 * 16
    assert good.parameters_before == 8 * 9 * 16 + 16
    separable = 144 * 2 * 8 * (9 + 16)
    if good.stack == "separable":
        assert (good.rank, good.width) == (2, 0)
        assert good.macs_after == separable
        assert good.parameters_after == 2 * 8 * 9 + 2 * 8 * 16 + 16
    else:
        width = separable // (144 * (8 + 9 + 16))  # the widest at no more MACs
        assert (good.rank, good.width) == (0, width)
        assert good.macs_after == 144 * width * (8 + 9 + 16) <= separable
        assert good.parameters_after == width * (8 + 9 + 16) + 16
    before, after = costs.count(model), costs.count(student)
    assert (report.macs_before, report.macs_after) == (before.macs, after.macs)
    assert before.macs - after.macs == sum(x.macs_before - x.macs_after for x in report.layers)
    assert before.parameters - after.parameters == sum(
        x.parameters_before - x.parameters_after for x in report.layers
    )


@pytest.mark.parametrize("name", ["siamese", "shared model", "nested of open size", "nested twice"])
def test_the_report_adds_up_for_shared_and_nested_layers(name):
    model = network(name)
    student, report = tfdwd.decompose(model, inputs_of(model, 8), return_report=True)
    assert report.macs_before - report.macs_after == sum(
        x.macs_before - x.macs_after for x in report.layers
    )
    assert report.macs_after == costs.count(student).macs
    assert len({layer.name for layer in report.layers}) == len(report.layers)


@pytest.mark.parametrize("data", [True, False])
def test_sizes_left_open(data):
    model = randomised(keras.Sequential([keras.Input((None, None, 8)), layers.Conv2D(16, 3)]))
    images = np.random.default_rng(0).normal(size=(4, 9, 9, 8)).astype(np.float32)
    student, report = tfdwd.decompose(model, images if data else None, return_report=True)
    assert report.layers[0].replaced
    assert report.macs_before == report.macs_after == 0
    assert student(images).shape == (4, 7, 7, 16)


def test_unequal_strides_with_data():
    model = keras.Sequential(
        [keras.Input((9, 8, 6)), layers.Conv2D(12, 3, strides=(1, 2), padding="same")]
    )
    student, report = tfdwd.decompose(randomised(model), inputs_of(model, 8), return_report=True)
    assert report.macs_after == costs.count(student).macs == 9 * 4 * 6 * (9 + 12)


def test_the_report_goes_to_json_and_back_and_prints():
    model = every_kind()
    _, report = tfdwd.decompose(model, inputs_of(model, 8), return_report=True)
    assert DecompositionReport.from_json(report.to_json()) == report
    lines = str(report).splitlines()
    assert lines[0].split()[:3] == ["layer", "stack", "MACs"]
    assert lines[2].startswith("good") and "separable 1" in lines[2]
    assert "1x1 already" in lines[3]
    assert lines[-1].startswith(f"method joint; MACs {report.macs_before:,} -> ")
    with pytest.raises(Error, match="expected the JSON of a DecompositionReport"):
        DecompositionReport.from_json("{}")


def test_records_check_their_own_algebra():
    record = LayerReport("a", True, "", "separable", 1, 0, 10, 5, 3, 2)
    for change in ({"reason": "why"}, {"stack": ""}, {"replaced": False}):
        with pytest.raises(Error, match="a replaced layer has a stack, a kept one a reason"):
            dataclasses.replace(record, **change)
    with pytest.raises(Error, match="kept, yet its MACs differ"):
        LayerReport("a", False, "why", "", 0, 0, 10, 5, 3, 3)


def test_a_log_line_per_layer(caplog):
    with caplog.at_level(logging.INFO, logger="absl"):
        tfdwd.decompose(every_kind())
    lines = [record.getMessage() for record in caplog.records]
    for name, reason in REASONS.items():
        [line] = [line for line in lines if line.startswith(f"{name}: ")]
        assert line == f"{name}: kept, {reason}" if reason else ": separable 1, MACs" in line


# ---------------------------------------------------------------------- what is chosen


def replaced(model, **options):
    _, report = tfdwd.decompose(model, return_report=True, **options)
    return [layer.name for layer in report.layers if layer.replaced]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["backbone/one", "one"]),  # the stem reads three channels
        ({"include": "*"}, ["stem", "backbone/one", "one"]),
        ({"include": "backbone/*"}, ["backbone/one"]),
        ({"include": "one"}, ["backbone/one", "one"]),
        ({"include": ["stem", "backbone/one"]}, ["stem", "backbone/one"]),
        ({"exclude": "st?m"}, ["backbone/one", "one"]),
        ({"include": "*one", "exclude": "backbone/*"}, ["one"]),
        ({"rank": {"stem": 1}}, ["stem"]),
        ({"rank": {"backbone/one": 2}}, ["backbone/one"]),
        ({"rank": {"one": 1, "stem": 1}, "exclude": "stem"}, ["backbone/one", "one"]),
        ({"rank": {}}, []),
        ({"rank": np.int64(1)}, ["backbone/one", "one"]),
        ({"rank": {"stem": np.int32(1)}}, ["stem"]),
    ],
    ids=str,
)
def test_which_layers_are_replaced(options, expected):
    assert replaced(network("nested sequential"), **options) == expected


def test_ranks_by_name_are_obeyed_even_where_they_save_nothing():
    model = network("nested sequential")
    _, report = tfdwd.decompose(model, rank={"stem": 6, "one": 2}, return_report=True)
    ranks = {layer.name: layer.rank for layer in report.layers}
    assert ranks == {"stem": 6, "backbone/one": 2, "one": 2}
    assert report.layers[0].macs_after > report.layers[0].macs_before


def test_a_rank_beyond_that_of_all_layers_is_refused_and_one_beyond_that_of_some_keeps_those():
    parts = [layers.Conv2D(n, 3, padding="same", name=name) for name, n in (("a", 16), ("b", 2))]
    model = keras.Sequential([keras.Input((8, 8, 8)), *parts])
    assert replaced(model, rank=3) == ["a"]
    with pytest.raises(tfdwd.Error, match=r"^rank: expected 1..9, .* got 10$"):
        tfdwd.decompose(model, rank=10)


@pytest.mark.parametrize("method", ["svd", "gsvd", "joint"])
def test_full_rank_is_exact_where_smooth_images_hardly_answer_the_filters(method):
    """The ridge of the moments is then a hundredth and more of the responses' variance."""
    images = np.random.default_rng(0).normal(size=(8, 16, 16, 4)).cumsum(axis=1).cumsum(axis=2)
    model = randomised(keras.Sequential([keras.Input((16, 16, 4)), layers.Conv2D(9, 3, name="a")]))
    [conv] = model.layers
    conv.kernel.assign(conv.kernel - keras.ops.mean(conv.kernel, axis=(0, 1)))
    student = tfdwd.decompose(model, images, rank={"a": 9}, method=method)
    found, expected = (outputs_of(network, images) for network in (student, model))
    assert difference(found, expected) < 3e-4  # float32, and inputs a hundred times the outputs


def test_a_name_stands_for_itself_before_it_is_a_pattern():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 8)),
            layers.Conv2D(8, 3, padding="same", name="conv[0]"),
            layers.Conv2D(8, 3, padding="same", name="conv0"),
            layers.Conv2D(8, 3, padding="same", name="conv *"),
            layers.Conv2D(8, 3, padding="same", name="conv 1"),
        ],
        name="my net",
    )
    data = inputs_of(model, 16)
    assert replaced(model, data=data, rank={"conv[0]": 1}) == ["conv[0]"]
    assert replaced(model, data=data, exclude="conv[0]") == ["conv0", "conv *", "conv 1"]
    assert replaced(model, include="conv *") == ["conv *"]
    assert replaced(model, include="conv[0-9]") == ["conv0"]  # a pattern, as it is no name
    assert [x.name for x in model.layers] == ["conv[0]", "conv0", "conv *", "conv 1"]
    student = tfdwd.decompose(model, data)
    assert "conv[0]_depthwise" in [x.name for x in student.layers]


@pytest.mark.parametrize("data", [True, False])
def test_without_a_convolution_the_model_comes_back_with_an_empty_report(data):
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    images = inputs_of(model, 8)
    student, report = tfdwd.decompose(model, images if data else None, return_report=True)
    assert report.layers == ()
    np.testing.assert_array_equal(student(images), model(images))


@pytest.mark.parametrize("images", [5, 8, 21])
def test_a_model_of_a_fixed_batch(images):
    x = image = keras.Input(batch_shape=(8, 9, 9, 6))
    x = layers.Conv2D(6, 3, name="one")(x)
    x = keras.ops.reshape(x, (8, 7, 7, 6))  # takes no other batch
    model = randomised(keras.Model(image, layers.Conv2D(6, 3, name="two")(x)))
    data = np.random.default_rng(0).normal(size=(images, 9, 9, 6)).astype(np.float32)
    student, report = tfdwd.decompose(
        model, data, rank={"one": 6, "two": 6}, return_report=True, method="sequential"
    )
    assert student.inputs[0].shape == (8, 9, 9, 6)
    assert all(layer.error < 1e-3 for layer in report.layers)
    eight = np.resize(data, (8, 9, 9, 6))
    found, expected = outputs_of(student, eight)[0], outputs_of(model, eight)[0]
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_channels_first_is_kept_with_its_reason():
    conv = layers.Conv2D(6, 3, data_format="channels_first", name="conv")
    model = keras.Sequential([keras.Input((6, 8, 8)), conv])
    _, report = tfdwd.decompose(model, return_report=True)
    assert report.layers[0].reason == "channels first, which LiteRT does not run"


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_are_one_clear_error(backend, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(Error, match=f"expected Keras on TensorFlow, got it on {backend}"):
        tfdwd.decompose(network("sequential"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "pca"},
            "method: expected one of svd, gsvd, sequential, joint, channel, got 'p",
        ),
        ({"stack": "deep"}, "stack: expected one of separable, bottleneck, auto, got 'deep'"),
        ({"on_unsupported": "ignore"}, "on_unsupported: expected one of skip, error, got 'ignore'"),
        ({"method": "joint"}, "method 'joint': expected calibration data, got none"),
        ({"stack": "auto", "method": "gsvd", "data": True}, "stack='auto': expected method"),
        (
            {"include": "stm"},
            "include: .* 'stm' matches none; the model's convolutions are: stem, b",
        ),
        ({"exclude": ["stem", "x*"]}, r"exclude: .* 'x\*' matches none"),
        ({"rank": {"nobody": 1}}, "rank: .* 'nobody' matches none"),
        ({"rank": 0}, "rank: expected a whole number of at least 1, got 0"),
        ({"rank": True}, "rank: expected a whole number of at least 1, got True"),
        ({"rank": {"stem": 1.5}}, "rank of 'stem': expected a whole number of at least 1, got 1.5"),
        ({"rank": {"stem": 7}}, r"rank of 'stem': expected 1\.\.6 for its 9 taps and 6 outputs"),
        ({"rank": 1.5}, "rank: expected .* got 1.5"),
        ({"rank": "2"}, "rank: expected .* got '2'"),
        ({"rank": None}, "rank: expected .* got None"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"include": 0}, "include: expected a name or pattern, or a list of them, got 0"),
        ({"method": 0}, "method: expected one of svd, .* got 0"),
        ({"across_layers": "false"}, "across_layers: expected True or False, got 'false'"),
        ({"seed": 0.5}, "seed: expected a whole number of at least 0, got 0.5"),
    ],
    ids=str,
)
def test_wrong_options(options, message):
    model = network("nested sequential")
    if options.pop("data", False):
        options["data"] = inputs_of(model, 4)
    with pytest.raises(Error, match=message):
        tfdwd.decompose(model, **options)


def test_what_cannot_be_replaced_is_skipped_or_an_error():
    model = every_kind()
    assert replaced(model, rank={"grouped": 1, "good": 1}) == ["good"]
    for options in ({"rank": {"grouped": 1}}, {"include": "group*"}):
        with pytest.raises(Error, match=r"layer 'grouped': .* it is grouped \(2 groups\)"):
            tfdwd.decompose(model, on_unsupported="error", **options)
    assert replaced(model, on_unsupported="error") == ["good"]  # not asked for by name


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_models_that_cannot_be_decomposed():
    for model, message in (
        (Subclassed(), "subclass Subclassed"),
        (keras.Sequential([layers.Conv2D(3, 3)]), "add a keras.Input"),
        ("model.keras", "expected a Keras model, got"),
    ):
        with pytest.raises(Error, match=message):
            tfdwd.decompose(model)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 9, 8, 3)), r"expected shape \(rows, 8, 8, 3\), got \(4, 9, 8, 3\)"),
        (np.zeros((0, 8, 8, 3)), "the data is empty"),
        (np.full((4, 8, 8, 3), np.nan), "NaN or infinity in row 0"),
        (3, "got int"),
    ],
    ids=["shape", "empty", "nan", "int"],
)
def test_wrong_data(data, message):
    with pytest.raises(Error, match=message):
        tfdwd.decompose(network("sequential"), data)


# ---------------------------------------------------------------------- what comes out


METHODS = [("svd", "separable"), ("gsvd", "separable"), ("sequential", "separable")]
METHODS += [("joint", "separable"), ("joint", "bottleneck"), ("joint", "auto")]
METHODS += [("channel", "separable")]


def ending_in_a_convolution():
    x = image = keras.Input((10, 10, 6), name="image")
    for index in range(2):
        x = layers.Conv2D(12, 3, padding="same", use_bias=index == 0, name=f"conv{index}")(x)
    return randomised(keras.Model(image, x))


@pytest.mark.parametrize(("method", "stack"), METHODS)
def test_the_mean_of_the_response_is_kept(method, stack):
    """Biases are corrected, so that a linear network's mean output is the original's."""
    model = ending_in_a_convolution()
    data = inputs_of(model, 40) + 3
    student, report = tfdwd.decompose(model, data, method=method, stack=stack, return_report=True)
    assert sum(layer.replaced for layer in report.layers) == 2
    found, expected = (outputs_of(m, data)[0] for m in (student, model))
    np.testing.assert_allclose(
        found.mean(axis=(0, 1, 2)), expected.mean(axis=(0, 1, 2)), atol=1e-3 * expected.std()
    )
    for layer in report.layers:
        assert 0 < layer.error < 1.01
        assert -1e-3 < layer.irreducible <= layer.error + 1e-3
    # The last layer's error is that of the network's output, all positions being measured.
    missed = np.sum((found - expected) ** 2) / np.sum((expected - expected.mean((0, 1, 2))) ** 2)
    assert report.layers[-1].error == pytest.approx(missed, rel=0.01)


def test_without_recalibration_biases_stay():
    model = ending_in_a_convolution()
    student = tfdwd.decompose(model, inputs_of(model, 20), recalibrate=False)
    np.testing.assert_array_equal(student.get_layer("conv0").bias, model.get_layer("conv0").bias)
    assert student.get_layer("conv1").bias is None


@pytest.mark.parametrize("method", ["svd", "joint"])
def test_the_same_seed_gives_the_same_student(method):
    model = network("residual")
    data = inputs_of(model, 20)
    first, again = (tfdwd.decompose(model, data, method=method, seed=5) for _ in range(2))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_benchmarks_decompose_as_decompose_does_and_see_what_is_collected(
    pytestconfig, monkeypatch
):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    common = importlib.import_module("common")
    model = network("sequential")
    data = inputs_of(model, 20)
    seen = []

    def watched(*arguments, **options):
        for level in calibration.levels(*arguments, **options):
            seen.extend(collected.conv.name for collected in level)
            yield level

    student, report = tfdwd.decompose(model, data, return_report=True)
    same = common.decomposed(model, data, sweep=watched)
    for a, b in zip(same.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert seen == [layer.name for layer in report.layers if layer.replaced]
    plain = dataclasses.replace(calibration.DEFAULT, equalize=False)
    other = common.decomposed(model, data, settings=plain)
    pairs = zip(other.get_weights(), student.get_weights(), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3
    # The factors of a stack are scaled against each other: their product stays.
    for a, b in zip(outputs_of(other, data), outputs_of(student, data), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_data_of_every_kind_gives_the_same_student():
    model = network("sequential")
    data = inputs_of(model, 40)
    reference = tfdwd.decompose(model, data)
    labels = np.arange(40)
    for other in (
        (data, labels),
        iter([data[:7], data[7:]]),
        ((data[i : i + 8], labels[i : i + 8]) for i in range(0, 40, 8)),
    ):
        student = tfdwd.decompose(model, other)
        for a, b in zip(student.get_weights(), reference.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_errors_fall_from_method_to_method():
    """Of one layer without a ReLU behind; joint minimises another error than the one reported."""
    model = ending_in_a_convolution()
    data = inputs_of(model, 60)
    errors = {}
    for method in ("svd", "gsvd", "sequential"):
        _, report = tfdwd.decompose(model, data, method=method, include="conv1", return_report=True)
        errors[method] = report.layers[1].error
    # The gains fitted afterwards may bring one method a little more than another.
    assert errors["sequential"] <= errors["gsvd"] * 1.02
    assert errors["gsvd"] <= errors["svd"] * 1.02
    assert len(set(errors.values())) == 3


def test_the_model_given_is_not_changed():
    from test_rebuild import fingerprint

    model = network("residual")
    before = fingerprint(model)
    tfdwd.decompose(model, inputs_of(model, 8), stack="auto")
    assert fingerprint(model) == before


@pytest.fixture(scope="module")
def agreement(resnet8, cifar):
    """{method: share of training images, not calibrated on, classified as by the original}."""
    data = cifar["x_train"][:1024].astype(np.float32)
    images = keras.ops.convert_to_tensor(cifar["x_train"][2000:2600].astype(np.float32))

    def classes(model):
        return np.argmax(np.asarray(model([images])), axis=1)

    expected = classes(resnet8)
    return {
        method: np.mean(classes(tfdwd.decompose(resnet8, data, method=method)) == expected)
        for method in ("joint", "sequential", "channel")
    }


@pytest.mark.slow
def test_joint_beats_sequential_on_the_resnet8(agreement):
    # Prototypes' top-1: 0.50 and 0.39; one standard error of a share of 600 is 0.02.
    assert agreement["joint"] > agreement["sequential"] + 0.04
    assert agreement["joint"] > 0.5


@pytest.mark.slow
def test_sequential_beats_channel_on_the_resnet8(agreement):
    assert agreement["sequential"] > agreement["channel"]


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_factors_of_equal_size_change_no_bit_of_a_student(quantize, tmp_path):
    """Of its outputs, in Keras and in LiteRT; its weights they do change."""
    image = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(16, 3, padding="same", name="conv")(image))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(12, 3, name="second")(x))
    model = randomised(keras.Model(image, layers.Dense(5, activation="softmax")(x)))
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype(np.float32)
    given, weights = [], []
    for sized in (factorize.of_equal_size, lambda stack: stack):
        with mock.patch.object(factorize, "of_equal_size", sized):
            student = tfdwd.decompose(model, images, rank=1)
        path = tmp_path / f"{len(given)}.tflite"
        tfdwd.export(student, path, quantize=quantize, data=images)
        run = interpreter.Interpreter(str(path))
        run.allocate_tensors()
        source, answer = run.get_input_details()[0], run.get_output_details()[0]
        answers = []
        for one in images:
            run.set_tensor(source["index"], one[None].astype(source["dtype"]))
            run.invoke()
            answers.append(run.get_tensor(answer["index"]).copy())
        given.append((np.asarray(student(images)), np.concatenate(answers)))
        weights.append(np.concatenate([weight.ravel() for weight in student.get_weights()]))
    for equal, unequal in zip(*given, strict=True):
        np.testing.assert_array_equal(equal, unequal)
    assert not np.array_equal(*weights) and len(np.unique(given[0][1], axis=0)) > 1
