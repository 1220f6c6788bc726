"""The same on every processor: what the last bits of the moments do to each method.

    python benchmarks/steady.py                     (about 10 minutes on two cores)

The demo's network, rank 1, each method: as it is, with noise of 1e-6 on all moments (two seeds),
and with moments rounded to float16's 11 bits. Top-1 on the 2,000 training images that follow those
of calibration; the standard error of a difference is about half a point. Expected: float16
moves no method by more than a point. Writes steady.csv beside this file.
"""

import contextlib
import csv
import os
import pathlib
from collections.abc import Callable
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import tfdwd
from tfdwd import reporting
from tfdwd.moments import Moments

HERE = pathlib.Path(__file__).resolve().parent
HEADERS = ["method", "as it is", "1e-6, seed 0", "1e-6, seed 1", "float16", "apart in points"]
METHODS = ("gsvd", "sequential", "joint", "auto")


def noise(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    source = np.random.default_rng(seed)
    return lambda array: array * (1 + 1e-6 * source.normal(size=array.shape))


def rounded(array: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2048) / 2048, exponent)


WAYS = (lambda array: array, noise(0), noise(1), rounded)


def disturbed(change: Callable[[np.ndarray], np.ndarray]) -> contextlib.ExitStack:
    """All moments changed as they are read, as another processor's sums would change them."""
    stack = contextlib.ExitStack()
    for name in ("xx", "xy"):
        plain = getattr(Moments, name).fget

        def read(moments: Moments, plain: Callable[[Moments], np.ndarray] = plain) -> np.ndarray:
            array = change(plain(moments))
            same = array.shape[0] == array.shape[1] and np.allclose(array, array.T, rtol=1e-2)
            return np.tril(array) + np.tril(array, -1).T if same else array

        stack.enter_context(mock.patch.object(Moments, name, property(read)))
    return stack


def main() -> None:
    model = keras.models.load_model(HERE / "demo" / "fashion_shufflenet.keras", compile=False)
    with np.load(HERE / "demo" / "fashion_mnist.npz") as content:
        images, labels = content["x_train"], content["y_train"].ravel()
    rows = []
    for method in METHODS:
        options = {"method": "joint", "stack": "auto"} if method == "auto" else {"method": method}
        top1 = []
        for way in WAYS:
            with disturbed(way):
                student = tfdwd.decompose(model, images[:512], rank=1, **options)
            top1.append(tfdwd.evaluate(student, (images[512:2512], labels[512:2512])).top1)
        apart = 100 * (max(top1) - min(top1))
        rows.append([method, *(f"{value:.4f}" for value in top1), f"{apart:.1f}"])
        print(*rows[-1], flush=True)
    with open(HERE / "steady.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADERS, *rows])
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
