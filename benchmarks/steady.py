"""The same on every processor: what the last bits of the moments do to each method.

    python benchmarks/steady.py                     (about 10 minutes on two cores)

The demo's network, rank 1, each method: as it is, with noise of 1e-6 on all moments (two seeds),
and with moments rounded to float16's 11 bits. Top-1 on the 2,000 training images that follow those
of calibration; the standard error of a difference is about half a point. Expected: float16
moves no method by more than a point. Writes steady.csv beside this file.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import common
import numpy as np

import tfdwd
from tfdwd import calibration, reporting

HERE = pathlib.Path(__file__).resolve().parent
HEADERS = ["method", "as it is", "1e-6 seed 0", "1e-6 seed 1", "float16", "apart in points"]
METHODS = ("gsvd", "sequential", "joint", "auto")


def noise(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    source = np.random.default_rng(seed)
    return lambda array: array * (1 + 1e-6 * source.normal(size=array.shape))


def rounded(array: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2048) / 2048, exponent)


WAYS = (lambda array: array, noise(0), noise(1), rounded)


@dataclasses.dataclass(eq=False)
class Disturbed(calibration.Moments):
    """Moments that are changed as they are read, as another processor's sums would change them."""

    change: Callable[[np.ndarray], np.ndarray]

    @property
    def xx(self) -> np.ndarray:
        array = self.change(super().xx)
        return np.tril(array) + np.tril(array, -1).T

    @property
    def xy(self) -> np.ndarray:
        return self.change(super().xy)


def disturbed(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Iterator[Any]]:
    """`calibration.levels` with all moments changed."""

    def levels(*arguments: Any, **options: Any) -> Iterator[list[calibration.Collected]]:
        for level in calibration.levels(*arguments, **options):
            for collected in level:
                collected.moments = Disturbed(**vars(collected.moments), change=change)
                collected.share()  # so that `rectified` starts from these, too
            yield level

    return levels


def main() -> None:
    model, ((images, labels), _) = common.shufflenet(), common.fashion()
    rows = []
    for method in METHODS:
        options = {"method": "joint", "stack": "auto"} if method == "auto" else {"method": method}
        top1 = []
        for way in WAYS:
            student = common.decomposed(model, images[:512], sweep=disturbed(way), **options)
            top1.append(tfdwd.evaluate(student, (images[512:2512], labels[512:2512])).top1)
        apart = 100 * (max(top1) - min(top1))
        rows.append([method, *(f"{value:.4f}" for value in top1), f"{apart:.1f}"])
        print(*rows[-1], flush=True)
    common.write_rows(HERE / "steady.csv", HEADERS, rows)
    print(reporting.table(HEADERS, rows))


if __name__ == "__main__":
    main()
