"""Fine-tuning on small networks and random images."""

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import randomised
from keras import layers

import tfdwd
from tfdwd import execution, outputs
from tfdwd.errors import Error
from tfdwd.scripts import common, train
from tfdwd.training import checkpoints
from tfdwd.training.epochs import Reading, open_epochs
from tfdwd.training.features import runner
from tfdwd.training.task import Task

# The images as they are, all of them, and the weights of the last step.
_plainly = functools.partial(tfdwd.finetune, augment=None, validation=None, features=None)

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
    _plainly(model, (IMAGES, LABELS), epochs=60, learning_rate=0.03, batch_size=16)
    return model


@pytest.fixture
def student(teacher: keras.Model) -> keras.Model:
    return tfdwd.decompose(teacher, rank=1, method="svd")


def _agreement(one: keras.Model, other: keras.Model) -> float:
    return float(np.mean(np.argmax(one(IMAGES), 1) == np.argmax(other(IMAGES), 1)))


@keras.saving.register_keras_serializable("tests")
class AlwaysDropout(layers.Dropout):
    """Monte Carlo dropout: it leaves its caller no choice."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs, training=True)


@pytest.mark.parametrize("features", [None, ["conv"]])
def test_nothing_is_active_in_the_teacher(features: list[str] | None) -> None:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, name="conv")(x)
    x = layers.GlobalAveragePooling2D()(AlwaysDropout(0.5)(x))
    teacher = keras.Model(image, layers.Dense(4)(x))
    run = runner(teacher, features or ())
    (once, _), (again, kept) = (run([IMAGES[:8]], False) for _ in range(2))
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_allclose(once[0], execution.inference(teacher)(IMAGES[:8]), atol=1e-6)
    assert len(kept) == len(features or ())
    (one, _), (other, _) = (run([IMAGES[:8]], True) for _ in range(2))
    assert np.abs(one[0] - other[0]).max() > 0  # in training the user's dropout is as it was


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
        {"features": "replaced"},
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
    history = _plainly(student, data, epochs=40, teacher=teacher, batch_size=16, **options)
    losses = history.history["loss"]
    assert len(losses) == len(history.epoch) == 40 and losses[-1] < losses[0]
    assert _agreement(student, teacher) > max(0.8, before)
    for before, after in zip(weights, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    frozen = np.array_equal(norm[0], student.get_layer("bn").get_weights()[0])
    assert frozen == ("freeze_batch_norm" in options)
    assert student.get_layer("bn").trainable
    assert [layer.dtype_policy.name for layer in student.layers] == policies


def test_the_loss_is_as_written(teacher: keras.Model, student: keras.Model) -> None:
    """One step at a rate of 0, against NumPy."""
    history = _plainly(
        student,
        (IMAGES, LABELS),
        epochs=1,
        teacher=teacher,
        labels_weight=0.25,
        features="replaced",
        features_weight=0.5,
        label_smoothing=0.2,
        learning_rate=0.0,
        warmup=0.0,
        freeze_batch_norm=True,
        batch_size=96,
    )
    answers = np.asarray(student(IMAGES))
    smooth = np.eye(4)[LABELS] * 0.8 + 0.05
    found, wanted = (
        np.asarray(keras.Model(model.inputs[0], model.get_layer("conv").output)(IMAGES))
        for model in (student, teacher)
    )
    expected = (
        -(0.25 * smooth * np.log(answers)).sum(1).mean()
        + _distance(answers, np.asarray(teacher(IMAGES)))
        + 0.5 * np.square(found - wanted).mean() / np.square(wanted).mean()
    )
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]


def _no_gradient(y_true: Any, y_pred: Any) -> Any:
    return 0.0 * keras.ops.sum(y_pred)


@pytest.mark.parametrize("aware", [False, True])
def test_weight_decay_is_for_kernels_only(aware: bool) -> None:
    x = image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, name="bias_conv")(x)  # a kernel, whatever the layer is called
    x = layers.DepthwiseConv2D(3, name="depth")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="kernel_norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = randomised(keras.Model(image, layers.Dense(2, name="head")(x)))
    if aware:
        model = tfdwd.quantize_aware(model)
    before = {weight.name + str(n): np.asarray(weight)
              for n, weight in enumerate(model.trainable_variables)}  # fmt: skip
    # Without a gradient only the decay is left of AdamW's step.
    _plainly(
        model, (IMAGES[:16], np.zeros((16, 2))), epochs=1, loss=_no_gradient, learning_rate=0.1,
        warmup=0.0, weight_decay=0.5, batch_size=16, freeze_batch_norm=True,
    )  # fmt: skip
    decayed = 0
    for n, weight in enumerate(model.trainable_variables):
        old = before[weight.name + str(n)]
        is_kernel = old.ndim > 1
        decayed += is_kernel
        # The one step is at the highest rate: w - 0.1 * 0.5 * w.
        np.testing.assert_allclose(np.asarray(weight), old * (0.95 if is_kernel else 1), rtol=1e-5)
    assert decayed == 3


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
    best, last, wholly = (
        keras.models.load_model(tmp_path / name)
        for name in ("parts/best.keras", "parts/last.keras", "whole/last.keras")
    )
    assert _weights_apart(best, student) < 1e-6 and _weights_apart(last, wholly) < 1e-6
    with pytest.raises(Error, match=r"state.npz: expected the checkpoint of this model with the"):
        tfdwd.finetune(
            third, IMAGES, folder=tmp_path / "parts", resume=True, **{**options, "ema": None}
        )


def test_resumed_it_learns_the_maps_that_it_learnt_before(tmp_path: Path) -> None:
    """Whether the student that is handed over is near to them or not."""
    teacher, far = _small(_softmax_head), _small(_softmax_head, seed=2)
    whole, part = (_small(_softmax_head) for _ in range(2))
    for near in whole, part:
        near.get_layer("trunk").kernel.assign(near.get_layer("trunk").kernel * 1.2)
    options: Any = {"teacher": teacher, "epochs": 4, "batch_size": 8, "augment": None}
    tfdwd.finetune(whole, SMALL, **options)
    _stopped_after(2, part, SMALL, folder=tmp_path, **options)
    assert len(np.load(tmp_path / "state.npz")["features"]) == 1
    tfdwd.finetune(far, SMALL, folder=tmp_path, resume=True, **options)
    assert _weights_apart(far, whole) < 1e-6


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(
    teacher: keras.Model, student: keras.Model, tmp_path: Path
) -> None:
    options: Any = {"teacher": teacher, "folder": tmp_path, "batch_size": 16}
    tfdwd.finetune(student, IMAGES, epochs=1, **options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    student.get_layer("scores").kernel.assign(np.full((8, 4), np.nan))
    with pytest.raises(Error, match=r"the loss is nan at step 1, in epoch 1: expected a finite"):
        tfdwd.finetune(student, IMAGES, epochs=2, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(Error, match="output 'scores' of the model is NaN or infinite"):
        tfdwd.finetune(student, (IMAGES, LABELS), epochs=2, folder=tmp_path)


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


def _rate_in(folder: Path) -> float:
    """The learning rate that a checkpoint remembers."""
    with np.load(folder / "state.npz") as state:
        return float(state["rate"])


@pytest.mark.parametrize(("heads", "apart"), [("image", 1.2), ("dict", 1.03)])
def test_the_rate_is_found_once_by_how_far_the_student_is(
    heads: str, apart: float, tmp_path: Path
) -> None:
    rate = functools.partial(_rate_in, tmp_path)
    teacher, student = _small(HEADS[heads]), _small(HEADS[heads])
    for weight in student.trainable_weights:
        weight.assign(weight * apart)
    options: Any = {"teacher": teacher, "folder": tmp_path}
    first = tfdwd.finetune(student, SMALL, epochs=1, **options)
    loss = first.before["val_loss"] / len(teacher.outputs)
    # Probabilities are softened in the loss that is told; here that makes a difference of 3e-4.
    assert rate() == pytest.approx(np.clip(0.004 * loss, 1e-4, 3e-3), rel=1e-3)
    assert 1e-4 < rate() < 3e-3
    found = rate()
    tfdwd.finetune(student, SMALL, epochs=2, resume=True, **options)
    assert rate() == found
    tfdwd.finetune(student, (SMALL, LABELS), epochs=1, learning_rate=0.01, **options)
    assert rate() == 0.01


@pytest.mark.parametrize("features", ["auto", None, "replaced"])
def test_the_rate_is_high_where_the_last_maps_are_learnt(
    teacher: keras.Model, features: str | None, tmp_path: Path
) -> None:
    student = tfdwd.decompose(teacher, rank=3, method="svd")  # so near that the rule says less
    options: Any = {"teacher": teacher, "features": features, "folder": tmp_path}
    tfdwd.finetune(student, IMAGES, epochs=1, **options)
    assert (_rate_in(tmp_path) == pytest.approx(3e-3)) == (features == "auto")


def test_a_quantise_aware_student_that_gets_no_better_is_rounded(
    teacher: keras.Model, student: keras.Model, tmp_path: Path
) -> None:
    aware = tfdwd.quantize_aware(student)
    kernels = [np.array(weight) for weight in aware.trainable_weights]
    unrounded = _outputs(aware, IMAGES)[0]
    history = tfdwd.finetune(aware, IMAGES, epochs=1, teacher=teacher, learning_rate=0.0)
    assert history.before["val_loss"] >= history.after["val_loss"]
    for before, after in zip(kernels, aware.trainable_weights, strict=True):
        np.testing.assert_array_equal(before, np.array(after))
    assert 0 < np.abs(_outputs(aware, IMAGES)[0] - unrounded).max() < 0.1
    tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, sgd, got 'lion'"),
        (
            {"features_weight": 1.0},
            "labels_weight= and features= are parts of a loss",
        ),
        ({"features": ["conv"]}, "pass teacher=model or omit them"),
        ({"folder": "none"}, "folder: none does not exist"),
        ({"folder": __file__}, "folder: .* is no folder"),
        ({"folder": "/proc"}, "folder: cannot write to /proc"),
        ({"tensorboard": __file__}, "tensorboard: cannot make"),
        ({"resume": True}, "resume: expected the folder with the checkpoint"),
        ({"warmup": None}, "warmup: expected a finite number of 0 or more, got None"),
        ({"resume": "no"}, "resume: expected True or False, got 'no'"),
        ({"folder": 1}, "folder: expected a path, .* got 1"),
        ({"tensorboard": "a\0b"}, "tensorboard: expected a path, got one with a null character"),
        ({"epochs": 1.0}, "epochs: expected a whole number of at least 1, got 1.0"),
        ({"epochs": True}, "epochs: expected a whole number"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: expected a whole number of at least 1"),
        ({"seed": -1}, r"seed: expected a whole number of 0..4294967295, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number of 0 or more"),
        ({"learning_rate": 1e30}, "learning_rate: expected at most 1000"),
        ({"learning_rate": "fast"}, "learning_rate: expected a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay: expected a finite number of 0 or more"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a finite number of 0 or more"),
        ({"weight_decay": 1e30}, "weight_decay: expected learning_rate . weight_decay"),
        ({"ema": 1.0}, "ema: expected 0 or more and less than 1"),
        ({"warmup": float("inf")}, "warmup: expected a finite number"),
        ({"label_smoothing": -0.1}, "label_smoothing: expected a finite number of 0 or more"),
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
    with pytest.raises(Error, match="features: expected a student in which conv"):
        tfdwd.finetune(_network(), IMAGES, epochs=1, teacher=teacher, features="replaced")
    with pytest.raises(Error, match="expected 'auto', 'replaced', None or a list of layer names"):
        tfdwd.finetune(_network(), IMAGES, epochs=1, teacher=teacher, features="all")
    labelled: Any = {"labels_weight": 1.0, "features_weight": 1.0}
    with pytest.raises(Error, match="features_weight: expected a classifier that is taught by its"):
        tfdwd.finetune(_network(), (IMAGES, LABELS), epochs=1, teacher=teacher, **labelled)


def test_it_trains_under_jax_without_tensorflow() -> None:
    pytest.importorskip("jax")
    code = """if True:
        import json, sys
        sys.modules["tensorflow"] = None  # as on a machine that has none
        import keras, numpy as np
        from tfdwd import evaluate, finetune
        layers = keras.layers
        x = keras.Input((4,))
        heads = {"c": layers.Dense(3, activation="softmax")(x), "v": layers.Dense(2)(x)}
        model = keras.Model(x, heads)
        images = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        labels = {"c": images[:, :3].argmax(1), "v": images[:, 2:]}
        history = finetune(
            model, (images, labels), epochs=9, learning_rate=0.1, batch_size=16,
            loss={"v": "mse"}, ema=0.5, validation=(images, labels),
        )
        accuracy = evaluate(model, (images, labels), metric={"c": "top1"}).top1
        print(json.dumps([keras.backend.backend(), history.history["loss"], accuracy]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    backend, losses, accuracy = json.loads(done.stdout.splitlines()[-1])
    assert backend == "jax" and losses[-1] < 0.7 * losses[0] and accuracy > 0.7


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


# ---------------------------------------------------------------------- outputs of any kind

SMALL = np.random.default_rng(1).normal(size=(24, 6, 6, 3)).astype(np.float32)


def _small(heads: Callable[[Any, Any], Any], seed: int = 0) -> keras.Model:
    """A network (batch, 6, 6, 3) whose outputs are what `heads` makes of its features."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(5, 3, padding="same", activation="tanh", name="trunk")(image)
    return randomised(keras.Model(image, heads(x, layers.GlobalAveragePooling2D()(x))), seed)


def _softmax_head(x: Any, pooled: Any) -> Any:
    return layers.Dense(4, activation="softmax", name="scores")(pooled)


def _dict_heads(x: Any, pooled: Any) -> Any:
    return {"classes": _softmax_head(x, pooled), "boxes": layers.Dense(4)(pooled) * 50 + 100}


HEADS: dict[str, Callable[[Any, Any], Any]] = {
    "softmax": _softmax_head,
    "dense softmax": lambda x, pooled: layers.Conv2D(4, 1, activation="softmax")(x),
    "logits": lambda x, pooled: layers.Dense(4)(pooled),
    "one sigmoid": lambda x, pooled: layers.Dense(1, activation="sigmoid")(pooled),
    "multi-label": lambda x, pooled: layers.Dense(5, activation="sigmoid")(pooled),
    "tiny regression": lambda x, pooled: layers.Dense(2)(pooled) * 1e-18,
    "huge regression": lambda x, pooled: layers.Dense(2)(pooled) * 1e18,
    "image": lambda x, pooled: layers.Conv2D(3, 3, padding="same")(x),
    "constant": lambda x, pooled: layers.Dense(2)(pooled) * 0.0 + 3.0,
    "dict": _dict_heads,
    "list": lambda x, pooled: [layers.Conv2D(3, 1, name="picture")(x), _softmax_head(x, pooled)],
    "nested": lambda x, pooled: {"a": [pooled, _softmax_head(x, pooled)], "b": {"c": x}},
    "whole numbers": lambda x, pooled: [pooled, keras.ops.argmax(pooled, axis=-1)],
}


def _outputs(model: Any, images: Any) -> list[np.ndarray]:
    return [np.asarray(y, np.float64) for y in keras.tree.flatten(model(images, training=False))]


def _softened(probabilities: np.ndarray) -> np.ndarray:
    """At a temperature of 2."""
    roots = np.sqrt(probabilities)
    return roots / roots.sum(-1, keepdims=True)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """By the words of the docstring, in float64."""
    if wanted.ndim > 1 and wanted.shape[-1] > 1 and np.allclose(wanted.sum(-1), 1, atol=1e-3):
        factor = 1
        if wanted.ndim == 2:
            wanted, found, factor = _softened(wanted), _softened(found), 4
        return factor * float(-(wanted * np.log(found)).sum(-1).mean())
    mean = wanted.mean(tuple(range(wanted.ndim - 1)))
    variance = np.square(wanted - mean).mean() or np.square(wanted).mean()
    return float(np.square(found - wanted).mean() / variance)


@pytest.mark.parametrize("kind", HEADS)
def test_the_distance_to_a_teacher_of_any_outputs(kind: str) -> None:
    """One step at a rate of 0, against NumPy."""
    teacher, student = _small(HEADS[kind]), _small(HEADS[kind], seed=2)
    history = _plainly(
        student, SMALL, epochs=1, teacher=teacher, learning_rate=0.0, warmup=0.0, batch_size=24
    )
    pairs = list(zip(_outputs(student, SMALL), _outputs(teacher, SMALL), strict=True))
    expected = sum(_distance(*pair) for pair in (pairs[:1] if kind == "whole numbers" else pairs))
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("kind", ["image", "dict"])
def test_a_student_of_any_outputs_comes_closer(kind: str, aware: bool) -> None:
    heads = HEADS[kind]
    if kind == "dict" and aware:  # tf_keras has no product with a number

        def heads(x: Any, pooled: Any) -> Any:
            return {"b": layers.Dense(4)(pooled), "a": _softmax_head(x, pooled)}

    teacher, student = _small(heads), _small(heads, seed=2)
    learner = tfdwd.quantize_aware(student) if aware else student
    history = tfdwd.finetune(
        learner, SMALL, epochs=15, teacher=teacher, learning_rate=0.05, batch_size=8,
        validation=SMALL,
    )  # fmt: skip
    losses = history.history["val_loss"]
    assert len(losses) == 15 and losses[-1] < 0.7 * history.history["loss"][0]
    taught = list(zip(_outputs(learner, SMALL), _outputs(teacher, SMALL), strict=True))
    # Deviations are those of all images here, too; activations are rounded alike in both.
    assert history.after["val_loss"] == pytest.approx(
        sum(_distance(*pair) for pair in taught), rel=1e-3
    )


def test_an_output_that_is_one_number_for_all_images() -> None:
    def heads(x: Any, pooled: Any) -> Any:
        return [layers.Dense(4)(pooled), keras.ops.mean(x)]

    history = tfdwd.finetune(_small(heads, seed=2), SMALL, epochs=3, teacher=_small(heads))
    assert history.after["val_loss"] < history.before["val_loss"]


def test_inputs_and_outputs_that_are_dicts(two_in_two_out: keras.Model) -> None:
    student = randomised(keras.models.clone_model(two_in_two_out))
    source = np.random.default_rng(2)
    inputs = {"extra": source.normal(size=(24, 3)), "picture": source.normal(size=(24, 6, 6, 2))}
    history = tfdwd.finetune(
        student, inputs, epochs=2, teacher=two_in_two_out, features=["first"], validation=inputs
    )
    pairs = zip(_outputs(student, inputs), _outputs(two_in_two_out, inputs), strict=True)
    first = [np.asarray(model(inputs)["z"]) for model in (student, two_in_two_out)]
    feature = np.square(first[0] - first[1]).mean() / np.square(first[1]).mean()
    expected = sum(_distance(*pair) for pair in pairs) + feature
    assert history.history["val_loss"][-1] == pytest.approx(expected, rel=1e-3)


def test_outputs_are_weighted_by_name() -> None:
    teacher, student = _small(HEADS["dict"]), _small(HEADS["dict"], seed=2)
    options: Any = {"epochs": 1, "teacher": teacher, "learning_rate": 0.0, "batch_size": 24}
    found = _plainly(student, SMALL, loss_weights={"classes": 0, "boxes": 2.0}, **options)
    distance = _distance(_outputs(student, SMALL)[0], _outputs(teacher, SMALL)[0])
    assert found.history["loss"] == [pytest.approx(2 * distance, rel=1e-4)]
    said = _plainly(student, SMALL, outputs={"classes": "values"}, **options)
    one, other = (
        (found - wanted, wanted)
        for found, wanted in zip(_outputs(student, SMALL), _outputs(teacher, SMALL), strict=True)
    )
    expected = sum(np.square(e).mean() / y.var(0).mean() for e, y in (one, other))
    assert said.history["loss"] == [pytest.approx(expected, rel=1e-4)]
    for weights, message in (
        ({"box": 1.0}, r"loss_weights: expected names of the outputs \['boxes', 'classes'\]"),
        ({"boxes": -1.0}, "loss_weights of 'boxes': expected a finite number of 0 or more"),
        ([0.0, 0.0], "loss_weights: expected a weight above 0"),
    ):
        with pytest.raises(Error, match=message):
            _plainly(student, SMALL, loss_weights=weights, **options)


NUMBERS = np.arange(24) % 4
PIXELS = np.arange(24 * 36).reshape(24, 6, 6) % 4
YES = (np.arange(24) % 2).astype(np.float64)


def _rows(p: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.take_along_axis(p, labels[..., None], -1)).mean())


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def _binary(p: np.ndarray, y: np.ndarray) -> float:
    return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())


# Heads, labels, options, and the loss by NumPy from the outputs.
SUPERVISED: dict[str, tuple[str, Any, dict[str, Any], Callable[..., float]]] = {
    "softmax": ("softmax", NUMBERS, {}, lambda p: _rows(p, NUMBERS)),
    "dense": ("dense softmax", PIXELS, {}, lambda p: _rows(p, PIXELS)),
    "dense, one-hot": ("dense softmax", np.eye(4)[PIXELS], {}, lambda p: _rows(p, PIXELS)),
    "logits": ("logits", NUMBERS, {"outputs": "logits"}, lambda x: _rows(_softmax(x), NUMBERS)),
    "logits, Keras": (
        "logits", NUMBERS,
        {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        lambda x: _rows(_softmax(x), NUMBERS),
    ),
    "ignored": (  # a label that Keras leaves out is no error
        "dense softmax", np.where(PIXELS == 3, 255, PIXELS),
        {"loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=255)},
        lambda p: _rows(p[PIXELS < 3][None], PIXELS[PIXELS < 3][None]),
    ),
    "sigmoid": (
        "one sigmoid", YES, {"loss": "binary_crossentropy"}, lambda p: _binary(p[:, 0], YES),
    ),
    "multi-label": (
        "multi-label", np.eye(5)[NUMBERS], {"loss": keras.losses.BinaryCrossentropy()},
        lambda p: _binary(p, np.eye(5)[NUMBERS]),
    ),
    "a function": (  # labels (24,) and outputs (24, 1) must not become (24, 24)
        "one sigmoid", YES, {"loss": lambda y, p: keras.ops.abs(y - p)},
        lambda p: float(np.abs(p[:, 0] - YES).mean()),
    ),
    "dict": (
        "dict", {"classes": NUMBERS, "boxes": np.ones((24, 4))}, {"loss": {"boxes": "mse"}},
        lambda boxes, p: float(np.square(boxes - 1).mean()) + _rows(p, NUMBERS),
    ),
    "one of a dict": ("dict", {"classes": NUMBERS}, {}, lambda boxes, p: _rows(p, NUMBERS)),
    "list": (
        "list", [np.zeros((24, 6, 6, 3)), NUMBERS], {"loss": ["mean_squared_error", None]},
        lambda picture, p: float(np.square(picture).mean()) + _rows(p, NUMBERS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SUPERVISED)
def test_the_distance_to_labels(case: str) -> None:
    heads, labels, options, expected = SUPERVISED[case]
    model = _small(HEADS[heads])
    history = tfdwd.finetune(
        model, (SMALL, labels), epochs=1, learning_rate=0.0, batch_size=24,
        validation=(SMALL, labels), **options,
    )  # fmt: skip
    loss = expected(*_outputs(model, SMALL))
    assert history.history["loss"] == [pytest.approx(loss, rel=1e-4)]
    if case in ("softmax", "logits", "logits, Keras"):
        top1 = np.mean(_outputs(model, SMALL)[0].argmax(1) == NUMBERS)
        assert history.history["val_top1"] == [pytest.approx(top1)]
    else:
        assert history.history["val_loss"] == [pytest.approx(loss, rel=1e-4)]


WRONG_LABELS: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "from one": ("softmax", NUMBERS + 1, {}, "got 4 in image 3 .*subtract 1"),
    "NaN": ("softmax", np.where(NUMBERS > 2, np.nan, 0), {}, "labels: .*got nan in image 3"),
    "fractions": ("softmax", NUMBERS + 0.5, {}, "got 0.5 in image 0"),
    "text": ("softmax", np.array(["cat"] * 24), {}, "labels: expected numbers, got dtype <U3"),
    "one-hot of 5": ("softmax", np.eye(5)[NUMBERS], {}, r"got \(images, 5\)"),
    "pixels": ("dense softmax", PIXELS + 1, {}, r"got 4 in image 0 at \(0, 3\)"),
    "logits, Keras": ("logits", NUMBERS - 1, {"loss": "sparse_categorical_crossentropy"},
                      "got -1 in image 0"),
    "one-hot for sparse": ("softmax", np.eye(4)[NUMBERS],
                           {"loss": "sparse_categorical_crossentropy"}, "expects class numbers"),
    "numbers for one-hot": ("softmax", NUMBERS, {"loss": "categorical_crossentropy"},
                            "expects one-hot rows"),
    "sigmoids": ("one sigmoid", YES * 2, {"loss": "binary_crossentropy"},
                 "expected numbers of 0..1, got 2.0 in image 1"),
    "regression": ("logits", np.full((24, 4), np.inf), {"loss": "mse"}, "got inf in image 0"),
    "no loss": ("logits", NUMBERS, {}, "holds no probabilities: expected loss="),
    "unknown loss": ("logits", NUMBERS, {"loss": "cosy"}, "expected the name of a Keras loss"),
    "broadcast": ("logits", np.zeros(24), {"loss": "mse"}, "mean_squared_error expects them in the "
                  r"shape of the output, \(images, 4\), got \(24,\)"),
    "a loss that fails": ("logits", np.zeros((24, 3)), {"loss": lambda y, p: y - p},
                          r"failed on labels of \(22, 3\) and outputs of \(22, 4\)"),
    "a loss in NumPy": ("logits", np.zeros((24, 4)), {"loss": lambda y, p: np.abs(np.asarray(p))},
                        "it failed on labels of .*compute with keras.ops"),
    "numbers in a list": ("softmax", NUMBERS.tolist(), {}, "no array of labels"),
    "scalars in a list": ("softmax", list(NUMBERS), {}, "no array of labels"),
    "one array for two": ("dict", NUMBERS, {}, "expected a dict by output name, or a list"),
    "another name": ("dict", {"class": NUMBERS}, {}, "labels: expected names of the outputs"),
    "a loss without labels": ("dict", {"classes": NUMBERS}, {"loss": {"boxes": "mse"}},
                              "'boxes' has a loss, but the data holds no labels for it"),
    "smoothing": ("logits", np.zeros((24, 4)), {"loss": "mse", "label_smoothing": 0.1},
                  "label_smoothing= belongs to the default"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labels_are_checked_before_the_first_step(case: str) -> None:
    heads, labels, options, message = WRONG_LABELS[case]
    model = _small(HEADS[heads])
    before = model.get_weights()
    with pytest.raises(Error, match=message):
        tfdwd.finetune(model, (SMALL, labels), epochs=1, batch_size=24, **options)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_are_checked_as_they_stream_and_in_validation() -> None:
    model = _small(HEADS["softmax"])
    labels = NUMBERS.copy()
    labels[21] = 7
    batches = [(SMALL[i : i + 8], labels[i : i + 8]) for i in (0, 8, 16)]
    with pytest.raises(Error, match="got 7 in image 21"):
        tfdwd.finetune(model, batches, epochs=1)
    with pytest.raises(Error, match="got 7 in image 21"):
        tfdwd.finetune(model, (SMALL, NUMBERS), epochs=1, validation=(SMALL, labels))


def test_the_old_names_give_the_same(teacher: keras.Model, student: keras.Model) -> None:
    options: Any = {"epochs": 1, "teacher": teacher, "batch_size": 32}
    start = student.get_weights()
    new = {"labels_weight": 0.5, "features_weight": 0.25}
    found = tfdwd.finetune(student, (IMAGES, LABELS), **options, **new, features="replaced").history
    student.set_weights(start)
    with pytest.warns(DeprecationWarning) as warned:
        again = tfdwd.finetune(student, (IMAGES, LABELS), **options, labels=0.5, features=0.25)
    assert again.history == found
    messages = [str(w.message) for w in warned if "finetune" in str(w.message)]
    for name, text in zip(new, messages, strict=True):
        assert f"is called {name}= now" in text


# ---------------------------------------------------------------------- features


def _nested(seed: int = 0) -> keras.Model:
    inner = keras.Input((6, 6, 5))
    norm = layers.BatchNormalization(name="norm")
    body = keras.Model(inner, layers.ReLU(name="act")(norm(inner)), name="body")

    def heads(x: Any, pooled: Any) -> Any:
        return layers.Dense(3, name="last")(layers.Flatten()(body(x)))

    return _small(heads, seed)


def test_features_of_layers_by_name_inside_nested_models_too() -> None:
    teacher, student = _nested(), _nested(seed=2)
    history = _plainly(
        student, SMALL, epochs=1, teacher=teacher, features=["body/act", "trunk"],
        features_weight=3.0, learning_rate=0.0, batch_size=24, freeze_batch_norm=True,
    )  # fmt: skip
    expected = _distance(_outputs(student, SMALL)[0], _outputs(teacher, SMALL)[0])
    features = []
    for model in student, teacher:
        trunk = keras.Model(model.inputs[0], model.get_layer("trunk").output)(SMALL)
        features.append([np.asarray(model.get_layer("body")(trunk)), np.asarray(trunk)])
    for found, wanted in zip(*features, strict=True):
        expected += 3.0 / 2 * np.square(found - wanted).mean() / np.square(wanted).mean()
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]
    with pytest.raises(Error, match=r"the student has no layer 'act'.*did you mean body/act\?"):
        _plainly(student, SMALL, epochs=1, teacher=teacher, features=["act"])
    # Training reaches the nested layers: the moving averages of the batch norm move.
    before = student.get_layer("body").get_layer("norm").moving_mean.numpy()
    _plainly(student, SMALL, epochs=1, teacher=teacher, features=["body/act"])
    assert np.abs(student.get_layer("body").get_layer("norm").moving_mean - before).max() > 1e-3


def test_classifiers_learn_the_last_maps() -> None:
    """Those of the teacher's last layer that gives maps, in a nested model."""

    def nested(head: Any, seed: int) -> keras.Model:
        inner = keras.Input((6, 6, 5))
        body = keras.Model(inner, layers.ReLU(name="act")(inner), name="body")
        return _small(lambda x, pooled: head(layers.Flatten()(body(x))), seed)

    def loss(student: keras.Model, teacher: keras.Model, data: Any = SMALL, **options: Any) -> Any:
        options |= {"epochs": 1, "learning_rate": 0.0, "batch_size": 24, "freeze_batch_norm": True}
        history = tfdwd.finetune(
            student, data, teacher=teacher, augment=None, validation=None, **options
        )
        return history.history["loss"][0]

    classes = layers.Dense(4, activation="softmax", name="last")
    teacher, student = nested(classes, 0), nested(layers.Dense.from_config(classes.get_config()), 2)
    far = nested(layers.Dense.from_config(classes.get_config()), 2)
    for own, theirs in zip(student.weights, teacher.weights, strict=True):
        own.assign(0.2 * own + 0.8 * theirs)
    maps = []
    for model in student, teacher:
        trunk = keras.Model(model.inputs[0], model.get_layer("trunk").output)(SMALL)
        maps.append(np.asarray(model.get_layer("body")(trunk)))
    apart = np.square(maps[0] - maps[1]).mean() / np.square(maps[1]).mean()
    assert 0 < apart < 0.4
    alone = loss(student, teacher, features=None)
    assert loss(student, teacher) == pytest.approx(alone + 16 * apart, rel=1e-4)
    assert loss(student, teacher, features_weight=2.0) == pytest.approx(alone + 2 * apart, rel=1e-4)
    # Not where it is far from them, but as the user says; not with labels, nor of what is no
    # classifier, nor of a student of other maps.
    assert loss(far, teacher) == loss(far, teacher, features=None)
    assert loss(far, teacher, features_weight=2.0) > loss(far, teacher, features=None) + 0.8
    labelled: Any = {"data": (SMALL, NUMBERS), "labels_weight": 1.0}
    assert loss(student, teacher, **labelled) == loss(student, teacher, **labelled, features=None)
    values = [nested(layers.Dense(4), seed) for seed in (0, 2)]
    assert loss(*values) == loss(*values, features=None)
    image = keras.Input(SMALL.shape[1:])
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(7, 3)(image))
    other = keras.Model(image, layers.Dense(4, activation="softmax")(pooled))
    assert loss(other, teacher) == loss(other, teacher, features=None)


def test_features_of_a_quantise_aware_student(teacher: keras.Model, student: keras.Model) -> None:
    def loss(**options: Any) -> float:
        history = _plainly(
            tfdwd.quantize_aware(student), IMAGES, epochs=1, teacher=teacher, batch_size=96,
            learning_rate=0.0, warmup=0.0, **options,
        )  # fmt: skip
        return float(history.history["loss"][0])

    outputs_alone = loss(features=None)
    once = loss(features="replaced") - outputs_alone
    assert once > 0.01
    more = loss(features=["conv"], features_weight=3.0) - outputs_alone
    assert more == pytest.approx(3 * once, rel=1e-4)


# ---------------------------------------------------------------------- data


def _of(numbers: Iterable[int]) -> list[np.ndarray]:
    """Batches of one image that holds its number."""
    return [np.full((1, 6, 6, 3), number, np.float32) for number in numbers]


def _seen(data: Any, steps: int | None, epochs: int, first: int = 0, **how: Any) -> list[list[int]]:
    """The images of each epoch."""
    reading = Reading(_small(HEADS["logits"]), 2, how.get("fixed"), False, 0, steps, 0.0)
    opened = open_epochs(data, reading, first)
    return [
        [int(x[0, 0, 0]) for batch, _ in itertools.islice(opened.stream, opened.steps)
         for x in batch[0]]
        for _ in range(epochs - first)
    ]  # fmt: skip


class Counted:
    """Data that counts how often it is opened."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.numbers, self.opened = list(numbers), 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.opened += 1
        return iter(_of(self.numbers))

    def __len__(self) -> int:
        return len(self.numbers)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, [[0, 1, 2], [10, 11, 12], [20, 21, 22]]),
        (2, [[0, 1], [10, 11], [20, 21]]),
        (4, [[0, 1, 2, 0], [10, 11, 12, 10], [20, 21, 22, 20]]),
    ],
)
def test_a_function_of_the_epoch_never_drifts(steps: int | None, expected: list[Any]) -> None:
    made: list[Counted] = []

    def data(epoch: int) -> Counted:
        made.append(Counted(range(10 * epoch, 10 * epoch + 3)))
        return made[-1]

    assert _seen(data, steps, 3) == expected
    assert [each.opened for each in made] == [1] * len(made)
    assert len(made) == (6 if steps == 4 else 3)
    assert _seen(data, steps, 3, first=1) == expected[1:]


@pytest.mark.parametrize(("steps", "opened"), [(None, 3), (2, 2), (4, 4)])
def test_an_iterable_is_read_on(steps: int | None, opened: int) -> None:
    data = Counted(range(3))
    seen = _seen(data, steps, 3)
    flat = [number for epoch in seen for number in epoch]
    assert flat == [number % 3 for number in range(3 * (steps or 3))]
    assert data.opened == opened
    assert _seen(data, steps, 3, first=2) == seen[2:]
    batched = tf.data.Dataset.from_tensor_slices(np.concatenate(_of(range(8)))).batch(2)
    assert _seen(batched, steps, 3, first=1) == _seen(batched, steps, 3)[1:]


class Indexed(keras.utils.PyDataset):
    """Data that is read by index."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> np.ndarray:
        return _of([index])[0]


def test_a_pydataset_is_read_on() -> None:
    assert _seen(Indexed(), 2, 3) == [[0, 1], [2, 0], [1, 2]]
    assert _seen(lambda epoch: Indexed(), None, 2) == [[0, 1, 2]] * 2


def test_data_that_cannot_be_read_is_told() -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from _of([0])
        raise OSError("the disk is gone")

    for data in (broken, lambda: itertools.islice(broken(), 1, None)):
        with pytest.raises(Error, match="cannot be read: OSError: the disk is gone"):
            _seen(data(), 2, 1)


def test_an_iterator_loses_no_batch() -> None:
    assert _seen(iter(_of(range(6))), 2, 3) == [[0, 1], [2, 3], [4, 5]]
    assert _seen(iter(_of(range(6))), 2, 3, first=1) == [[2, 3], [4, 5]]
    endless = (image for number in itertools.count() for image in _of([number]))
    assert _seen(endless, 3, 2) == [[0, 1, 2], [3, 4, 5]]


def test_arrays_are_shuffled_for_each_epoch() -> None:
    arrays = np.concatenate(_of(range(7)))
    seen = _seen(arrays, None, 2)
    assert seen[0] != seen[1] and all(len(set(epoch)) == 6 for epoch in seen)  # whole batches
    assert _seen(arrays, None, 2, first=1) == seen[1:]
    assert _seen(lambda epoch: arrays, None, 2) == seen
    more = _seen(arrays, 5, 2)
    assert [epoch[:6] for epoch in more] == seen and [len(epoch) for epoch in more] == [10, 10]
    assert _seen(arrays, 2, 2) == [epoch[:4] for epoch in seen]


def test_a_fixed_batch_is_kept() -> None:
    image = keras.Input(batch_shape=(8, 6, 6, 3))
    # A size that is written into the graph.
    model = keras.Model(image, layers.Dense(2)(keras.ops.reshape(image, (8, 108))))
    teacher = keras.models.clone_model(model)
    for data in (SMALL, SMALL[:5], [SMALL[:5], SMALL[5:10], SMALL[10:]]):
        history = tfdwd.finetune(model, data, epochs=2, teacher=teacher, validation=SMALL[:8])
        assert np.isfinite(history.history["val_loss"]).all()
    assert _seen(_of(range(6)), None, 2, fixed=4) == [[0, 1, 2, 3], [4, 5, 0, 1]]


def test_open_sizes_come_from_the_data() -> None:
    image = keras.Input((None, None, 3))
    heads = [layers.Conv2D(4, 3, padding="same", activation="softmax"), layers.Conv2D(3, 3)]
    model = keras.Model(image, [head(image) for head in heads])
    teacher = randomised(keras.models.clone_model(model))
    for data in (SMALL, [SMALL, SMALL[:8, :5], SMALL[:, :, :4]]):
        losses = tfdwd.finetune(model, data, epochs=3, teacher=teacher, learning_rate=0.05).history
        assert losses["loss"][-1] < losses["loss"][0]


def test_data_that_ends_too_early_or_never_is_told(teacher: keras.Model) -> None:
    model, options = _network(), {"epochs": 2, "teacher": teacher}
    with pytest.raises(Error, match=r"ended after 3 of 4 steps, in epoch 2; .*function of the ep"):
        tfdwd.finetune(model, iter([IMAGES[:8]] * 3), steps_per_epoch=2, **options)
    for endless in (
        tf.data.Dataset.from_tensors(IMAGES[:8]).repeat(), itertools.repeat(IMAGES[:8])
    ):  # fmt: skip
        with pytest.raises(Error, match="pass steps_per_epoch"):
            tfdwd.finetune(model, endless, **options)
    with pytest.raises(Error, match=r"validation: the data is endless; cut it with .take"):
        tfdwd.finetune(
            model, IMAGES, validation=tf.data.Dataset.from_tensors(IMAGES).repeat(), **options
        )
    with pytest.raises(Error, match=r"validation: expected arrays.*got list_iterator"):
        tfdwd.finetune(model, IMAGES, validation=iter([IMAGES]), **options)
    for data in ("images.npz", Path("images.npz"), 3, None):
        with pytest.raises(Error, match=f"got {type(data).__name__}"):
            tfdwd.finetune(model, data, **options)
        with pytest.raises(Error, match=f"got {type(data).__name__}"):
            tfdwd.finetune(model, lambda epoch, data=data: data, **options)
    for data in ({}, (), [], (np.zeros(()), 3)):
        with pytest.raises(Error):
            tfdwd.finetune(model, data, **options)
    with pytest.raises(Error, match="expected a function of the epoch's number"):
        tfdwd.finetune(model, lambda: iter([IMAGES]), **options)


@pytest.mark.parametrize("bad", [0, 1])
def test_what_the_data_raises_is_a_clear_error(bad: int) -> None:
    def stream(fails: bool) -> Iterator[Any]:
        yield IMAGES[:16], LABELS[:16]
        if fails:
            raise KeyError("no such image")
        yield IMAGES[16:32], LABELS[16:32]

    def function(epoch: int) -> Any:
        if epoch == bad:
            raise KeyError("no such folder")
        return IMAGES[:32], LABELS[:32]

    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "steps_per_epoch": 2}
    with pytest.raises(Error, match=f"function failed for epoch {bad}: KeyError: 'no such folder'"):
        tfdwd.finetune(_network(), function, **options)
    with pytest.raises(Error, match=r"batch 1: the data cannot be read: KeyError"):
        tfdwd.finetune(_network(), lambda epoch: stream(epoch == bad), **options)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory by /proc, as on Linux")
@pytest.mark.parametrize("streamed", [False, True])
def test_memory_stays_flat_over_epochs(streamed: bool) -> None:
    images = np.random.default_rng(0).normal(size=(64, 64, 64, 4)).astype(np.float32)
    image = keras.Input((64, 64, 4))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, strides=8)(image))
    student = keras.Model(image, layers.Dense(4, activation="softmax")(x))
    teacher, pages = keras.models.clone_model(student), list[int]()

    def noted(given: Any) -> Any:
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        return given

    def epoch_of(epoch: int) -> tf.data.Dataset:
        found = tf.data.Dataset.from_tensor_slices(images)
        return noted(found.shuffle(len(images), seed=epoch).batch(32))

    if streamed:
        tfdwd.finetune(student, epoch_of, teacher=teacher, epochs=60)
    else:
        tfdwd.finetune(student, images, teacher=teacher, epochs=60, augment=noted)
    kept = (pages[-1] - pages[len(pages) // 2]) * os.sysconf("SC_PAGE_SIZE")
    assert kept < 5 * images.nbytes  # of 30 epochs


# ---------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("kind", ["function", "iterable", "iterator"])
def test_resumed_with_other_steps_than_the_data_has(kind: str, tmp_path: Path) -> None:
    def of_epoch(epoch: int) -> list[np.ndarray]:
        return [SMALL[(epoch + n) % 4 :: 4] for n in range(3)]

    data: Any = {
        "function": lambda: of_epoch,
        "iterable": lambda: [SMALL[n::3] for n in range(3)],
        "iterator": lambda: (SMALL[n % 5 :: 5] for n in range(8)),
    }[kind]
    teacher, student = _small(HEADS["dict"]), _small(HEADS["dict"], seed=2)
    again, third = keras.models.clone_model(student), keras.models.clone_model(student)
    again.set_weights(student.get_weights())
    options: Any = {"epochs": 4, "steps_per_epoch": 2, "teacher": teacher}
    whole = tfdwd.finetune(student, data(), **options)
    _stopped_after(2, again, data(), folder=tmp_path, **options)
    parts = tfdwd.finetune(third, data(), folder=tmp_path, resume=True, **options)
    assert parts.history == whole.history
    assert _weights_apart(third, student) < 1e-6


def test_validation_and_best_are_of_the_averaged_weights(tmp_path: Path) -> None:
    teacher, student = _small(HEADS["image"]), _small(HEADS["image"], seed=2)
    history = tfdwd.finetune(
        student, SMALL, epochs=1, teacher=teacher, ema=0.9, learning_rate=0.05, batch_size=4,
        validation=SMALL, folder=tmp_path,
    )  # fmt: skip
    [found], [wanted] = _outputs(student, SMALL), _outputs(teacher, SMALL)
    assert history.history["val_loss"] == [pytest.approx(_distance(found, wanted), rel=1e-3)]
    for name in ("best.keras", "last.keras"):
        assert _weights_apart(keras.models.load_model(tmp_path / name), student) == 0
    with np.load(tmp_path / "state.npz") as state:  # to go on from: those that are trained
        assert np.abs(state["w0"] - student.get_weights()[0]).max() > 1e-3


def test_a_damaged_state_is_one_clear_error(tmp_path: Path) -> None:
    teacher, student = _small(HEADS["logits"]), _small(HEADS["logits"], seed=2)
    options: Any = {"teacher": teacher, "epochs": 1, "folder": tmp_path, "batch_size": 24}
    tfdwd.finetune(student, SMALL, **options)
    path = tmp_path / "state.npz"
    good = path.read_bytes()
    source, refused = np.random.default_rng(0), 0
    for number in range(60):
        damaged = bytearray(good)
        damaged[source.integers(len(good))] ^= 1 << source.integers(8)
        path.write_bytes(damaged if number % 3 else good[: source.integers(len(good))])
        try:
            checkpoints.read(tmp_path)
        except Error as error:
            assert "state.npz: expected the state of a run" in str(error)
            refused += 1
    assert refused > 30  # a bit of a time stamp is not missed
    path.write_bytes(b"")
    with pytest.raises(Error, match=r"state.npz: .*remove it and start again, or omit resume"):
        tfdwd.finetune(student, SMALL, resume=True, **options)


def test_weights_that_are_not_finite_after_the_last_step(tmp_path: Path) -> None:
    def steep(y: Any, p: Any) -> Any:
        return keras.ops.sqrt(keras.ops.abs(p) * 0.0)  # 0, and a gradient of NaN

    with pytest.raises(Error, match=r"weight .* is not finite after epoch 1; lower learning_rate"):
        _plainly(
            _small(HEADS["logits"]), (SMALL, np.zeros((24, 4))), epochs=1, loss=steep,
            folder=tmp_path,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_augments_nothing() -> None:
    def flipped(seed: int) -> keras.Model:
        image = keras.Input((6, 6, 3))
        x = layers.RandomFlip(seed=0)(image)
        return randomised(keras.Model(image, layers.Dense(2)(layers.Flatten()(x))), seed)

    teacher, student = flipped(0), flipped(1)
    plain = keras.Model(student.layers[2].input, student.outputs)  # without the flips
    history = _plainly(plain, SMALL, epochs=1, teacher=teacher, learning_rate=0.0, batch_size=24)
    expected = _distance(_outputs(plain, SMALL)[0], _outputs(teacher, SMALL)[0])
    assert history.history["loss"] == [pytest.approx(expected, rel=1e-4)]


def test_models_that_do_not_fit() -> None:
    softmax, five = _small(HEADS["softmax"]), _small(HEADS["multi-label"])
    with pytest.raises(
        Error, match=r"teacher: expected a model with the outputs of the student, \[\(4,\)\]"
    ):
        tfdwd.finetune(softmax, SMALL, epochs=1, teacher=five)
    frozen = _small(HEADS["softmax"])
    frozen.trainable = False
    with pytest.raises(Error, match="expected weights that can be trained"):
        tfdwd.finetune(frozen, SMALL, epochs=1, teacher=softmax)
    with pytest.raises(Error, match="model: expected a Keras model, got str"):
        tfdwd.finetune("student.keras", SMALL, epochs=1)  # type: ignore[arg-type]
    for kind in "model", "teacher":
        unbuilt = keras.Sequential([layers.Dense(4)])
        pair = {"model": softmax, "teacher": softmax, kind: unbuilt}
        with pytest.raises(Error, match=f"{kind}: expected a Sequential or Functional model that"):
            tfdwd.finetune(pair["model"], SMALL, epochs=1, teacher=pair["teacher"])
    nan = _small(HEADS["image"])
    nan.set_weights([np.full_like(w, np.nan) for w in nan.get_weights()])
    with pytest.raises(Error, match=r"output .* of the teacher is NaN or infinite"):
        tfdwd.finetune(_small(HEADS["image"]), SMALL, epochs=1, teacher=nan)
    with pytest.raises(Error, match="loss= compares outputs with labels: with a teacher, pass l"):
        tfdwd.finetune(softmax, SMALL, epochs=1, teacher=softmax, loss="mse")


# ---------------------------------------------------------------------- the command


def _command(*arguments: str) -> int:
    train.FLAGS.unparse_flags()
    for flag in train.FLAGS:
        train.FLAGS[flag].unparse()
    return common.status(train.main, train.FLAGS, train.__doc__, ["tfdwd-train", *arguments])


def test_the_command_takes_what_is_said_of_outputs(tmp_path: Path, capsys: Any) -> None:
    heads = HEADS["nested"]  # names that hold slashes
    _small(heads).save(tmp_path / "teacher.keras")
    student = _small(heads, seed=2)
    student.save(tmp_path / "student.keras")
    np.save(tmp_path / "x.npy", SMALL)
    own = [
        f"--model={tmp_path}/student.keras", f"--images={tmp_path}/x.npy", "--epochs=1",
        f"--teacher={tmp_path}/teacher.keras", f"--output={tmp_path}/out.keras",
        "--learning_rate=0", "--warmup=0",
    ]  # fmt: skip
    said = ["--loss_weight=a/0=2", "--loss_weight=b/c=0", "--outputs=a/1=values"]
    more = ["--features=trunk", "--features_weight=0.5", f"--validation={tmp_path}/x.npy"]
    assert _command(*own, *said, *more) == 0
    found = tfdwd.finetune(
        student, SMALL, epochs=1, teacher=_small(heads), learning_rate=0.0, warmup=0.0,
        loss_weights={"a/0": 2.0, "b/c": 0.0}, outputs={"a/1": "values"}, features=["trunk"],
        features_weight=0.5, validation=SMALL,
    )  # fmt: skip
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "loss", "val_loss"]
    assert float(row.split()[1]) == pytest.approx(found.history["loss"][0], abs=1e-4)
    labels = {"a/0": np.zeros((24, 5)), "a/1": NUMBERS}
    files = []
    for number, (name, array) in enumerate(labels.items()):
        np.save(tmp_path / f"{number}.npy", array)
        files.append(f"--labels={name}={tmp_path}/{number}.npy")
    assert _command(*own, *files, "--labels_weight=0.5", "--loss=a/0=mse") == 0
    found = tfdwd.finetune(
        student, (SMALL, labels), epochs=1, teacher=_small(heads), learning_rate=0.0, warmup=0.0,
        labels_weight=0.5, loss={"a/0": "mse"},
    )  # fmt: skip
    row = capsys.readouterr().out.splitlines()[-1]
    assert float(row.split()[1]) == pytest.approx(found.history["loss"][0], abs=1e-4)
    for wrong, message in (
        (["--loss_weight=a/0=much"], "--loss_weight: expected OUTPUT=NUMBER"),
        (["--loss_weight=2"], "--loss_weight: expected OUTPUT=NUMBER"),
        (["--outputs=a/0=values", "--outputs=logits"], "--outputs: expected OUTPUT=..."),
        (["--loss=mse"], "loss= compares outputs with labels"),
        (["--learning_rate=nan"], "learning_rate: expected a finite number"),
        (["--features=nowhere"], "the student has no layer 'nowhere'"),
    ):
        assert _command(*own, *wrong) == 1
        assert message in capsys.readouterr().err


def test_outputs_without_gradients_are_refused_with_the_way_out() -> None:
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.ops.argmax(keras.layers.Conv2D(4, 3)(image), -1))
    with pytest.raises(tfdwd.Error, match="no gradient; train the part of the network"):
        tfdwd.finetune(
            model, np.zeros((4, 4, 4, 3), "f"), teacher=keras.models.clone_model(model), epochs=1
        )


def test_a_teacher_that_would_be_trained_is_refused(teacher: keras.Model) -> None:
    body = keras.Model(teacher.inputs, teacher.get_layer("bn").output)
    pooled = layers.GlobalAveragePooling2D()(body.output)
    shared = keras.Model(teacher.inputs, layers.Dense(4, activation="softmax")(pooled))
    for student in (teacher, shared):
        with pytest.raises(Error, match="teacher: expected weights of its own, got some that the"):
            tfdwd.finetune(student, IMAGES, teacher=teacher, epochs=1)
    for layer in body.layers:
        layer.trainable = False
    try:
        weights = [array.copy() for array in teacher.get_weights()]
        tfdwd.finetune(shared, IMAGES, teacher=teacher, epochs=1)
        for before, after in zip(weights, teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    finally:
        for layer in body.layers:
            layer.trainable = True


def test_smoothing_is_of_outputs_with_the_default_loss() -> None:
    labels = {"classes": NUMBERS, "boxes": np.zeros((24, 4))}
    options: Any = {"epochs": 1, "loss": {"boxes": "mse"}, "validation": 0, "learning_rate": 0.0}
    plain, smoothed = (
        tfdwd.finetune(_small(HEADS["dict"]), (SMALL, labels), label_smoothing=part, **options)
        for part in (0.0, 0.3)
    )
    assert plain.history["loss"] != smoothed.history["loss"]


def test_mixed_precision_is_of_the_steps_alone(teacher: keras.Model) -> None:
    options: Any = {"teacher": teacher, "epochs": 2, "batch_size": 48, "validation": 0.5}
    students = _network(3), _network(3)
    halves, wholes = (
        tfdwd.finetune(own, IMAGES, learning_rate=0.01, mixed_precision=half, **options)
        for own, half in zip(students, (True, False), strict=True)
    )
    assert halves.before == wholes.before and halves.history["loss"] != wholes.history["loss"]
    answers = execution.predictor(students[0])([IMAGES[:48]])[0]
    np.testing.assert_allclose(answers, students[0](IMAGES[:48]), atol=1e-6)


def test_the_last_layer_of_a_nested_model_is_of_full_precision(teacher: keras.Model) -> None:
    seen = []

    @keras.saving.register_keras_serializable("tests")
    class Noting(layers.Softmax):
        def call(self, inputs: Any, mask: Any = None) -> Any:
            seen.append((self.name, self.compute_dtype))
            return super().call(inputs)

    body = keras.Model(teacher.inputs, Noting(name="last")(Noting(name="first")(teacher.output)))
    image = keras.Input((8, 8, 4))
    student = keras.Model(image, keras.models.clone_model(body)(image))
    seen.clear()
    tfdwd.finetune(
        student, (IMAGES, LABELS), epochs=1, mixed_precision=True, validation=0, batch_size=48
    )
    assert {("first", "bfloat16"), ("last", "float32")} <= {*seen}
    assert ("last", "bfloat16") not in seen


def test_the_learning_rate_is_found_by_how_far_outputs_are_not_by_their_weights(
    teacher: keras.Model, tmp_path: Path
) -> None:
    rates = []
    for name, weight in (("one", 1.0), ("hundred", 100.0), ("little", 0.01)):
        (tmp_path / name).mkdir()
        student = _network(3)
        student.set_weights([0.5 * array for array in teacher.get_weights()])
        tfdwd.finetune(
            student, IMAGES, teacher=teacher, epochs=1, features=None, loss_weights=[weight],
            folder=tmp_path / name,
        )  # fmt: skip
        state = checkpoints.read(tmp_path / name)
        assert state is not None
        rates.append(state.rate)
    assert 1e-4 < rates[0] < 3e-3  # no end of what a rate may be
    assert rates == pytest.approx([rates[0]] * 3)


@pytest.mark.parametrize("name", ["my net", "ÄÖ"])
def test_names_that_tensorflow_does_not_take(name: str, tmp_path: Path) -> None:
    image = keras.Input((8, 8, 4))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="my conv")(image))
    model = keras.Model(image, layers.Dense(3, activation="softmax")(x), name=name)
    student = tfdwd.decompose(model, IMAGES, include="my conv")
    tfdwd.finetune(
        student, IMAGES, epochs=1, teacher=model, features=["my conv"], features_weight=1.0,
        validation=IMAGES, folder=tmp_path,
    )  # fmt: skip
    saved = keras.models.load_model(tmp_path / "last.keras")
    assert saved.name == student.name == name
    assert saved.get_layer("my conv_depthwise").name == "my conv_depthwise"


# ---------------------------------------------------------------------- what is held back


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("rate", [0.0, 1e-3, 50.0])
def test_it_is_never_worse_than_the_start(kind: str, rate: float, tmp_path: Path) -> None:
    teacher, student = _small(HEADS[kind]), _small(HEADS[kind])
    start = student.get_weights()
    # At so high a rate a loss may be infinite, which is an error.
    with contextlib.suppress(*([Error] if rate > 1 else [])):
        found = tfdwd.finetune(
            student, SMALL, epochs=3, teacher=teacher, learning_rate=rate, batch_size=8,
            folder=tmp_path,
        )  # fmt: skip
        assert found.after["val_loss"] <= found.before["val_loss"] < 1e-3
        assert found.after["val_loss"] == min(found.before["val_loss"], *found.history["val_loss"])
        if found.after == found.before:
            for before, after in zip(start, student.get_weights(), strict=True):
                np.testing.assert_array_equal(before, after)
        best = keras.models.load_model(tmp_path / "best.keras")
        assert _weights_apart(best, student) == 0


def test_a_tenth_of_the_images_is_not_trained_on(teacher: keras.Model) -> None:
    seen: list[np.ndarray] = []

    def note(images: np.ndarray) -> np.ndarray:
        seen.append(images)
        return images

    found = tfdwd.finetune(
        _network(3), IMAGES, teacher=teacher, epochs=20, batch_size=8, augment=note
    )
    rows = {image.tobytes() for images in seen for image in images}
    assert len(rows) == 87 and len(IMAGES) == 96
    held = np.array([image for image in IMAGES if image.tobytes() not in rows])
    wanted, student = np.asarray(teacher(held)), _network(3)
    soft, own = (_softened(answers) for answers in (wanted, np.asarray(student(held))))
    divergence = (soft * np.log(soft / own)).sum(-1).mean()
    assert found.before["val_loss"] == pytest.approx(divergence, rel=1e-3)
    same = np.mean(wanted.argmax(1) == np.argmax(student(held), 1))
    assert found.before["val_agreement"] == pytest.approx(same)
    assert found.after["val_loss"] < found.before["val_loss"]


@pytest.mark.parametrize("data", ["few", "stream", "labels", "generator"])
def test_what_is_measured_of_other_data(teacher: keras.Model, data: str) -> None:
    options: Any = {"epochs": 2, "batch_size": 4, "steps_per_epoch": 2}
    given: Any = {
        "few": lambda: IMAGES[:9],
        "stream": lambda: [IMAGES[:8], IMAGES[8:16]],
        "labels": lambda: (IMAGES, LABELS),
        "generator": lambda: iter([IMAGES[:8]] * 4),
    }[data]
    if data != "labels":
        options["teacher"] = teacher
    found = tfdwd.finetune(_network(3), given(), **options)
    names = {"few": ["val_loss", "val_agreement"], "labels": ["val_loss"], "generator": []}
    assert [*found.before] == [*found.after] == names.get(data, names["few"])
    assert [*found.history] == ["loss", *found.before]


def test_the_best_weights_are_kept_over_a_resumption(teacher: keras.Model, tmp_path: Path) -> None:
    options: Any = {
        "teacher": teacher,
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 0.1,
        "seed": 2,
    }
    whole, part, third = _network(3), _network(3), _network(3)
    found = tfdwd.finetune(whole, IMAGES, **options)
    assert found.history["val_loss"].index(min(found.history["val_loss"])) < 3  # not the last one
    _stopped_after(3, part, IMAGES, folder=tmp_path, **options)
    again = tfdwd.finetune(third, IMAGES, folder=tmp_path, resume=True, **options)
    assert again.before == found.before and again.after == found.after
    assert _weights_apart(whole, third) < 1e-6


def test_what_is_measured_in_another_way_after_an_interruption(
    teacher: keras.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The best weights of before are measured anew, so that later ones can be better."""
    options: Any = {"teacher": teacher, "learning_rate": 0.01, "batch_size": 32, "features": None}
    options |= {"folder": tmp_path}
    student = _network(3)
    before = tfdwd.finetune(student, IMAGES, epochs=2, loss_weights=[0.01], **options)
    assert not caplog.records or "not what it was before" not in caplog.text
    with caplog.at_level("WARNING", "absl"):
        after = tfdwd.finetune(student, IMAGES, epochs=20, resume=True, **options)
    assert "what is measured is not what it was before the interruption" in caplog.text
    assert after.before["val_loss"] == pytest.approx(100 * before.after["val_loss"], rel=1e-4)
    assert after.after["val_loss"] < after.before["val_loss"]


def test_an_interruption_leaves_the_best_weights(teacher: keras.Model) -> None:
    class StopError(BaseException):  # as KeyboardInterrupt
        pass

    start = _network(3)
    start.set_weights(teacher.get_weights())  # nothing is better
    given = keras.models.clone_model(teacher)
    given.set_weights(teacher.get_weights())

    def stopping_at(number: int) -> Any:
        calls = iter(range(100))

        def stopping(images: Any) -> Any:
            if next(calls) == number:
                raise StopError
            return images

        return stopping

    for length, call in ({"epochs": 9}, 15), ({"minutes": 1.0}, 7):  # the second while it is timed
        with pytest.raises(StopError):
            tfdwd.finetune(
                start, IMAGES, teacher=given, batch_size=16, learning_rate=0.5,
                augment=stopping_at(call), **length,
            )  # fmt: skip
        assert _weights_apart(start, teacher) == 0


def test_batches_that_were_timed_are_let_go(teacher: keras.Model) -> None:
    seen: list[weakref.ref[np.ndarray]] = []
    alive = []
    checked = Task.checked_stream

    def counted(self: Task, stream: Any) -> Any:
        for inputs, labels in stream:
            seen.append(weakref.ref(inputs[0]))
            alive.append(sum(batch() is not None for batch in seen))
            yield from checked(self, iter([(inputs, labels)]))

    data = (IMAGES, LABELS)
    with mock.patch.object(Task, "checked_stream", counted):
        tfdwd.finetune(
            _network(3), data, minutes=1e-6, steps_per_epoch=200, batch_size=8, validation=None
        )
    assert len(seen) >= 200 and max(alive) < 50


def test_outputs_and_inputs_of_the_same_names_belong_together() -> None:
    def network(outputs: Any, inputs: Any = ("left", "right")) -> keras.Model:
        keras.utils.set_random_seed(0)
        given = {name: keras.Input((4,), name=name) for name in ("left", "right")}
        x = layers.Dense(8)(layers.Subtract()([given["left"], given["right"]]))
        found = {name: layers.Dense(3, name=name)(x) for name in ("boxes", "offsets")}
        return keras.Model([given[name] for name in inputs], outputs(found))

    data = {name: np.random.default_rng(n).normal(size=(40, 4)) for n, name in enumerate("lr")}
    data = {"left": data["l"], "right": data["r"]}
    teacher = network(lambda found: [found["boxes"], found["offsets"]])
    for student in (
        network(lambda found: [found["offsets"], found["boxes"]]),
        network(lambda found: {"offsets": found["offsets"], "boxes": found["boxes"]}),
        network(lambda found: [found["boxes"], found["offsets"]], ("right", "left")),
    ):
        found = tfdwd.finetune(student, data, teacher=teacher, epochs=1)
        assert found.before["val_loss"] < 1e-9 and found.before["val_agreement"] > 0.999


def test_names_that_keras_made_say_nothing_of_outputs() -> None:
    def network(turned: bool) -> keras.Model:
        keras.utils.clear_session()
        image = keras.Input((4,))
        heads = [layers.Dense(3), layers.Dense(3)]  # "dense" and "dense_1"
        heads = heads[::-1] if turned else heads
        for number, head in enumerate(heads):
            head.build((None, 4))
            head.set_weights([np.full((4, 3), number + 1.0), np.zeros(3)])
        return keras.Model(image, [head(image) for head in heads])

    teacher, student = network(False), network(True)
    assert outputs.names_of(teacher) == outputs.names_of(student)[::-1]
    data = np.random.default_rng(0).normal(size=(40, 4))
    assert tfdwd.finetune(student, data, teacher=teacher, epochs=1).before["val_loss"] < 1e-9


def test_an_output_that_is_not_learnt_may_be_of_another_kind() -> None:
    image = keras.Input((4,))
    x = layers.Dense(3)(image)
    student, teacher = (
        keras.Model(image, {"a": layers.Dense(2)(x), "b": layers.Dense(3, activation=kind)(image)})
        for kind in (None, "softmax")
    )
    teacher = keras.models.clone_model(teacher)
    options: Any = {"teacher": teacher, "epochs": 1}
    data = np.random.default_rng(0).normal(size=(40, 4))
    with pytest.raises(Error, match="output 'b': expected probabilities, which the teacher gives"):
        tfdwd.finetune(student, data, **options)
    tfdwd.finetune(student, data, loss_weights={"a": 1.0, "b": 0.0}, **options)


def test_a_student_without_the_softmax_of_its_teacher_is_refused(teacher: keras.Model) -> None:
    logits = keras.models.clone_model(teacher)
    logits.layers[-1].activation = keras.activations.linear
    probabilities = keras.models.clone_model(teacher)
    with pytest.raises(Error, match="'scores': expected probabilities, which the teacher gives"):
        tfdwd.finetune(logits, IMAGES, teacher=teacher, epochs=1)
    with pytest.raises(Error, match="'scores': expected values, which the teacher gives, got prob"):
        tfdwd.finetune(probabilities, IMAGES, teacher=logits, epochs=1)
    tfdwd.finetune(probabilities, IMAGES, teacher=logits, epochs=1, outputs="values")


def test_a_teacher_that_is_not_finite_on_what_is_held_back(teacher: keras.Model) -> None:
    image = keras.Input((8, 8, 4))
    broken = keras.Model(image, teacher(image) / (image[:, 0, 0, :1] != 7.0))
    rows = IMAGES[:40].copy()
    held = open_epochs(rows, Reading(broken, 64, None, False, 0, None, 0.1), 0).held
    assert held is not None
    rows[(rows == held[0][0][0]).all((1, 2, 3)), 0, 0, 0] = 7.0
    with pytest.raises(Error, match="NaN or infinite for some of the images that are held back"):
        tfdwd.finetune(_network(3), rows, teacher=broken, epochs=1)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_run_under_a_global_policy_is_resumed(policy: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        options: Any = {"teacher": _network(1), "folder": tmp_path, "batch_size": 32}
        tfdwd.finetune(_network(3), IMAGES, epochs=1, **options)
        found = tfdwd.finetune(_network(3), IMAGES, epochs=2, resume=True, **options)
    finally:
        keras.config.set_dtype_policy("float32")
    assert len(found.epoch) == 2


def test_epochs_by_images_and_by_minutes(teacher: keras.Model, tmp_path: Path) -> None:
    options: Any = {"teacher": teacher, "batch_size": 32, "validation": None}
    with mock.patch("tfdwd.training.finetuning._EPOCHS", 40):
        found = tfdwd.finetune(_network(3), IMAGES, **options)  # 40 / 96^0.5
    assert len(found.epoch) == 4
    found = tfdwd.finetune(_network(3), IMAGES[:8], minutes=1e-6, **options)
    assert len(found.epoch) == 1
    _stopped_after(1, _network(3), IMAGES, minutes=0.05, folder=tmp_path, **options)
    planned = checkpoints.read(tmp_path)
    assert planned is not None and planned.epochs > 3
    found = tfdwd.finetune(
        _network(3), IMAGES, minutes=0.05, folder=tmp_path, resume=True, **options
    )
    assert len(found.epoch) == planned.epochs

    class Slow(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.5)
            return IMAGES[:8]

    def slow(images: Any) -> Any:
        time.sleep(0.5)
        return images

    # No more than are over in 3 seconds, of which each epoch sleeps half of one.
    for more in ({"validation": Slow()}, {"augment": slow}):
        found = tfdwd.finetune(_network(3), IMAGES[:8], minutes=0.05, **{**options, **more})
        assert 1 <= len(found.epoch) <= 6
    found = tfdwd.finetune(_network(3), Slow(), minutes=0.05, **options)
    assert 1 <= len(found.epoch) <= 6
    with pytest.raises(Error, match="expected epochs= or minutes=, got both"):
        tfdwd.finetune(_network(3), IMAGES, minutes=1, epochs=1, **options)
    with pytest.raises(Error, match="minutes: expected more than 0"):
        tfdwd.finetune(_network(3), IMAGES, minutes=0, **options)
    with pytest.raises(Error, match=r"validation: expected data, or a part .* at most 0.5, got 2"):
        tfdwd.finetune(_network(3), IMAGES, epochs=1, **{**options, "validation": 2})


def test_the_time_that_steps_take_leaves_the_weights(teacher: keras.Model) -> None:
    student, other = _network(3, dropout=0.3), _network(3, dropout=0.3)
    options: Any = {"teacher": teacher, "batch_size": 32}
    tfdwd.finetune(student, IMAGES, minutes=1e-6, **options)
    tfdwd.finetune(other, IMAGES, epochs=1, **options)
    assert _weights_apart(student, other) == 0
