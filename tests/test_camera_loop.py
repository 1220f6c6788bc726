"""The camera loop of examples/, on folders of frames: a photograph panned over, and Fashion-MNIST.

A camera itself is no part of these tests; docs/robots.md says how the loop was run on one.
"""

import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest

import tfdwd
from tfdwd.errors import Error

cv2 = pytest.importorskip("cv2", reason="pip install opencv-python-headless")


@pytest.fixture(scope="module")
def camera_loop(pytestconfig):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath / "examples")
        return importlib.import_module("camera_loop")


@pytest.fixture(scope="module")
def fashion(pytestconfig):
    with np.load(pytestconfig.rootpath / "benchmarks/demo/fashion_mnist.npz") as content:
        return content["x_test"][:40]


@pytest.fixture(scope="module")
def grey_model(pytestconfig, tmp_path_factory, fashion):
    """The demo's network in int8."""
    path = pytestconfig.rootpath / "benchmarks/demo/fashion_shufflenet.keras"
    file = tmp_path_factory.mktemp("grey") / "model.tflite"
    model = keras.models.load_model(path, compile=False)
    tfdwd.export(model, file, quantize="int8", data=fashion)
    return file


@pytest.fixture(scope="module")
def mean_model(tmp_path_factory):
    """(1, 4, 6, 3) -> the mean red, green and blue: what comes in can be read off what goes out."""
    file = tmp_path_factory.mktemp("mean") / "model.tflite"
    layers = [keras.Input((4, 6, 3)), keras.layers.GlobalAveragePooling2D()]
    tfdwd.export(keras.Sequential(layers), file)
    return file


@pytest.fixture(scope="module")
def photo():
    """A photograph, (600, 512, 3), blue first."""
    return cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"))


@pytest.fixture(scope="module")
def pan(tmp_path_factory, photo):
    """A camera's way down the photograph: 20 frames of 512 x 384."""
    folder = tmp_path_factory.mktemp("pan")
    for number in range(20):
        cv2.imwrite(str(folder / f"{number:03}.jpg"), photo[5 * number : 5 * number + 384])
    return folder


def test_classes_are_those_of_the_same_pixels_without_files(
    camera_loop, grey_model, fashion, tmp_path
):
    for number, image in enumerate(fashion):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), image)
    seen = []
    frames = camera_loop.frames_of(str(tmp_path))
    classifier = camera_loop.Classifier(str(grey_model))
    report = camera_loop.loop(
        classifier, frames, lambda number, score: seen.append((number, score))
    )
    model = tfdwd.lite.Model(grey_model)
    scores = [model.run([image[None].astype(np.float32)])[0][0] for image in fashion]
    assert seen == [(int(row.argmax()), float(row.max())) for row in scores]
    assert report.frames == 37 and len({number for number, _ in seen}) > 3


def test_the_middle_is_averaged_and_red_comes_first(camera_loop, mean_model, photo):
    classifier = camera_loop.Classifier(str(mean_model), scale=1 / 128, offset=-1)
    classifier.load(photo[:384])
    classifier.invoke()
    # 384 square in the middle: 4 x 6 blocks of 96 x 64, all of whose pixels count.
    expected = photo[:384, 64:448, ::-1].astype(np.float64).mean(axis=(0, 1)) / 128 - 1
    number, score = classifier.best()
    assert number == expected.argmax()
    # OpenCV rounds each block's mean to a whole number: half a step, in the mean of 24 far less.
    assert score == pytest.approx(expected.max(), abs=0.5 / 128)
    [held] = [classifier._model.interpreter.get_tensor(0)]
    blocks = photo[:384, 64:448, ::-1].reshape(4, 96, 6, 64, 3).mean(axis=(1, 3)) / 128 - 1
    np.testing.assert_allclose(held[0], blocks, atol=0.51 / 128)


def test_times_add_up(camera_loop, mean_model, pan, monkeypatch):
    """On a clock that the test turns: each look at it is 1 ms later than the one before."""
    ticks = itertools.count()
    monkeypatch.setattr(camera_loop.time, "monotonic", lambda: next(ticks) / 1000)
    frames = camera_loop.frames_of(str(pan))
    report = camera_loop.loop(
        camera_loop.Classifier(str(mean_model)), frames, lambda number, score: None
    )
    assert [part.part for part in report.parts] == list(camera_loop._PARTS)
    # Six looks for each frame: asked, got, start, loaded, inferred, done.
    for part, ms in zip(report.parts, (1, 1, 1, 1, 5), strict=True):
        found = (part.median, part.p90, part.p99, part.worst)
        assert found == pytest.approx((ms,) * 4), part.part
    assert report.per_second == pytest.approx(1000 / 6)
    assert report.frames == 17 and report.since == "the file was opened"
    assert camera_loop.LoopReport.from_json(report.to_json()) == report


def test_ctrl_c_ends_with_what_was_measured(camera_loop, mean_model, pan):
    acted = []

    def act(number, score):
        acted.append(number)
        if len(acted) == 12:
            raise KeyboardInterrupt

    frames = camera_loop.frames_of(str(pan))
    report = camera_loop.loop(camera_loop.Classifier(str(mean_model)), frames, act)
    assert report.frames == 9 and len(acted) == 12


def test_a_camera_counts_from_the_drivers_stamp(camera_loop, monkeypatch):
    """A stand-in for OpenCV's camera: stamps of the same clock, one of another, then none."""

    class Camera:
        released = False

        def __init__(self, device, backend):
            self.stamps = [99.5, 100.25, 1e9]
            assert (device, backend) == ("/dev/video7", cv2.CAP_V4L2)

        def isOpened(self):  # noqa: N802
            return True

        def set(self, what, value):
            assert (what, value) == (cv2.CAP_PROP_BUFFERSIZE, 2)

        def grab(self):
            return bool(self.stamps)

        def get(self, what):
            assert what == cv2.CAP_PROP_POS_MSEC
            return 1000 * self.stamps.pop(0)

        def retrieve(self):
            return (not self.stamps), np.zeros((2, 2, 3), np.uint8)

        def release(self):
            Camera.released = True

    monkeypatch.setattr(camera_loop.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(camera_loop.time, "monotonic", lambda: 100.0)
    frames = camera_loop._frames_of_camera("/dev/video7")
    first, second, third = itertools.islice(frames, 3)
    assert [frame.captured for frame in (first, second, third)] == [99.5, 100, 100]
    assert first.since == second.since == "the driver's time stamp"
    assert third.since == "the frame was handed over"
    assert third.decode().shape == (2, 2, 3)
    with pytest.raises(Error, match="/dev/video7 gives no more frames"):
        next(frames)
    assert Camera.released


def test_what_cannot_be_a_source(camera_loop, tmp_path, mean_model):
    with pytest.raises(Error, match="expected a folder of frames, or a camera"):
        camera_loop.frames_of(str(tmp_path / "nothing"))
    with pytest.raises(Error, match="/dev/null cannot be opened as a camera"):
        next(camera_loop.frames_of("/dev/null"))
    classifier = camera_loop.Classifier(str(mean_model))
    with pytest.raises(Error, match="expected more than 3 frames, which only warm up, got 0"):
        camera_loop.loop(classifier, camera_loop.frames_of(str(tmp_path)), print)
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(Error, match=r"a\.jpg is no picture"):
        camera_loop.loop(classifier, camera_loop.frames_of(str(tmp_path)), print)


def test_a_model_of_something_else(camera_loop, two_in_two_out, tmp_path):
    tfdwd.export(two_in_two_out, tmp_path / "two.tflite")
    with pytest.raises(Error, match=r"two\.tflite: expected one input \(1, height, width, 1 or 3"):
        camera_loop.Classifier(str(tmp_path / "two.tflite"))


def test_the_command(mean_model, pan, tmp_path, pytestconfig):
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    script = pytestconfig.rootpath / "examples/camera_loop.py"
    command = [sys.executable, script, f"--model={mean_model}", f"--source={pan}"]
    command += ["--labels=labels.txt", "--json=report.json", "--frames=10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("red ")  # as the photograph is in the mean
    assert "7 frames, " in done.stdout and last
    report = json.loads((tmp_path / "report.json").read_text())
    parts = {part["part"]: part["median"] for part in report["parts"]}
    end_to_end = parts.pop("end to end")
    assert 0 < max(parts.values()) <= end_to_end
    wrong = subprocess.run(
        [*command[:3], "--source=nothing"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert wrong.returncode == 1
    [*_, told] = wrong.stderr.splitlines()  # after what LiteRT may say
    assert told.startswith("camera_loop: nothing: expected a folder of frames")


@pytest.mark.slow
def test_it_runs_on_an_arm_board(grey_model, pan, tmp_path, pytestconfig):
    """Under qemu, with the board's packages alone; needs benchmarks/arm/emulator.py's downloads."""
    command = [sys.executable, pytestconfig.rootpath / "benchmarks/arm/emulator.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [python] = [line for line in done.stdout.splitlines() if line.endswith("cortex-a76")]
    shutil.copytree(pytestconfig.rootpath / "tfdwd", tmp_path / "tfdwd")
    script = pytestconfig.rootpath / "examples/camera_loop.py"
    results = []
    for interpreter in (sys.executable, python):
        done = subprocess.run(
            [interpreter, script, f"--model={grey_model}", f"--source={pan}"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        results.append(lines[: next(i for i, line in enumerate(lines) if line.startswith("ms "))])
    here, there = results
    # int8 on the same pixels; OpenCV's decoders and averages are whole numbers on both.
    assert here == there and len(here) > 1
