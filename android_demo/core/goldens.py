"""Writes what the Java tests compare with: what Python makes of the same pictures and numbers.

    python android_demo/core/goldens.py                   # the committed files
    python android_demo/core/goldens.py --models build/models   # and models with their outputs

`tests/test_android_core.py` holds the committed files against a new run. They are Java properties;
arrays are hexadecimal: bytes of pixels, big-endian floats, and tensors as they lie in memory.
"""

import math
import os
import pathlib
import tempfile
from fractions import Fraction
from typing import Any

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
OUTPUT_SCALE, OUTPUT_OFFSET = 200.0, 20.0  # of the pictures that models make
SEED = 9  # the first whose pixels all keep away from halves, see _resized
NETWORK_SEED = 23  # no place of a mask is nearly of another class, see _margins

# How far two implementations of the same resizing may lie apart, on a scale of 0..255: each rounds
# at most 16 times (5 + 5 taps and what normalises them) by half a unit in the last place of 255.
TOLERANCE = 2 * 16 * 2**-17

_layers = keras.layers

_GOLDEN = flags.DEFINE_string("golden", str(GOLDEN), "folder for pictures and numbers")
_MODELS = flags.DEFINE_string("models", None, "folder for models and their outputs")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    write_goldens(pathlib.Path(_GOLDEN.value))
    if _MODELS.value is not None:
        write_models(pathlib.Path(_MODELS.value))


def write_goldens(folder: pathlib.Path) -> None:
    """Pictures before and after preprocessing, what is drawn of outputs, and rounds of a benchmark.

    The rounds go with their report.
    """
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
    drawings = _drawings()
    for name, content in drawings.items():
        _write(folder / f"{name}.properties", content)
    _write(folder / "cases.properties", {"names": " ".join(cases), "drawings": " ".join(drawings)})
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


def _drawings() -> dict[str, dict[str, object]]:
    """Outputs as tensors hold them, and what is drawn of them."""
    generator = np.random.default_rng(SEED)
    float32, int8, uint8 = map(np.dtype, (np.float32, np.int8, np.uint8))

    def tensor(shape: tuple[int, ...], dtype: np.dtype, scale: float = 0.0, zero: int = 0):
        return lite.Tensor("", (1, *shape), dtype, scale, zero)

    # The photo's height and width, resize, the input's height and width, the output.
    cases = {
        "mask_of_a_crop": ("mask", (37, 53), 30, (24, 20), tensor((12, 10, 5), float32)),
        # 9 levels for 21 classes: many are equal
        "mask_larger_than_the_photo": (
            "mask", (11, 16), 32, (32, 32), tensor((32, 32, 21), int8, 0.25, -3),
        ),
        "mask_of_one_class": ("mask", (28, 28), 28, (28, 28), tensor((14, 7, 1), uint8, 1 / 255)),
        "picture_in_colours": ("picture", (9, 9), 4, (4, 4), tensor((9, 7, 3), float32)),
        "picture_in_grey": ("picture", (9, 9), 4, (4, 4), tensor((8, 8, 1), int8, 1 / 200, -100)),
    }  # fmt: skip
    found = {}
    for name, (task, size, resize, crop, output) in cases.items():
        photo = generator.integers(0, 256, (*size, 3), np.uint8)
        held = output.quantized(generator.normal(0.5, 0.5, output.shape).astype(np.float32))
        values = output.real(held)[0]
        drawn = _drawn(task, values, photo, resize, crop)
        found[name] = {
            "task": task,
            "photo": _described(photo),
            "resize": resize,
            "crop": " ".join(map(str, crop)),
            "output": _describe(output),
            "held": held.tobytes().hex(),
            "drawn": _described(drawn),
            "shares": _hex(_shares(values), ">f4") if task == "mask" else "",
        }
    return found


def _drawn(
    task: str, values: np.ndarray, photo: np.ndarray, resize: int, crop: tuple[int, int]
) -> np.ndarray:
    """What is shown of an output (height, width, channels): (height, width, 3) uint8."""
    if task == "picture":
        scaled = values * np.float32(OUTPUT_SCALE) + np.float32(OUTPUT_OFFSET)
        whole = np.clip(scaled + np.float32(0.5), 0, 255).astype(np.uint8)
        return np.broadcast_to(whole, (*whole.shape[:2], 3))
    numbers = _numbers(values)
    rows, columns = map(_parts, photo.shape[:2], _full(photo, resize), crop, numbers.shape)
    seen = np.logical_and.outer(rows >= 0, columns >= 0)
    number = np.where(seen, numbers[np.ix_(rows, columns)], -1)[..., None]
    colours = [_colour(index) for index in range(values.shape[-1] + 1)]
    over = np.array([*colours, [0, 0, 0]], np.uint8)[number[..., 0]]  # -1, not seen, is black
    return np.where(number == 0, photo, photo // 2 + over // 2)


def _parts(length: int, full: int, crop: int, count: int) -> np.ndarray:
    """For each pixel of a side of the photo the part of the crop it lies in, of `count`; or -1."""
    first = (int(full) - crop) // 2
    middles = (Fraction(2 * i + 1, 2) * int(full) / length - first for i in range(length))
    parts = np.array([math.floor(middle * count / crop) for middle in middles])
    return np.where((parts >= 0) & (parts < count), parts, -1)


def _numbers(values: np.ndarray) -> np.ndarray:
    """For each place its class, or 1 or 0 for a single class."""
    return np.where(values[..., 0] >= 0.5, 1, 0) if values.shape[-1] == 1 else values.argmax(-1)


def _margins(values: np.ndarray) -> np.ndarray:
    """How much would have to change at each place for another class."""
    if values.shape[-1] == 1:
        return abs(values[..., 0] - 0.5)
    best = np.sort(values, -1)
    return best[..., -1] - best[..., -2]


def _shares(values: np.ndarray) -> np.ndarray:
    """Of each class, of all places."""
    classes = values.shape[-1]
    counts = np.bincount(_numbers(values).ravel(), minlength=classes + (classes == 1))
    return (counts[1:] if classes == 1 else counts).astype(np.float32) / values[..., 0].size


def _colour(number: int) -> list[int]:
    """PASCAL VOC's: every third bit is a channel's, the lowest one its highest."""
    bits = f"{number:024b}"[::-1]
    return [int(bits[channel::3], 2) for channel in range(3)]


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
    height, width = _full(picture, resize)
    image = tf.image.resize(picture, (height, width), antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    cropped = image[top : top + size, left : left + size].numpy()
    rounded = np.clip(cropped + np.float32(0.5), 0, 255).astype(np.uint8)
    assert (rounded == pixels(picture, resize, size, 3)).all()
    # No pixel may be rounded otherwise by a machine that adds in another order.
    assert (abs(cropped % 1 - 0.5) > TOLERANCE).all(), "take another seed"
    return cropped


def _full(picture: np.ndarray, resize: int) -> np.ndarray:
    """Height and width after resizing, before the crop."""
    shape = np.float32(picture.shape[:2])
    return np.round(shape * np.float32(resize) / shape.min()).astype(int)


def write_models(folder: pathlib.Path) -> None:
    """Models of all tasks as .tflite files, pictures, and what Python makes of both.

    For classes there are the demo's network and a student. `quantize` is in the name of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = keras.models.load_model(DEMO / "fashion_shufflenet.keras", compile=False)
    with np.load(DEMO / "fashion_mnist.npz") as content:
        data = dict(content)
    student = tfdwd.decompose(model, method="svd", rank=3)
    images = data["x_test"][:PICTURES].repeat(3, axis=3)
    large = images[-4:].repeat(2, axis=1).repeat(3, axis=2)  # 56 x 84: to be resized and cropped
    pictures = [*images[:-4], *large]
    keras.utils.set_random_seed(NETWORK_SEED)
    float_and_int8 = ("none", "int8")
    networks = {
        "original": ("classes", model, (*float_and_int8, "dynamic")),
        "student": ("classes", student, float_and_int8),
        "mask": ("mask", _network(3, _layers.Conv2D, 5, strides=2), float_and_int8),
        "one_class": ("mask", _network(1, _layers.Conv2D, 1, activation="sigmoid"), float_and_int8),
        "picture": ("picture", _network(3, _layers.Conv2DTranspose, 3, strides=2), float_and_int8),
    }
    outputs = {}
    for network, (task, given, kinds) in networks.items():
        channels = given.input_shape[-1]
        prepared = np.stack([pixels(picture, 28, 28, channels) for picture in pictures])
        for quantize in kinds:
            name = f"{network}_{quantize}"
            path = folder / f"{name}.tflite"
            training = data["x_train"][:128].repeat(channels, axis=3)
            tfdwd.export(given, path, quantize=quantize, data=training)
            runner = lite.Model(path)
            values = np.concatenate([runner.run([image[None]])[0] for image in prepared])
            described = {
                "input": _describe(runner.inputs[0]),
                "output": _describe(runner.outputs[0]),
                "values": _hex(values, ">f4"),
            }
            if task != "classes":
                if task == "mask" and quantize == "none":
                    # No place may be told otherwise by another machine: LiteRtTest allows 1e-6.
                    assert _margins(values).min() > 4e-6, "take another seed"
                for index, (picture, of_picture) in enumerate(zip(pictures, values, strict=True)):
                    drawn = _drawn(task, of_picture, picture, 28, (28, 28))
                    described[f"drawn_{index}"] = _described(drawn)
            _write(folder / f"{name}.properties", described)
            outputs[name] = values
    _write(
        folder / "agreements.properties",
        {
            "original_none.student_none": _same_answer(outputs, "original_none", "student_none"),
            "original_none.original_int8": _same_answer(outputs, "original_none", "original_int8"),
            "mask_none.mask_int8": _same_class(outputs, "mask_none", "mask_int8"),
            "one_class_none.one_class_int8": _same_class(
                outputs, "one_class_none", "one_class_int8"
            ),
            "picture_none.picture_int8": _difference(outputs, "picture_none", "picture_int8"),
        },
    )
    _write(
        folder / "pictures.properties",
        {f"picture_{index}": _described(picture) for index, picture in enumerate(pictures)},
    )


def _network(channels: int, last: type[keras.Layer], filters: int, **options: Any) -> keras.Model:
    """Untrained, of bytes, 28 x 28. Without biases all classes were equal where it is black."""
    biased = {"bias_initializer": "random_normal"}
    return keras.Sequential(
        [
            keras.Input((28, 28, channels)),
            _layers.Rescaling(1 / 255),
            _layers.Conv2D(8, 3, padding="same", activation="relu", **biased),
            last(filters, 3, **biased, **options),
        ]
    )


def _same_answer(outputs: dict[str, np.ndarray], one: str, other: str) -> str:
    same = (outputs[one].argmax(-1) == outputs[other].argmax(-1)).sum()
    return f"Same answer on {same} of {PICTURES} samples."


def _same_class(outputs: dict[str, np.ndarray], one: str, other: str) -> str:
    same = (_numbers(outputs[one]) == _numbers(outputs[other])).mean()
    return f"Same class at {100 * same:.1f} % of the places of {PICTURES} samples."


def _difference(outputs: dict[str, np.ndarray], one: str, other: str) -> str:
    first, second = (
        np.stack([_drawn("picture", values, values, 0, (0, 0)) for values in outputs[name]])
        for name in (one, other)
    )
    mean = abs(first.astype(int) - second).mean()
    return f"They differ by {mean:.2f} of 255 on average of {PICTURES} samples."


def _described(picture: np.ndarray) -> str:
    """Width, height and bytes of (height, width, 3) uint8."""
    return f"{picture.shape[1]} {picture.shape[0]} {picture.tobytes().hex()}"


def _describe(tensor: lite.Tensor) -> str:
    shape = "x".join(map(str, tensor.shape))
    return f"{tensor.dtype.name.upper()} {shape} {np.float32(tensor.scale)} {tensor.zero_point}"


def _hex(values: np.ndarray, kind: str) -> str:
    return values.astype(kind).tobytes().hex()


def _write(path: pathlib.Path, content: dict[str, object]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in content.items()))


if __name__ == "__main__":
    app.run(main)
