import keras
import numpy as np
import pytest
import tensorflow as tf

from tfdwd.conversion import export
from tfdwd.errors import Error
from tfdwd.evaluation import Evaluation, evaluate


@pytest.fixture(scope="module")
def echo():
    """A classifier of 7 classes whose outputs are its inputs."""
    return keras.Sequential([keras.Input((7,)), keras.layers.Activation("linear")])


# Row r ranks the classes r, r+1, ... downwards, so label (r + k) % 7 is in place k.
SCORES = np.array([[-((c - r) % 7) for c in range(7)] for r in range(7)], np.float32)
PLACES = np.array([0, 0, 0, 1, 4, 5, 6])  # 3 of 7 are first, 5 of 7 among the first five.
LABELS = (np.arange(7) + PLACES) % 7


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "labels",
    [LABELS, LABELS[:, None], LABELS.astype(np.uint8), np.eye(7)[LABELS]],
    ids=["numbers", "column", "uint8", "one-hot"],
)
def test_places_are_counted(echo, labels, batch_size):
    assert evaluate(echo, (SCORES, labels), batch_size=batch_size) == Evaluation(3 / 7, 5 / 7, 7)


def test_a_file_and_a_dataset_give_the_same(echo, tmp_path):
    export(echo, tmp_path / "echo.tflite")
    dataset = tf.data.Dataset.from_tensor_slices((SCORES, LABELS)).batch(2)
    for model in (echo, tmp_path / "echo.tflite", str(tmp_path / "echo.tflite")):
        assert evaluate(model, dataset) == Evaluation(3 / 7, 5 / 7, 7)


def test_equal_outputs_are_not_all_right(echo):
    assert evaluate(echo, (np.zeros((7, 7)), np.arange(7))) == Evaluation(1 / 7, 5 / 7, 7)


def test_resnet8_scores_what_its_source_says(resnet8, cifar, tmp_path):
    # ../shared/data/README.md: 895 of 1017.
    assert evaluate(resnet8, (cifar["x_test"], cifar["y_test"])).top1 == 895 / 1017
    export(resnet8, tmp_path / "resnet8.tflite")
    few = evaluate(tmp_path / "resnet8.tflite", (cifar["x_test"][:200], cifar["y_test"][:200]))
    keras_few = evaluate(resnet8, (cifar["x_test"][:200], cifar["y_test"][:200]))
    assert few == keras_few


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (SCORES, "no array of labels"),
        ((SCORES, LABELS + 2), r"labels of 0\.\.6, got 2\.\.7"),
        ((SCORES, LABELS - 1), r"labels of 0\.\.6, got -1\.\.4"),
        ((SCORES, LABELS / 2), r"whole numbers .* got float64 \(7,\)"),
        ((SCORES, np.eye(7)[LABELS][:, :6]), r"one-hot \(batch, 7\), got float64 \(7, 6\)"),
        ((SCORES[:0], LABELS[:0]), "the data is empty"),
    ],
)
def test_wrong_data_is_a_clear_error(echo, data, message):
    with pytest.raises(Error, match=message):
        evaluate(echo, data)


def test_nan_outputs_are_a_clear_error():
    model = keras.Sequential([keras.Input((7,)), keras.layers.Lambda(lambda x: tf.sqrt(x))])
    with pytest.raises(Error, match=r"gave NaN for an image among 0\.\.6"):
        evaluate(model, (SCORES, LABELS))


def test_what_is_no_classifier_is_a_clear_error(two_in_two_out, tmp_path):
    export(two_in_two_out, tmp_path / "two.tflite")
    for model in (two_in_two_out, tmp_path / "two.tflite"):
        with pytest.raises(Error, match="expected a classifier of one output"):
            evaluate(model, None)


def test_an_evaluation_prints_checks_itself_and_survives_json():
    evaluation = Evaluation(0.5, 0.75, 4)
    assert str(evaluation) == "top-1 0.5000, top-5 0.7500, 4 images"
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    for wrong in ((0.5, 0.25, 4), (0.5, 1.5, 4), (0.5, 0.5, 0), (float("nan"), 1, 4)):
        with pytest.raises(Error, match="expected 0 <= top1 <= top5 <= 1"):
            Evaluation(*wrong)
