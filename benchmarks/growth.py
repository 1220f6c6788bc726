"""How the cost of `decompose` and `plan` grows with layers, channels and images.

    python benchmarks/growth.py                     (twenty minutes on two cores)

Plain networks of 32 px with 3x3 convolutions, batch norms and ReLUs, random weights and images:
one of 8 layers, 32 channels and 256 images, and others in which one of the three is halved, doubled
or four times as large. Seconds of `tfdwd.decompose` at rank 1, and of `tfdwd.plan` for half of the
MACs that tries one student (minutes=0), the median of three in turn; what TensorFlow and LiteRT do
once in a process is done before. Times of layers come from a fresh cache for each plan. Writes
growth.csv beside this file.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np
from keras import layers

import tfdwd
from tfdwd import reporting

PATH = pathlib.Path(__file__).resolve().parent / "growth.csv"
HEADERS = ["layers", "channels", "images", "decompose s", "plan s"]
MIDDLE = {"depth": 8, "channels": 32, "images": 256}
SIZES = (
    [MIDDLE]
    + [{**MIDDLE, "depth": depth} for depth in (4, 16, 32)]
    + [{**MIDDLE, "channels": channels} for channels in (16, 64, 128)]
    + [{**MIDDLE, "images": images} for images in (128, 512, 1024)]
)
ROUNDS = 3


def network(depth: int, channels: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((32, 32, 3))
    for _ in range(depth):
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    cases = [
        (network(size["depth"], size["channels"]),
         np.random.default_rng(0).normal(size=(size["images"], 32, 32, 3)).astype(np.float32))
        for size in SIZES
    ]  # fmt: skip

    def plan(model: keras.Model, images: np.ndarray) -> None:
        with tempfile.TemporaryDirectory() as folder:
            tfdwd.plan(model, images, macs=0.5, minutes=0, cache=f"{folder}/latency.json")

    found: list[tuple[list[float], list[float]]] = [([], []) for _ in cases]
    plan(*cases[0])
    for _ in range(ROUNDS):
        for (model, images), (decomposed, planned) in zip(cases, found, strict=True):
            decomposed.append(seconds(partial(tfdwd.decompose, model, images, rank=1)))
            planned.append(seconds(partial(plan, model, images)))
            print(model.count_params(), len(images), decomposed[-1], planned[-1], flush=True)
        rows = [
            [str(number) for number in size.values()]
            + [f"{statistics.median(s):.1f}" for s in both]
            for size, both in zip(SIZES, found, strict=True)
        ]
        common.write_rows(PATH, HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
