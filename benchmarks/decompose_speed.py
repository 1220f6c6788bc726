"""How long `decompose` takes over what cannot be avoided, and how much memory.

    python benchmarks/decompose_speed.py             (about 10 minutes on two cores)
    python benchmarks/decompose_speed.py ResNet-8    (about 1 minute)

Unavoidable is: running the original and the student once over the images, the matrix products of
the moments (as many rows as decompose takes), one Cholesky factorisation per replaced layer. Both
are timed in turns in one process; expected ratio: at most 3. Peak memory is that of processes of
their own, for 256 and for 2,048 images; expected: less than 20 % apart.

Networks: the ResNet-8 of MLPerf Tiny (from TFDWD_DATA) with 1,024 images of CIFAR-10, and
keras.applications.ResNet50 at 128 px with 128 images, both random. Adds to decompose_speed.csv
beside this file, whose rows for the same networks are replaced.
"""

import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import keras
import numpy as np
import scipy.linalg
import tensorflow as tf

import tfdwd
from tfdwd import blas, calibration

HERE = pathlib.Path(__file__).parent
HEADERS = ["network", "images", "seconds", "ratio", "MiB at 256", "MiB at 2048"]
REPEATS = 3


def resnet8(images: int) -> tuple[keras.Model, np.ndarray]:
    (pixels, _), _ = common.cifar10()
    return common.resnet8(), pixels[:images].astype(np.float32)


def resnet50(images: int) -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None, input_shape=(128, 128, 3))
    pixels = np.random.default_rng(0).normal(size=(images, 128, 128, 3))
    return model, pixels.astype(np.float32)


NETWORKS = {"ResNet-8": (resnet8, 1024), "ResNet50": (resnet50, 128)}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def unavoidable(
    model: keras.Model, student: keras.Model, images: np.ndarray, rows: list[tuple[int, int, int]]
) -> dict[str, float]:
    """Seconds of each part, everything compiled and warm beforehand."""
    networks = [tf.function(network, autograph=False) for network in (model, student)]
    batches = [tf.constant(images[i : i + 32]) for i in range(0, len(images), 32)]
    for network in networks:
        network(batches[0])
    source = np.random.default_rng(0)
    parts = {
        "networks": seconds(lambda: [n(batch) for n in networks for batch in batches]),
        "products": 0.0,
        "Cholesky": 0.0,
    }
    for count, d, n in rows:
        each = 4096
        x = source.normal(size=(each, d)).astype(np.float32)
        y = source.normal(size=(each, n)).astype(np.float32)
        gram = x.T.astype(np.float64) @ x + np.eye(d)
        with blas.threads_for(
            d
        ):  # as decompose does; else small products take several times as long
            once = seconds(lambda x=x, y=y: (x.T @ x, x.T @ y))
            parts["Cholesky"] += seconds(
                lambda gram=gram: scipy.linalg.cho_factor(gram, lower=True)
            )
        parts["products"] += once * count / each
    return parts


def decompose_and_count(
    model: keras.Model, images: np.ndarray
) -> tuple[keras.Model, list[tuple[int, int, int]]]:
    """The student, and for each replaced layer the (rows, c * q, n) that decompose takes."""
    found = []

    def counted(*arguments: Any, **options: Any) -> Iterator[list[calibration.Collected]]:
        for level in calibration.levels(*arguments, **options):
            found.extend((one.moments.count, *one.moments.sum_xy.shape) for one in level)
            yield level

    return common.decomposed(model, images, sweep=counted), found


def main(names: list[str]) -> None:
    path = HERE / "decompose_speed.csv"
    lines = [line for line in common.read_rows(path) if line[0] not in names]
    for name in names:
        make, images = NETWORKS[name]
        model, data = make(images)
        student, rows = decompose_and_count(model, data)
        ratios, wholes, parts = [], [], []
        for _ in range(REPEATS):
            parts.append(unavoidable(model, student, data, rows))
            wholes.append(seconds(lambda model=model, data=data: tfdwd.decompose(model, data)))
            ratios.append(wholes[-1] / sum(parts[-1].values()))
        split = ", ".join(
            f"{key} {statistics.median(p[key] for p in parts):.2f}" for key in parts[0]
        )
        print(
            f"{name}, {images} images: decompose {statistics.median(wholes):.1f} s, unavoidable "
            f"{split} s; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f})"
        )
        peaks = []
        for count in (256, 2048):
            command = [sys.executable, __file__, "--peak", name, str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(float(done.stdout.split()[-1]))
        print(
            f"{name}: peak memory {peaks[0]:.0f} MiB for 256 images, {peaks[1]:.0f} MiB for 2,048: "
            f"{100 * (peaks[1] / peaks[0] - 1):+.1f} %"
        )
        figures = [statistics.median(wholes), statistics.median(ratios), *peaks]
        lines.append([name, str(images), *(f"{figure:.2f}" for figure in figures)])
    common.write_rows(path, HEADERS, lines)


def peak_memory(name: str, images: int) -> None:
    """Prints the peak resident MiB of one decomposition, of images made as they are asked for."""
    model, _ = NETWORKS[name][0](1)
    shape = model.inputs[0].shape[1:]
    source = np.random.default_rng(0)

    def stream():
        for _ in range(0, images, 32):
            yield source.normal(size=(32, *shape)).astype(np.float32)

    tfdwd.decompose(model, stream())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        peak_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main(sys.argv[1:] or list(NETWORKS))
