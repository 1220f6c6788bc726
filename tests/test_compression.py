"""The whole way in one call, on a small network, interrupted and repeated."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import time
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
from tfdwd import compression
from tfdwd.errors import Error

IMAGES = np.random.default_rng(0).normal(size=(256, 16, 16, 8)).astype(np.float32)
TEST = np.random.default_rng(1).normal(size=(64, 16, 16, 8)).astype(np.float32)


def network() -> keras.Model:
    x = image = keras.Input((16, 16, 8), name="image")
    for name in ("first", "second"):
        x = layers.Conv2D(32, 3, padding="same", activation="relu", name=name)(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    x = layers.Dense(5, activation="softmax", name="scores")(x)
    return randomised(keras.Model(image, x, name="small"))


OPTIONS: dict[str, Any] = {"latency": 0.7, "test": TEST, "minutes": 0.02}
STEPS = ["plan", "decompose", "finetune", "export", "benchmark", "evaluate"]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return network()


@pytest.fixture(scope="module")
def done(model: keras.Model, tmp_path_factory: Any) -> tuple[Path, tfdwd.Compression]:
    folder = tmp_path_factory.mktemp("compress") / "out"
    return folder, tfdwd.compress(model, IMAGES, folder=folder, **OPTIONS)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_it_goes_the_whole_way(done: Any, model: keras.Model) -> None:
    folder, result = done
    assert result.speed_up > 1
    assert [step.name for step in result.steps] == STEPS
    assert tfdwd.Compression.from_json((folder / "result.json").read_text()) == result
    student = keras.models.load_model(folder / "student.keras")
    found = tfdwd.evaluate(folder / "student.tflite", TEST, reference=model)
    assert found == result.student_score
    assert result.original_score["agreement"] == 1.0
    assert result.lost == pytest.approx(1 - found["agreement"])
    assert tfdwd.costs.count(student).macs == result.decomposition.macs_after
    assert result.plan == tfdwd.Plan.from_json((folder / "plan.json").read_text())
    assert result.tuning.after["val_loss"] <= result.tuning.before["val_loss"]
    assert not list(folder.glob("finetuning-*"))
    text = str(result)
    assert "agreement" in text and "times as fast" in text and "finetune" in text


def _started(model: keras.Model, folder: Path, **options: Any) -> list[str]:
    """The steps that are done, and not only looked up."""
    started = []
    own = compression._Kept.step

    def noted(self: Any, name: str, options: Any, made: Any, work: Any) -> None:
        own(self, name, options, made, lambda: (started.append(name), work()))

    with mock.patch.object(compression._Kept, "step", noted):
        tfdwd.compress(model, IMAGES.copy(), folder=folder, **{**OPTIONS, **options})
    return started


def test_what_is_done_is_not_done_again(done: Any) -> None:
    before = _contents(done[0])
    assert _started(network(), done[0]) == [] and _contents(done[0]) == before


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"test": TEST[:32]}, "evaluate"),
        ({"outputs": "values"}, "finetune"),
        ({"seed": 1}, "plan"),
    ],
    ids=str,
)
def test_a_changed_option_does_what_depends_on_it(
    done: Any, model: keras.Model, change: dict[str, Any], first: str, tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path / "copy")
    assert _started(model, tmp_path / "copy", **change) == STEPS[STEPS.index(first) :]


def test_a_file_that_was_changed_is_made_again(
    done: Any, model: keras.Model, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(done[0], folder)
    before = _contents(folder)
    (folder / "student.tflite").write_bytes(b"")
    tfdwd.compress(model, IMAGES, folder=folder, **OPTIONS)
    after = _contents(folder)
    assert after["student.tflite"] == before["student.tflite"]
    assert after["plan.json"] == before["plan.json"]


def test_killed_and_repeated_it_goes_on(tmp_path: Path, pytestconfig: Any) -> None:
    """The command, killed twice; what was done stays to the last bit."""
    folder = tmp_path / "out"
    network().save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=IMAGES, test=TEST)
    labels = network()(TEST).numpy().argmax(1)
    np.save(tmp_path / "labels.npy", labels)
    command = [
        sys.executable, "-m", "tfdwd.scripts.compress", "--model=model.keras", "--images=data.npz",
        "--images_key=x", "--folder=out", "--latency=0.7", "--test=data.npz", "--test_key=test",
        "--test_labels=labels.npy", "--metric=top1", "--minutes=0.1", "--max_loss=0.5",
    ]  # fmt: skip
    own: Any = {
        "cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)},
        "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True,
    }  # fmt: skip
    seen: dict[str, bytes] = {}
    for _ in range(2):
        child = subprocess.Popen(command, **own)
        had = len(_state(folder))
        deadline = time.monotonic() + 200
        while child.poll() is None and len(_state(folder)) < had + 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        child.kill()
        child.communicate()
        done = {name for own in _state(folder).values() for name in own["files"]}
        now = {name: (folder / name).read_bytes() for name in done}
        assert seen.items() <= now.items()
        seen = now
    printed = subprocess.run(command, check=True, **own).stdout
    result = tfdwd.Compression.from_json((folder / "result.json").read_text())
    assert (
        printed == f"{result}\nreport: out/report.html\n" and result.original_score["top1"] == 1.0
    )
    assert seen.items() <= _contents(folder).items()
    assert [*_state(folder)] == STEPS


def _state(folder: Path) -> dict[str, Any]:
    path = folder / "steps.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_tenth_of_the_images_is_kept_for_the_test(model: keras.Model) -> None:
    images = np.arange(2000, dtype=np.float32).reshape(2000, 1, 1, 1) * np.ones((16, 16, 8), "f")
    own, tested = compression._shared_out(model, images, None, 0)
    assert len(own) == 1800 and len(tested) == 200
    assert own[:100].std() > 400  # of sorted images the first are of all kinds, too
    assert sorted([*own[:, 0, 0, 0], *tested[:, 0, 0, 0]]) == list(range(2000))
    streamed = tf.data.Dataset.from_tensor_slices(images).batch(10)
    with pytest.raises(Error, match="test: expected data to score the files on, since data that s"):
        compression._shared_out(model, streamed, None, 0)
    with pytest.raises(Error, match="data: expected arrays, or data that knows its number of bat"):
        compression._shared_out(model, streamed.filter(lambda image: True), TEST, 0)
    with pytest.raises(Error, match=r"test: .* of 256 images a tenth is less than 100"):
        compression._shared_out(model, IMAGES, None, 0)
    with pytest.raises(Error, match="read several times: expected arrays"):
        compression._shared_out(model, iter([IMAGES]), TEST, 0)


def test_what_streams_is_the_same_by_its_images_and_the_labels_of_the_test(
    model: keras.Model, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.arange(len(TEST)) % 5
    given = [(TEST, labels)], [(TEST, labels)], [(TEST, (labels + 1) % 5)]
    one, same, other = (compression._content(model, data, True) for data in given)
    assert one == same != other
    assert compression._content(model, given[0]) == compression._content(model, given[2])
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "absl"):
        compression._content(model, tf.data.Dataset.from_tensor_slices(TEST).shuffle(64).batch(8))
    assert "comes in another order each time" in caplog.text


@pytest.mark.parametrize("text", ["[]", "3", '{"plan": []}', "{"])
def test_a_damaged_list_of_steps_is_no_traceback(text: str, tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text(text)
    done = []
    kept = compression._Kept(tmp_path, "start")
    kept.step("plan", {}, [], lambda: done.append("plan"))
    assert done == ["plan"] and [step.name for step in kept.times()] == ["plan"]


def test_what_labels_score_as_classes_is_logits(model: keras.Model, tmp_path: Path) -> None:
    """Not where it may as well be sigmoids, and the user has the last word."""
    labels = np.arange(len(TEST)) % 5
    logits = keras.models.clone_model(model)
    logits.set_weights(model.get_weights())
    logits.layers[-1].activation = keras.activations.linear
    sigmoids = keras.models.clone_model(logits)
    sigmoids.layers[-1].activation = keras.activations.sigmoid
    for network, test, said, expected in (
        (logits, (TEST, labels), None, "logits"),
        (logits, (TEST, labels), "values", "values"),
        (logits, TEST, None, "values"),
        (logits, TEST, {"scores": "logits"}, "logits"),
        (sigmoids, (TEST, labels), None, "values"),
        (model, (TEST, labels), None, "probabilities"),
    ):
        _, scores = compression._truth(network, test, None, None)
        assert compression._kinds(network, test, scores, said) == {"scores": expected}
    with pytest.raises(Error, match="expected one of probabilities, logits, values"):
        tfdwd.compress(logits, IMAGES, folder=tmp_path, outputs="scores", **OPTIONS)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "quantize: expected one of"),
        ({"folder": "/proc/none"}, "folder: cannot make /proc/none"),
        ({"folder": __file__}, "folder: cannot make"),
        ({"latency": 2.0}, "latency"),
        ({"metric": "top1"}, "metric: expected test= with labels beside it"),
        ({"test": (TEST, np.full(64, 7))}, "got 7 in image 0"),
        ({"test": (TEST, np.zeros((64, 5))), "metric": "mse", "max_loss": 0.1},
         "max_loss: expected a metric that is the better the higher it is"),
        ({"max_loss": float("nan")}, "max_loss: expected a finite number"),
        ({"test": TEST[:, :8]}, "expected"),
        ({"minutes": 0}, "minutes: expected more than 0"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"include": "third"}, "third"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_told_before_the_first_step(
    model: keras.Model, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = {"folder": tmp_path / "out", **OPTIONS, **options}
    with pytest.raises(Error, match=message):
        tfdwd.compress(model, IMAGES, **options)
    assert not (tmp_path / "out" / "steps.json").exists()


def test_layers_that_no_file_can_keep_are_told_before_the_first_step(tmp_path: Path) -> None:
    class Own(layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs * 2

    class Inner(layers.Layer):  # which need not be loaded by itself
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.own = Own()

        def call(self, inputs: Any) -> Any:
            return self.own(inputs)

    def with_layer(layer: Any) -> keras.Model:
        image = keras.Input((16, 16, 8))
        inner = keras.Model(image, layer(image), name="inner")
        return keras.Model(image, network()(inner(image)))

    for layer, message in (
        (Own(name="mine"), "layer 'mine' of type Own: expected one that Keras can save and load"),
        (layers.Lambda(lambda x: x * 2, name="twice"), "layer 'twice' of type Lambda: expected"),
    ):
        with pytest.raises(Error, match=message):
            tfdwd.compress(with_layer(layer), IMAGES, folder=tmp_path / "out", **OPTIONS)
    with keras.saving.custom_object_scope({"Inner": Inner}):
        compression._check_can_be_kept(with_layer(Inner()))
    with pytest.raises(Error, match="expected a Sequential or Functional model"):
        tfdwd.compress("a.keras", IMAGES, folder=tmp_path / "out", **OPTIONS)
    frozen = network()
    frozen.trainable = False
    with pytest.raises(Error, match="model 'small': expected weights that can be trained"):
        tfdwd.compress(frozen, IMAGES, folder=tmp_path / "out", **OPTIONS)
    assert not [*tmp_path.glob("out/*")]


def test_what_is_not_worth_it_is_refused(done: Any, model: keras.Model) -> None:
    _, result = done
    score = tfdwd.evaluate(model, TEST, reference=model)
    [worse] = (dataclasses.replace(one, value=0.9) for one in score.scores)
    lossy = dataclasses.replace(result, student_score=dataclasses.replace(score, scores=(worse,)))
    compression._check_worth(lossy, 0.11)
    with pytest.raises(Error, match=r"loses 0.1 of agreement .*max_loss=0.09; pass a larger lat"):
        compression._check_worth(lossy, 0.09)
    original, timing = (dataclasses.replace(t, samples_ms=()) for t in result.benchmark.timings)
    slow = dataclasses.replace(timing, speed_up=0.8, speed_up_low=0.7, speed_up_high=0.9)
    benchmark = dataclasses.replace(result.benchmark, timings=(original, slow))
    with pytest.raises(Error, match=r"the student is 1.25 times as slow as the original"):
        compression._check_worth(dataclasses.replace(result, benchmark=benchmark), None)
