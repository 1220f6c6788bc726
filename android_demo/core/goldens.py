"""Writes what the Java tests compare with: what Python makes of the same pictures and numbers.

    python android_demo/core/goldens.py                   # the committed files
    python android_demo/core/goldens.py --models build/models   # and models with their outputs

`tests/test_android_core.py` holds the committed files against a new run. They are Java properties;
arrays are hexadecimal: bytes of pixels, big-endian floats, and tensors as they lie in memory.
"""

import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import tfdwd
from tfdwd import benchmarking, lite
from tfdwd.data import imagenet

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "src/test/resources/golden"
DEMO = HERE.parents[1] / "benchmarks/demo"
PHASES = ("preprocessing", "inference", "postprocessing")
PICTURES = 12
SEED = 9  # the first whose pixels all keep away from halves, see _resized

# How far two implementations of the same resizing may lie apart, on a scale of 0..255: each rounds
# at most 16 times (5 + 5 taps and what normalises them) by half a unit in the last place of 255.
TOLERANCE = 2 * 16 * 2**-17

_GOLDEN = flags.DEFINE_string("golden", str(GOLDEN), "folder for pictures and numbers")
_MODELS = flags.DEFINE_string("models", None, "folder for the demo's models and their outputs")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    write_goldens(pathlib.Path(_GOLDEN.value))
    if _MODELS.value is not None:
        write_models(pathlib.Path(_MODELS.value))


def write_goldens(folder: pathlib.Path) -> None:
    """Pictures before and after preprocessing, and rounds of a benchmark with their report."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(SEED)

    def noise(height: int, width: int) -> np.ndarray:
        return generator.integers(0, 256, (height, width, 3), np.uint8)

    with np.load(DEMO / "fashion_mnist.npz") as content:
        shirt = content["x_test"][0].repeat(3, axis=2)
    float32 = lite.Tensor("", (), np.dtype(np.float32))
    int8 = lite.Tensor("", (), np.dtype(np.int8), 1 / 127, 3)
    uint8 = lite.Tensor("", (), np.dtype(np.uint8), 0.75, 7)  # saturates at both ends
    int16 = lite.Tensor("", (), np.dtype(np.int16), 0.0078, 0)
    pixels = lite.Tensor("", (), np.dtype(np.int8), 1.0, -128)
    cases = {
        "wide_to_square": (noise(43, 61), 32, 28, 3, 1.0, 0.0, float32),
        "tall_and_shrunk": (noise(90, 31), 18, 16, 3, 1 / 127.5, -1.0, int8),
        "grown": (noise(9, 13), 26, 24, 1, 2.0, -100.0, uint8),
        # 20 * 5 / 8 is 12.5, and NumPy's and TensorFlow's halves go to 12
        "half_a_pixel": (noise(8, 20), 5, 5, 3, 1.0, 0.0, float32),
        "colours_to_grey": (noise(16, 16), 16, 16, 1, 1 / 255, 0.0, int16),
        "as_it_is": (shirt, 28, 28, 1, 1.0, 0.0, pixels),
    }
    for name, case in cases.items():
        _write(folder / f"{name}.properties", _preprocessing(*case))
    _write(folder / "cases.properties", {"names": " ".join(cases)})
    for rounds, models in ((1, 2), (2, 2), (5, 3), (30, 2), (60, 3)):
        seconds = generator.uniform(0.005, 0.01, (len(PHASES), models, rounds))
        stem = folder / f"rounds_{rounds}"
        content = {"models": models, "rounds": rounds, "seconds": _hex(seconds, ">f8")}
        _write(stem.with_suffix(".properties"), content)
        for phase, of_phase in zip(PHASES, seconds, strict=True):
            report = _report(of_phase)
            stem.with_suffix(f".{phase}.json").write_text(report.to_json())
    counts = (2, 7, 30, 3 * 2**29)  # of the last one, a quarter is drawn anew
    draws = {
        str(count): " ".join(map(str, np.random.default_rng(0).integers(0, count, 200)))
        for count in counts
    }
    _write(folder / "draws.properties", draws)


def _report(seconds: np.ndarray) -> benchmarking.BenchmarkReport:
    return benchmarking.BenchmarkReport(
        timings=tuple(
            benchmarking.timing_of(f"model {index}", 1000 + index, of_model, seconds[0])
            for index, of_model in enumerate(seconds)
        ),
        device='Grüße "8\\9" \N{GRINNING FACE}',
        threads=4,
        rounds=seconds.shape[1],
        runtime="LiteRT 1.2.3",
        date="2026-03-01T19:08:07+00:00",
        xnnpack=False,
    )


def _preprocessing(
    picture: np.ndarray,
    resize: int,
    size: int,
    channels: int,
    scale: float,
    offset: float,
    tensor: lite.Tensor,
) -> dict[str, object]:
    """One case: the pixels, the options, and all that stands between them and the tensor."""
    height, width, _ = picture.shape
    values = keras.layers.Rescaling(scale, offset)(pixels(picture, resize, size, channels)).numpy()
    held = tensor.quantized(values)
    return {
        "width": width,
        "height": height,
        "rgb": picture.tobytes().hex(),
        "resize": resize,
        "size": size,
        "channels": channels,
        "scale": np.float32(scale),
        "offset": np.float32(offset),
        "type": tensor.dtype.name.upper(),
        "unit": np.float32(tensor.scale),
        "zero_point": tensor.zero_point,
        "resized": _hex(_resized(picture, resize, size), ">f4"),
        "values": _hex(values, ">f4"),
        "held": held.tobytes().hex(),
        "real": _hex(tensor.real(held), ">f4"),
    }


def pixels(picture: np.ndarray, resize: int, size: int, channels: int) -> np.ndarray:
    """(size, size, channels) uint8 as `tfdwd.data` prepares a picture for testing."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "class/picture.png"
        path.parent.mkdir()
        path.write_bytes(tf.io.encode_png(picture).numpy())
        data = imagenet.evaluation(imagenet.image_folder(folder), 1, size=size, resize=resize)
        [(images, _)] = data
    return (images[0] if channels == 3 else tf.image.rgb_to_grayscale(images[0])).numpy()


def _resized(picture: np.ndarray, resize: int, size: int) -> np.ndarray:
    """The same before it is rounded to bytes."""
    shape = np.float32(picture.shape[:2])
    height, width = np.round(shape * np.float32(resize) / shape.min()).astype(int)
    image = tf.image.resize(picture, (height, width), antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    cropped = image[top : top + size, left : left + size].numpy()
    rounded = np.clip(cropped + np.float32(0.5), 0, 255).astype(np.uint8)
    assert (rounded == pixels(picture, resize, size, 3)).all()
    # No pixel may be rounded otherwise by a machine that adds in another order.
    assert (abs(cropped % 1 - 0.5) > TOLERANCE).all(), "take another seed"
    return cropped


def write_models(folder: pathlib.Path) -> None:
    """The demo's network and a student as .tflite files, pictures, and what Python makes of both.

    `quantize` is in the name of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = keras.models.load_model(DEMO / "fashion_shufflenet.keras", compile=False)
    with np.load(DEMO / "fashion_mnist.npz") as content:
        data = dict(content)
    student = tfdwd.decompose(model, method="svd", rank=3)
    images = data["x_test"][:PICTURES].repeat(3, axis=3)
    large = images[-4:].repeat(2, axis=1).repeat(3, axis=2)  # 56 x 84: to be resized and cropped
    pictures = [*images[:-4], *large]
    for network, quantize in (
        (model, "none"), (model, "int8"), (model, "dynamic"), (student, "none"), (student, "int8"),
    ):  # fmt: skip
        name = f"{'original' if network is model else 'student'}_{quantize}"
        path = folder / f"{name}.tflite"
        tfdwd.export(network, path, quantize=quantize, data=data["x_train"][:128])
        runner = lite.Model(path)
        prepared = np.stack([pixels(picture, 28, 28, 1) for picture in pictures])
        scores = np.concatenate([runner.run([image[None]])[0] for image in prepared])
        _write(
            folder / f"{name}.properties",
            {
                "input": _describe(runner.inputs[0]),
                "output": _describe(runner.outputs[0]),
                "scores": _hex(scores, ">f4"),
            },
        )
    described = {
        f"picture_{index}": f"{picture.shape[1]} {picture.shape[0]} {picture.tobytes().hex()}"
        for index, picture in enumerate(pictures)
    }
    _write(folder / "pictures.properties", described)


def _describe(tensor: lite.Tensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor.dtype.name.upper()} {shape} {np.float32(tensor.scale)} {tensor.zero_point}"


def _hex(values: np.ndarray, kind: str) -> str:
    return values.astype(kind).tobytes().hex()


def _write(path: pathlib.Path, content: dict[str, object]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in content.items()))


if __name__ == "__main__":
    app.run(main)
