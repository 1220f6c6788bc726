from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdwd
from tfdwd import lite
from tfdwd.conversion import export
from tfdwd.errors import Error
from tfdwd.evaluation import Evaluation, Score, evaluate
from tfdwd.scripts import common
from tfdwd.scripts import evaluate as script

RANDOM = np.random.default_rng(0)


def echo_of(*shape, name="echo", **options):
    """A network whose outputs are its inputs."""
    image = keras.Input(shape, name="image", **options)
    return keras.Model(image, keras.layers.Activation("linear", name=name)(image))


@pytest.fixture(scope="module")
def echo():
    """A classifier of 7 classes whose outputs are its inputs."""
    return echo_of(7)


@pytest.fixture(scope="module")
def two():
    """Two outputs, "double" and "same", (batch, 4, 5, 3), as a dict."""
    image = keras.Input((4, 5, 3), name="image")
    outputs = {"same": keras.layers.Activation("linear")(image), "double": image * 2}
    return keras.Model(image, outputs)


# Row r ranks the classes r, r+1, ... downwards, so label (r + k) % 7 is in place k.
SCORES = np.array([[-((c - r) % 7) for c in range(7)] for r in range(7)], np.float32)
PLACES = np.array([0, 0, 0, 1, 4, 5, 6])  # 3 of 7 are first, 5 of 7 among the first five.
LABELS = (np.arange(7) + PLACES) % 7
RIGHT = Evaluation((Score("top1", 3 / 7, "echo"), Score("top5", 5 / 7, "echo")), 7)
IMAGES = RANDOM.uniform(0, 1, (9, 4, 5, 3)).astype(np.float32)
OTHERS = np.clip(IMAGES + RANDOM.normal(0, 0.1, IMAGES.shape), 0, 1).astype(np.float32)


# ---------------------------------------------------------------------- classes


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS[:, None], LABELS.astype(np.uint8), np.eye(7)[LABELS], LABELS.astype(float)],
    ids=["numbers", "column", "uint8", "one-hot", "floats"],
)
def test_places_are_counted(echo, labels, batch_size):
    assert evaluate(echo, (SCORES, labels), batch_size=batch_size) == RIGHT


def test_a_file_and_a_dataset_give_the_same(echo, tmp_path):
    export(echo, tmp_path / "echo.tflite")
    dataset = tf.data.Dataset.from_tensor_slices((SCORES, LABELS)).batch(2)
    for model in (echo, tmp_path / "echo.tflite", str(tmp_path / "echo.tflite")):
        assert evaluate(model, dataset) == RIGHT


def test_equal_outputs_are_not_all_right(echo):
    found = evaluate(echo, (np.zeros((7, 7)), np.arange(7)))
    assert (found.top1, found.top5) == (1 / 7, 5 / 7)


def test_resnet8_scores_what_its_source_says(resnet8, cifar, tmp_path):
    # ../shared/data/README.md: 895 of 1017.
    assert evaluate(resnet8, (cifar["x_test"], cifar["y_test"])).top1 == 895 / 1017
    export(resnet8, tmp_path / "resnet8.tflite")
    few = evaluate(tmp_path / "resnet8.tflite", (cifar["x_test"][:200], cifar["y_test"][:200]))
    keras_few = evaluate(resnet8, (cifar["x_test"][:200], cifar["y_test"][:200]))
    assert (few.top1, few.top5) == (keras_few.top1, keras_few.top5)


def test_top1_of_a_dense_output_counts_places():
    scores = RANDOM.normal(size=(3, 4, 5, 7)).astype(np.float32)
    labels = RANDOM.integers(0, 7, (3, 4, 5))
    found = evaluate(echo_of(4, 5, 7), (scores, labels), metric=["top1", "top5"], batch_size=2)
    assert found.top1 == pytest.approx((scores.argmax(-1) == labels).mean(), rel=1e-12)
    best = np.argsort(-scores, -1)[..., :5]
    assert found.top5 == pytest.approx((best == labels[..., None]).any(-1).mean(), rel=1e-12)


@pytest.mark.parametrize("width", [1, 4])
def test_sigmoids_are_compared_with_a_half(width):
    scores = RANDOM.uniform(size=(20, width)).astype(np.float32)
    labels = RANDOM.integers(0, 2, (20, width))
    oracle = keras.metrics.BinaryAccuracy()
    oracle.update_state(labels, scores)
    for given in (labels, labels.astype(bool), *([labels[:, 0]] if width == 1 else [])):
        [score] = evaluate(echo_of(width), (scores, given), batch_size=8).scores
        assert score.metric == "accuracy"
        assert score.value == pytest.approx(float(oracle.result()), abs=1e-6)


# ---------------------------------------------------------------------- mean IoU


def test_mean_iou_is_that_of_keras_over_all_the_data():
    scores = RANDOM.normal(size=(5, 4, 5, 3)).astype(np.float32)
    labels = RANDOM.integers(0, 3, (5, 4, 5)).astype(np.uint8)
    oracle = keras.metrics.MeanIoU(3, sparse_y_pred=False)
    oracle.update_state(labels, scores)
    for given in (labels, labels[..., None], labels.astype(np.int64)):
        found = evaluate(echo_of(4, 5, 3), (scores, given), batch_size=2)  # by default, too
        assert found.scores[0].about == "3 classes"
        assert found["mean_iou"] == pytest.approx(float(oracle.result()), abs=1e-6)
    one_hot = np.eye(3)[labels]
    assert evaluate(echo_of(4, 5, 3), (scores, one_hot)).scores == found.scores


def test_pixels_of_label_255_count_for_no_class():
    scores = RANDOM.normal(size=(5, 4, 5, 3)).astype(np.float32)
    labels = RANDOM.integers(0, 3, (5, 4, 5)).astype(np.uint8)
    labels[:, :2, 1] = 255
    oracle = keras.metrics.MeanIoU(3, ignore_class=255, sparse_y_pred=False)
    oracle.update_state(labels.astype(np.int32), scores)
    found = evaluate(echo_of(4, 5, 3), (scores, labels))
    assert found["mean_iou"] == pytest.approx(float(oracle.result()), abs=1e-6)
    assert found.scores[0].about == "3 classes, 10.0 % void"


def test_classes_that_occur_nowhere_are_left_out():
    labels = np.array([[[0, 0, 1, 1]]])
    scores = np.eye(9, dtype=np.float32)[[[[0, 0, 0, 1]]]]
    # Class 0: 2 of 3; class 1: 1 of 2; the seven others occur neither here nor there.
    found = evaluate(echo_of(1, 4, 9), (scores, labels))
    assert found["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # A class that only the outputs have counts with 0.
    scores = np.eye(9, dtype=np.float32)[[[[0, 0, 8, 1]]]]
    found = evaluate(echo_of(1, 4, 9), (scores, labels))
    assert found["mean_iou"] == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_a_mask_of_one_channel_tells_two_classes_apart():
    scores = RANDOM.uniform(size=(5, 4, 5, 1)).astype(np.float32)
    labels = RANDOM.integers(0, 2, (5, 4, 5, 1))
    oracle = keras.metrics.MeanIoU(2)
    oracle.update_state(labels, scores > 0.5)
    for given in (labels, labels[..., 0]):
        [score] = evaluate(echo_of(4, 5, 1), (scores, given), metric="mean_iou").scores
        assert score.value == pytest.approx(float(oracle.result()), abs=1e-6)
    assert evaluate(echo_of(4, 5, 1), (scores, labels)).scores[0] == score
    with pytest.raises(Error, match=r"got 255, which marks .* such as mask // 255"):
        evaluate(echo_of(4, 5, 1), (scores, 255 * labels), metric="mean_iou")


# ---------------------------------------------------------------------- images and values


@pytest.mark.parametrize(
    ("scale", "dtype", "peak", "given"),
    [
        (1, np.float32, 1, None),
        (255, np.float32, 255, None),
        (255, np.uint8, 255, None),
        (100, np.uint8, 255, None),
        (65535, np.uint16, 65535, None),
        (1023, np.float32, 1023, 1023),
        (0.5, np.float64, 0.5, 0.5),
    ],
)
def test_psnr_is_that_of_tensorflow(scale, dtype, peak, given):
    labels = (OTHERS * scale).astype(dtype)
    oracle = tf.image.psnr(labels.astype(np.float32), IMAGES * scale, peak).numpy().mean()
    found = evaluate(
        echo_of(4, 5, 3), (IMAGES * scale, labels), peak=given, batch_size=4
    )  # by default
    assert found.scores[0].about == f"peak {peak:g}"
    assert found["psnr"] == pytest.approx(oracle, abs=1e-4)
    assert str(found) == f"PSNR {oracle:.2f} dB (peak {peak:g}), 9 images"


def test_psnr_knows_the_peak_when_all_labels_were_seen():
    images = np.concatenate([np.zeros((4, 4, 5, 3)), 255 * IMAGES]).astype(np.float32)
    assert evaluate(echo_of(4, 5, 3), (images, images), batch_size=4).scores == (
        Score("psnr", 200.0, "echo", "peak 255"),
    )


def test_values_are_compared_by_their_squared_error():
    values = RANDOM.normal(size=(9, 3)).astype(np.float32)
    labels = RANDOM.normal(size=(9, 3))
    [score] = evaluate(echo_of(3), (values, labels), batch_size=4).scores
    assert score.metric == "mse"
    assert score.value == pytest.approx(np.square(values - labels).mean(), rel=1e-6)
    [score] = evaluate(echo_of(1), (values[:, :1], labels[:, 0])).scores
    assert score.value == pytest.approx(np.square(values[:, 0] - labels[:, 0]).mean(), rel=1e-6)


# ---------------------------------------------------------------------- against a reference


def classifier_of(seed, final="softmax"):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((6,)), keras.layers.Dense(4, activation=final, name="scores")]
    return keras.Sequential(layers)


def test_agreement_of_classes_is_the_share_of_equal_ones(tmp_path):
    one, other = classifier_of(1), classifier_of(2)
    data = RANDOM.normal(size=(50, 6)).astype(np.float32)
    same = (
        one.predict(data, verbose=0).argmax(1) == other.predict(data, verbose=0).argmax(1)
    ).mean()
    export(one, tmp_path / "one.tflite")
    export(other, tmp_path / "other.tflite")
    for model in (one, tmp_path / "one.tflite"):
        for reference in (other, tmp_path / "other.tflite"):
            [score] = evaluate(model, data, reference=reference).scores
            assert score.value == pytest.approx(same)
            assert (score.output, score.about) == ("scores", "share of equal classes")
    # Labels are not looked at.
    assert evaluate(one, (data, np.full(50, 99)), reference=one)["agreement"] == 1
    assert evaluate(one, data, metric="top1", reference=other).top1 == pytest.approx(same)


def test_agreement_of_values_is_r2():
    one, other = classifier_of(1, "linear"), classifier_of(2, "linear")
    data = RANDOM.normal(size=(50, 6)).astype(np.float32)
    oracle = keras.metrics.R2Score(class_aggregation="variance_weighted_average")
    oracle.update_state(other.predict(data, verbose=0), one.predict(data, verbose=0))
    found = evaluate(one, data, reference=other, batch_size=8)
    assert found["agreement"] == pytest.approx(float(oracle.result()), abs=1e-5)
    assert found.scores[0].about == "1 - squared error / variance of the reference"
    # Logits are values until the user says otherwise.
    same = (
        one.predict(data, verbose=0).argmax(1) == other.predict(data, verbose=0).argmax(1)
    ).mean()
    assert evaluate(one, data, reference=other, metric="top1").top1 == pytest.approx(same)


def test_other_metrics_take_the_reference_for_labels():
    scale = keras.Sequential([keras.Input((4, 5, 3)), keras.layers.Rescaling(0.5)])
    found = evaluate(echo_of(4, 5, 3), IMAGES, reference=scale, metric=["mse", "mean_iou", "psnr"])
    assert found["mse"] == pytest.approx(np.square(IMAGES / 2).mean(), rel=1e-5)
    assert found["mean_iou"] == 1
    oracle = tf.image.psnr(IMAGES / 2, IMAGES, 1).numpy().mean()
    assert found["psnr"] == pytest.approx(oracle, abs=1e-4)
    sigmoids = RANDOM.uniform(size=(9, 1)).astype(np.float32)
    shift = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1, 0.25)])
    found = evaluate(echo_of(1), sigmoids, reference=shift, metric="accuracy")
    assert found["accuracy"] == pytest.approx(((sigmoids > 0.5) == (sigmoids > 0.25)).mean())


def test_a_reference_is_fed_and_compared_by_name():
    def made(names, outputs):
        inputs = {name: keras.Input((2,), name=name) for name in names}
        return keras.Model(inputs, {name: inputs[name] * 3 for name in outputs})

    one, other = made(["a", "b"], ["a", "b"]), made(["b", "a"], ["b", "a"])
    data = {name: RANDOM.normal(size=(9, 2)).astype(np.float32) for name in "ab"}
    assert [score.value for score in evaluate(one, data, reference=other).scores] == [1, 1]


def test_a_reference_that_does_not_fit_is_a_clear_error(echo, two):
    with pytest.raises(Error, match=r"reference: expected output 'echo' to be \(9, 4, 5, 3\), got"):
        half = keras.Sequential([keras.Input((4, 5, 3)), keras.layers.AveragePooling2D(2)])
        evaluate(echo_of(4, 5, 3), IMAGES, reference=half)
    with pytest.raises(Error, match=r"reference: expected a model of the outputs \['echo'\]"):
        evaluate(echo_of(4, 5, 3), IMAGES, reference=two)
    with pytest.raises(Error, match=r"expected shape \(rows, 7\), got \(9, 4, 5, 3\)"):
        evaluate(two, IMAGES, reference=echo)
    always = keras.layers.Dense(7, kernel_initializer="zeros", bias_initializer="ones")
    constant = keras.Sequential([keras.Input((7,)), always])
    with pytest.raises(Error, match="is the same for all images, so errors have no unit"):
        evaluate(echo, SCORES, reference=constant)


# ---------------------------------------------------------------------- several outputs


@pytest.mark.parametrize("kind", ["keras", "list", "file"])
def test_several_outputs_are_measured_by_name(two, kind, tmp_path):
    model = two
    if kind == "list":
        model = keras.Model(two.input, [two.output["double"], two.output["same"]])
        names = tfdwd.outputs.names_of(model)
    else:
        names = ["double", "same"]
    if kind == "file":
        export(two, tmp_path / "two.tflite")
        model = tmp_path / "two.tflite"
    labels = dict(zip(names, [OTHERS, OTHERS], strict=True))
    found = evaluate(model, (IMAGES, labels), metric={names[0]: "mse", names[1]: ["psnr", "mse"]})
    assert [(score.output, score.metric) for score in found.scores] == [
        (names[0], "mse"), (names[1], "psnr"), (names[1], "mse"),
    ]  # fmt: skip
    assert found[names[0], "mse"] == pytest.approx(np.square(2 * IMAGES - OTHERS).mean(), rel=1e-5)
    assert found["psnr"] == pytest.approx(tf.image.psnr(OTHERS, IMAGES, 1).numpy().mean(), abs=1e-4)
    with pytest.raises(Error, match=r"expected a metric, or \(output, metric\), of .* got 'mse'"):
        found["mse"]
    # A name without a dict is taken for each, labels as a list too; by default what has labels is.
    assert len(evaluate(model, (IMAGES, [OTHERS, OTHERS]), metric="mse").scores) == 2
    [score] = evaluate(model, (IMAGES, {names[1]: OTHERS})).scores
    assert score.output == names[1] and score.metric == "psnr"
    assert str(found).splitlines()[0].split() == ["output", "metric", "value"]
    assert str(found).splitlines()[-1] == "9 images"


def test_a_function_in_no_dict_takes_the_outputs_together(two):
    objects = RANDOM.uniform(size=(9, 2))  # labels of a form of their own
    seen = []

    def closest(y_true, y_pred):
        seen.append((y_true.shape, sorted(y_pred)))
        return np.abs(y_pred["double"] - y_pred["same"] - y_true[:, :1, None, None]).max((1, 2, 3))

    found = evaluate(two, (IMAGES, objects), metric=closest, batch_size=6)
    assert seen == [((6, 2), ["double", "same"]), ((3, 2), ["double", "same"])]
    expected = np.abs(IMAGES - objects[:, :1, None, None]).max((1, 2, 3)).mean()
    assert found["closest"] == found["", "closest"] == pytest.approx(expected, rel=1e-6)


def test_labels_of_outputs_that_do_not_fit_are_clear_errors(two):
    for labels, metric, message in [
        ({"sane": OTHERS}, None, r"expected names of the outputs \['double', 'same'\]"),
        (OTHERS, None, "as a dict by name or a list, got one array"),
        ([OTHERS], None, "labels: expected one for each of the outputs"),
        ({"same": OTHERS}, "mse", r"labels of the output 'double', got those of \['same'\]"),
        ({"same": OTHERS}, {"sane": "mse"}, "metric: expected names of the outputs"),
        ({"same": OTHERS[:5]}, None, r"same number of rows in all, got image: 9, labels 'same': 5"),
    ]:
        with pytest.raises(Error, match=message):
            evaluate(two, (IMAGES, labels), metric=metric)
    mixed = [(IMAGES, {"same": OTHERS}), (IMAGES, {"double": OTHERS})]
    with pytest.raises(Error, match=r"batch 1: expected labels .*same.* as in batch 0"):
        evaluate(two, mixed)


# ---------------------------------------------------------------------- the user's metrics


def test_a_keras_metric_is_as_before_afterwards():
    scores, labels = RANDOM.uniform(size=(20, 1)).astype(np.float32), RANDOM.integers(0, 2, (20, 1))
    metric, oracle = keras.metrics.AUC(), keras.metrics.AUC()
    metric.update_state([0, 1], [0.9, 0.8])
    oracle.update_state(labels, scores)
    before = [np.array(variable) for variable in metric.variables]
    found = evaluate(echo_of(1), (scores, labels), metric=metric, batch_size=7)
    assert found["auc"] == pytest.approx(float(oracle.result()))
    for variable, value in zip(metric.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    with pytest.raises(Error, match=r"metric 'auc': .*Error"):
        evaluate(echo_of(1), (scores, np.ones((20, 3))), metric=metric)
    for variable, value in zip(metric.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_function_counts_each_image_once():
    values, labels = RANDOM.normal(size=(2, 7, 3)).astype(np.float32)

    def number(y_true, y_pred):
        return np.abs(y_true - y_pred).mean()

    def each(y_true, y_pred):
        return tf.abs(y_true - y_pred)

    expected = np.abs(values - labels).mean()
    found = evaluate(
        echo_of(3), (values, labels), batch_size=4,
        metric=[number, each, keras.losses.mean_absolute_error],
    )  # fmt: skip
    assert [score.value for score in found.scores] == [pytest.approx(expected, rel=1e-5)] * 3
    assert [score.metric for score in found.scores] == ["number", "each", "mean_absolute_error"]


class OfTwo(keras.metrics.Metric):
    def update_state(self, y_true, y_pred, sample_weight=None):
        pass

    def result(self):
        return {"left": 0.25, "right": 0.5}


def test_a_metric_of_several_numbers_gives_each(echo):
    found = evaluate(echo, (SCORES, LABELS), metric=OfTwo())
    assert (found["left"], found["right"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("top2", "metric: expected 'top1', .* got 'top2'"),
        (keras.metrics.AUC, "got <class"),
        (3, "got 3"),
        ([], "got None"),
        ({}, "metric: expected 'top1'"),
        ({"echo": "top2"}, "got 'top2'"),
        ({"echo": None}, "got None"),
        (["top1", "top1"], "'top1' twice"),
        ("agreement", "pass reference="),
        ("accuracy", "expected sigmoids of 0..1 in 'echo', got -6..0"),
        ("psnr", r"labels of 'echo': expected the output's shape \(7, 7\), got \(7,\)"),
        (lambda y, p: "good", "expected a number or an array .* for 7 images, got <U4"),
        (lambda y, p: np.zeros(3), r"for 7 images, got float64 \(3,\)"),
        (lambda y, p: np.nan, "expected a finite number, got nan"),
        (lambda y, p: y.no_such_thing, "AttributeError: .*no_such_thing"),
        (
            keras.metrics.F1Score(),
            r"metric 'f1_score': (ValueError|InvalidArg|expected one number)",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_a_clear_error(echo, metric, message):
    with pytest.raises(Error, match=message):
        evaluate(echo, (SCORES, LABELS), metric=metric)


def test_a_keras_metric_is_of_one_output(two):
    metric = keras.metrics.MeanSquaredError()
    with pytest.raises(Error, match=r"a keras\.metrics\.Metric of its own for each output"):
        evaluate(two, (IMAGES, [IMAGES] * 2), metric={"same": metric, "double": metric})


# ---------------------------------------------------------------------- data and files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SCORES, "no array of labels"),
        ((SCORES, LABELS + 2), r"labels of 'echo': expected class numbers of 0\.\.6, got 7 in"),
        ((SCORES, LABELS - 1), r"expected class numbers of 0\.\.6, got -1 in image 0"),
        ((SCORES, LABELS / 2), r"expected class numbers of 0\.\.6, got 0\.5 in image 1"),
        ((SCORES, LABELS * np.nan), "got nan in image 0"),
        ((SCORES, np.full(7, "cat")), "expected numbers, got dtype <U3"),
        ((SCORES, np.full((7, 7), "cat")), "expected numbers, got dtype <U3"),
        ((SCORES, np.eye(7)[LABELS][:, :6]), r"got \(images, 6\)"),
        ((SCORES[:0], LABELS[:0]), "the data is empty"),
    ],
)
def test_wrong_data_is_a_clear_error(echo, data, message):
    with pytest.raises(Error, match=message):
        evaluate(echo, data)


def test_a_label_is_named_by_its_place_in_the_data(echo):
    labels = LABELS.copy()
    labels[5] = 9
    with pytest.raises(Error, match="got 9 in image 5"):
        evaluate(echo, (SCORES, labels), batch_size=2)


def test_labels_of_another_shape_are_a_clear_error():
    for model, data, labels in [
        (echo_of(4, 5, 3), IMAGES, IMAGES[:, :2]),
        (echo_of(1), np.zeros((4, 1)), np.zeros((4, 3))),
        (echo_of(4, 5, 1), IMAGES[..., :1], np.zeros((9, 3, 5))),
    ]:
        with pytest.raises(Error, match="labels of 'echo': expected"):
            evaluate(model, (data, labels))


def test_peaks_that_cannot_be_are_clear_errors(echo):
    data = (IMAGES, IMAGES)
    for peak in (0, -1, np.nan, np.inf):
        with pytest.raises(Error, match=r"peak: expected a (finite )?number"):
            evaluate(echo_of(4, 5, 3), data, peak=peak)
    with pytest.raises(Error, match="peak: expected metric='psnr'"):
        evaluate(echo, (SCORES, LABELS), peak=1)
    for wrong in (2 * IMAGES - 1, IMAGES * 1000):
        with pytest.raises(
            Error, match=r"expected images of 0\.\.1 or 0\.\.255, got .* pass peak="
        ):
            evaluate(echo_of(4, 5, 3), (wrong, wrong), metric="psnr")


def test_nan_outputs_are_a_clear_error(two):
    model = keras.Sequential([keras.Input((7,)), keras.layers.Lambda(lambda x: tf.sqrt(x + 6))])
    model.layers[0].name = "root"
    scores = np.maximum(SCORES, -6)
    scores[5, 2] = -7
    with pytest.raises(Error, match=r"gave NaN in output .* for image 5"):
        evaluate(model, (scores, LABELS), batch_size=2)


def test_sizes_that_a_network_cannot_take_are_a_clear_error():
    image = keras.Input((None, None, 1))
    half = keras.layers.UpSampling2D(2)(keras.layers.MaxPooling2D(2)(image))
    model = keras.Model(image, keras.layers.Add()([image, half]))
    assert evaluate(model, np.zeros((2, 4, 6, 1)), reference=model, metric="mse").count == 2
    with pytest.raises(Error, match=r"the model cannot run on images of \(2, 5, 5, 1\)"):
        evaluate(model, np.zeros((2, 5, 5, 1)), reference=model)
    scalar = keras.Model(image, keras.ops.sum(image))
    with pytest.raises(Error, match=r"expected one row for each of 2 images, got \(\)"):
        evaluate(scalar, np.zeros((2, 5, 5, 1)), reference=scalar)


def test_what_is_no_model_is_a_clear_error(echo, tmp_path):
    for wrong in (None, 3, keras.layers.Dense):
        with pytest.raises(Error, match=r"expected a Keras model or the path of a \.tflite file"):
            evaluate(wrong, (SCORES, LABELS))
    with pytest.raises(Error, match="no such file"):
        evaluate(tmp_path / "none.tflite", (SCORES, LABELS))
    with pytest.raises(Error, match="no such file"):
        evaluate(echo, SCORES, reference=tmp_path / "none.tflite")


@pytest.mark.parametrize("count", [3, 8, 11])
def test_a_model_of_a_fixed_batch_takes_any_number_of_images(count, tmp_path):
    scores, labels = np.tile(SCORES, (2, 1))[:count], np.tile(LABELS, 2)[:count]
    wanted = (scores.argmax(1) == labels).mean()
    model = echo_of(7, batch_size=8)
    assert evaluate(model, (scores, labels)).top1 == pytest.approx(wanted)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(lambda x: x * 2).get_concrete_function(tf.TensorSpec((8, 7), tf.float32))],
        tf.Module(),
    )
    (tmp_path / "eight.tflite").write_bytes(converter.convert())
    found = evaluate(tmp_path / "eight.tflite", (scores, labels))
    assert found.count == count and found.top1 == pytest.approx(wanted)


def test_a_file_of_open_sizes_takes_the_data_s(tmp_path):
    function = tf.function(
        lambda image: {"image": image * 2, "mean": tf.reduce_mean(image, (1, 2))}
    )
    spec = tf.TensorSpec((None, None, None, 3), tf.float32, name="image")
    content = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function(spec)], tf.Module()
    ).convert()
    (tmp_path / "open.tflite").write_bytes(content)
    assert lite.Model(content).inputs[0].sizes == (None, None, None, 3)
    for images in (IMAGES, IMAGES[:, :3, :2]):
        labels = {"image": images * 2, "mean": images.mean((1, 2))}
        found = evaluate(tmp_path / "open.tflite", (images, labels), metric="mse")
        assert found["image", "mse"] < 1e-12 and found["mean", "mse"] < 1e-12
    with pytest.raises(Error, match=r"expected shape \(rows, any, any, 3\)"):
        evaluate(tmp_path / "open.tflite", (IMAGES[..., :2], IMAGES))


def test_int8_outputs_are_real_values(tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, keras.layers.Conv2D(3, 3, padding="same", name="out")(image))
    images = RANDOM.uniform(size=(64, 8, 8, 3)).astype(np.float32)
    export(model, tmp_path / "int8.tflite", quantize="int8", data=images)
    assert lite.Model(tmp_path / "int8.tflite").outputs[0].dtype == np.int8
    assert evaluate(tmp_path / "int8.tflite", images, reference=model)["agreement"] > 0.99


# ---------------------------------------------------------------------- the script


@pytest.fixture
def call(tmp_path, monkeypatch, two, capsys):
    """Runs tfdwd-evaluate beside two.keras, two.tflite and arrays; gives its status and lines."""
    monkeypatch.chdir(tmp_path)
    two.save("two.keras")
    export(two, "two.tflite")
    echo_of(4, 5, 3).save("echo.keras")
    for name, array in [("images", IMAGES), ("others", OTHERS)]:
        np.save(f"{name}.npy", array)
    np.savez("both.npz", others=OTHERS, images=IMAGES)
    capsys.readouterr()

    def run(*arguments):
        flags = script.FLAGS
        flags.unparse_flags()
        for flag in flags:
            flags[flag].unparse()
        argv = ["tfdwd-evaluate", "--images=images.npy", *arguments]
        status = common.status(script.main, flags, script.__doc__, argv)
        out, err = capsys.readouterr()
        return status, (out or err).splitlines()

    return run


def test_the_script_measures_by_output_and_against_a_reference(call):
    status, lines = call(
        "--model=two.tflite", "--labels=same=others.npy", "--labels=double=others.npy",
        "--metric=same=psnr", "--metric=same=mse", "--metric=double=mse", "--json=e.json",
    )  # fmt: skip
    assert status == 0, lines
    found = Evaluation.from_json(Path("e.json").read_text())
    assert [score.output for score in found.scores] == ["same", "same", "double"]
    oracle = tf.image.psnr(OTHERS, IMAGES, 1).numpy().mean()
    assert found["same", "psnr"] == pytest.approx(oracle, abs=1e-4)
    status, lines = call("--model=two.tflite", "--reference=two.keras")
    assert status == 0 and lines[2].split()[:3] == ["double", "agreement", "1.0000"]
    status, lines = call(
        "--model=echo.keras", "--labels=both.npz", "--labels_key=others", "--peak=2"
    )
    oracle = tf.image.psnr(OTHERS, IMAGES, 2).numpy().mean()
    assert lines == [f"PSNR {oracle:.2f} dB (peak 2), 9 images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --labels or --reference"),
        (["--labels=others.npy", "--reference=two.keras"], "expected either --labels or --ref"),
        (["--labels=same=others.npy", "--labels=others.npy"], "--labels: expected OUTPUT=..."),
        (["--labels=others.npy", "--labels=others.npy"], "--labels: expected OUTPUT=..."),
        (["--labels=same=others.npy"] * 2, "expected one file for the output 'same'"),
        (["--reference=two.keras", "--metric=top9"], "expected 'top1', "),
        (["--reference=none.tflite"], "no such file: none.tflite"),
    ],
)
def test_the_script_says_what_the_user_can_mend_in_one_line(call, arguments, message):
    status, lines = call("--model=two.keras", *arguments)
    assert status == 1 and len(lines) == 1 and message in lines[0]


# ---------------------------------------------------------------------- the record


def test_an_evaluation_prints_checks_itself_and_survives_json():
    evaluation = Evaluation((Score("top1", 0.5, "scores"), Score("top5", 0.75, "scores")), 4)
    assert str(evaluation) == "top-1 0.5000, top-5 0.7500, 4 images"
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    several = Evaluation((Score("psnr", 30.5, "a", "peak 1"), Score("ap50", 0.5)), 4)
    assert str(several).splitlines()[2:] == [
        "a           PSNR  30.50 dB  peak 1", "together    ap50       0.5", "4 images",
    ]  # fmt: skip
    assert Evaluation.from_json(several.to_json()) == several
    with pytest.raises(Error, match="got 'top1'"):
        _ = several.top1
    one = Score("top1", 0.5)
    for scores, count, message in [
        ((one,), 0, r"Evaluation\.count"),
        ((), 1, "expected scores, each metric once"),
        ((one, one), 1, "expected scores, each metric once"),
        ((1,), 1, r"Evaluation\.scores"),
    ]:
        with pytest.raises(Error, match=message):
            Evaluation(scores, count)
    with pytest.raises(Error, match="expected top1 <= top5"):
        Evaluation((one, Score("top5", 0.25)), 4)
    for metric, value in [("top1", 1.5), ("mean_iou", -0.1), ("mse", np.nan), ("mse", np.inf)]:
        with pytest.raises(Error, match=f"metric '{metric}': expected"):
            Score(metric, value)


def test_of_data_without_an_end_the_first_images_are_taken():
    images = RANDOM.normal(size=(5, 2, 3)).astype(np.float32)
    data = tf.data.Dataset.from_tensors((images, images)).repeat()
    with pytest.raises(Error, match="images=n"):
        evaluate(echo_of(2, 3), data, metric="mse")
    result = evaluate(echo_of(2, 3), data, metric="mse", images=7)
    assert result.count == 7 and result["mse"] == 0


def test_whole_numbers_agree_where_they_are_equal():
    image = keras.Input((2, 2, 3))
    model = keras.Model(image, keras.ops.argmax(image, -1))
    other = keras.Model(image, keras.ops.argmax(image * np.array([1.0, 1.0, 0.5], "f"), -1))
    images = np.random.default_rng(0).random((20, 2, 2, 3), np.float32)
    wanted, found = images.argmax(-1), (images * [1, 1, 0.5]).argmax(-1)
    score = tfdwd.evaluate(other, images, reference=model)
    assert score["agreement"] == pytest.approx(np.mean(wanted == found))
    assert tfdwd.evaluate(other, (images, wanted))["accuracy"] == pytest.approx(
        np.mean(wanted == found)
    )


def test_a_constant_output_that_is_equal_agrees():
    image = keras.Input((2,))
    model = keras.Model(image, keras.ops.zeros_like(image))
    assert tfdwd.evaluate(model, np.ones((4, 2), "f"), reference=model)["agreement"] == 1


def test_maps_that_are_no_images_have_an_error_by_default():
    image = keras.Input((2, 2, 3))
    model = keras.Model(image, image * 0)
    maps = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32) * 3
    assert tfdwd.evaluate(model, (maps, maps))["mse"] == pytest.approx(np.square(maps).mean())


def test_a_model_of_a_name_that_tensorflow_does_not_take():
    image = keras.Input((2,), name="in-put 0")
    model = keras.Model(image, keras.layers.Dense(2, name="d[0]")(image), name="Ä")
    assert tfdwd.evaluate(model, np.eye(2), reference=model)["agreement"] == 1
    assert model.name == "Ä"
