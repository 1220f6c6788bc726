"""Fine-tuning on small networks and random images."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfdwd
from tfdwd.errors import Error
from tfdwd.training import checkpoints

IMAGES = np.random.default_rng(0).normal(size=(96, 8, 8, 4)).astype(np.float32)
# Learnable: which of the four channels is the brightest.
LABELS = IMAGES.mean((1, 2)).argmax(1)


def _network(seed: int = 0, dropout: float = 0.0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="conv", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    x = layers.Dropout(dropout)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="scores")(x))


@pytest.fixture(scope="module")
def teacher() -> keras.Model:
    model = _network()
    tfdwd.finetune(model, (IMAGES, LABELS), epochs=60, learning_rate=0.03, batch_size=16)
    return model


@pytest.fixture
def student(teacher: keras.Model) -> keras.Model:
    return tfdwd.decompose(teacher, rank=1, method="svd")


def _agreement(one: keras.Model, other: keras.Model) -> float:
    return float(np.mean(np.argmax(one(IMAGES), 1) == np.argmax(other(IMAGES), 1)))


def _weights_apart(one: keras.Model, other: keras.Model) -> float:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def _stopped_after(done: int, model: keras.Model, data: Any, **options: Any) -> None:
    """Fine-tunes as if it were interrupted once the state of so many epochs is written."""

    class StopError(Exception):
        pass

    writes = checkpoints.write

    def write_and_stop(folder: Path, state: Any) -> None:
        writes(folder, state)
        if state.epoch == done:
            raise StopError

    with mock.patch.object(checkpoints, "write", write_and_stop), pytest.raises(StopError):
        tfdwd.finetune(model, data, **options)


def test_it_learns_from_labels(teacher: keras.Model) -> None:
    assert tfdwd.evaluate(teacher, (IMAGES, LABELS)).top1 > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"features_weight": 1.0},
        {"labels_weight": 0.5, "label_smoothing": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "ema": 0.5},
        {"mixed_precision": True},
        {"freeze_batch_norm": True, "warmup": 0.0},
    ],
    ids=str,
)
def test_a_student_comes_closer_to_its_teacher(
    teacher: keras.Model, student: keras.Model, options: dict[str, Any]
) -> None:
    weights = [weight.copy() for weight in teacher.get_weights()]
    norm = [weight.copy() for weight in student.get_layer("bn").get_weights()]
    policies = [layer.dtype_policy.name for layer in student.layers]
    data: Any = (IMAGES, LABELS) if "labels_weight" in options else IMAGES
    before = _agreement(student, teacher)
    options = {"learning_rate": 0.02, **options}
    history = tfdwd.finetune(student, data, epochs=20, teacher=teacher, batch_size=16, **options)
    losses = history.history["loss"]
    assert len(losses) == len(history.epoch) == 20 and losses[-1] < losses[0]
    assert _agreement(student, teacher) > max(0.8, before)
    for before, after in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    frozen = np.array_equal(norm[0], student.get_layer("bn").get_weights()[0])
    assert frozen == ("freeze_batch_norm" in options)
    assert student.get_layer("bn").trainable
    assert [layer.dtype_policy.name for layer in student.layers] == policies


def test_the_loss_is_as_written(teacher: keras.Model, student: keras.Model) -> None:
    """One step at a rate of 0, against NumPy."""
    history = tfdwd.finetune(
        student,
        (IMAGES, LABELS),
        epochs=1,
        teacher=teacher,
        labels_weight=0.25,
        features_weight=0.5,
        label_smoothing=0.2,
        learning_rate=0.0,
        warmup=0.0,
        freeze_batch_norm=True,
        batch_size=96,
    )
    logs, taught = np.log(student(IMAGES)), np.asarray(teacher(IMAGES))
    smooth = np.eye(4)[LABELS] * 0.8 + 0.05
    found, wanted = (
        np.asarray(keras.Model(model.inputs[0], model.get_layer("conv").output)(IMAGES))
        for model in (student, teacher)
    )
    expected = (
        -(0.25 * smooth * logs).sum(1).mean()
        - (taught * logs).sum(1).mean()
        + 0.5 * np.square(found - wanted).mean() / np.square(wanted).mean()
    )
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]


def test_weight_decay_is_for_kernels_only() -> None:
    model = _network(1)
    before = {weight.path: np.asarray(weight) for weight in model.trainable_variables}
    # Without a gradient (the teacher is the model itself) only the decay is left of AdamW's step.
    tfdwd.finetune(
        model, IMAGES[:16], epochs=1, teacher=model, learning_rate=0.1, warmup=0.0,
        weight_decay=0.5, batch_size=16, freeze_batch_norm=True,
    )  # fmt: skip
    for weight in model.trainable_variables:
        if weight.path.endswith(("bias", "gamma", "beta")):
            continue
        moved = np.abs(np.asarray(weight) - before[weight.path])
        assert moved.max() > 0.01 * np.abs(before[weight.path]).max()


def test_resumed_it_ends_with_the_same_weights(teacher: keras.Model, tmp_path: Path) -> None:
    student = _network(3, dropout=0.3)
    again = keras.models.clone_model(student)
    third = keras.models.clone_model(student)
    for copy in (again, third):
        copy.set_weights(student.get_weights())
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    options = {
        "teacher": teacher, "epochs": 4, "batch_size": 16, "ema": 0.9, "optimizer": "sgd",
        "validation": (IMAGES, LABELS),
    }  # fmt: skip
    whole = tfdwd.finetune(student, IMAGES, folder=tmp_path / "whole", **options)

    _stopped_after(2, again, IMAGES, folder=tmp_path / "parts", **options)
    parts = tfdwd.finetune(third, IMAGES, folder=tmp_path / "parts", resume=True, **options)
    assert parts.history == whole.history and parts.epoch == [0, 1, 2, 3]
    assert _weights_apart(third, student) < 1e-6
    last = keras.models.load_model(tmp_path / "parts" / "last.keras")
    assert _weights_apart(last, student) < 1e-6
    assert (tmp_path / "parts" / "best.keras").is_file()
    with pytest.raises(Error, match=r"state.npz: expected the checkpoint of this model with the"):
        tfdwd.finetune(
            third, IMAGES, folder=tmp_path / "parts", resume=True, **{**options, "ema": None}
        )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    student: keras.Model, tmp_path: Path
) -> None:
    tfdwd.finetune(student, (IMAGES, LABELS), epochs=1, folder=tmp_path, batch_size=16)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    student.get_layer("scores").kernel.assign(np.full((8, 4), np.nan))
    with pytest.raises(Error, match=r"the loss is nan at step 1, in epoch 1: expected a finite"):
        tfdwd.finetune(student, (IMAGES, LABELS), epochs=2, folder=tmp_path, batch_size=16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_kind_of_data_set(student: keras.Model) -> None:
    pairs = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(32)
    one_hot = [(IMAGES[:32], np.eye(4)[LABELS[:32]]), (IMAGES[32:64], np.eye(4)[LABELS[32:64]])]
    seen = []

    def of_epoch(epoch: int) -> Any:
        seen.append(epoch)
        return pairs.shuffle(96, seed=epoch)

    for data, options in (
        (pairs, {}),
        (one_hot, {}),
        (of_epoch, {}),
        (pairs.repeat(), {"steps_per_epoch": 2}),
        ((IMAGES[:5], LABELS[:5]), {}),  # less than one batch
    ):
        history = tfdwd.finetune(student, data, epochs=2, **options)
        assert len(history.history["loss"]) == 2
    assert {0, 1} <= set(seen)  # a batch or two are made ahead


def test_a_quantise_aware_student_is_finetuned_and_exported(
    teacher: keras.Model, student: keras.Model, tmp_path: Path
) -> None:
    aware = tfdwd.quantize_aware(student)
    history = tfdwd.finetune(
        aware, IMAGES, epochs=2, teacher=teacher, learning_rate=1e-3, batch_size=16,
        validation=(IMAGES, LABELS), folder=tmp_path, freeze_batch_norm=True,
    )  # fmt: skip
    assert len(history.history["val_top1"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.weights.h5", "last.weights.h5", "state.npz",
    ]  # fmt: skip
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=IMAGES)
    assert report.outputs[0].top1_agreement is not None
    assert report.outputs[0].top1_agreement > 0.9
    assert _agreement(aware, teacher) > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "expected epochs of at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, sgd, got 'lion'"),
        ({"features_weight": 1.0}, "labels_weight= and features= are of losses beside a teacher"),
        ({"features": ["conv"]}, "pass teacher=model or omit them"),
        ({"folder": "none"}, "folder: none does not exist"),
        ({"resume": True}, "resume: expected the folder with the checkpoint"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        tfdwd.finetune(_network(), (IMAGES, LABELS), **{"epochs": 1, **options})


def test_wrong_data(teacher: keras.Model) -> None:
    with pytest.raises(Error, match="no array of labels"):
        tfdwd.finetune(_network(), IMAGES, epochs=1)
    with pytest.raises(Error, match="expected at least one batch, got none"):
        tfdwd.finetune(_network(), [], epochs=1, teacher=teacher)
    with pytest.raises(Error, match="pass steps_per_epoch"):
        tfdwd.finetune(_network(), lambda epoch: iter([IMAGES]), epochs=1, teacher=teacher)
    with pytest.raises(Error, match="features_weight: expected a student of the teacher"):
        tfdwd.finetune(_network(), IMAGES, epochs=1, teacher=teacher, features_weight=1.0)


def test_it_trains_under_jax(tmp_path: Path) -> None:
    pytest.importorskip("jax")
    code = """if True:
        import json, keras, numpy as np
        from tfdwd.training import finetune
        layers = keras.layers
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
        images = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        labels = images[:, :3].argmax(1)
        history = finetune(model, (images, labels), epochs=9, learning_rate=0.1, batch_size=16)
        print(json.dumps([keras.backend.backend(), history.history["loss"]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    backend, losses = json.loads(done.stdout.splitlines()[-1])
    assert backend == "jax" and losses[-1] < 0.7 * losses[0]


def test_tensorboard_has_what_the_history_has(student: keras.Model, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = tfdwd.finetune(
        student,
        (IMAGES, LABELS),
        epochs=2,
        validation=(IMAGES, LABELS),
        tensorboard=tmp_path / "logs",
    )
    for part, name, key in ("train", "loss", "loss"), ("validation", "top1", "val_top1"):
        events = EventAccumulator(str(tmp_path / "logs" / part))
        events.Reload()
        logged = [tf.make_ndarray(e.tensor_proto).item() for e in events.Tensors(f"epoch_{name}")]
        np.testing.assert_allclose(logged, history.history[key], rtol=1e-6)
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(Error, match="expected the package tensorboard"),
    ):
        tfdwd.finetune(student, (IMAGES, LABELS), epochs=1, tensorboard=tmp_path)
